"""Parquet files as on the Hugging Face Hub, which hold images and labels in the same rows.

Legend: N rows, A attributes.
"""

import re
import shlex
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError, first_line
from distrib.base.words import few
from distrib.data.annotations import Annotations
from distrib.data.columns import IDENTITY, read_identity, read_labels, stacked
from distrib.data.file_sets import by_split, find_files, not_whole, refuse_several, splits_of_rows
from distrib.data.store import PerProcess

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_PART = re.compile(r"(.*)-\d+-of-(\d+)(-[0-9a-f]+)?")  # the Hub's name for one file of several, without its ending
_CACHED = 64 * 2**20  # bytes of row groups kept: threads that decode in the order of the files are in neighbouring ones
_LARGE = 4  # images in a row group from which it matters that one image costs reading all of them


def find_parquet(root: Path) -> list[Path]:
    """The Parquet files with images in a folder and two levels below it; empty where there are none.

    Raises:
        UserError: if they are of several data sets, or one cannot be read.
    """
    files = [file for file in find_files(root, "parquet") if _image_column(_schema(file)) is not None]
    refuse_several(root, files, "Parquet")
    return files


def read_parquet(
    root: Path, files: Sequence[Path], missing: Literal["stop", "skip"]
) -> tuple[Annotations, "ParquetStore", list[str]]:
    """The table in Parquet files with images, where its images are read, and notes on both.

    The images stand in a struct column with the fields `bytes` and, where they have names, `path`. An attribute is a
    column of bool, of 0 and 1, or of -1 and 1, or such a field of a struct column. The split of a file is in its name,
    or in that of its folder. A column celeb_id, identity or group says whose image it is.

    Args:
        root: the folder of the data set.
        files: of it, see `find_parquet`.
        missing: whether files that the names of others tell of may be missing.

    Raises:
        UserError: if a file is missing, cannot be read or is unlike the others, or has no split where others have one.
    """
    import pyarrow

    notes = _check_parts(root, files, missing)
    splits = by_split(root, files)
    files = list(splits)
    image = _image_column(_schema(files[0]))
    assert image is not None
    if not set(_columns(_schema(files[0]), image)).difference(IDENTITY, [f"{image}.path"]):
        raise UserError(f"the Parquet files in {root} have no column of labels: add one of 1 and 0 for each attribute")
    parts = [_read_columns(file, image, files[0]) for file in files]
    sizes = [len(part) for part in parts]
    table = pyarrow.concat_tables(parts).combine_chunks()
    if not len(table):
        raise UserError(f"the Parquet files in {root} have no rows: get the data set again")
    names, more = _names(root, table, image, [split or "row" for split in splits.values()], sizes)
    store = ParquetStore(files, image, names)
    # The field of a struct column has its own name after that of the column.
    labels = [
        (column, column.rpartition(".")[2], values)
        for column, values in zip(table.column_names, table.columns, strict=True)
        if column not in (*IDENTITY, f"{image}.path")
    ]
    targets, flaws, others = read_labels(root, labels, store.name)
    people = next((name for name in IDENTITY if name in table.column_names), None)
    others += _other_columns(_schema(files[0]), image)
    notes += more + ([f"Columns that hold no labels are left out: {few(others)}."] if others else [])
    found = Annotations(
        root,
        names,
        tuple(targets),
        stacked(targets, len(names)),
        splits_of_rows(splits.values(), sizes),
        None if people is None else read_identity(people, table.column(people), store.name),
        flaws,
    )
    images, size = store.largest_group()
    if images >= _LARGE:
        notes.append(
            f"{files[0].parent} holds images in row groups of up to {images:,} ({size / 1e6:,.1f} MB), and one image "
            f"costs reading its whole group: pack the data set once, by `distrib prepare pack --root "
            f"{shlex.quote(str(root))} --out DIR`, and train from there."
        )
    return found, store, notes


class ParquetStore:
    """The images in the rows of Parquet files.

    Args:
        paths: of the files, whose rows follow each other.
        image: the struct column with the field `bytes`.
        files: N names of the images.
    """

    def __init__(self, paths: Sequence[Path], image: str, files: Sequence[str]) -> None:
        self.files = files
        self._paths = paths
        self._image = image
        self._groups = PerProcess(_Cache)

    def read(self, row: int) -> bytes:
        file, group, place = self._find(row)
        images = self._groups().get((file, group), lambda: self._read_group(file, group))
        data: bytes | None = images[place].as_py()
        if data is None:
            raise ValueError("the row has no bytes of an image")
        return data

    def name(self, row: int) -> str:
        file, group, place = self._find(row)
        before = self._first_rows[file][group] - self._first_rows[file][0]
        return f"{self._paths[file]}, row {before + place + 1} ({self.files[row]})"

    def largest_group(self) -> tuple[int, int]:
        """The most images in a row group, and the most bytes."""
        groups = [meta.row_group(number) for meta in self._metadata for number in range(meta.num_row_groups)]
        return max(group.num_rows for group in groups), max(group.total_byte_size for group in groups)

    @cached_property
    def _metadata(self) -> list["pyarrow.parquet.FileMetaData"]:
        import pyarrow.parquet

        return [pyarrow.parquet.read_metadata(path) for path in self._paths]

    @cached_property
    def _first_rows(self) -> list[NDArray[np.int64]]:
        """For each file the first row of each of its row groups, and the row after the last."""
        first, rows = [], 0
        for meta in self._metadata:
            sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
            first.append(rows + np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))))
            rows += sum(sizes)
        return first

    def _find(self, row: int) -> tuple[int, int, int]:
        """File, row group in it and place in that of a row."""
        file = next(file for file, first in enumerate(self._first_rows) if row < first[-1])
        group = int(np.searchsorted(self._first_rows[file], row, side="right")) - 1
        return file, group, int(row - self._first_rows[file][group])

    def _read_group(self, file: int, group: int) -> "pyarrow.Array":
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self._paths[file], metadata=self._metadata[file]) as opened:
                table = opened.read_row_group(group, columns=[f"{self._image}.bytes"], use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"its row group is damaged: {error}") from None
        return table.flatten().column(0).combine_chunks()


class _Cache:
    """The row groups that were read last, by file and number.

    Threads that need one group read it once. While one is read, for it may be large, no other is, but those that are
    kept are at hand. Two are kept whatever their size: where threads go through the rows in order, some are still in
    one when others begin the next.
    """

    def __init__(self) -> None:
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Future[pyarrow.Array]] = OrderedDict()

    def get(self, key: tuple[int, int], read: Callable[[], "pyarrow.Array"]) -> "pyarrow.Array":
        with self._lock:
            kept = self._kept.get(key)
            images: Future[pyarrow.Array] = kept or Future()
            self._kept[key] = images
            self._kept.move_to_end(key)
        if kept is None:
            try:
                with self._reading:
                    images.set_result(read())
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)  # it may be read the next time
                images.set_exception(error)
            with self._lock:
                while len(self._kept) > 2 and sum(map(_size, self._kept.values())) > _CACHED:
                    self._kept.popitem(last=False)
        return images.result()


def _size(images: "Future[pyarrow.Array]") -> int:
    """Bytes of what has been read."""
    return int(images.result().nbytes) if images.done() and images.exception() is None else 0


def _schema(file: Path) -> "pyarrow.Schema":
    """The columns of a file.

    Raises:
        UserError: if it is no Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise not_whole(file, "Parquet", first_line(error)) from None
    twice = next((name for name, times in Counter(schema.names).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"{file} has two columns called {twice}: give every column a name of its own")
    return schema


def _image_column(schema: "pyarrow.Schema") -> str | None:
    """The name of the struct column with the bytes of images; None where there is none."""
    from pyarrow import types

    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            kind = field.type.field("bytes").type
            if types.is_binary(kind) or types.is_large_binary(kind):
                return str(field.name)
    return None


def _check_parts(root: Path, files: Sequence[Path], missing: Literal["stop", "skip"]) -> list[str]:
    """Refuse a set of which a file is missing by the names of the others (train-00000-of-00019), or note it."""
    there: Counter[tuple[Path, str, int]] = Counter()
    for file in files:
        if part := _PART.fullmatch(file.stem):
            there[file.parent, part[1], int(part[2])] += 1
    lacking = [f"{count} of {total} files {name}-*" for (_, name, total), count in there.items() if count < total]
    if not lacking:
        return []
    if missing == "stop":
        raise UserError(
            f"{root} holds only {few(lacking)}: fetch the others, or set data.missing to skip to do without them"
        )
    return [f"{root} holds only {few(lacking)}: the rows of the others are skipped."]


def _read_columns(file: Path, image: str, first: Path) -> "pyarrow.Table":
    """A file's columns but for the images' bytes, with the fields of struct columns as columns (`image.path`).

    Raises:
        UserError: if it cannot be read, or has other columns than the first file.
    """
    import pyarrow
    import pyarrow.parquet

    schema = _schema(file)
    if not schema.equals(_schema(first)):
        raise UserError(
            f"{file} has other columns than {first}, or other types: move the files that are not to be used elsewhere"
        )
    columns = _columns(schema, image)
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            return opened.read(columns=columns).flatten()
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{file} cannot be read ({first_line(error)}): fetch it again") from None


def _names(
    root: Path, table: "pyarrow.Table", image: str, splits: Sequence[str], sizes: Sequence[int]
) -> tuple[list[str], list[str]]:
    """N different names: the images' paths, or else their numbers in their splits; and notes."""
    paths: list[str | None] = []
    if f"{image}.path" in table.column_names:
        with suppress(UnicodeDecodeError):
            paths = table.column(f"{image}.path").to_pylist()
    known = [path for path in paths if path and ".." not in path.replace("\\", "/").split("/")]
    if known and len(set(known)) == len(table):
        return known, []
    count: Counter[str] = Counter()
    names = []
    for split, size in zip(splits, sizes, strict=True):
        names += [f"{split}/{number:06}" for number in range(count[split], count[split] + size)]
        count[split] += size
    return names, [f"{root} has no path of its own for each image: they are named by their numbers."] * any(paths)


def _columns(schema: "pyarrow.Schema", image: str) -> list[str]:
    """What of a file is read: labels, or what may be such, the images' paths, and whose they are."""
    from pyarrow import types

    def may_be_label(kind: "pyarrow.DataType") -> bool:
        return bool(types.is_boolean(kind) or types.is_integer(kind))

    def is_text(kind: "pyarrow.DataType") -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind))

    columns = []
    for field in schema:
        if field.name == image:
            path = field.type.get_field_index("path")
            columns += [f"{image}.path"] if path >= 0 and is_text(field.type.field(path).type) else []
        elif types.is_struct(field.type):
            columns += [f"{field.name}.{inner.name}" for inner in field.type if may_be_label(inner.type)]
        elif may_be_label(field.type) or (field.name in IDENTITY and is_text(field.type)):
            columns.append(field.name)
    return columns


def _other_columns(schema: "pyarrow.Schema", image: str) -> list[str]:
    """The columns of which nothing is read."""
    read = {name.partition(".")[0] for name in _columns(schema, image)}
    return [name for name in schema.names if name != image and name not in read]
