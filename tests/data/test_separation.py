"""A data set in three folders: the images that training would choose, nothing in common, a proof by what is there."""

import csv
import hashlib
import io
import itertools
import json
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import check_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentences import refusal

from distrib.config import DataConfig
from distrib.data import separation
from distrib.data.separation import Proof, join, separate
from distrib.data.splits import Splits, make_splits
from distrib.data.table import SPLITS, read_table

PEOPLE = [f"person {row // 3}" for row in range(60)]


def picture(number: int) -> bytes:
    """A small JPEG, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, format="JPEG")
        return stream.getvalue()


def data_set(
    root: Path,
    people: Sequence[str] | None = PEOPLE,
    names: Sequence[str] | None = None,
    same: Sequence[Sequence[int]] = (),
) -> Path:
    """A data set with a table.csv.

    Args:
        root: folder to make.
        people: who is in each image; None: 60 images of nobody knows whom.
        names: of the images.
        same: rows whose images have the bytes of the first of them.
    """
    names = names or [f"{row:06}.jpg" for row in range(60 if people is None else len(people))]
    number_of = {row: rows[0] for rows in same for row in rows}
    root.mkdir(parents=True)
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "even", "third, or so", *(["group"] if people else [])])
        for row, name in enumerate(names):
            writer.writerow([name, 1 - row % 2, -1 if row % 3 else 1, *([people[row]] if people else [])])
            (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "images" / name).write_bytes(picture(number_of.get(row, row)))
    return root


def run(root: Path, out: Path, files: Any = "link", workers: int = 2, **options: Any) -> tuple[Proof, list[str]]:
    return separate(DataConfig.model_validate({"split": "identity", "root": root, **options}), out, files, workers)


def parts(splits: Splits) -> list[list[int]]:
    return [splits.train.tolist(), splits.valid.tolist(), splits.test.tolist()]


def official(out: Path) -> list[list[int]]:
    """The rows of each split of a separated data set."""
    return parts(make_splits(read_table(out), DataConfig()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def split_of(out: Path) -> dict[str, str]:
    """The folder that each image lies in."""
    return {path.name: split for split in SPLITS for path in (out / split).rglob("*") if path.is_file()}


def refused_without_a_trace(place: Path, call: Callable[[], object], *parts: str) -> str:
    before = set(place.rglob("*"))
    sentence = refusal(call, *parts)
    check_sentence(sentence)
    assert set(place.rglob("*")) == before
    return sentence


# What is separated


@pytest.mark.parametrize("split", ["identity", "image"])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_images_are_those_that_training_would_choose(tmp_path: Path, split: str, seed: int) -> None:
    root, fractions = data_set(tmp_path / "faces"), (0.6, 0.2, 0.2)
    run(root, tmp_path / "out", split=split, split_seed=seed, split_fractions=fractions)
    source = read_table(root)
    config = DataConfig.model_validate({"split": split, "split_seed": seed, "split_fractions": fractions})
    expected = parts(make_splits(source, config))
    for name, rows in zip(SPLITS, expected, strict=True):
        assert {path.name for path in (tmp_path / "out" / name).iterdir()} == {source.names[row] for row in rows}
    # The rows are in the same order, so that the same training follows from them.
    assert official(tmp_path / "out") == expected


def test_the_folder_is_a_data_set_that_says_the_same(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces")
    run(root, tmp_path / "out")
    source, table = read_table(root), read_table(tmp_path / "out")
    assert [name.partition("/")[2] for name in table.names] == source.names
    assert table.attributes == source.attributes == ("even", "third, or so")
    assert np.array_equal(table.targets, source.targets)
    assert table.notes == ()
    assert source.identity is not None
    assert table.identity is not None
    # The same person, if under another number.
    pairs = set(zip(source.identity.tolist(), table.identity.tolist(), strict=True))
    assert len(pairs) == len(set(PEOPLE))
    for row in range(len(table)):
        assert table.store.path(row).read_bytes() == source.store.path(row).read_bytes()


def test_celebas_own_format_is_read_as_well(faces: Path, tmp_path: Path) -> None:
    proof, notes = run(faces, tmp_path / "out")
    assert sum(proof.images.values()) == 200
    assert notes == []
    table = read_table(tmp_path / "out")
    assert len(table.attributes) == 40
    assert official(tmp_path / "out") == parts(make_splits(read_table(faces), DataConfig(split="identity")))


def test_links_lead_to_absolute_paths_and_copies_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path / "faces")
    monkeypatch.chdir(tmp_path)
    run(Path("faces"), Path("links"))
    run(Path("faces"), Path("copies"), files="copy")
    links, copies = ([*Path(folder).glob("*/*.jpg")] for folder in ("links", "copies"))
    assert len(links) == len(copies) == 60
    assert all(path.readlink() == root / "images" / path.name for path in links)
    assert not any(path.is_symlink() for path in copies)
    assert contents(tmp_path / "links").keys() == contents(tmp_path / "copies").keys()
    shutil.rmtree(root)
    assert len(read_table(Path("copies"))) == 60
    assert all(path.read_bytes() for path in copies)


@pytest.mark.parametrize("files", ["link", "copy"])
def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path, files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path / "faces")
    run(root, tmp_path / "one", files, workers=1)
    monkeypatch.setattr(separation, "_CHUNK", 7)
    run(root, tmp_path / "four", files, workers=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def test_progress_comes_to_all_images_in_each_part_of_the_work(tmp_path: Path) -> None:
    root, done = data_set(tmp_path / "faces"), defaultdict(int)

    def report(work: str, images: int, count: int) -> None:
        done[work] += images
        assert count == 60

    separate(DataConfig(root=root, split="identity"), tmp_path / "out", "copy", 1, report)
    assert done == {"reading images": 60, "copying images": 60, "checking images": 60}


# The proof


@pytest.mark.parametrize("split", ["identity", "image"])
def test_the_proof_says_what_lies_in_the_folders(tmp_path: Path, split: str) -> None:
    root, out = data_set(tmp_path / "faces", same=[(3, 4)]), tmp_path / "out"
    proof, _ = run(root, out, split=split, split_seed=5)
    people, bytes_of = defaultdict(set), defaultdict(set)
    for path in out.glob("*/*.jpg"):
        people[PEOPLE[int(path.stem)]].add(path.parent.name)
        bytes_of[path.read_bytes()].add(path.parent.name)
    crossing = {who for who, splits in people.items() if len(splits) > 1}
    assert {name: len([*(out / name).iterdir()]) for name in SPLITS} == proof.images
    assert {name: sum(name in splits for splits in people.values()) for name in SPLITS} == proof.identities
    assert {name: sum(name in splits for splits in bytes_of.values()) for name in SPLITS} == proof.contents
    assert all(len(splits) == 1 for splits in bytes_of.values())
    assert proof.contents_in_more_than_one_split == 0
    assert proof.identities_in_more_than_one_split == len(crossing)
    assert proof.images_of_identities_in_more_than_one_split == 3 * len(crossing)
    assert bool(crossing) == (split == "image")

    said = json.loads((out / "separation.json").read_text(encoding="utf-8"))
    assert said["source"] == str(root)
    assert (said["by"], said["fractions"], said["seed"]) == (split, [0.8, 0.1, 0.1], 5)
    assert (said["files"], said["missing"]) == ("link", "stop")
    assert (said["images"], said["identities"], said["contents"]) == (proof.images, proof.identities, proof.contents)
    assert said["identities_in_more_than_one_split"] == len(crossing)
    assert said["contents_in_more_than_one_split"] == 0
    assert said["table_sha256"] == hashlib.sha256((out / "table.csv").read_bytes()).hexdigest()


@pytest.mark.parametrize("files", ["link", "copy"])
def test_the_sums_are_those_of_sha256sum(tmp_path: Path, files: str) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    names = [f"{row:06}.jpg" for row in range(58)] + ["back\\slash.jpg", "zwei Wörter.jpg"]
    out = tmp_path / "out"
    run(data_set(tmp_path / "faces", names=names), out, files)

    def check() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        return subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)

    done = check()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == len(contents(out)) - 1 == 62
    next(out.glob("test/*")).write_bytes(b"another image")
    assert check().returncode == 1


def test_without_identities_nothing_is_said_of_them(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces", people=None)
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out"), "names no identities", str(root))
    proof, _ = run(root, tmp_path / "out", split="image")
    assert proof.identities is None
    assert proof.identities_in_more_than_one_split is None
    assert read_table(tmp_path / "out").identity is None
    assert json.loads((tmp_path / "out/separation.json").read_text())["identities"] is None


@pytest.mark.parametrize("split", ["identity", "image"])
def test_a_leak_in_what_was_written_is_found(tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path / "faces", same=[(0, 59)])
    leaky = Splits(np.arange(0, 40), np.arange(40, 50), np.arange(50, 60), ())
    monkeypatch.setattr(separation, "make_splits", lambda *_: leaky)
    leaks = "2 identities and 1 image contents were" if split == "identity" else "because 1 image contents were"
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out", split=split), str(root), leaks)


def test_an_image_that_changes_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path / "faces")

    write = Path.write_bytes

    def copy(target: Path, data: bytes) -> int:
        return write(target, picture(1000) if target.name == "000007.jpg" else data)

    monkeypatch.setattr(Path, "write_bytes", copy)
    refused_without_a_trace(
        tmp_path, lambda: run(root, tmp_path / "out", "copy"), "in 1 of its 60 images", "000007.jpg"
    )


# Images with the same bytes


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=40))
@settings(deadline=None)
def test_join_follows_every_chain(images: list[tuple[int, int]]) -> None:
    unit, content = (np.array(column, dtype=np.int64) for column in zip(*images, strict=True))
    _, content = np.unique(content, return_inverse=True)
    group = join(unit * 11, content)
    # By the book: two units are together as long as any content says so.
    together = {int(each): {int(each)} for each in unit}
    for one, other in itertools.permutations(range(len(unit)), 2):
        if content[one] == content[other]:
            merged = together[int(unit[one])] | together[int(unit[other])]
            for each in merged:
                together[each] = merged
    assert group.tolist() == [11 * min(together[int(each)]) for each in unit]


def test_identities_with_an_image_in_common_stay_together(tmp_path: Path) -> None:
    # Persons 1 and 7 by one content, 7 and 15 by another; 3 and 4; person 10 has the same image twice.
    same = [(3, 21), (22, 45), (9, 12), (30, 31)]
    root = data_set(tmp_path / "faces", same=same)
    for seed in range(10):
        out = tmp_path / f"out-{seed}"
        proof, notes = run(root, out, split_seed=seed, split_fractions=(0.5, 0.3, 0.2))
        split = split_of(out)
        for rows in (range(3, 6), range(21, 24), range(45, 48)):
            assert {split[f"{row:06}.jpg"] for row in rows} == {split["000003.jpg"]}
        assert len({split[f"{row:06}.jpg"] for row in range(9, 15)}) == 1
        assert proof.contents_in_more_than_one_split == proof.identities_in_more_than_one_split == 0
        assert sum(proof.contents.values()) == 60 - 4
        (note,) = notes
        check_sentence(note, "5 identities were joined into 2 groups", "000003.jpg, 000009.jpg, 000012.jpg, ...")
        said = json.loads((out / "separation.json").read_text())
        assert (said["joined"], said["joined_groups"]) == (5, 2)


def test_images_with_the_same_bytes_stay_together(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces", same=[(3, 21, 50), (9, 12)])
    for seed in range(10):
        out = tmp_path / f"out-{seed}"
        _, (note,) = run(root, out, split="image", split_seed=seed)
        split = split_of(out)
        assert split["000003.jpg"] == split["000021.jpg"] == split["000050.jpg"]
        assert split["000009.jpg"] == split["000012.jpg"]
        check_sentence(note, "5 images were joined into 2 groups")


def test_the_same_bytes_within_an_identity_join_nothing(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces", same=[(3, 4)])
    proof, notes = run(root, tmp_path / "out")
    assert notes == []
    assert sum(proof.contents.values()) == 59
    assert official(tmp_path / "out") == parts(make_splits(read_table(root), DataConfig(split="identity")))


def test_a_placeholder_that_everybody_has_is_named(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces", same=[range(0, 60, 3)])
    parts = ("validation split", "is empty", "20 identities were joined into 1 group", "000000.jpg, 000003.jpg")
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out"), *parts)


# What is refused


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces")
    image = root / "images/000041.jpg"
    whole = image.read_bytes()
    for content in (whole[: len(whole) // 2], b"no image", b""):
        image.write_bytes(content)
        call = lambda: run(root, tmp_path / "out")  # noqa: E731
        refused_without_a_trace(tmp_path, call, f"{image} cannot be decoded", "replace the file")
    image.unlink()
    image.symlink_to("nowhere")
    refused_without_a_trace(tmp_path, call, "lacks 1 of the 60 images", f"{image} is a link to nowhere")
    image.unlink()
    image.mkdir()
    refused_without_a_trace(tmp_path, call, f"{image} is a folder")
    image.rmdir()
    refused_without_a_trace(tmp_path, call, "lacks 1 of the 60 images", "000041.jpg")
    _, (note,) = run(root, tmp_path / "out", missing="skip")
    assert "lacks 1 of the 60 images" in note
    assert len(read_table(tmp_path / "out")) == 59


@pytest.mark.parametrize("place", ["faces", "faces/out", "faces/images/out", "elsewhere/out"])
def test_a_folder_in_the_data_set_is_refused(tmp_path: Path, place: str) -> None:
    root = data_set(tmp_path / "faces")
    (tmp_path / "elsewhere").symlink_to(root)
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / place), "--out", "lies in the data set")


def test_a_folder_in_use_or_closed_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    for place in ("used", "used/file", "."):
        refused_without_a_trace(
            tmp_path, lambda place=place: run(root, tmp_path / place), "--out", "not an empty folder"
        )
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "used/file/out"), "--out", "cannot be written")
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / ("x" * 300)), "--out", "cannot be written")
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out", workers=0), "--workers is 0")
    (tmp_path / "empty").mkdir()
    run(root, tmp_path / "empty")
    assert len(read_table(tmp_path / "empty")) == 60


def test_a_file_system_without_links_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_set(tmp_path / "faces")

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    monkeypatch.setattr(separation, "_read", lambda *_: pytest.fail("it worked for minutes before it refused"))
    refused_without_a_trace(
        tmp_path, lambda: run(root, tmp_path / "out"), "symbolic links (Operation not permitted)", "--files to copy"
    )
    monkeypatch.undo()
    run(root, tmp_path / "out", files="copy")


@pytest.mark.parametrize("work", ["reading images", "copying images", "checking images"])
@pytest.mark.parametrize("out", ["out", "new/folders/out"])
def test_an_interrupted_separation_leaves_nothing(tmp_path: Path, work: str, out: str) -> None:
    root = data_set(tmp_path / "faces")
    before = set(tmp_path.rglob("*"))

    def interrupt(name: str, *_: int) -> None:
        if name == work:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separate(DataConfig(root=root, split="identity"), tmp_path / out, "copy", 2, interrupt)
    assert set(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path / "faces")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out", "copy"), "--out", "No space left on device")


# Names


def in_folders(names: Callable[[int], str]) -> list[str]:
    return [names(row) for row in range(60)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(lambda row: f"{row % 5}/a/{row}.jpg", lambda row: f"{row}.jpg", id="folders"),
        pytest.param(
            lambda row: f"{row // 2}/{row % 2}.jpg", lambda row: f"{row // 2}/{row % 2}.jpg", id="equal names"
        ),
        pytest.param(lambda row: f"{row % 2}/{'xX'[row % 2]}{row // 2}.jpg", None, id="equal but for the case"),
        pytest.param(lambda row: f"train/{row}.jpg", lambda row: f"{row}.jpg", id="separated before"),
        pytest.param(lambda row: f'Zoë/李 {row}, "so".jpg', lambda row: f'李 {row}, "so".jpg', id="Unicode"),
    ],
)
@pytest.mark.parametrize("files", ["link", "copy"])
def test_every_image_has_a_name_of_its_own(
    tmp_path: Path, names: Callable[[int], str], expected: Callable[[int], str] | None, files: str
) -> None:
    root = data_set(tmp_path / "faces", names=in_folders(names))
    run(root, tmp_path / "out", files)
    source, table = read_table(root), read_table(tmp_path / "out")
    assert [name.partition("/")[2] for name in table.names] == in_folders(expected or names)
    for row in range(60):
        assert table.store.path(row).read_bytes() == source.store.path(row).read_bytes()


def test_a_file_with_two_rows_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces", names=["a.jpg", "./a.jpg", *(f"{row}.jpg" for row in range(58))])
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out"), "a.jpg", "./a.jpg", "names one file twice")


def test_an_attribute_with_a_name_that_a_table_needs_is_refused(faces: Path, tmp_path: Path) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    (root / "img_align_celeba").symlink_to(faces / "img_align_celeba")
    for name in ("list_attr_celeba.txt", "identity_CelebA.txt"):
        (root / name).write_bytes((faces / name).read_bytes().replace(b"Smiling", b"group"))
    refused_without_a_trace(tmp_path, lambda: run(root, tmp_path / "out"), "an attribute called group", str(root))


def test_columns_that_hold_no_labels_are_left_out(tmp_path: Path) -> None:
    root = data_set(tmp_path / "faces")
    lines = (root / "table.csv").read_text().splitlines()
    with_age = [f"{line},{'age' if number == 0 else number + 20}" for number, line in enumerate(lines)]
    (root / "table.csv").write_text("\n".join(with_age))
    _, notes = run(root, tmp_path / "out")
    assert "Columns that hold no labels are left out: age." in notes
    assert read_table(tmp_path / "out").attributes == ("even", "third, or so")
    # One cell that is wrong is a mistake, and no column of another kind.
    with_age[7] = with_age[7].replace(",1,", ",7,").replace(",0,", ",7,")
    (root / "table.csv").write_text("\n".join(with_age))
    refused_without_a_trace(
        tmp_path / "faces", lambda: run(root, tmp_path / "new"), "table.csv, line 8 has '7' for even"
    )


# Real images


def test_celeba_by_identity(celeba_mini: Path, tmp_path: Path) -> None:
    proof, notes = run(celeba_mini, tmp_path / "out")
    assert sum(proof.images.values()) == 5580
    assert sum(proof.identities.values() if proof.identities else ()) == 186
    assert sum(proof.contents.values()) == 5579
    assert proof.identities_in_more_than_one_split == proof.contents_in_more_than_one_split == 0
    # Both images with the same bytes are of one person.
    assert notes == []
    assert official(tmp_path / "out") == parts(make_splits(read_table(celeba_mini), DataConfig(split="identity")))


def test_celeba_by_image(celeba_mini: Path, tmp_path: Path) -> None:
    table = read_table(celeba_mini)
    pair = {table.names.index("186574.jpg"), table.names.index("197961.jpg")}
    seed = 2
    plain = parts(make_splits(table, DataConfig(split="image", split_seed=seed)))
    assert not any(pair <= set(part) for part in plain), "a seed that keeps the pair together shows nothing"
    proof, (note,) = run(celeba_mini, tmp_path / "out", split="image", split_seed=seed)
    assert proof.contents_in_more_than_one_split == 0
    assert proof.identities_in_more_than_one_split == 186
    assert "2 images were joined into 1 group" in note
    assert "(186574.jpg, 197961.jpg)" in note
    separated = official(tmp_path / "out")
    assert any(pair <= set(part) for part in separated)
    # Beside the pair, an image at each end of the validation split may change sides.
    assert sum(len(set(one) - set(other)) for one, other in zip(plain, separated, strict=True)) <= 3
