"""Whatever the files of a data set hold, there is a table or one sentence."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from fuzzing import check_sentence, edited, read_or_told
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import refusal

from distrib.config import DataConfig
from distrib.data.splits import Splits, make_splits
from distrib.data.table import Table, read_table

NAMES = [f"00000{i}.jpg" for i in range(1, 7)]
PARTS = [0, 0, 0, 1, 2, 2]
TXT = {
    "list_attr_celeba.txt": b"6\r\nBald Smiling Young \r\n"
    + b"".join(f"{name} {'-1  1 -1' if i % 2 else ' 1 -1  1'}\r\n".encode() for i, name in enumerate(NAMES)),
    "list_eval_partition.txt": b"".join(f"{name} {k}\r\n".encode() for name, k in zip(NAMES, PARTS, strict=True)),
    "identity_CelebA.txt": b"".join(f"{name} {k + 2880}\r\n".encode() for name, k in zip(NAMES, PARTS, strict=True)),
}
KAGGLE = {
    "list_attr_celeba.csv": b"image_id,Bald,Smiling,Young\n"
    + b"".join(f"{name},{'-1,1,-1' if i % 2 else '1,-1,1'}\n".encode() for i, name in enumerate(NAMES)),
    "list_eval_partition.csv": b"image_id,partition\n"
    + b"".join(f"{name},{k}\n".encode() for name, k in zip(NAMES, PARTS, strict=True)),
}
OWN = {
    "table.csv": b"file,happy,split,group\n"
    + b"".join(
        f"{name},{i % 2},{('train', 'valid', 'test')[k]},{chr(65 + k)}\n".encode()
        for i, (name, k) in enumerate(zip(NAMES, PARTS, strict=True))
    )
}
JUNK = [
    b"", b"0", b"1", b"-1", b"2", b"--1", b"nan", b"1e3", b"9" * 30, "\u0663".encode(), b"\xff\xfe", b"\0", b"\x1b[2J",
    b"\x0b", b"\x1a", b"\x85", "\x85".encode(), "\u2028".encode(), "\u202e".encode(), b"\xef\xbb\xbf", b"\r", b"\t",
    b'"', b'""', b"'", b",", b",,", b";", b" ", b"000001.jpg", b"000009.jpg", b"..", b"../../etc/passwd",
    b"/etc/passwd", b"a/../b", b"a/b.jpg", b"a" * 300, b"a/" * 3000, b"train", b"split", b"group", b"image", b"Bald",
    "\u00e9\u4e2d".encode(), b"\n" * 3, b"$(touch x)", b"=1+1", b"%s{0}",
]  # fmt: skip


def lay_out(root: Path, files: dict[str, bytes]) -> Path:
    (root / "img_align_celeba").mkdir()
    for name in NAMES:
        (root / "img_align_celeba" / name).touch()
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def whole_way(root: Path, missing: Any, split: Any) -> tuple[Table, Splits]:
    """What training does with a data set before the first image, where it is to learn all attributes."""
    table = read_table(root, missing).select(("all",))
    return table, make_splits(table, DataConfig(root=root, split=split))


def check(root: Path, table: Table, splits: Splits) -> None:
    """What the rest of the program relies on."""
    assert len(set(table.names)) == len(table.names) == len(table.targets) > 0
    assert len(set(table.attributes)) == len(table.attributes) == table.targets.shape[1] > 0
    assert set(np.unique(table.targets)) <= {0, 1}
    for row in range(len(table)):
        assert table.store.path(row).exists()
        assert table.store.path(row).resolve().is_relative_to(root.resolve())
    rows = np.concatenate([splits.train, splits.valid, splits.test])
    assert sorted(rows.tolist()) == list(range(len(table)))
    for told in (*table.attributes, *table.notes, *splits.notes):
        check_sentence(told)


@pytest.mark.parametrize("files", [TXT, KAGGLE, OWN], ids=["txt", "kaggle", "own"])
def test_unedited_files_are_tables(tmp_path: Path, files: dict[str, bytes]) -> None:
    root = lay_out(tmp_path, files)
    table, splits = whole_way(root, "stop", "official")
    check(root, table, splits)
    assert len(table) == 6
    assert splits.train.tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=200)
@given(
    edits=st.sampled_from([TXT, KAGGLE, OWN]).flatmap(
        lambda files: st.tuples(
            st.just(files),
            st.sampled_from(sorted(files)).flatmap(lambda name: st.tuples(st.just(name), edited(files[name], JUNK))),
        )
    ),
    missing=st.sampled_from(["stop", "skip"]),
    split=st.sampled_from(["official", "image", "identity"]),
)
def test_edited_files_are_a_table_or_a_sentence(
    edits: tuple[dict[str, bytes], tuple[str, bytes]],
    missing: Literal["stop", "skip"],
    split: Literal["official", "image", "identity"],
) -> None:
    files, (name, content) = edits
    with tempfile.TemporaryDirectory() as folder:
        root = lay_out(Path(folder), {**files, name: content})
        found = read_or_told(lambda: whole_way(root, missing, split), root)
        if found is not None:
            check(root, *found)


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from([*TXT, *KAGGLE, *OWN]),
    content=st.binary(max_size=80) | st.lists(st.sampled_from([*JUNK, b"\n"]), max_size=12).map(b"".join),
)
def test_any_file_is_a_table_or_a_sentence(name: str, content: bytes) -> None:
    files = TXT if name in TXT else KAGGLE if name in KAGGLE else OWN
    with tempfile.TemporaryDirectory() as folder:
        root = lay_out(Path(folder), {**files, name: content})
        found = read_or_told(lambda: whole_way(root, "skip", "image"), root)
        if found is not None:
            check(root, *found)


PATHS = st.lists(
    st.sampled_from(["a", "A", "b", "é", "e\u0301", "img", "1", "01", "._a", "__MACOSX"]), min_size=1, max_size=3
).flatmap(
    lambda parts: st.sampled_from(["", ".jpg", ".JPG", ".png", ".jpeg", ".txt"]).map(lambda end: "/".join(parts) + end)
)


@settings(deadline=None, max_examples=200)
@given(
    names=st.lists(
        st.tuples(st.sampled_from(["", "./", "/", "C:\\", "images/"]), PATHS, st.booleans()), min_size=1, max_size=4
    ),
    files=st.lists(PATHS, max_size=6),
    missing=st.sampled_from(["stop", "skip"]),
)
def test_images_of_any_name_are_there_or_told(
    names: list[tuple[str, str, bool]], files: list[str], missing: Literal["stop", "skip"]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for file in files:
            with contextlib.suppress(OSError):  # a folder has this name, or a file the name of a folder
                (root / "images" / file).parent.mkdir(parents=True, exist_ok=True)
                (root / "images" / file).touch()
        said = [start + (path.replace("/", "\\") if back else path) for start, path, back in names]
        (root / "table.csv").write_text("\n".join(["file,happy", *(f"{name},1" for name in said)]))
        table = read_or_told(lambda: read_table(root, missing))
        if table is not None:
            paths = [table.store.path(row) for row in range(len(table))]
            assert all(path.is_file() and root in path.parents for path in paths)
            assert len({path.resolve() for path in paths}) == len(paths) > 0
            assert set(table.names) <= set(said)
            for note in table.notes:
                check_sentence(note)


# --- what the search found


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "a/../../outside.jpg"])
@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_a_table_cannot_lead_out_of_its_folder(tmp_path: Path, name: str, missing: Literal["stop", "skip"]) -> None:
    (tmp_path / "faces/a").mkdir(parents=True)
    (tmp_path / "outside.jpg").touch()
    (tmp_path / "faces/1.jpg").touch()
    (tmp_path / "faces/table.csv").write_text(f"file,happy\n1.jpg,0\n{name},1\n")
    refusal(lambda: read_table(tmp_path / "faces", missing), "table.csv", name, "outside of the folder")


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x7f", "\x85", "\u2028"])
def test_what_steers_the_terminal_is_refused_wherever_it_stands(tmp_path: Path, character: str) -> None:
    text = TXT["list_attr_celeba.txt"].decode().replace("Young", f"Yo{character}ung")
    root = lay_out(tmp_path, {"list_attr_celeba.txt": text.encode()})
    refusal(lambda: read_table(root), "list_attr_celeba.txt, line 2", repr(character), "UTF-8")


def test_names_on_the_disk_are_told_on_one_line(tmp_path: Path) -> None:
    root = lay_out(tmp_path, TXT)
    for name in ("two\nlines.jpg", "red\x1b[31m.jpg", os.fsdecode(b"\xff.jpg")):
        (root / "img_align_celeba" / name).touch()
    (note,) = read_table(root).notes
    check_sentence(note, "without a row in the table: 3", "two\\nlines.jpg")


def test_a_folder_that_no_file_system_can_name_is_refused() -> None:
    refusal(lambda: read_table(Path("x" * 300)), "data.root", "x" * 300, "too long")
