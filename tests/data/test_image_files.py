"""Images that are not where the table says: taken where one reading is possible, else told, and the remedies work."""

import csv
import os
import re
import shutil
import subprocess
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fuzzing import check_sentence
from sentences import refusal

from distrib.config import DataConfig
from distrib.data.reader import ImageReader
from distrib.data.separation import separate
from distrib.data.splits import digest, make_splits
from distrib.data.table import Table, read_table

PARTS = ["train", "train", "valid", "test"]
JPG = [f"{row}.jpg" for row in range(4)]


def own(root: Path, names: Sequence[str], files: Sequence[str]) -> Path:
    """A data set of one's own: the names in its table, and its files, each of which holds its number."""
    root.mkdir(exist_ok=True)
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "happy", "split"])
        writer.writerows([name, row % 2, PARTS[row % 4]] for row, name in enumerate(names))
    return put(root, files)


def celeba(root: Path, files: Sequence[str]) -> Path:
    root.mkdir(exist_ok=True)
    rows = [f"{row:06}.jpg" for row in range(4)]
    (root / "list_attr_celeba.txt").write_text(
        "4\nBald\n" + "".join(f"{name} {row % 2}\n" for row, name in enumerate(rows))
    )
    return put(root, files)


def put(root: Path, files: Sequence[str]) -> Path:
    for row, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(str(row % 4))
    return root


def holds(table: Table) -> list[str]:
    """What is read for each row."""
    reader = ImageReader(table)
    return [reader.read(row).decode() for row in range(len(table))]


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        pytest.param(JPG, [f"images/{row}.JPG" for row in range(4)], id="case of the ending"),
        pytest.param(JPG, [f"images/{row}.png" for row in range(4)], id="another format"),
        pytest.param(JPG, [f"{row}.jpeg" for row in range(4)], id="jpeg"),
        pytest.param(JPG, ["images/0.jpg", "images/1.JPG", "images/2.png", "images/3.jpeg"], id="a mixture"),
        pytest.param(["0", "1", "2", "3"], [f"images/{name}" for name in JPG], id="no ending"),
        pytest.param([f"ann\\{name}" for name in JPG], [f"images/ann/{name}" for name in JPG], id="backslash"),
        pytest.param([f".\\images\\{name}" for name in JPG], [f"images/{name}" for name in JPG], id="Windows' path"),
        pytest.param([f"a/{name}" for name in JPG], [f"images/a\\{name}" for name in JPG], id="backslash in the file"),
        pytest.param([f"Ann/{name}" for name in JPG], [f"images/ann/{name}" for name in JPG], id="case of a folder"),
        pytest.param([f"André/é{n}" for n in JPG], [nfd(f"images/André/é{n}") for n in JPG], id="NFD on the disk"),
        pytest.param([nfd(f"André/é{n}") for n in JPG], [f"images/André/é{n}" for n in JPG], id="NFD in the table"),
        pytest.param(JPG, [f"pics/{name}" for name in JPG], id="folder of another name"),
        pytest.param(JPG, [f"images/{part}/{n}" for part, n in zip(PARTS, JPG, strict=True)], id="folders by split"),
        pytest.param([f"my/images/{name}" for name in JPG], [f"images/{name}" for name in JPG], id="from further up"),
        pytest.param(
            JPG,
            [f"images/{row}.png" for row in range(4)] + [f"images/._{row}.png" for row in range(4)]
            + [f"__MACOSX/images/{name}" for name in JPG] + ["images/Thumbs.db", "images/.DS_Store"],
            id="what macOS and Windows leave",
        ),
    ],
)  # fmt: skip
def test_the_only_file_that_can_be_meant_is_taken(tmp_path: Path, names: list[str], files: list[str]) -> None:
    table = read_table(own(tmp_path, names, files))
    assert holds(table) == ["0", "1", "2", "3"]
    # An image is still known by its name in the table: plan, digest and predictions do not change with the files.
    assert table.names == names
    (note,) = table.notes
    check_sentence(note, table.store.folder)
    straight = read_table(own(tmp_path / "straight", names, [f"images/{name}" for name in names]))
    splits = [make_splits(each, DataConfig()) for each in (table, straight)]
    assert digest(table, splits[0].train, splits[0].valid) == digest(straight, splits[1].train, splits[1].valid)


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        pytest.param(JPG, [f"{row}.JPG" for row in range(4)], id="case of the ending"),
        pytest.param(JPG, [f"images/{row}.png" for row in range(4)], id="another format, in a folder"),
        pytest.param(JPG, ["images/0.JPG", "images/1.jpeg", "images/2.png", "images/3.Jpg"], id="a mixture"),
        pytest.param(JPG, [f"./my/{part}/{n}" for part, n in zip(PARTS, JPG, strict=True)], id="folders by split"),
        pytest.param([f"my/images/{name}" for name in JPG], [f"/{row}.jpeg" for row in range(4)], id="from further up"),
    ],
)
def test_the_only_entry_of_an_archive_that_can_be_meant_is_taken(
    tmp_path: Path, names: list[str], entries: list[str]
) -> None:
    root = own(tmp_path / "mine", names, [])
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for row, name in enumerate([*entries, "__MACOSX/0.jpg"]):
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, str(row))
    table = read_table(root)
    assert holds(table) == ["0", "1", "2", "3"]
    assert table.names == names
    (note,) = table.notes
    check_sentence(note, root / "images.zip", "the only file that can be meant was taken")


def test_two_entries_of_an_archive_for_one_name_are_refused(tmp_path: Path) -> None:
    root = own(tmp_path / "mine", JPG, [])
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name in ("0.png", "0.jpeg", "1.png", "2.png", "3.png"):
            archive.writestr(name, "0")
    check_sentence(refusal(lambda: read_table(root), "0.jpg in the table may be 0.png or 0.jpeg in", "images.zip"))


@pytest.mark.parametrize("folder", ["img_align_celeba_png", "Img/img_align_celeba_png", "img_align_celeba"])
def test_png_version_of_celeba(tmp_path: Path, folder: str) -> None:
    root = celeba(tmp_path, [f"{folder}/{row:06}.png" for row in range(4)])
    put(root, [f"img_celeba/{row:06}.jpg" for row in reversed(range(4))])  # the same people, not aligned
    table = read_table(root)
    assert table.store.folder == root / folder
    assert holds(table) == ["0", "1", "2", "3"]
    assert table.names[0] == "000000.jpg"
    assert "000000.png for 000000.jpg" in table.notes[0]


def test_celebas_photographs_that_are_not_aligned(tmp_path: Path) -> None:
    table = read_table(celeba(tmp_path, [f"Img/img_celeba/{row:06}.jpg" for row in range(4)]))
    assert holds(table) == ["0", "1", "2", "3"]
    assert table.notes == (f"The images were found in {tmp_path}/Img/img_celeba.",)


def test_what_a_name_may_mean_matters_for_the_images_that_are_used_alone(tmp_path: Path) -> None:
    root = own(tmp_path, JPG, ["images/0.png", "images/0.jpeg", "images/1.jpg", "images/2.jpg", "images/3.jpg"])
    refusal(lambda: read_table(root), "0.jpg in the table may be 0.jpeg or 0.png")
    assert read_table(root, uses=["test"]).store.path(3) == root / "images/3.jpg"


def test_the_rows_of_splits_that_are_not_used_stay_without_their_images(tmp_path: Path) -> None:
    table = read_table(own(tmp_path / "all", JPG, [f"images/{name}" for name in JPG]), uses=["test"])
    alone = read_table(own(tmp_path / "test", JPG, ["images/3.jpg"]), uses=["test"])
    assert alone.names == table.names == JPG
    splits = make_splits(alone, DataConfig())
    assert digest(alone, splits.train, splits.valid) == digest(table, splits.train, splits.valid)
    # Where a run skipped what is missing, so does what looks at it.
    assert read_table(tmp_path / "test", missing="skip", uses=["test"]).names == ["3.jpg"]


def test_files_that_are_named_as_in_the_table_come_first(tmp_path: Path) -> None:
    files = [f"images/{name}" for name in JPG] + [f"images/{row}.png" for row in (3, 2, 1, 0)]
    table = read_table(own(tmp_path, JPG, files))
    assert holds(table) == ["0", "1", "2", "3"]
    assert table.notes == ()


def test_what_was_skipped_stays_skipped(tmp_path: Path) -> None:
    # A run that began so is resumed on the same images.
    table = read_table(own(tmp_path, JPG, ["0.jpg", "1.JPG", "2.jpg", "3.jpg"]), "skip")
    assert table.names == ["0.jpg", "2.jpg", "3.jpg"]
    assert f"the nearest there is {tmp_path}/1.JPG for 1.jpg" in table.notes[0]


@pytest.mark.parametrize(
    ("names", "files", "parts"),
    [
        pytest.param(
            ["0", "1", "2", "3"],
            ["0.jpg", "1.jpg", "2.jpg", "2.png", "3.jpg"],
            ["2.jpg or 2.png", "remove the one"],
            id="two formats",
        ),
        pytest.param(
            JPG, [f"{folder}/{n}" for folder in ("full", "small") for n in JPG], ["full/0.jpg or small/0.jpg"],
            id="two folders",
        ),
        pytest.param(
            ["0.jpg", "1.jpg", "1.JPG"], ["0.png", "1.png"], ["names one file twice, as 1.jpg and as 1.JPG"],
            id="two rows of one file",
        ),
        pytest.param(
            ["0.jpg", "1.jpg", "./1.jpg"], ["0.jpg", "1.jpg"], ["names one file twice, as 1.jpg and as ./1.jpg"],
            id="two ways to one file",
        ),
        pytest.param(
            ["0.jpg", "1.jpg", "1.png"], ["0.jpg", "1.jpg"], ["lacks 1 of the 3 images", "(1.png)"],
            id="a file is taken for one row alone",
        ),
    ],
)  # fmt: skip
def test_of_several_readings_none_is_taken(
    tmp_path: Path, names: list[str], files: list[str], parts: list[str]
) -> None:
    root = own(tmp_path, names, files)
    check_sentence(refusal(lambda: read_table(root), *parts))


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        pytest.param(
            [f"images/{row:06}.jpg" for row in range(4)], ["nearest", "images/000000.jpg for 0.jpg"], id="zeros"
        ),
        pytest.param(["images/x.png", "y.jpg"], ["there are others (y.jpg, images/x.png)"], id="other names"),
        pytest.param(["notes.pdf"], ["no image at all"], id="nothing"),
        pytest.param(["img.7z.001"], ["7z x"], id="7z"),
        pytest.param(["faces.zip"], ["faces.zip", "not a complete zip archive", "fetch it again"], id="a broken zip"),
    ],
)
def test_the_nearest_that_is_there_is_said(tmp_path: Path, files: list[str], parts: list[str]) -> None:
    root = own(tmp_path, JPG, [])
    put(root, files)
    check_sentence(refusal(lambda: read_table(root), "none of the 4 images", str(tmp_path), *parts))


# Remedies are followed, and lead to the end.


def zipped(file: Path, source: Path, before: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                archive.write(path, before + path.relative_to(source).as_posix())


def images_in_a_zip(root: Path) -> None:
    celeba(root, [])
    put(root.parent / "source", [f"img_align_celeba/{row:06}.jpg" for row in range(4)])
    zipped(root / "img_align_celeba.zip", root.parent / "source")


def half_of_a_zip(root: Path) -> None:
    images_in_a_zip(root)
    put(root, ["img_align_celeba/000000.jpg"])


def loose_images_in_a_zip(root: Path) -> None:
    own(root, JPG, [])
    zipped(root / "some faces.zip", put(root.parent / "source", JPG))


def zip_in_the_zip(root: Path) -> None:
    images_in_a_zip(root)
    inner = root.parent / "inner"
    (inner / "CelebA/Img").mkdir(parents=True)
    shutil.move(root / "img_align_celeba.zip", inner / "CelebA/Img")
    zipped(root / "celeba.zip", inner)


def table_in_a_zip(root: Path) -> None:
    root.mkdir()
    zipped(root / "archive.zip", own(root.parent / "source", JPG, [f"images/{name}" for name in JPG]), "faces/")


def the_root_is_a_zip(root: Path) -> None:
    zipped(root, own(root.parent / "source", JPG, [f"images/{name}" for name in JPG]), "faces/")


def a_root_further_up(root: Path) -> None:
    root.mkdir()
    celeba(root / "download", [f"download/Img/img_align_celeba/{row:06}.jpg" for row in ()])
    put(root / "download", [f"Img/img_align_celeba/{row:06}.jpg" for row in range(4)])
    (root / "download/Anno").mkdir()
    shutil.move(root / "download/list_attr_celeba.txt", root / "download/Anno")


def a_root_further_down(root: Path) -> None:
    celeba(root.parent, [f"{root.name}/{row:06}.jpg" for row in range(4)])


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
@pytest.mark.parametrize(
    "make",
    [
        half_of_a_zip,
        loose_images_in_a_zip,
        zip_in_the_zip,
        table_in_a_zip,
        the_root_is_a_zip,
        a_root_further_up,
        a_root_further_down,
    ],
)
def test_what_the_sentence_says_helps(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = tmp_path / "the faces"
    make(root)
    sentence = refusal(lambda: read_table(root))
    check_sentence(sentence)
    if command := re.search("`(.*)`", sentence):
        subprocess.run(["bash", "-c", command[1]], check=True)
    if place := re.search("set data.root to (.*)", sentence):
        root = Path(place[1])
    assert holds(read_table(root)) == ["0", "1", "2", "3"]


def test_the_name_for_a_table_helps(tmp_path: Path) -> None:
    own(tmp_path, JPG, JPG)
    for other in ("Table.CSV", "labels.csv"):
        (tmp_path / "table.csv").rename(tmp_path / other)
        sentence = refusal(lambda: read_table(tmp_path), f"{tmp_path}/{other}", f"{tmp_path}/table.csv")
        check_sentence(sentence)
        (tmp_path / other).rename(tmp_path / "table.csv")
        assert len(read_table(tmp_path)) == 4


# Absolute names


def test_an_absolute_name_in_the_data_set_is_relative(tmp_path: Path) -> None:
    root, link = tmp_path / "faces", tmp_path / "link"
    put(root, [f"images/{name}" for name in JPG])
    link.symlink_to(root)
    for start, read in ((root, root), (link, link), (root, link)):
        table = read_table(own(root, [f"{start}/images/{name}" for name in JPG], []) and read)
        assert table.names == [f"images/{name}" for name in JPG]
        assert holds(table) == ["0", "1", "2", "3"]
    root = own(root, [f"{root}/images/0.jpg", "images/0.jpg"], [])
    refusal(lambda: read_table(root), "names one file twice", "images/0.jpg")


@pytest.mark.parametrize("start", ["/home/ann/faces/images/", "C:\\Users\\ann\\images\\", "/images/"])
def test_an_absolute_name_elsewhere_is_refused(tmp_path: Path, start: str) -> None:
    root = own(tmp_path, [start + name for name in JPG], [f"images/{name}" for name in JPG])
    sentence = refusal(lambda: read_table(root), "table.csv", f"{start}0.jpg", "outside of the folder")
    (near,) = re.findall(r"\(that is (.*)\)", sentence)
    assert near == "images/0.jpg"
    assert holds(read_table(own(tmp_path, [near.replace("0", str(row)) for row in range(4)], []))) == list("0123")


# Links


@pytest.mark.parametrize("link", ["img_align_celeba", "Img"])
def test_a_folder_that_is_a_link_to_nowhere_is_named(tmp_path: Path, link: str) -> None:
    root = celeba(tmp_path / "faces", [])
    (root / link).symlink_to(tmp_path / "gone")
    refusal(
        lambda: read_table(root),
        f"{root / link} is a link to {tmp_path / 'gone'}, where nothing is", "make it lead to the images",
    )  # fmt: skip


def test_links_to_folders_and_files(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", [f"{row}.JPG" for row in range(4)])
    root = own(tmp_path / "faces", JPG, [])
    (root / "pics").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(root)
    assert holds(read_table(root)) == ["0", "1", "2", "3"]
    (root / "pics").unlink()
    for name in JPG:
        (root / name).symlink_to(tmp_path / "elsewhere" / name.upper())
    assert holds(read_table(root)) == ["0", "1", "2", "3"]


def test_links_to_nowhere(tmp_path: Path) -> None:
    root = own(tmp_path / "faces", JPG, JPG)
    for name in JPG[1:]:
        (root / name).unlink()
        (root / name).symlink_to(f"/nowhere/{name}")
    parts = ("lacks 3 of the 4 images", f"{root}/1.jpg is a link to /nowhere/1.jpg, where no file is")
    check_sentence(refusal(lambda: read_table(root), *parts))
    table = read_table(root, "skip")
    assert table.names == ["0.jpg"]
    assert parts[1] in table.notes[0]
    (root / "0.jpg").unlink()
    (root / "0.jpg").symlink_to("/nowhere")
    assert "set data.missing" not in refusal(lambda: read_table(root, "skip"), "lacks 4 of the 4 images")


def test_a_folder_in_place_of_an_image(tmp_path: Path) -> None:
    root = own(tmp_path, JPG, JPG[1:])
    (root / "0.jpg").mkdir()
    refusal(lambda: read_table(root), "lacks 1 of the 4 images", f"{root}/0.jpg is a folder")


# What follows


def test_nothing_is_written_into_the_data_set(tmp_path: Path) -> None:
    root = own(tmp_path, JPG, [f"pics/{row}.png" for row in range(4)])

    def seen() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (root, *root.rglob("*"))}

    before = seen()
    holds(read_table(root))
    assert seen() == before


def test_a_separated_data_set_has_the_files_that_were_taken(tmp_path: Path, faces: Path) -> None:
    people = sorted((faces / "img_align_celeba").iterdir())[:8]
    root = own(tmp_path / "faces", [f"{row}.jpg" for row in range(8)], [])
    for row, file in enumerate(people):
        shutil.copyfile(file, root / f"{row}.JPG")
    config = DataConfig(root=root, split="image", split_fractions=(0.5, 0.25, 0.25))
    for files in ("link", "copy"):
        proof, notes = separate(config, tmp_path / files, files, 1)  # type: ignore[arg-type]
        assert sum(proof.images.values()) == 8
        assert any("0.JPG for 0.jpg" in note for note in notes)
        table = read_table(tmp_path / files)
        assert table.notes == ()
        assert [os.path.basename(name) for name in table.names] == [f"{row}.JPG" for row in range(8)]  # noqa: PTH119
        assert [table.store.path(row).read_bytes() for row in range(8)] == [file.read_bytes() for file in people]
