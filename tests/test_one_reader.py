"""A file is the same image to every program: turned, transparent, in other colours, or slightly damaged."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from image_files import (
    as_held,
    chunk,
    encoded,
    exif,
    exif_with_a_fraction_for_a_name,
    rgb_png,
    rotten,
    samsung,
    smooth,
    with_exif,
)  # fmt: skip
from numpy.typing import NDArray
from PIL import Image
from small_run import assert_same_training

from distrib import evaluate, train
from distrib.cli import predict, prepare
from distrib.data.decoders import dali_installed
from distrib.model.trained import load

KINDS = 12


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def file_of_a_kind(number: int) -> tuple[bytes, NDArray[np.uint8]]:
    """A file, and what a person who opens it sees."""
    pixels = smooth(48, 40, number)
    jpeg = encoded(pixels, quality=95)
    layer = np.dstack((pixels, np.full((48, 40), 255, np.uint8)))
    layer[:20, :, 3] = 0
    over_white = np.where(layer[..., 3:] == 0, 255, pixels).astype(np.uint8)
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    turned = encoded(as_held(pixels, 6), quality=95)
    upright = np.rot90(by_pillow(turned), -1)
    cmyk = encoded(Image.fromarray(pixels).convert("CMYK"), quality=95)
    return (
        lambda: (encoded(as_held(pixels, 8), "PNG", exif=exif(8)), pixels),
        lambda: (encoded(as_held(pixels, 5), "WEBP", lossless=True, exif=exif(5)), pixels),
        lambda: (encoded(as_held(pixels, 6), quality=95, exif=exif(6)), upright),
        lambda: (encoded(layer, "PNG"), over_white),
        lambda: (encoded(layer, "WEBP", lossless=True), over_white),
        lambda: (encoded(pixels[..., 0].astype(np.uint16) * 257, "PNG"), grey),
        lambda: (cmyk, by_pillow(cmyk)),
        lambda: (samsung(jpeg), by_pillow(jpeg)),
        lambda: (jpeg[:-2], by_pillow(jpeg)),
        lambda: (with_exif(turned, exif_with_a_fraction_for_a_name(6)), upright),
        lambda: (rgb_png(pixels, chunk(b"tEXt", b"Comment\0hello", is_sound=False)), pixels),
        lambda: (encoded(pixels, "GIF"), by_pillow(encoded(pixels, "GIF"))),
    )[number % KINDS]()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same data set twice: files of all kinds, and what is seen of them as plain PNGs."""
    folder = tmp_path_factory.mktemp("sets")
    names = [f"{number:02}.png" for number in range(3 * KINDS)]
    for kind in ("odd", "plain"):
        (folder / kind / "images").mkdir(parents=True)
        rows = [f"{name},{n % 2},{n // 2 % 2},{('train', 'valid', 'test')[n // KINDS]}" for n, name in enumerate(names)]
        (folder / kind / "table.csv").write_text("\n".join(["file,Smiling,Male,split", *rows, ""]))
    for number, name in enumerate(names):
        data, seen = file_of_a_kind(number)
        (folder / "odd/images" / name).write_bytes(data)
        (folder / "plain/images" / name).write_bytes(encoded(np.ascontiguousarray(seen), "PNG"))
    return folder / "odd", folder / "plain"


def train_on(root: Path, folder: Path) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = [
        "--run.folder", folder, "--run.device", "cpu", "--data.root", root, "--data.image-size", 32, 32,
        "--data.min-zoom", 0.8, "--train.batch-size", 4, "--train.epochs", 1, "--train.precision", "no",
        "--explain.after-training", False, "--tracking.mode", "disabled",
    ]  # fmt: skip
    assert train.main([str(each) for each in arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def run(sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(sets[0], tmp_path_factory.mktemp("runs") / "odd")


def test_training_sees_what_a_person_sees(sets: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    assert_same_training(run, train_on(sets[1], tmp_path / "plain"))


def test_evaluate_predict_and_the_library_see_the_same(
    sets: tuple[Path, Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = [(sets[0], "torch"), (sets[1], "torch"), *([(sets[0], "dali")] if dali_installed() else [])]
    scored: dict[str, float] = {}
    for root, decoder in ways:
        AcceleratorState._reset_state(reset_partial_state=True)
        file = tmp_path / "predictions.csv"
        arguments = [run, "--data.root", root, "--data.decoder", decoder, "--split", "all", "--device", "cpu"]
        assert evaluate.main([str(each) for each in (*arguments, "--precision", "no", "--predictions", file)]) == 0
        with file.open(newline="") as stream:
            found = {row["file"]: float(row["Smiling_probability"]) for row in csv.DictReader(stream)}
        scored = scored or found
        assert found == scored
    assert len(scored) == 3 * KINDS
    assert len(set(scored.values())) > KINDS
    capsys.readouterr()
    images = [sets[0] / "images" / name for name in scored]
    assert predict.main([str(each) for each in (run, *images, "--no-align", "--json", "--device", "cpu")]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    found = {Path(row["photo"]).name: row["attributes"]["Smiling"]["probability"] for row in rows}
    assert found == pytest.approx(scored, abs=1e-5)
    warned = [line for line in said.err.splitlines() if line.startswith("distrib: warning: ")]
    assert [Path(line.split()[2]).name for line in warned] == [f"{9 + KINDS * part:02}.png" for part in range(3)]
    assert all("damaged EXIF" in line for line in warned)
    model = load(run)
    for image in images[:KINDS]:
        if image.name in ("08.png", "10.png"):  # which Pillow alone does not open
            continue
        logits = model.logits(model.fit(Image.open(image))[None])
        assert model.probabilities(logits)[0, 0] == pytest.approx(scored[image.name], abs=1e-5)


def test_prepare_accepts_and_refuses_as_training_does(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def split() -> int:
        arguments = ["split", "--root", sets[0], "--out", tmp_path / "out", "--by", "image", "--files", "copy"]
        return prepare.main([str(each) for each in arguments])

    assert split() == 0
    assert "damaged EXIF" in capsys.readouterr().err
    image = sets[0] / "images/07.png"
    whole = image.read_bytes()
    try:
        image.write_bytes(rotten(whole))
        (tmp_path / "out").rename(tmp_path / "before")
        assert split() == 2
        assert f"{image} cannot be decoded (Corrupt JPEG data" in capsys.readouterr().err
    finally:
        image.write_bytes(whole)
