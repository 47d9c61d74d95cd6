"""Tar files that another program has made in the WebDataset layout: KEY.jpg beside KEY.json, KEY.cls or KEY.txt.

They are gone through once; what lies where in them, and the labels, are kept in an index. Legend: N rows.
"""

import gzip
import hashlib
import json
import os
import re
import shlex
import sys
import tarfile
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distrib.base.cores import cores
from distrib.base.errors import UserError, afterwards, first_line, printable
from distrib.base.files import fsync
from distrib.base.paths import is_text
from distrib.base.words import few
from distrib.data.annotations import Annotations, check_names
from distrib.data.columns import IDENTITY, read_identity, read_labels, stacked
from distrib.data.file_sets import by_split, find_files, not_whole, refuse_several, splits_of_rows
from distrib.data.image_files import is_kept
from distrib.data.images import ENDINGS
from distrib.data.shards import ShardStore

if TYPE_CHECKING:
    import pyarrow

INDEX = "distrib.index"  # a Parquet file, whose name is not taken for one of the data set's own
_VERSION = 1
# A key is what comes before the first dot of a file's name, as the webdataset package has it.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
# What labels are in, each with the bit that says that it was there.
_LABELS = {"json": 1, "cls": 2, "txt": 4}
_PROBED = 1000  # files in a tar file among which an image and its labels lie side by side, if it is a WebDataset
_BLOCK = 512  # of a tar file


def find_tars(root: Path) -> list[Path]:
    """The tar files with images and labels in a folder and two levels below it; empty where there are none.

    Raises:
        UserError: if they are compressed, of several data sets, or one cannot be read.
    """
    files = find_files(root, "tar")
    compressed = [*find_files(root, "tar.gz"), *find_files(root, "tgz")]
    # Not those that gunzip has been asked to keep.
    compressed = [file for file in compressed if file.parent / f"{file.name.rpartition('.t')[0]}.tar" not in files]
    if any(map(_has_samples, compressed)):
        commands = " ".join(shlex.quote(str(file)) for file in compressed[:3]) + " ..." * (len(compressed) > 3)
        raise UserError(
            f"data.root {root} holds compressed tar files ({few([file.name for file in compressed])}), of which no "
            f"image can be read by itself: decompress them once with `gunzip {commands}`"
        )
    if not any(map(_has_samples, files)):
        return []
    refuse_several(root, files, "tar")
    return files


def read_tars(
    root: Path, files: Sequence[Path], missing: Literal["stop", "skip"]
) -> tuple[Annotations, ShardStore, list[str], dict[str, int], list[str]]:
    """The table in tar files, where its images are read, notes on both, the rows without images and the images without.

    A row is a key with labels. They are what KEY.json holds, flat or in an object in it, and in a column cls or txt the
    number in a file of that ending, and they are read as the columns of a Parquet file are: see `read_labels`. The
    split of a file is in its name, or in that of its folder. Images have the names that they have in the tar file,
    after that of the tar file where two have the same. The index is kept in the folder of the data set, or else in the
    user's cache, and made anew once a tar file has changed.

    Args:
        root: the folder of the data set.
        files: of it, see `find_tars`.
        missing: whether keys that have labels may lack their image.

    Raises:
        UserError: if a file cannot be read, is damaged or has no split where others have one, there are no labels, a
            key has two images, or a key has labels and no image.
    """
    words = by_split(root, files)
    index = _kept_index(root, list(words)) or _make_index(root, list(words))
    file, offset, size = (index.column(name).to_numpy() for name in ("file", "offset", "size"))
    names = index.column("name").to_pylist()
    if len(set(names)) < len(names):
        stems = [path.relative_to(root).with_suffix("").as_posix() for path in words]
        names = [f"{stems[number]}/{name}" for number, name in zip(file.tolist(), names, strict=True)]
    labelled, there = index.column("labelled").to_numpy(), size >= 0
    surplus = [names[row] for row in np.flatnonzero(there & ~labelled)]
    lost = {names[row]: place for place, row in enumerate(np.flatnonzero(labelled).tolist()) if not there[row]}
    rows = np.flatnonzero(labelled & there)
    notes = []
    if lost:
        sentence = f"the tar files in {root} lack the images of {len(lost)} of {len(lost) + len(rows)} keys"
        if missing == "stop":
            raise UserError(
                f"{sentence} ({few(list(lost))}): get the data set again, or set data.missing to skip to do without"
            )
        notes.append(f"{sentence[0].upper()}{sentence[1:]} ({few(list(lost))}): their rows are skipped.")
    if surplus:
        notes.append(f"{root} holds images without labels: {len(surplus)} ({few(surplus)}), not used.")
    names = [names[row] for row in rows]
    store = ShardStore(list(words), names, file[rows], offset[rows], size[rows])
    columns = _columns(index.take(rows))
    labels = [(".".join(path), path[-1], values) for path, values in columns.items() if path[-1] not in IDENTITY]
    targets, flaws, others = read_labels(root, labels, store.name)
    others += json.loads(index.schema.metadata[b"distrib"])["others"]
    notes += [f"What holds no labels is left out: {few(others)}."] if others else []
    people = next((path for name in IDENTITY for path in columns if path[-1] == name), None)
    sizes = np.bincount(file[rows], minlength=len(words)).tolist()
    found = Annotations(
        root,
        names,
        tuple(targets),
        stacked(targets, len(names)),
        splits_of_rows(words.values(), sizes),
        None if people is None else read_identity(people[-1], columns[people], store.name),
        flaws,
    )
    return found, store, notes, lost, surplus


def _split_name(member: str) -> tuple[str, str] | None:
    """Key and ending of a file in a tar file; None where it has none, or is what systems leave behind."""
    found = _MEMBER.fullmatch(member.removeprefix("./"))
    return (found[1], found[2].lower()) if found and is_kept(member) else None


def _has_samples(file: Path) -> bool:
    """Whether a tar file, which may be compressed, has an image and its labels among its first files.

    Raises:
        UserError: if it is no tar file.
    """
    seen: defaultdict[str, set[bool]] = defaultdict(set)
    try:
        with tarfile.open(file) as archive:
            for member in islice(archive, _PROBED):
                key, ending = _split_name(member.name) or ("", "")
                if ending in ENDINGS or ending in _LABELS:
                    seen[key].add(ending in ENDINGS)
                if len(seen[key]) == 2:
                    return True
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise not_whole(file, "tar", first_line(error).rstrip(":")) from None
    return False


class _Contents:
    """What one tar file holds, a row for each key.

    Attributes:
        names: of the images; the key where there is none.
        places: where an image begins, in bytes, and its length; -1 where there is none.
        labels: which of `_LABELS` there are.
        columns: values by the keys that lead to them in the JSON; None where they are neither whole numbers nor say
            whose image it is.
        others: endings of files that are neither.

    Raises:
        UserError: if it is damaged, or holds what cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.names: list[str] = []
        self.places: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self.others: set[str] = set()
        self._rows: dict[str, int] = {}
        self._values: dict[tuple[str, ...], list[Any]] = {}
        self._file = file
        try:
            with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    # Undocumented; else all members of a large file stay in memory.
                    archive.members.clear()  # type: ignore[attr-defined]
                    self._add(member, opened.fileno())
                # tarfile takes whatever is no header for the end.
                end = os.pread(opened.fileno(), _BLOCK, archive.offset)
        except tarfile.TarError as error:
            raise not_whole(file, "tar", first_line(error)) from None
        if end != bytes(_BLOCK):
            raise not_whole(file, "tar", "it ends or is damaged after " + (self.names or ["its beginning"])[-1])
        check_names(file, self.names)
        self.columns = {path: _typed(self._values.pop(path), path, len(self.names)) for path in list(self._values)}

    def _add(self, member: tarfile.TarInfo, descriptor: int) -> None:
        found = _split_name(member.name)
        if found is None or member.isdir():
            return
        key, ending = found
        if ending not in ENDINGS and ending not in _LABELS:
            self.others.add(f".{ending}")
            return
        place = f"{self._file}, {member.name}"
        if not is_text(Path(member.name)):
            raise UserError(f"{place} has a name that is not UTF-8: make the tar file again with other names")
        if not member.isreg() or member.issparse():
            raise UserError(
                f"{place} is a link or a sparse file: make the tar file again with `tar --dereference "
                f"--hard-dereference`, so that it is there whole"
            )
        row = self._rows.setdefault(key, len(self._rows))
        if row == len(self.names):
            self.names.append(key)
            self.places.append((-1, -1))
            self.labels.append(0)
        if ending in ENDINGS:
            if self.places[row] != (-1, -1):
                raise UserError(
                    f"{place} is a second image of its key, after {self.names[row]}: make the tar file again with one "
                    f"of them"
                )
            self.names[row], self.places[row] = member.name.removeprefix("./"), (member.offset_data, member.size)
            return
        if self.labels[row] & _LABELS[ending]:
            raise UserError(f"{place} is there twice: make the tar file again with one of them")
        self.labels[row] |= _LABELS[ending]
        data = os.pread(descriptor, member.size, member.offset_data)
        # A file beside the JSON is a column of its own, also where one of the JSON's keys has its name.
        values = _parsed(data, place) if ending == "json" else {("", ending): _number(data)}
        for path, value in values.items():
            column = self._values.setdefault(path, [])
            column += [None] * (row + 1 - len(column))
            column[row] = value


def _parsed(data: bytes, place: str) -> dict[tuple[str, ...], Any]:
    """The values in a JSON object and in objects in it, by the keys that lead to each."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({first_line(error)}): correct it, and make the tar file again") from None
    if not isinstance(values, dict):
        raise UserError(
            f'{place} holds a {type(values).__name__}: expected an object such as {{"Smiling": 1}}; correct it, and '
            f"make the tar file again"
        )
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in values.items():
        flat |= {(name, each): inner for each, inner in value.items()} if isinstance(value, dict) else {(name,): value}
    return flat


def _number(data: bytes) -> int | str:
    text = data.decode("utf-8", "replace").strip()
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else text


def _typed(values: list[Any], path: tuple[str, ...], rows: int) -> "pyarrow.Array | None":
    """A column of whole numbers, or of text that may say whose image it is; None for any other."""
    import pyarrow

    values += [None] * (rows - len(values))
    known = [each for each in values if each is not None]
    if all(isinstance(each, int) and abs(each) < 2**63 for each in known):
        return pyarrow.array([None if each is None else int(each) for each in values], pyarrow.int64())
    if path[-1] in IDENTITY and all(isinstance(each, int | str) for each in known):
        texts = [None if each is None else str(each).encode("utf-8", "backslashreplace") for each in values]
        return pyarrow.array(texts, pyarrow.binary()).cast(pyarrow.string())
    return None


def _make_index(root: Path, files: Sequence[Path]) -> "pyarrow.Table":
    """The index of all files, kept where it can be."""
    began = time.monotonic()
    record = _record(root, files)
    with ThreadPoolExecutor(cores()) as pool:  # a network's disk answers several at once
        index = _index(root, list(pool.map(_Contents, files)), record)
    if (made := _kept_index(root, files)) is not None:  # by another rank
        return made
    kept = _keep(root, index)
    where = f"the index is kept in {kept}" if kept else "the index can be kept nowhere, so each start does it again"
    images = (index.column("size").to_numpy() >= 0).sum()
    line = f"indexed {images:,} images in {root} in {time.monotonic() - began:.1f} s; {where}"
    with suppress(OSError):
        print(f"distrib: {printable(line)}", file=sys.stderr, flush=True)
    return index


def _record(root: Path, files: Sequence[Path]) -> list[list[Any]]:
    """Name, size and time of change of each file."""
    return [
        [file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns]
        for file in files
        for status in [file.stat()]
    ]


def _index(root: Path, contents: Sequence[_Contents], record: list[list[Any]]) -> "pyarrow.Table":
    """A row for each key.

    Args:
        root: of the data set.
        contents: of its tar files.
        record: of these, before they were read.

    Raises:
        UserError: if there are no labels.
    """
    import pyarrow

    fields: dict[str, pyarrow.Array] = {}
    others = {ending for each in contents for ending in each.others}
    sizes = [len(each.names) for each in contents]
    for path in dict.fromkeys(path for each in contents for path in each.columns):
        found = [each.columns.get(path, pyarrow.nulls(len(each.names), pyarrow.int64())) for each in contents]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            others.add(".".join(path))
            continue
        kind = pyarrow.string() if any(part.type == pyarrow.string() for part in parts) else pyarrow.int64()
        fields[json.dumps(path)] = pyarrow.concat_arrays([part.cast(kind) for part in parts])
    if all(json.loads(path)[-1] in IDENTITY for path in fields):
        raise UserError(
            f'the tar files in {root} have no labels of images: write {{"Smiling": 1}} or the like into the KEY.json '
            f"beside each image, or 1 or 0 into a KEY.cls, and make them again"
        )
    offsets, lengths = zip(*(place for each in contents for place in each.places), strict=True)
    index = pyarrow.table(
        {
            "file": np.repeat(np.arange(len(contents)), sizes),
            "name": [name for each in contents for name in each.names],
            "offset": np.array(offsets, dtype=np.int64),
            "size": np.array(lengths, dtype=np.int64),
            "labelled": np.array([bool(labels) for each in contents for labels in each.labels]),
            "labels": pyarrow.StructArray.from_arrays(list(fields.values()), list(fields)),
        }
    )
    about = {"version": _VERSION, "files": record, "others": sorted(others)}
    return index.replace_schema_metadata({"distrib": json.dumps(about)})


def _columns(index: "pyarrow.Table") -> "dict[tuple[str, ...], pyarrow.ChunkedArray]":
    """The labels by the keys that lead to each."""
    import pyarrow

    labels = index.column("labels").combine_chunks()
    return {
        tuple(json.loads(field.name)): pyarrow.chunked_array([values])
        for field, values in zip(labels.type, labels.flatten(), strict=True)
    }


def _places(root: Path) -> list[Path]:
    """Where the index may be kept: in the folder of the data set, or else in the user's cache."""
    places = [root / INDEX]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - raises nothing
    if cache.is_absolute():
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
        places.append(cache / "distrib" / f"{name}.index")
    return places


def _kept_index(root: Path, files: Sequence[Path]) -> "pyarrow.Table | None":
    """The index that was kept of these very files; None where there is none, or one that is damaged."""
    import pyarrow
    import pyarrow.parquet

    record = _record(root, files)
    for place in _places(root):
        try:
            about = json.loads(pyarrow.parquet.read_schema(place).metadata[b"distrib"])
            if about["version"] == _VERSION and about["files"] == record:
                return pyarrow.parquet.read_table(place, page_checksum_verification=True)
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
            continue
    return None


def _keep(root: Path, index: "pyarrow.Table") -> Path | None:
    """Write the index where that can be done; returns where."""
    import pyarrow.parquet

    for place in _places(root):
        staged = place.with_name(f".{place.name}.{uuid.uuid4().hex}")  # ranks may write at the same time
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with afterwards(partial(staged.unlink, missing_ok=True)):
                pyarrow.parquet.write_table(index, staged, write_page_checksum=True)
                fsync(staged)
                staged.replace(place)
                return place
        except OSError:
            continue
    return None
