"""CelebA in the forms that people have it in: one table, the same images, the same splits."""

import multiprocessing
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from celeba_forms import archived, columns, on_the_hub
from fuzzing import check_sentence
from sentences import refusal

from distrib.base.threads import map_ahead
from distrib.config import DataConfig
from distrib.data import parquet
from distrib.data.reader import ImageReader
from distrib.data.separation import separate
from distrib.data.splits import digest, make_splits
from distrib.data.store import Store
from distrib.data.table import Table, read_table


def same(table: Table, as_this: Table) -> None:
    """Both say and hold the same."""
    assert table.names == as_this.names
    assert table.attributes == as_this.attributes
    assert np.array_equal(table.targets, as_this.targets)
    assert np.array_equal(table.split, as_this.split)
    assert np.array_equal(
        np.unique(table.identity, return_inverse=True)[1], np.unique(as_this.identity, return_inverse=True)[1]
    )
    assert holds(table) == holds(as_this)
    splits = [make_splits(each, DataConfig()) for each in (table, as_this)]
    assert digest(table, splits[0].train, splits[0].valid) == digest(as_this, splits[1].train, splits[1].valid)


def holds(table: Table) -> list[bytes]:
    reader = ImageReader(table)
    return [reader.read(row) for row in range(len(table))]


@pytest.mark.parametrize(
    ("inside", "place"),
    [
        ("img_align_celeba", "img_align_celeba.zip"),
        ("img_align_celeba", "Img/img_align_celeba.zip"),
        ("", "img_align_celeba.zip"),
        ("CelebA/Img/img_align_celeba", "img_align_celeba.zip"),
    ],
)
def test_the_archive_of_the_images_need_not_be_unpacked(faces: Path, tmp_path: Path, inside: str, place: str) -> None:
    table = read_table(archived(faces, tmp_path / "celeba", inside, place))
    assert table.notes == ()
    same(table, read_table(faces))


def test_a_table_of_ones_own_may_have_its_images_in_an_archive(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("file,happy\n000001.jpg,1\n000002.jpg,0\n")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("000001.jpg", "000002.jpg", "000003.jpg"):
            archive.write(faces / "img_align_celeba" / name, f"images/{name}")
    table = read_table(tmp_path)
    assert holds(table) == holds(read_table(faces))[:2]
    assert "images without a row in the table: 1 (000003.jpg)" in table.notes[0]


def test_images_that_an_archive_lacks_are_named(faces: Path, tmp_path: Path) -> None:
    root = archived(faces, tmp_path / "celeba")
    with (root / "list_attr_celeba.txt").open() as stream:
        count, *lines = stream.read().splitlines()
    more = [*lines, lines[-1].replace(lines[-1].split()[0], "999999.jpg")]
    (root / "list_attr_celeba.txt").write_text("\n".join([str(int(count) + 1), *more]) + "\n")
    (root / "list_eval_partition.txt").unlink()
    (root / "identity_CelebA.txt").unlink()
    archive = root / "img_align_celeba.zip/img_align_celeba"
    check_sentence(refusal(lambda: read_table(root), f"{archive} lacks 1 of the", "(999999.jpg)", "data.missing"))
    table = read_table(root, "skip")
    assert len(table) == int(count)
    assert "999999.jpg" in table.notes[0]
    assert holds(table) == holds(read_table(faces))


def test_an_archive_that_is_not_whole_is_said(faces: Path, tmp_path: Path) -> None:
    root = archived(faces, tmp_path / "celeba")
    archive = root / "img_align_celeba.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    check_sentence(refusal(lambda: read_table(root), "img_align_celeba.zip", "not a complete zip archive", "fetch"))


def test_the_archive_as_data_root_leads_to_its_folder(faces: Path, tmp_path: Path) -> None:
    root = archived(faces, tmp_path / "celeba")
    check_sentence(refusal(lambda: read_table(root / "img_align_celeba.zip"), f"set it to {root}, which has the table"))


def test_damage_within_an_archive_names_the_image(faces: Path, tmp_path: Path) -> None:
    root = archived(faces, tmp_path / "celeba")
    archive = root / "img_align_celeba.zip"
    with zipfile.ZipFile(archive) as opened:
        place = opened.getinfo("img_align_celeba/000003.jpg").header_offset
    data = bytearray(archive.read_bytes())
    data[place + 300] ^= 255
    archive.write_bytes(data)
    reader = ImageReader(read_table(root))
    reader.read(1)
    check_sentence(refusal(lambda: reader.read(2), f"{archive}/img_align_celeba/000003.jpg cannot be decoded"))


def struct(columns: dict[str, Any]) -> dict[str, Any]:
    labels = {name: values for name, values in columns.items() if name not in ("image", "celeb_id")}
    fields = pyarrow.StructArray.from_arrays([pyarrow.array(values) for values in labels.values()], list(labels))
    return {"image": columns["image"], "celeb_id": columns["celeb_id"], "attributes": fields}


def numbers(absent: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda columns: {
        name: np.where(values, 1, absent) if isinstance(values, np.ndarray) and values.dtype == bool else values
        for name, values in columns.items()
    }


@pytest.mark.parametrize(
    ("files", "change"),
    [
        pytest.param(["train-00000-of-00002", "train-00001-of-00002", "validation", "test"], dict, id="bool"),
        pytest.param(["train-0", "valid-0", "test-0"], numbers(0), id="0 and 1"),
        pytest.param(["data/train-0", "data/validation-0", "data/test-0"], numbers(-1), id="-1 and 1"),
        pytest.param(["train/0000", "train/0001", "validation/0000", "test/0000"], struct, id="a struct, folders"),
        pytest.param(
            [f"img_align+identity+attr/{split}-00000-of-00001" for split in ("train", "validation", "test")],
            lambda columns: {**columns, "prompt": ["a face"] * len(columns["image"])},
            id="a column of text",
        ),
    ],
)
def test_parquet_as_on_the_hub(
    faces: Path, tmp_path: Path, files: list[str], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    table = read_table(on_the_hub(faces, tmp_path, files, change))
    whole = read_table(faces)
    order = np.argsort(whole.split, kind="stable")
    assert np.array_equal(order, np.arange(len(whole))), "the splits follow each other in these faces, as in CelebA"
    same(table, whole)


def test_parquet_without_a_partition_asks_for_a_split(faces: Path, tmp_path: Path) -> None:
    whole = read_table(faces)
    pyarrow.parquet.write_table(pyarrow.table(columns(whole, range(len(whole)))), tmp_path / "0000.parquet")
    table = read_table(tmp_path)
    assert table.split is None
    refusal(lambda: make_splits(table, DataConfig()), "data.split")
    assert len(make_splits(table, DataConfig(split="identity")).train)


def without_paths(columns: dict[str, Any]) -> dict[str, Any]:
    images = [{"bytes": each["bytes"].as_py(), "path": None} for each in columns["image"]]
    return {**columns, "image": pyarrow.array(images, columns["image"].type)}


def test_images_without_paths_are_numbered_in_their_splits(faces: Path, tmp_path: Path) -> None:
    table = read_table(on_the_hub(faces, tmp_path, change=without_paths))
    assert table.names[0] == "train/000000"
    assert table.names[-1].startswith("test/")
    assert len(set(table.names)) == len(table)
    assert holds(table) == holds(read_table(faces))


def lose_a_part(root: Path) -> None:
    (root / "train-00001-of-00002.parquet").unlink()


def cut_a_file(root: Path) -> None:
    file = root / "test.parquet"
    file.write_bytes(file.read_bytes()[:-50])


def leave_a_pointer(root: Path) -> None:
    (root / "test.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def put_another(root: Path) -> None:
    (root / "more").mkdir()
    shutil.copy(root / "test.parquet", root / "more")


def drop_a_split(root: Path) -> None:
    (root / "test.parquet").rename(root / "rest.parquet")


def rewrite(change: Callable[[pyarrow.Table], pyarrow.Table]) -> Callable[[Path], None]:
    """All files with other columns."""

    def harm(root: Path) -> None:
        for file in root.glob("*.parquet"):
            pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(file)), file)

    return harm


def damage_the_middle(root: Path) -> None:
    file = root / "test.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:-400] + bytes(392) + data[-8:])


def hash_the_names(root: Path) -> None:
    (root / "train-00000-of-00002.parquet").rename(root / "train-00000-of-00002-79b6e1ab.parquet")
    (root / "train-00001-of-00002.parquet").unlink()


def change_columns(root: Path) -> None:
    table = pyarrow.parquet.read_table(root / "test.parquet")
    pyarrow.parquet.write_table(table.drop_columns([table.column_names[-1]]), root / "test.parquet")


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (lose_a_part, ["1 of 2 files train-*", "data.missing"]),
        (cut_a_file, ["test.parquet is not a whole Parquet file", "fetch it again"]),
        (leave_a_pointer, ["test.parquet", "Git LFS pointer", "git lfs pull"]),
        (put_another, ["several data sets", "more", "set data.root to one of"]),
        (drop_a_split, ["rest.parquet", "says no split"]),
        (change_columns, ["other columns than", "test.parquet"]),
        (damage_the_middle, ["test.parquet"]),
        (hash_the_names, ["1 of 2 files train-*"]),
        (rewrite(lambda table: table.select(["image", "celeb_id"])), ["no column of labels"]),
        (rewrite(lambda table: table.slice(0, 0)), ["no rows"]),
        (rewrite(lambda table: table.append_column("Young", table.column("Young"))), ["two columns called Young"]),
    ],
)
def test_what_is_wrong_with_parquet_files_is_said(
    faces: Path, tmp_path: Path, harm: Callable[[Path], None], parts: list[str]
) -> None:
    root = on_the_hub(faces, tmp_path)
    harm(root)
    check_sentence(refusal(lambda: read_table(root), *parts))


def test_what_lies_beside_parquet_files_is_passed_over(faces: Path, tmp_path: Path) -> None:
    root = on_the_hub(faces, tmp_path)
    (root / "._test.parquet").write_bytes(b"what macOS leaves")
    (root / "labels.parquet").mkdir()
    same(read_table(root), read_table(faces))


def test_a_path_that_leads_elsewhere_is_no_name(faces: Path, tmp_path: Path) -> None:
    def change(columns: dict[str, Any]) -> dict[str, Any]:
        images = [{**each, "path": f"../{each['path']}"} for each in columns["image"].to_pylist()]
        return {**columns, "image": pyarrow.array(images, columns["image"].type)}

    table = read_table(on_the_hub(faces, tmp_path, change=change))
    assert table.names[0] == "train/000000"


@pytest.mark.parametrize("start", ["./", "/", "./img_align_celeba/", "/data/img/"])
def test_entries_of_an_archive_may_begin_oddly(faces: Path, tmp_path: Path, start: str) -> None:
    root = archived(faces, tmp_path / "celeba")
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
        for file in sorted((faces / "img_align_celeba").iterdir()):
            entry = zipfile.ZipInfo("x")
            entry.filename = f"{start}{file.name}"
            archive.writestr(entry, file.read_bytes())
    same(read_table(root), read_table(faces))


def test_a_part_that_is_missing_may_be_skipped(faces: Path, tmp_path: Path) -> None:
    root = on_the_hub(faces, tmp_path)
    lose_a_part(root)
    table = read_table(root, "skip")
    assert len(table) < len(read_table(faces))
    assert any("1 of 2 files train-*" in note for note in table.notes)


@pytest.mark.parametrize(
    ("values", "part"),
    [([3], "has 3 for Smiling"), ([None], "has no value for Smiling"), ([-1, 0], "has -1 and 0 for Smiling")],
)
def test_a_column_of_other_numbers_is_no_attribute(
    faces: Path, tmp_path: Path, values: list[int | None], part: str
) -> None:
    def change(columns: dict[str, Any]) -> dict[str, Any]:
        others = [1] * (len(columns["image"]) - len(values))
        return {**columns, "Smiling": pyarrow.array([*values, *others], pyarrow.int64())}

    table = read_table(on_the_hub(faces, tmp_path, change=change))
    check_sentence(refusal(lambda: table.select(("all",)), part))
    assert table.select(("Young",)).attributes == ("Young",)


def test_an_image_without_bytes_is_named_by_file_and_row(faces: Path, tmp_path: Path) -> None:
    def change(columns: dict[str, Any]) -> dict[str, Any]:
        images = columns["image"].to_pylist()
        images[-1]["bytes"] = None
        return {**columns, "image": pyarrow.array(images, columns["image"].type)}

    root = on_the_hub(faces, tmp_path, ["train", "valid", "test"], change)
    table = read_table(root)
    last, reader = int((table.split == 0).sum()), ImageReader(table)
    name = f"{root}/train.parquet, row {last} ({table.names[last - 1]})"
    check_sentence(refusal(lambda: reader.read(last - 1), f"{name} cannot be decoded", "no bytes of an image"))
    reader.read(last - 2)
    reader.read(last)


def test_large_row_groups_are_told_once(faces: Path, tmp_path: Path) -> None:
    (note,) = read_table(on_the_hub(faces, tmp_path / "large", group=50)).notes
    check_sentence(note, tmp_path)
    assert "row groups of up to 50" in note
    assert not read_table(on_the_hub(faces, tmp_path / "small", group=1)).notes


@pytest.mark.parametrize("form", [archived, on_the_hub])
def test_what_is_no_folder_is_separated_by_copying(
    faces: Path, tmp_path: Path, form: Callable[[Path, Path], Path]
) -> None:
    root, out = form(faces, tmp_path / "source"), tmp_path / "separated"
    config = DataConfig(root=root, split="identity")
    check_sentence(refusal(lambda: separate(config, out, "link", 2), "--files to copy"))
    assert not out.exists()
    separate(config, out, "copy", 2)
    assert sorted(holds(read_table(out))) == sorted(holds(read_table(faces)))


@pytest.mark.parametrize(("group", "cached"), [(1000, 1), (7, parquet._CACHED)], ids=["large", "small"])
def test_row_groups_are_read_once_where_threads_go_through_the_rows_in_order(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, cached: int
) -> None:
    table = read_table(on_the_hub(faces, tmp_path, group=group))
    reads: Counter[tuple[Path, int]] = Counter()

    class Counted(pyarrow.parquet.ParquetFile):
        def __init__(self, source: Path, **options: object) -> None:
            super().__init__(source, **options)
            self.path = source

        def read_row_group(self, number: int, **options: object) -> pyarrow.Table:
            reads[self.path, number] += 1
            return super().read_row_group(number, **options)

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", Counted)
    monkeypatch.setattr(parquet, "_CACHED", cached)
    # As threads come to them: nearly in order.
    rows = np.argsort(np.arange(len(table)) + np.random.default_rng(0).uniform(0, 12, len(table)))
    with ThreadPoolExecutor(3) as pool:
        read = dict(zip(rows.tolist(), map_ahead(pool, table.store.read, rows, 6), strict=True))
    assert [read[row] for row in range(len(table))] == holds(read_table(faces))
    assert len(reads) == sum(pyarrow.parquet.read_metadata(file).num_row_groups for file in tmp_path.glob("*.parquet"))
    assert set(reads.values()) == {1}


def _sums(store: Store, rows: Sequence[int]) -> list[int]:
    return [sum(store.read(row)) for row in rows]


@pytest.mark.parametrize("form", [archived, on_the_hub])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_and_threads_read_at_the_same_time(
    faces: Path, tmp_path: Path, form: Callable[[Path, Path], Path], method: str
) -> None:
    store, rows = read_table(form(faces, tmp_path / "source")).store, list(range(0, 60, 3))
    expected = _sums(read_table(faces).store, rows)
    assert _sums(store, rows) == expected  # so that it is open when processes are made of this one
    with multiprocessing.get_context(method).Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        there = [pool.apply_async(_sums, (store, rows)) for _ in range(2)]
        here = [threads.submit(_sums, store, rows) for _ in range(4)]
        assert [each.get(60) for each in there] == [expected] * 2
        assert [each.result() for each in here] == [expected] * 4
