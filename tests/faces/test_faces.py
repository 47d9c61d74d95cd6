"""Drawn faces: the folder's format, its determinism, and boxes that tell the truth about the pixels."""

import csv
import dataclasses
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distrib.base.errors import UserError
from distrib.cli.prepare import main
from distrib.faces import ATTRIBUTES, VISIBLE, Drawing, Face, draw_face, sample_face, settle, write_faces
from distrib.faces.dataset import splits

ROOT = Path(__file__).resolve().parents[2]
CELEBA = ROOT.parent / "shared/celeba-mini"
COUNT, SEED = 60, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces") / "drawn"
    assert main(["faces", "--out", str(out), "--count", str(COUNT), "--seed", str(SEED), "--workers", "2"]) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path, name: str) -> list[list[str]]:
    return [line.split() for line in (folder / name).read_text(encoding="ascii").splitlines()]


def boxes_of(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    boxes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    with (folder / "boxes.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            assert row["part"] not in boxes[row["image"]]
            boxes[row["image"]][row["part"]] = tuple(int(row[edge]) for edge in ("left", "top", "right", "bottom"))
    return boxes


# The folder


def test_the_same_bytes_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    write_faces(tmp_path / "again", COUNT, SEED, workers=1)
    assert contents(tmp_path / "again") == contents(folder)


def test_an_empty_folder_is_filled_and_a_picture_does_not_depend_on_how_many_there_are(
    folder: Path, tmp_path: Path
) -> None:
    write_faces(tmp_path, 50, SEED, workers=2)
    fewer, more = contents(tmp_path), contents(folder)
    pictures = [name for name in fewer if name.endswith(".jpg")]
    assert len(pictures) == 50
    assert all(fewer[name] == more[name] for name in pictures)


def test_another_seed_draws_other_faces() -> None:
    assert draw_face(sample_face(1, 0)).image.tobytes() != draw_face(sample_face(2, 0)).image.tobytes()


def test_attributes_of_the_files_are_those_of_the_faces(folder: Path) -> None:
    count, header, *lines = rows(folder, "list_attr_celeba.txt")
    assert count == [str(COUNT)]
    assert tuple(header) == ATTRIBUTES
    for index, line in enumerate(lines):
        attributes = sample_face(SEED, index).attributes
        assert line == [f"{index + 1:06}.jpg", *("1" if attributes[name] else "-1" for name in ATTRIBUTES)]


def test_splits_are_about_80_10_10_and_share_no_identity() -> None:
    identities = [sample_face(0, index).identity for index in range(2000)]
    partition = splits(identities)
    for split, share in enumerate((0.8, 0.1, 0.1)):
        assert partition.count(split) / 2000 == pytest.approx(share, abs=0.01)
    members = [{who for who, part in zip(identities, partition, strict=True) if part == split} for split in range(3)]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]


def test_even_a_small_set_has_three_splits_and_several_pictures_of_each_identity(folder: Path) -> None:
    names = [row[0] for row in rows(folder, "list_attr_celeba.txt")[2:]]
    partition, identity = rows(folder, "list_eval_partition.txt"), rows(folder, "identity_CelebA.txt")
    assert [row[0] for row in partition] == [row[0] for row in identity] == names
    splits_of = defaultdict(set)
    for (_, split), (_, who) in zip(partition, identity, strict=True):
        splits_of[who].add(split)
    assert {split for found in splits_of.values() for split in found} == {"0", "1", "2"}
    assert all(len(found) == 1 for found in splits_of.values())
    assert COUNT / len(splits_of) > 5


def test_pictures_are_celebas_size(folder: Path) -> None:
    pictures = sorted((folder / "img_align_celeba").iterdir())
    assert [path.name for path in pictures] == [f"{number:06}.jpg" for number in range(1, COUNT + 1)]
    for path in pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (178, 218))


@pytest.mark.parametrize("source", ["drawn", "official"])
def test_annotations_have_the_official_byte_pattern(folder: Path, source: str) -> None:
    """The same patterns hold for our files and for CelebA's own."""
    if source == "official" and not CELEBA.is_dir():
        pytest.skip(f"the official files are not at {CELEBA}")
    place = folder if source == "drawn" else CELEBA
    row = rb"\d{6}\.jpg (-1|1)( -1|  1){39}\r\n"
    header = " ".join(ATTRIBUTES).encode() + rb" \r\n"
    assert re.fullmatch(rb"\d+\r\n" + header + rb"(" + row + rb")+", (place / "list_attr_celeba.txt").read_bytes())
    assert re.fullmatch(rb"(\d{6}\.jpg [012]\r\n)+", (place / "list_eval_partition.txt").read_bytes())
    assert re.fullmatch(rb"(\d{6}\.jpg \d+\r\n)+", (place / "identity_CelebA.txt").read_bytes())


def test_the_program_refuses_a_folder_in_use(folder: Path) -> None:
    before = contents(folder)
    script = [sys.executable, "-m", "distrib", "prepare", "faces", "--out", str(folder), "--count", "60", "--seed", "1"]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("distrib: error: ")
    assert str(folder) in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [("count", 10, "--count is 10"), ("seed", -1, "--seed is -1"), ("workers", 0, "--workers is 0")],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, setting: str, value: int, found: str
) -> None:
    with pytest.raises(UserError, match=found):
        write_faces(tmp_path / "out", **{"count": 60, "seed": 0, "workers": 1, setting: value})
    assert not any(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_faces(tmp_path / "out", 60, 0, workers=1, report=interrupt)
    assert not any(tmp_path.iterdir())


# The attributes


def test_every_visible_attribute_has_both_classes_in_400_pictures() -> None:
    faces = [sample_face(0, index) for index in range(400)]
    rates = {name: np.mean([face.attributes[name] for face in faces]) for name in VISIBLE}
    assert len(VISIBLE) >= 20
    assert {name: rate for name, rate in rates.items() if not 0.03 < rate < 0.85} == {}


def test_other_attributes_say_little_about_arched_brows() -> None:
    faces = [sample_face(1, index) for index in range(4000)]
    arched = np.array([face.attributes["Arched_Eyebrows"] for face in faces])
    for name in set(ATTRIBUTES) - {"Arched_Eyebrows"}:
        holds = np.array([face.attributes[name] for face in faces])
        assert abs(arched[holds].mean() - arched[~holds].mean()) < 0.25, name


def test_attributes_do_not_contradict_each_other() -> None:
    colours = ("Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair")
    for index in range(1000):
        face = sample_face(2, index)
        has = face.attributes
        assert tuple(has) == ATTRIBUTES
        assert settle(has, face.long_hair) == has
        assert sum(has[name] for name in colours) <= (0 if has["Bald"] else 1)
        assert has["No_Beard"] != any(has[name] for name in ("5_o_Clock_Shadow", "Goatee", "Mustache", "Sideburns"))
        assert not (has["Straight_Hair"] and has["Wavy_Hair"])
        if has["Bald"] or has["Wearing_Hat"]:
            assert not has["Bangs"]
            assert not has["Receding_Hairline"]


# The boxes


def test_boxes_lie_inside_the_picture_and_name_where_each_visible_attribute_shows(folder: Path) -> None:
    boxes = boxes_of(folder)
    for index in range(COUNT):
        face, parts = sample_face(SEED, index), boxes[f"{index + 1:06}.jpg"]
        for left, top, right, bottom in parts.values():
            assert 0 <= left < right <= 178
            assert 0 <= top < bottom <= 218
        for name, where in VISIBLE.items():
            # Where hair colours would show is open when there is no hair; everything else has its place always.
            if face.attributes[name] or where[0] != "hair":
                assert where[0] in parts, (index, name)
        for drawn, name in (("hat", "Wearing_Hat"), ("glasses", "Eyeglasses"), ("necktie", "Wearing_Necktie")):
            assert (drawn in parts) == face.attributes[name], (index, drawn)
        assert ("hair" in parts) != face.attributes["Bald"]


def test_the_eyes_sit_where_celeba_aligns_them(folder: Path) -> None:
    boxes = boxes_of(folder).values()
    for name, x in (("left_eye", 69), ("right_eye", 109)):
        centres = np.array([((b[name][0] + b[name][2]) / 2, (b[name][1] + b[name][3]) / 2) for b in boxes])
        assert np.abs(centres - [x, 110]).max() < 14
        assert np.abs(centres.mean(axis=0) - [x, 110]).max() < 4


def toggled(face: Face, name: str) -> Face:
    """The same face with one attribute turned over, and with what cannot go along with that given up."""
    attributes = dict(face.attributes)
    attributes[name] = not attributes[name]
    if name.endswith("_Hair") and attributes[name]:
        colours, textures = {"Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair"}, {"Straight_Hair", "Wavy_Hair"}
        attributes |= dict.fromkeys((colours if name in colours else textures) - {name}, False)
    if name == "No_Beard":
        attributes |= dict.fromkeys(("Goatee", "Mustache", "5_o_Clock_Shadow", "Sideburns"), not attributes[name])
    return dataclasses.replace(face, attributes=attributes)


def covered(drawings: tuple[Drawing, Drawing], parts: tuple[str, ...]) -> np.ndarray:
    mask = np.zeros((218, 178), dtype=bool)
    for drawing in drawings:
        for part in parts:
            if part in drawing.boxes:
                left, top, right, bottom = drawing.boxes[part]
                mask[top:bottom, left:right] = True
    return mask


def bare(index: int) -> Face:
    """A face in focus without anything that would hide an attribute."""
    face = sample_face(11, index)
    hiding = ("Blurry", "Wearing_Hat", "Bangs", "Bald", "Receding_Hairline", "Wearing_Necktie", "Wearing_Necklace")
    attributes = dict(face.attributes) | dict.fromkeys(hiding, False)
    # Short hair: what hangs behind the neck is no part of a scalp that turns bald.
    return dataclasses.replace(face, attributes=settle(attributes, False), long_hair=False)


@pytest.mark.parametrize("name", VISIBLE)
def test_turning_an_attribute_over_changes_its_own_boxes_only(name: str) -> None:
    for index in (0, 40, 80):
        before = bare(index)
        pair = draw_face(before), draw_face(toggled(before, name))
        first, second = (np.asarray(drawing.image).astype(int) for drawing in pair)
        changed = np.abs(first - second).max(axis=2) > 0
        assert changed.sum() > 100, "nothing to see"
        assert not (changed & ~covered(pair, VISIBLE[name])).any(), "changed outside its boxes"


def difference_of_the_arch(face: Face) -> np.ndarray:
    """Which pixels the brows' arch changes."""
    flat, arched = (
        draw_face(dataclasses.replace(face, attributes={**face.attributes, "Arched_Eyebrows": arch}))
        for arch in (False, True)
    )
    return np.asarray(np.asarray(flat.image) != np.asarray(arched.image))


def test_glasses_hats_and_bangs_leave_the_brows_free() -> None:
    for index in range(0, 240, 30):
        face = bare(index)
        free = difference_of_the_arch(face)
        for name in ("Eyeglasses", "Wearing_Hat", "Bangs"):
            worn = dataclasses.replace(face, attributes={**face.attributes, name: True})
            assert np.array_equal(difference_of_the_arch(worn), free), (index, name)
