"""`distrib predict` as a person uses it."""

import csv
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from random_model import write_model

from distrib.cli.predict import main
from distrib.model.prediction import draw_heat_map, fitting
from distrib.model.trained import load
from distrib.photographs.alignment import moved

ATTRIBUTES = ("Smiling", "Eyeglasses", "Male")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture
def photographs(faces: Path, tmp_path: Path) -> Path:
    """A folder with three photographs, a.jpg to c.jpg, of one face each and of other sizes than CelebA's."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, file in zip("abc", sorted((faces / "img_align_celeba").iterdir()), strict=False):
        Image.open(file).resize((267, 327)).save(folder / f"{name}.jpg", quality=95)
    return folder


def predict_json(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> list[dict[str, Any]]:
    assert main([*map(str, arguments), "--json"]) == status
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_json_says_what_the_model_says(model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = predict_json(capsys, model, photographs, "--no-align")
    assert [Path(row["photo"]).name for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    trained = load(model)
    for row in rows:
        logits = trained.logits(trained.fit(np.array(Image.open(row["photo"])))[None])
        assert (row["face"], row["faces"], row["aligned"], row["box"], row["eyes"]) == (1, 1, "no", None, None)
        assert tuple(row["attributes"]) == ATTRIBUTES
        told = list(row["attributes"].values())
        np.testing.assert_allclose([each["probability"] for each in told], trained.probabilities(logits)[0], atol=1e-4)
        assert [each["present"] for each in told] == trained.decisions(logits)[0].tolist()


def test_other_thresholds_decide_where_they_are_asked_for(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"accuracy": (1.0, 1.0, 1.0), "balanced_accuracy": (0.0, 0.0, 0.0)}
    careful = write_model(tmp_path / "best", other_thresholds=others)
    for score, present in (("accuracy", False), ("balanced_accuracy", True)):
        for row in predict_json(capsys, careful, photographs, "--no-align", "--thresholds", score):
            assert [each["present"] for each in row["attributes"].values()] == [present] * 3


def test_csv_has_a_row_for_each_face(model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), str(photographs), "--no-align", "--csv", "--attributes", "Male", "Smiling"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    place = ["left", "top", "width", "height", "left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y"]
    told = ["Male_probability", "Male_decision", "Smiling_probability", "Smiling_decision"]
    assert list(rows[0]) == ["photo", "face", "faces", "aligned", *place, *told]
    expected = predict_json(capsys, model, photographs, "--no-align")
    for row, wanted in zip(rows, expected, strict=True):
        assert row["photo"] == wanted["photo"]
        assert float(row["Male_probability"]) == pytest.approx(wanted["attributes"]["Male"]["probability"])
        assert row["Male_decision"] == str(int(wanted["attributes"]["Male"]["present"]))


def test_text_names_the_present_ones_first(model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = predict_json(capsys, model, photographs / "a.jpg", "--no-align")
    assert main([str(model), str(photographs / "a.jpg"), "--no-align"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{photographs / 'a.jpg'} (the whole photograph, not aligned)"
    present = [name for name, each in row["attributes"].items() if each["present"]]
    for name in ATTRIBUTES:
        text = name if name in present else f"Not {name}"
        assert sum(f"  {text} " in f" {line.replace(',', ' ')}" for line in lines) == 1
        assert (name in present) == (f"Not {name}" not in lines[-1])


def test_one_attribute_is_one_line(model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), str(photographs), "--no-align", "--attributes", "Male"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line, row in zip(lines, predict_json(capsys, model, photographs, "--no-align"), strict=True):
        male = row["attributes"]["Male"]
        probability = male["probability"] if male["present"] else 1 - male["probability"]
        assert line.endswith(f": {'' if male['present'] else 'Not '}Male {100 * probability:.0f} %")


def test_a_turned_photograph_gives_the_same(model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, so the sensor saw it turned
    upright = Image.open(photographs / "a.jpg")
    upright.save(photographs / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(photographs / "turned.png", exif=exif)
    one, other = predict_json(capsys, model, photographs / "a.png", photographs / "turned.png", "--no-align")
    assert one["attributes"] == other["attributes"]


def test_broken_photographs_cost_only_themselves(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photographs / "b.jpg").read_bytes()
    (photographs / "b.jpg").write_bytes(whole[: len(whole) // 2])
    assert main([str(model), str(photographs), str(photographs / "*.gif"), "--no-align", "--json"]) == 1
    said = capsys.readouterr()
    rows = {Path(row["photo"]).name: row for row in json.loads(said.out)}
    assert set(rows) == {"a.jpg", "b.jpg", "c.jpg", "*.gif"}
    assert {name for name, row in rows.items() if "error" in row} == {"b.jpg", "*.gif"}
    assert len(said.err.splitlines()) == 2
    assert rows["b.jpg"]["error"] in said.err


def test_a_photograph_without_a_face_is_a_failure_that_names_the_way_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "wall.png")
    assert main([str(model), str(tmp_path / "wall.png")]) == 1
    assert "--no-align" in capsys.readouterr().err


def test_standard_input(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((photographs / "a.jpg").read_bytes())))
    piped, named = predict_json(capsys, model, "-", photographs / "a.jpg", "--no-align")
    assert piped["photo"] == "stdin"
    assert piped["attributes"] == named["attributes"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a.jpg", "--attributes", "Smilng"], "did you mean Smiling?"),
        (["a.jpg", "--occlusion", "Bald"], "Eyeglasses"),
        (["a.jpg", "--json", "--csv"], "choose one"),
        ([], "no photograph"),
    ],
)
def test_wrong_options_are_refused(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert main([str(model), *arguments]) == 2
    said = capsys.readouterr()
    assert part in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_a_missing_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing"), "a.jpg"]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_heat_maps_are_written_and_no_photograph_is_lost(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "a.jpg").rename(photographs / "a.Smiling.png")  # the name that the heat map of a.jpg would have
    Image.open(photographs / "b.jpg").save(photographs / "a.jpg")
    (photographs / "b.jpg").unlink()
    (photographs / "c.jpg").unlink()
    before = {file: file.read_bytes() for file in photographs.iterdir()}
    arguments = ["--no-align", "--occlusion", "Smiling", "--out", photographs]
    rows = predict_json(capsys, model, *sorted(before), *arguments)
    assert all(file.read_bytes() == content for file, content in before.items())
    maps = [Path(file) for row in rows for file in row["heat_maps"].values()]
    assert len(set(maps)) == len(before) == 2
    for file in maps:
        with Image.open(file) as picture:
            assert picture.width == 418  # the longer side is brought to 512 pixels
            assert picture.height > 512  # with the caption below


def test_names_that_are_no_text(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(photographs / "a.jpg", folder / os.fsdecode(b"\x8e\xca\x90^.jpg"))
    rows = predict_json(capsys, model, folder, "--no-align", "--occlusion", "Smiling", "--out", folder / "maps")
    (heat_map,) = (folder / "maps").iterdir()
    assert [row["heat_maps"] for row in rows] == [{"Smiling": str(heat_map)}]
    for option in ([], ["--csv"]):
        assert main([str(model), str(folder), "--no-align", *option]) == 0
        capsys.readouterr().out.encode("utf-8")


def test_names_that_are_no_text_stay_apart(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in (b"\x80.jpg", b"\x81.jpg", b"\x1b.jpg", b"\n.jpg"):
        shutil.copy(photographs / "a.jpg", tmp_path / os.fsdecode(name))
    names = {f"{tmp_path}/{name}.jpg" for name in ("\\udc80", "\\udc81", "\\x1b", "\\n")}
    assert {row["photo"] for row in predict_json(capsys, model, tmp_path, "--no-align")} == names
    assert main([str(model), str(tmp_path), "--no-align", "--csv"]) == 0
    assert {row["photo"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == names


def test_heat_maps_of_the_longest_names(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ["あ" * 79, "あ" * 78 + "い"]
    for name in names:
        shutil.copy(photographs / "a.jpg", tmp_path / f"{name}.jpg")
    files = [tmp_path / f"{name}.jpg" for name in names]
    rows = predict_json(capsys, model, *files, "--no-align", "--occlusion", "Smiling", "--out", tmp_path / "maps")
    maps = [Path(row["heat_maps"]["Smiling"]) for row in rows]
    assert len(set(maps)) == len(names)
    assert set(maps) == set((tmp_path / "maps").iterdir())
    for file, name in zip(maps, names, strict=True):
        assert file.name.startswith(name[:60])
        assert file.name.endswith(".Smiling.png")


def test_photographs_and_results_are_where_they_are_said_to_be(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photographs))
    monkeypatch.setenv("PHOTOS", str(photographs))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(photographs)
    # A shell that expands * has files such as these in it.
    (photographs / "b.jpg").rename(photographs / "~$b.jpg")
    (photographs / "c.jpg").rename(photographs / "$NOWHERE.jpg")
    arguments = ["~/a.jpg", "$PHOTOS/a.j*", "~$b.jpg", "$NOWHERE.jpg"]
    rows = predict_json(capsys, model, *arguments, "--no-align")
    assert [Path(row["photo"]).name for row in rows] == ["a.jpg", "a.jpg", "~$b.jpg", "$NOWHERE.jpg"]
    predict_json(capsys, model, "~/a.jpg", "--no-align", "--occlusion", "Smiling", "--out=$PHOTOS/maps")
    assert [file.name for file in (photographs / "maps").iterdir()] == ["a.Smiling.png"]
    (failed,) = predict_json(capsys, model, "$NOWHERE/a.jpg", status=1)
    assert "the environment variable NOWHERE is not set" in failed["error"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_json_is_json_on_any_terminal(
    model: Path, photographs: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photographs / "a.jpg").rename(photographs / "été 写真.jpg")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main([str(model), str(photographs / "été 写真.jpg"), "--no-align", "--json"]) == 0
    terminal.flush()
    assert isinstance(terminal.buffer, io.BytesIO)
    (row,) = json.loads(terminal.buffer.getvalue().decode("utf-8"))
    assert Path(row["photo"]).name == "été 写真.jpg"


def test_a_heat_map_lies_where_the_model_looked(model: Path) -> None:
    about = load(model).description
    pixels = np.full((400, 600, 3), 100, np.uint8)
    to_aligned = np.array([[0.0, 1.0, -50.0], [-1.0, 0.0, 400.0]])  # a face that lies on its side
    to_heat = np.vstack((fitting(about, 218, 178), (0, 0, 1))) @ np.vstack((to_aligned, (0, 0, 1)))
    heat = np.zeros((*about.image_size, 4), np.uint8)
    heat[5:10, 20:25] = (255, 0, 0, 255)
    drawn = np.array(draw_heat_map(pixels, heat, to_heat[:2], ("Smiling, 88 %", "small")))
    red = (drawn[..., 0] > 200) & (drawn[..., 1] < 60)
    y, x = np.argwhere(red[:400]).mean(axis=0)
    assert moved(to_heat[:2], np.array([x, y])) == pytest.approx((22, 7), abs=0.5)
    assert (drawn[400:] == 255).all(axis=2).mean() > 0.5  # the strip below is white, with writing on it
    assert (drawn[400:] < 100).any()


@pytest.mark.parametrize("zoom", [1, 0.8])
def test_the_fit_is_the_models_own(model: Path, zoom: float) -> None:
    trained = load(model)
    trained = replace(trained, description=trained.description.model_copy(update={"eval_zoom": zoom}))
    y, x = np.mgrid[0:218, 0:178]
    ramps = np.stack((x, y, 0 * x), axis=2).astype(np.uint8)
    fitted = trained.fit(ramps)
    places = moved(fitting(trained.description, 218, 178), np.array([[60.0, 80.0], [100.0, 150.0]]))
    for (column, row), wanted in zip(places, [(60, 80), (100, 150)], strict=True):
        read = cv2.remap(fitted, np.float32([[column]]), np.float32([[row]]), cv2.INTER_LINEAR)[0, 0]
        assert read[:2] == pytest.approx(wanted, abs=1.5)


def test_two_real_faces_give_two_rows(
    model: Path, celeba_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((celeba_mini / "img_align_celeba").iterdir())[600:1201:600]
    wide = np.full((500, 900, 3), 128, np.uint8)
    for left, file in zip((100, 550), files, strict=True):
        wide[140:358, left : left + 178] = np.array(Image.open(file))
    Image.fromarray(wide).save(tmp_path / "two.png")
    rows = predict_json(capsys, model, tmp_path / "two.png")
    assert [(row["face"], row["faces"], row["aligned"]) for row in rows] == [(1, 2, "eyes"), (2, 2, "eyes")]
    assert rows[0]["box"][0] < 450 < rows[1]["box"][0]
    assert rows[0]["attributes"] != rows[1]["attributes"]
