import contextlib
import lzma
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_model import write_model
from sentences import refusal

from distrib.base.errors import UserError
from distrib.data.annotations import read_attributes, read_identity, read_partition
from distrib.data.table import read_table
from distrib.model.trained import load

SHARED = Path(__file__).resolve().parents[3] / "shared"
# Byte for byte as CelebA writes it: CRLF, two blanks before a positive value, a blank at the end of the header.
ATTRIBUTES = (
    b"4\r\nBald Smiling Young \r\n"
    b"000001.jpg -1  1  1\r\n000002.jpg -1 -1 -1\r\n000003.jpg  1 -1  1\r\n000004.jpg -1  1 -1\r\n"
)
TARGETS = [[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
CSV = b"image_id,Bald,Smiling,Young\r\n" + b"".join(
    b",".join(line.split()) + b"\r\n" for line in ATTRIBUTES.split(b"\r\n")[2:6]
)
NUMBERED = b"".join(
    (str(n - 1).encode() if n else b"") + b"," + line + b"\r\n" for n, line in enumerate(CSV.split(b"\r\n")[:5])
)
PARTITION = b"000001.jpg 0\r\n000002.jpg 0\r\n000003.jpg 1\r\n000004.jpg 2\r\n"
IDENTITY = b"000001.jpg 2880\r\n000002.jpg 2937\r\n000003.jpg 8692\r\n000004.jpg 2880\r\n"
IMAGES = ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg"]


def lay_out(root: Path, files: dict[str, bytes], images: str = "img_align_celeba") -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / images).mkdir(parents=True, exist_ok=True)
    for name in IMAGES:
        (root / images / name).touch()
    return root


def celeba(root: Path, attributes: bytes = ATTRIBUTES, **others: bytes) -> Path:
    named = {"partition": "list_eval_partition.txt", "identity": "identity_CelebA.txt"}
    return lay_out(root, {"list_attr_celeba.txt": attributes, **{named[key]: text for key, text in others.items()}})


def own(root: Path, table: str) -> Path:
    return lay_out(root, {"table.csv": table.encode()}, images=".")


def test_reads_celebas_own_bytes(tmp_path: Path) -> None:
    table = read_table(celeba(tmp_path, partition=PARTITION, identity=IDENTITY))
    assert len(table) == 4
    assert table.attributes == ("Bald", "Smiling", "Young")
    assert list(table.names) == IMAGES
    assert table.targets.dtype == np.uint8
    assert table.targets.tolist() == TARGETS
    assert table.split is not None
    assert table.split.dtype == np.int8
    assert table.split.tolist() == [0, 0, 1, 2]
    assert table.identity is not None
    assert table.identity.dtype == np.int64
    assert table.identity.tolist() == [2880, 2937, 8692, 2880]
    assert table.store.path(2) == tmp_path / "img_align_celeba" / "000003.jpg"
    assert table.store.path(2).exists()
    assert table.notes == ()


def test_split_and_identity_are_optional(tmp_path: Path) -> None:
    table = read_table(celeba(tmp_path))
    assert table.split is None
    assert table.identity is None


@pytest.mark.parametrize("base", ["", "celeba/"])
@pytest.mark.parametrize(
    ("anno", "evaluation", "images"),
    [
        ("", "", "img_align_celeba"),
        ("Anno/", "Eval/", "Img/img_align_celeba"),
        ("Anno/", "Eval/", "img_align_celeba"),
        ("", "", "img_align_celeba/img_align_celeba"),
    ],
)
def test_folder_layouts(tmp_path: Path, base: str, anno: str, evaluation: str, images: str) -> None:
    files = {
        f"{base}{anno}list_attr_celeba.txt": ATTRIBUTES,
        f"{base}{anno}identity_CelebA.txt": IDENTITY,
        f"{base}{evaluation}list_eval_partition.txt": PARTITION,
    }
    table = read_table(lay_out(tmp_path, files, base + images))
    assert table.store.folder == tmp_path / (base + images)
    assert table.targets.tolist() == TARGETS
    assert table.split is not None
    assert table.identity is not None


@pytest.mark.parametrize("absent", ["0", "-1"])
def test_csv_archive(tmp_path: Path, absent: str) -> None:
    rows = [[str(v) if v else absent for v in row] for row in TARGETS]
    lines = (",".join([n, *r]) for n, r in zip(IMAGES, rows, strict=True))
    attributes = "\n".join(["image_id,Bald,Smiling,Young", *lines])
    partition = "image_id,partition\n" + "\n".join(f"{n},{k}" for n, k in zip(IMAGES, (0, 0, 1, 2), strict=True))
    identity = "image_id,identity\n" + "\n".join(f"{n},{k}" for n, k in zip(IMAGES, (5, 6, 7, 5), strict=True))
    files = {
        "list_attr_celeba.csv": attributes.encode(),
        "list_eval_partition.csv": partition.encode(),
        "identity_CelebA.csv": identity.encode(),
    }
    table = read_table(lay_out(tmp_path, files, "img_align_celeba/img_align_celeba"))
    assert table.attributes == ("Bald", "Smiling", "Young")
    assert table.targets.tolist() == TARGETS
    assert table.split is not None
    assert table.split.tolist() == [0, 0, 1, 2]
    assert table.identity is not None
    assert table.identity.tolist() == [5, 6, 7, 5]


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param(ATTRIBUTES.replace(b"\r\n", b"\n"), id="LF"),
        pytest.param(ATTRIBUTES.replace(b"\r\n", b"\r"), id="CR"),
        pytest.param(ATTRIBUTES.replace(b"\r\n", b"\r\r\n"), id="CR CR LF"),
        pytest.param(ATTRIBUTES.rstrip(), id="no end of the last line"),
        pytest.param(ATTRIBUTES + b"\r\n \r\n", id="blank lines at the end"),
        pytest.param(ATTRIBUTES.replace(b"  ", b" "), id="single blanks"),
        pytest.param(ATTRIBUTES.replace(b"  1", b"\t1"), id="tabs"),
        pytest.param(ATTRIBUTES.replace(b"-1", b" 0"), id="0 for absent"),
        pytest.param(b"\xef\xbb\xbf" + ATTRIBUTES, id="byte-order mark"),
        pytest.param(ATTRIBUTES.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(ATTRIBUTES.decode().encode("utf-16-be"), id="UTF-16 without its mark"),
        pytest.param(CSV, id="CSV"),
        pytest.param(CSV.replace(b",", b";"), id="semicolons"),
        pytest.param(b"sep=;\r\n" + CSV.replace(b",", b";"), id="semicolons, announced"),
        pytest.param(CSV.replace(b",", b"\t"), id="tabs between columns"),
        pytest.param(CSV.replace(b",", b"|"), id="bars between columns"),
        pytest.param(CSV.replace(b",", b" "), id="header and blanks"),
        pytest.param(CSV.replace(b",", b", "), id="commas and blanks"),
        pytest.param(b"4,,,\r\nBald,Smiling,Young,\r\n" + CSV.split(b"\r\n", 1)[1], id="CelebA's own, with commas"),
        pytest.param(CSV.replace(b"\r\n", b",,\r\n") + b",,,,,\r\n", id="empty cells around the table"),
        pytest.param(CSV.replace(b"Young\r\n", b"Young,,Unnamed: 5\r\n"), id="empty columns in the header alone"),
        pytest.param(b'"image_id","Bald","Smiling","Young"\r\n' + CSV.split(b"\r\n", 1)[1], id="quoted header"),
        pytest.param(NUMBERED, id="pandas' numbers of the rows"),
        pytest.param(NUMBERED.replace(b",image", b"Unnamed: 0,image"), id="pandas' numbers, read and written again"),
        pytest.param(CSV.replace(b"image_id", b""), id="names of images as pandas' index"),
    ],
)
def test_spellings_of_the_same_table(tmp_path: Path, attributes: bytes) -> None:
    assert read_table(celeba(tmp_path, attributes)).targets.tolist() == TARGETS


def test_partition_and_identity_in_another_order(tmp_path: Path) -> None:
    partition = b"".join(reversed(PARTITION.splitlines(keepends=True)))
    identity = b"".join(reversed(IDENTITY.splitlines(keepends=True)))
    table = read_table(celeba(tmp_path, partition=partition, identity=identity))
    assert table.split is not None
    assert table.split.tolist() == [0, 0, 1, 2]
    assert table.identity is not None
    assert table.identity.tolist() == [2880, 2937, 8692, 2880]


def test_select(tmp_path: Path) -> None:
    table = read_table(celeba(tmp_path))
    assert table.select(("all",)) is table
    chosen = table.select(["Young", "Bald"])
    assert chosen.attributes == ("Young", "Bald")
    assert chosen.targets.tolist() == [[1, 0], [0, 0], [1, 1], [0, 0]]
    refusal(lambda: table.select(["Smilling"]), "data.attributes", "Smilling", "did you mean Smiling?", "Bald")


def test_own_table(tmp_path: Path) -> None:
    table = read_table(
        own(
            tmp_path,
            "file,happy,split,group,glasses\n"
            '000001.jpg,1,train,Ann,0\n"000002.jpg",-1,val,"Bo, Jr",0\n'
            "000003.jpg,-1,validation,Ann,1\n000004.jpg,1,2,7,1\n",
        )
    )
    assert table.attributes == ("happy", "glasses")
    assert table.targets.tolist() == [[1, 0], [0, 0], [0, 1], [1, 1]]
    assert table.split is not None
    assert table.split.tolist() == [0, 1, 1, 2]
    assert table.identity is not None
    first, second, third, fourth = table.identity.tolist()
    assert first == third
    assert len({first, second, fourth}) == 3


def test_own_table_without_split_and_group(tmp_path: Path) -> None:
    table = read_table(own(tmp_path, "picture,happy\n000001.jpg,1\n000002.jpg,0\n000003.jpg,0\n000004.jpg,1\n"))
    assert table.attributes == ("happy",)
    assert list(table.names) == IMAGES
    assert table.split is None
    assert table.identity is None


def test_own_table_finds_its_file_column_by_name(tmp_path: Path) -> None:
    table = read_table(own(tmp_path, "happy,image\n1,000001.jpg\n0,000002.jpg\n0,000003.jpg\n1,000004.jpg\n"))
    assert list(table.names) == IMAGES
    assert table.targets.tolist() == [[1], [0], [0], [1]]


@pytest.mark.parametrize("folder", ["", "images", "img_align_celeba"])
def test_own_table_with_pictures_of_other_kinds_in_subfolders(tmp_path: Path, folder: str) -> None:
    (tmp_path / "table.csv").write_text("file,happy\na/1.png,1\na/b/2 c.webp,0\n")
    (tmp_path / folder / "a/b").mkdir(parents=True)
    (tmp_path / folder / "a/1.png").touch()
    (tmp_path / folder / "a/b/2 c.webp").touch()
    table = read_table(tmp_path)
    assert table.store.folder == tmp_path / folder
    assert all(table.store.path(row).exists() for row in range(2))
    assert table.notes == ()


def test_missing_root(tmp_path: Path) -> None:
    refusal(lambda: read_table(tmp_path / "nowhere"), "data.root", str(tmp_path / "nowhere"), "not a folder")


def test_missing_table_lists_what_was_looked_for(tmp_path: Path) -> None:
    refusal(
        lambda: read_table(tmp_path),
        "data.root", "table.csv", "list_attr_celeba.txt or .csv", str(tmp_path / "celeba" / "Anno"),
    )  # fmt: skip


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)  # the superuser, who runs tests in containers, may read everything
    refusal(lambda: read_table(celeba(tmp_path)), "img_align_celeba cannot be read", "permissions")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.txt").mkdir()
    refusal(lambda: read_table(tmp_path), "list_attr_celeba.txt cannot be read", "Is a directory")


@pytest.mark.parametrize(
    ("attributes", "parts"),
    [
        pytest.param(b"", ["is empty"], id="empty"),
        pytest.param(b"\r\n\r\n", ["is empty"], id="blank"),
        pytest.param(ATTRIBUTES.replace(b"4\r\n", b"5\r\n", 1), ["line 1", "5 rows", "4 follow"], id="count"),
        pytest.param(ATTRIBUTES[:-21], ["line 1", "4 rows", "3 follow"], id="cut off at a line"),
        pytest.param(ATTRIBUTES[:-5], ["line 6", "found 3", "expected 4"], id="cut off within a line"),
        pytest.param(
            ATTRIBUTES.split(b"\r\n", 1)[1], ["line 1", "'Bald Smiling Young'", "number of rows"], id="no count"
        ),
        pytest.param(b"0\r\nBald \r\n", ["no rows"], id="no rows"),
        pytest.param(b"1\r\n\r\na.jpg 1\r\n", ["line 2", "no attribute"], id="no attributes"),
        pytest.param(ATTRIBUTES.replace(b"Young", b"Bald"), ["line 2", "'Bald' twice"], id="attribute twice"),
        pytest.param(
            ATTRIBUTES.replace(b"000003.jpg  1 -1", b"000003.jpg  1  2"),
            ["line 5", "'2'", "Smiling", "0 or -1"],
            id="2",
        ),
        pytest.param(
            ATTRIBUTES.replace(b"000003.jpg  1 -1", b"000003.jpg  1  0"),
            ["-1 for Smiling in line 4 and 0 in line 5", "leave out the rows where it is unknown"],
            id="-1 and 0 in one column",
        ),
        pytest.param(ATTRIBUTES.replace(b"3.jpg  1 -1", b"3.jpg  1 --1"), ["line 5", "'--1'", "Smiling"], id="--1"),
        pytest.param(
            ATTRIBUTES.replace(b"3.jpg  1 -1", b"3.jpg  1-1"), ["line 5", "found 3", "expected 4"], id="grown together"
        ),
        pytest.param(ATTRIBUTES.replace(b"2.jpg -1", b"2.jpg"), ["line 4", "found 3", "expected 4"], id="too few"),
        pytest.param(
            ATTRIBUTES.replace(b"2.jpg -1", b"2.jpg -1 1"), ["line 4", "found 5", "expected 4"], id="too many"
        ),
        pytest.param(ATTRIBUTES.replace(b"000003", b"000001"), ["line 5", "'000001.jpg'", "line 3"], id="name twice"),
        pytest.param(ATTRIBUTES.replace(b"000003", b"00\xff003"), ["line 5", "UTF-8"], id="no text"),
    ],
)
def test_wrong_attribute_file(tmp_path: Path, attributes: bytes, parts: list[str]) -> None:
    refusal(lambda: read_table(celeba(tmp_path, attributes)).select(["all"]), "list_attr_celeba.txt", *parts)


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        pytest.param("", ["is empty"], id="empty"),
        pytest.param("file,happy\n", ["no rows"], id="no rows"),
        pytest.param("file\n000001.jpg\n", ["line 1", "no attribute"], id="no attributes"),
        pytest.param("file#happy\n000001.jpg#1\n", ["line 1", "no attribute", "commas"], id="separator"),
        pytest.param("file,happy,\n000001.jpg,1,0\n", ["line 1", "no name for column 3"], id="unnamed column"),
        pytest.param("file,happy\n000001.jpg,1\n000002.jpg,much\n", ["line 3", "'much'", "happy"], id="value"),
        pytest.param("file,happy\n000001.jpg,\n", ["line 2", "no value for happy"], id="empty value"),
        pytest.param("file,happy\n000001.jpg,1,0\n", ["line 2", "found 3", "expected 2"], id="too many fields"),
        pytest.param("file,happy\n\n000001.jpg,1\n", ["line 2 is empty: remove it"], id="blank line"),
        pytest.param("file,happy\n,1\n", ["line 2", "no file name"], id="no file name"),
        pytest.param("file,happy\na.jpg,1\na.jpg,1\n", ["line 3", "'a.jpg'", "line 2"], id="name twice"),
        pytest.param("file,happy,split\na.jpg,1,eval\n", ["line 2", "'eval'", "train, valid or test"], id="split"),
        pytest.param("file,happy,group\na.jpg,1,\n", ["line 2", "no group"], id="group"),
        pytest.param('file,happy\na.jpg,1\n"b.jpg,1\n', ["line 3", "not valid CSV"], id="open quote"),
    ],
)
def test_wrong_table_of_ones_own(tmp_path: Path, table: str, parts: list[str]) -> None:
    refusal(lambda: read_table(own(tmp_path, table)).select(["all"]), "table.csv", *parts)


def rows_of(header: str, *rows: str) -> str:
    return "\n".join([header, *(f"{image},{row}" for image, row in zip(IMAGES, rows, strict=True))]) + "\n"


def test_values_as_pandas_and_others_write_them(tmp_path: Path) -> None:
    text = rows_of(
        "file,a,b,c,d,e",
        "1,1.0,True,yes,1",
        "0,-1.0,FALSE,No,0.0",
        "0,-1,true,YES,1.00",
        "1,1.,False,no,0",
    )
    assert read_table(own(tmp_path, text)).targets.tolist() == [
        [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0],
    ]  # fmt: skip


def test_split_and_group_in_any_case(tmp_path: Path) -> None:
    text = rows_of("Filename,happy,Split,GROUP", "1,Train,Ann", "0,VAL,Bo", "1,Validation,Ann", "0, test ,7")
    table = read_table(own(tmp_path, text))
    assert table.attributes == ("happy",)
    assert table.split is not None
    assert table.split.tolist() == [0, 1, 1, 2]
    assert table.identity is not None
    assert table.identity.tolist() == [1, 2, 1, 0]
    text = rows_of("file,happy,SPLIT", "1,0.0", "0,training", "1,dev", "0,Testing")
    assert np.array(read_table(own(tmp_path, text)).split).tolist() == [0, 0, 1, 2]
    refusal(lambda: read_table(own(tmp_path, rows_of("file,a,Split,SPLIT", *["1,0,0"] * 4))), "line 1", "split twice")


@pytest.mark.parametrize(
    "header",
    [
        "happy,Filename", "happy,file_name", "happy,image_path", "happy,Path", "happy,IMAGE", "happy,File Name",
        "happy,what it is called",
    ],
)  # fmt: skip
def test_the_column_with_the_files(tmp_path: Path, header: str) -> None:
    rows = [f"{row % 2},{image}" for row, image in enumerate(IMAGES)]
    table = read_table(own(tmp_path, "\n".join([header, *rows])))
    assert table.names == IMAGES
    assert table.attributes == ("happy",)


def test_the_column_that_holds_files_of_two_that_are_called_so(tmp_path: Path) -> None:
    rows = [f"{row + 7},{image},{row % 2},1" for row, image in enumerate(IMAGES)]
    table = read_table(own(tmp_path, "\n".join(["image_id,path,happy,file", *rows])))
    assert table.names == IMAGES
    assert table.select(["file", "happy"]).targets.tolist() == [[1, 0], [1, 1], [1, 0], [1, 1]]


FAIRFACE = rows_of(
    "file,age,gender,smiling,glasses,notes",
    "20-29,Male,1,0,",
    "3-9,Female,0,1,x",
    "more than 70,Male,1,1,",
    "0-2,Male,0,,",
)


def test_a_column_that_a_model_knows_in_another_case_is_to_be_renamed(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "best", attributes=("Smiling",)))
    table = read_table(own(tmp_path, rows_of("file,smiling,hat", "1,1", "0,1", "1,0", "0,0")))
    refusal(
        lambda: model.labels(table, tmp_path),
        "no labels for Smiling", "rename its column (did you mean smiling?)", "columns are smiling, hat",
    )  # fmt: skip


def test_only_the_columns_that_are_asked_for_are_checked(tmp_path: Path) -> None:
    table = read_table(own(tmp_path, FAIRFACE))
    assert table.select(["smiling"]).targets.tolist() == [[1], [0], [1], [0]]
    sentence = refusal(lambda: table.select(["age"]), "table.csv, line 2", "'20-29' for age", "smiling")
    assert "glasses" not in sentence
    refusal(lambda: table.select(["smiling", "glasses"]), "table.csv, line 5 has no value for glasses", "fill it in")
    refusal(lambda: table.select(["smilling"]), "did you mean smiling?")


def test_all_of_the_columns_when_some_are_no_attributes(tmp_path: Path) -> None:
    table = read_table(own(tmp_path, FAIRFACE))
    sentence = refusal(
        lambda: table.select(["all"]), "table.csv, line 5 has no value for glasses", "notes, age, gender cannot"
    )
    # What it says to do helps.
    choice = sentence.partition("--data.attributes ")[2].split()
    assert table.select(choice).attributes == ("smiling",)


def test_a_table_without_any_attribute(tmp_path: Path) -> None:
    text = rows_of("file,age", "20", "30", "40", "50")
    for choice in (["all"], ["age"]):
        refusal(
            lambda choice=choice: read_table(own(tmp_path, text)).select(choice),
            "line 2 (and 3 more) has '20' for age", "add one of 1 and 0",
        )  # fmt: skip


@pytest.mark.parametrize(
    "table",
    [
        'file,happy,note\n000001.jpg,1,"one\nand two"\n000002.jpg,0,\n000003.jpg,0,\n000004.jpg,1,\n',
        'file,happy,"a\nnote"\n000001.jpg,1,x\n000002.jpg,0,x\n000003.jpg,0,x\n000004.jpg,1,x\n',
    ],
    ids=["first row", "header"],
)
def test_a_line_break_within_a_cell(tmp_path: Path, table: str) -> None:
    assert read_table(own(tmp_path, table)).select(["happy"]).targets.tolist() == [[1], [0], [0], [1]]


def test_a_title_above_the_header_is_to_be_removed(tmp_path: Path) -> None:
    text = rows_of("file,happy,hat", "1,1", "0,0", "0,1", "1,0")
    refusal(lambda: read_table(own(tmp_path, "My faces,,\n" + text)), "line 1 has nothing but 'My faces'", "remove")
    assert read_table(own(tmp_path, text)).attributes == ("happy", "hat")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("CelebAMask-HQ-attribute-anno.txt", "list_attr_celeba.txt"),
        ("list_attr_celeba (1).txt", "list_attr_celeba.txt"),
        ("list_attr_celeba.txt.txt", "list_attr_celeba.txt"),
        ("list_attr_celeba", "list_attr_celeba.txt"),
        ("table.txt", "table.csv"),
        ("labels.tsv", "table.csv"),
    ],
)
def test_a_table_of_another_name_is_found_by_its_remedy(tmp_path: Path, file: str, name: str) -> None:
    text = ATTRIBUTES if name.startswith("list") else CSV
    lay_out(tmp_path, {file: text, "README.txt": b"", "list_eval_partition.txt": PARTITION})
    sentence = refusal(lambda: read_table(tmp_path), str(tmp_path / file), str(tmp_path / name))
    assert "README" not in sentence
    assert sentence.endswith(f" {tmp_path / name}")
    (tmp_path / file).rename(tmp_path / name)
    if name == "table.csv":
        (tmp_path / "img_align_celeba").rename(tmp_path / "images")
    assert read_table(tmp_path).targets.tolist() == TARGETS


def test_a_table_that_is_no_text_is_to_be_saved_as_one(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": ["1.jpg"], "happy": [1]}), tmp_path / "train.parquet")
    refusal(lambda: read_table(tmp_path), "train.parquet", f"save the table, as CSV, as {tmp_path / 'table.csv'}")


def test_a_folder_that_is_too_large_is_not_said_to_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.data.image_files._MOST_FILES", 3)
    (tmp_path / "faces").mkdir()
    root = lay_out(tmp_path / "faces", {}, "pics")
    refusal(lambda: read_table(root), "holds no table", "was not searched, because it holds more than 3 files")
    (root / "table.csv").write_bytes(CSV)
    assert "no image at all" not in refusal(lambda: read_table(root), "was not searched", "put the images into")


def test_the_only_attribute_with_a_missing_value_is_the_one_that_is_named(tmp_path: Path) -> None:
    table = read_table(own(tmp_path, rows_of("file,age,smiling", "20,1", "30,0", "40,", "50,1")))
    for choice in (["smiling"], ["all"]):
        sentence = refusal(
            lambda choice=choice: table.select(choice), "line 4 has no value for smiling", "fill it in, or remove"
        )
        assert "add one" not in sentence
    assert sentence.endswith("--data.attributes smiling")


def test_minus_one_and_zero_are_both_absent_in_columns_of_their_own(tmp_path: Path) -> None:
    table = read_table(own(tmp_path, rows_of("file,a,b,c", "1,1,1", "-1,0,0", "-1,0,-1", "1,1,0")))
    assert table.select(["a", "b"]).targets.tolist() == [[1, 1], [0, 0], [0, 0], [1, 1]]
    refusal(lambda: table.select(["c"]), "-1 for c in line 4 and 0 in line 3")


@pytest.mark.parametrize("nothing", ["", "nan", "NaN", "NA", "None", "NULL"])
def test_a_missing_value_names_row_and_column(tmp_path: Path, nothing: str) -> None:
    table = read_table(own(tmp_path, rows_of("file,happy,glasses", "1,1", "0,0", f"{nothing},1", "0,0")))
    for choice in (["happy"], ["all"]):
        sentence = refusal(lambda choice=choice: table.select(choice), "table.csv, line 4 has no value for happy")
        assert nothing in sentence
    assert table.select(["glasses"]).targets.tolist() == [[1], [0], [1], [0]]


@pytest.mark.parametrize(
    ("start", "parts"),
    [
        (b"PK\x03\x04", ["workbook", "CSV"]),
        (b"<!DOCTYPE html><html>\n", ["a web page"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS", "git lfs pull"]),
        (b"000001.jpg,1\n000002.jpg,0\n", ["line 1 has '000001.jpg'", "file,smiling"]),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, start: bytes, parts: list[str]) -> None:
    refusal(lambda: read_table(lay_out(tmp_path, {"table.csv": start})), "table.csv", *parts)


@pytest.mark.parametrize("table", ["table.csv", "list_attr_celeba.csv", "list_attr_celeba.txt"])
@pytest.mark.parametrize("content", [ATTRIBUTES, CSV], ids=["txt", "csv"])
def test_a_table_is_read_by_what_it_holds(tmp_path: Path, table: str, content: bytes) -> None:
    assert read_table(lay_out(tmp_path, {table: content})).targets.tolist() == TARGETS


@pytest.mark.parametrize("ending", ["txt", "csv"])
@pytest.mark.parametrize(
    ("header", "separator"),
    [
        (None, " "),
        (None, ","),
        ("image_id,{}", ","),
        ("image_id;{}", ";"),
        ("image_id {}", "  "),
        (",image_id,{}", ","),
    ],
)
def test_partition_and_identity_by_what_they_hold(
    tmp_path: Path, ending: str, header: str | None, separator: str
) -> None:
    files = {f"list_attr_celeba.{ending}": ATTRIBUTES}
    for stem, column, numbers in (
        ("list_eval_partition", "partition", ["0", "0", "1.0", "2"]),
        ("identity_CelebA", "identity", ["5", "6", "7.0", "5"]),
    ):
        index = header is not None and header.startswith(",")
        lines = [
            separator.join([*([str(row)] if index else []), image, number])
            for row, (image, number) in enumerate(zip(IMAGES, numbers, strict=True))
        ]
        files[f"{stem}.{ending}"] = "\n".join([*([header.format(column)] if header else []), *lines]).encode()
    table = read_table(lay_out(tmp_path, files))
    assert np.array(table.split).tolist() == [0, 0, 1, 2]
    assert np.array(table.identity).tolist() == [5, 6, 7, 5]
    assert table.notes == ()


def test_a_partition_of_the_same_images_with_another_ending(tmp_path: Path) -> None:
    table = read_table(celeba(tmp_path, partition=PARTITION.replace(b".jpg", b".png")))
    assert np.array(table.split).tolist() == [0, 0, 1, 2]
    assert "000001.png, 000001.jpg" in table.notes[0]


def test_missing_images_stop(tmp_path: Path) -> None:
    celeba(tmp_path)
    (tmp_path / "img_align_celeba/000002.jpg").unlink()
    (tmp_path / "img_align_celeba/000004.jpg").unlink()
    refusal(
        lambda: read_table(tmp_path),
        "lacks 2 of the 4 images", "000002.jpg, 000004.jpg", "img_align_celeba", "data.missing", "skip",
    )  # fmt: skip


def test_missing_images_skipped(tmp_path: Path) -> None:
    celeba(tmp_path, partition=PARTITION, identity=IDENTITY)
    (tmp_path / "img_align_celeba/000002.jpg").unlink()
    table = read_table(tmp_path, missing="skip")
    assert list(table.names) == ["000001.jpg", "000003.jpg", "000004.jpg"]
    assert table.targets.tolist() == [TARGETS[0], TARGETS[2], TARGETS[3]]
    assert table.split is not None
    assert table.split.tolist() == [0, 1, 2]
    assert table.identity is not None
    assert table.identity.tolist() == [2880, 8692, 2880]
    (note,) = table.notes
    assert "lacks 1 of the 4 images" in note
    assert "000002.jpg" in note
    assert "skipped" in note


@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_no_image_at_all(tmp_path: Path, missing: Literal["stop", "skip"]) -> None:
    (tmp_path / "list_attr_celeba.txt").write_bytes(ATTRIBUTES)
    refusal(
        lambda: read_table(tmp_path, missing),
        "none of the 4 images", "000001.jpg, 000002.jpg, 000003.jpg, ...", str(tmp_path / "img_align_celeba"),
    )  # fmt: skip


def test_images_without_a_row(tmp_path: Path) -> None:
    celeba(tmp_path)
    for name in ("000009.jpg", "000008.jpg", "000007.jpg", "000006.jpg", "Thumbs.db"):
        (tmp_path / "img_align_celeba" / name).touch()
    (note,) = read_table(tmp_path).notes
    assert "without a row" in note
    assert "4 (000006.jpg, 000007.jpg, 000008.jpg, ...)" in note


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        ("partition", PARTITION[:-14], ["list_eval_partition.txt", "no line for 1 of the 4 images", "000004.jpg"]),
        (
            "partition",
            PARTITION + b"000001.jpg 1\r\n",
            ["list_eval_partition.txt, line 5", "'000001.jpg'", "second time"],
        ),
        ("partition", PARTITION.replace(b"jpg 1", b"jpg 3"), ["list_eval_partition.txt, line 3", "'3'", "0, 1 or 2"]),
        (
            "partition",
            PARTITION.replace(b"jpg 1", b"jpg"),
            ["list_eval_partition.txt, line 3", "found 1", "expected 2"],
        ),
        ("partition", b"", ["list_eval_partition.txt", "is empty"]),
        ("identity", IDENTITY[:-17], ["identity_CelebA.txt", "no line for 1 of the 4 images", "000004.jpg"]),
        ("identity", IDENTITY + b"000001.jpg 7\r\n", ["identity_CelebA.txt, line 5", "'000001.jpg'", "second time"]),
        ("identity", IDENTITY.replace(b"8692", b"Ann"), ["identity_CelebA.txt, line 3", "'Ann'", "whole number"]),
        ("identity", IDENTITY.replace(b"8692", b"9" * 30), ["identity_CelebA.txt, line 3", "whole number"]),
    ],
)
def test_wrong_partition_and_identity(tmp_path: Path, kind: str, text: bytes, parts: list[str]) -> None:
    refusal(lambda: read_table(celeba(tmp_path, **{kind: text})), *parts)


def test_surplus_lines_of_the_partition_are_noted(tmp_path: Path) -> None:
    table = read_table(celeba(tmp_path, partition=b"000000.jpg 2\r\n" + PARTITION))
    assert table.split is not None
    assert table.split.tolist() == [0, 0, 1, 2]
    assert "not in the table: 1 (000000.jpg)" in table.notes[0]


TOKENS = st.sampled_from(
    ["1", "-1", "0", " ", "  ", "\n", "\r\n", ",", "a.jpg", "b.jpg", "c d.jpg", '"', "-", "2", "\t"]
)


@given(
    raw=st.one_of(
        st.binary(max_size=60),
        st.lists(TOKENS, max_size=30).map(lambda tokens: ("2\nX Y\n" + "".join(tokens)).encode()),
        st.tuples(st.integers(0, len(ATTRIBUTES)), st.binary(max_size=3), st.integers(0, 3)).map(
            lambda edit: ATTRIBUTES[: edit[0]] + edit[1] + ATTRIBUTES[edit[0] + edit[2] :]
        ),
    ),
    name=st.sampled_from(["list_attr_celeba.txt", "list_attr_celeba.csv", "table.csv"]),
)
@example(raw=b"9" * 5000 + b"\nX\na.jpg 1\n", name="list_attr_celeba.txt")
@example(raw=b"file,X\n" + b"a" * 200_000 + b",1\n", name="table.csv")
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_a_table_or_a_sentence(raw: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = lay_out(Path(folder), {name: raw})
        try:
            table = read_table(root, missing="skip")
        except UserError as error:
            assert str(error)  # noqa: PT017 - either outcome is right, a third one is not
        else:
            assert table.targets.shape == (len(table), len(table.attributes))
            assert set(np.unique(table.targets)) <= {0, 1}


@given(
    lines=st.lists(
        st.tuples(st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]), st.lists(TOKENS, max_size=6).map("".join)), max_size=3
    ),
    separator=st.sampled_from([" ", ","]),
)
@settings(deadline=None, max_examples=300)
def test_means_what_a_plain_loop_reads(lines: list[tuple[str, str]], separator: str) -> None:
    rows = (
        "\n".join(f"{name}{separator}{rest}" for name, rest in lines)
        .replace('"', "")
        .replace("\r\n", "\n")
        .rstrip(", \t\n")
    )
    read = [row.split(",") if separator == "," else row.split() for row in rows.split("\n")]
    text = f"image_id,X,Y\n{rows}" if separator == "," else f"{len(read)}\nX Y\n{rows}"
    cells = [[*(name.lstrip(" ") for name in row[:1]), *map(str.strip, row[1:])] for row in read]
    valid = (
        rows
        and all(len(row) >= 3 and row[0] and set(row[1:3]) <= {"1", "0", "-1"} and not any(row[3:]) for row in cells)
        and len({row[0] for row in cells}) == len(cells)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("list_attr_celeba.csv" if separator == "," else "list_attr_celeba.txt")
        file.write_bytes(text.encode())
        if valid:
            found = read_attributes(file)
            assert found.names == [row[0] for row in cells]
            plain = [i for i in (1, 2) if not {"0", "-1"} <= {row[i] for row in cells}]
            assert found.attributes == tuple("-XY"[i] for i in plain)
            assert len(found.flaws) == 2 - len(plain)
            assert found.targets.tolist() == [[int(row[i] == "1") for i in plain] for row in cells]
        else:
            with contextlib.suppress(UserError):
                assert read_attributes(file).flaws


@pytest.mark.skipif(not (SHARED / "celeba-mini").is_dir(), reason="needs shared/celeba-mini")
def test_celeba_mini() -> None:
    table = read_table(SHARED / "celeba-mini")
    assert len(table) == 5580
    assert table.targets.shape == (5580, 40)
    assert table.split is not None
    assert np.bincount(table.split).tolist() == [4560, 780, 240]
    assert table.identity is not None
    assert len(np.unique(table.identity)) == 186
    arched = table.select(["Arched_Eyebrows"]).targets[:, 0]
    assert round(100 * arched[table.split == 0].mean(), 1) == 44.5
    assert round(100 * arched[table.split == 1].mean(), 1) == 37.2
    assert table.store.path(0).is_file()
    assert table.notes == ()


@pytest.mark.skipif(not (SHARED / "celeba-annotations").is_dir(), reason="needs shared/celeba-annotations")
def test_celebas_full_annotations(tmp_path: Path) -> None:
    with zipfile.ZipFile(SHARED / "celeba-annotations/list_attr_celeba.zip") as archive:
        archive.extract("list_attr_celeba.txt", tmp_path)
    for stem in ("list_eval_partition", "identity_CelebA"):
        packed = SHARED / f"celeba-annotations/{stem}.txt.xz"
        (tmp_path / f"{stem}.txt").write_bytes(lzma.decompress(packed.read_bytes()))
    found = read_attributes(tmp_path / "list_attr_celeba.txt")
    assert found.targets.shape == (202_599, 40)
    assert (found.names[0], found.names[-1]) == ("000001.jpg", "202599.jpg")
    last = (tmp_path / "list_attr_celeba.txt").read_bytes().splitlines()[-1].split()
    assert found.targets[-1].tolist() == [int(value == b"1") for value in last[1:]]
    split, notes = read_partition(tmp_path / "list_eval_partition.txt", found.names)
    assert np.bincount(split).tolist() == [162_770, 19_867, 19_962]
    identity, more = read_identity(tmp_path / "identity_CelebA.txt", found.names)
    assert len(np.unique(identity)) == 10_177
    assert notes == more == []
