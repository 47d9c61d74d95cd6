"""A data set separated into folders for training, validation and test, and the proof that they have nothing in common.

Legend: N images.
"""

import csv
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError, printable
from distrib.base.files import folder_written_whole
from distrib.base.words import few
from distrib.config import DataConfig
from distrib.data.reader import ImageReader
from distrib.data.splits import crossing, make_splits
from distrib.data.store import FolderStore, Store
from distrib.data.table import SPLITS, Table, read_table

_CHUNK = 100  # images between two reports

T = TypeVar("T")
# What is being done, to how many images since the last call, and of how many.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Proof:
    """What the written files themselves say of the splits.

    Attributes:
        images: their number in each split.
        identities: their number in each split; None where the data set names none.
        identities_in_more_than_one_split: their number; None where the data set names none.
        images_of_identities_in_more_than_one_split: their number; None where the data set names none.
        contents: number of different images in each split, by SHA-256.
        contents_in_more_than_one_split: their number.
        table_sha256: of table.csv.
    """

    images: dict[str, int]
    identities: dict[str, int] | None
    identities_in_more_than_one_split: int | None
    images_of_identities_in_more_than_one_split: int | None
    contents: dict[str, int]
    contents_in_more_than_one_split: int
    table_sha256: str


@dataclass(frozen=True)
class Joined:
    """What stays in one split because images have the same bytes.

    Attributes:
        group: int64 [N], see `join`; None where nothing was joined.
        members: number of identities (of images, where the split is by image) that were joined.
        groups: number of groups that they make.
        why: a clause for the user; empty where nothing was joined.
    """

    group: NDArray[np.int64] | None
    members: int
    groups: int
    why: str


def separate(
    config: DataConfig,
    out: Path,
    files: Literal["link", "copy"],
    workers: int,
    report: OnProgress = lambda *_: None,
) -> tuple[Proof, list[str]]:
    """Write a data set into the folders train, valid and test of a new one, all or nothing.

    Each split has the images that `make_splits` gives it, except that images with the same bytes are kept in one split,
    and with them, where the split is by identity, all images of their identities. They keep their file names, with the
    folders before them where two images would else have the same name.

    Beside them are `table.csv`, which makes the folder a data set like any other (rows in the order of the source,
    `group` the number of the identity); `separation.json`, how it was made and what proves it; and `SHA256SUMS`, which
    `sha256sum --check` takes. The proof is by what was written: table.csv is read again, and the images are hashed
    where they are now.

    Args:
        config: of the data set to separate; its split is identity or image.
        out: a folder outside of the data set that does not exist, or is empty.
        files: link, symbolic links to the absolute paths of the images; copy, copies.
        workers: number of threads that read and copy.
        report: called while the work is under way.

    Returns:
        The proof, and warnings for the user, a sentence each.

    Raises:
        UserError: if the data set is not as expected, lacks identities, or has a broken image; a split comes out empty;
            `out` is in use or cannot be written; or there are no workers.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}, but at least one thread has to read: choose 1 or more")
    table = read_table(config.root, config.missing)
    make_splits(table, config)  # what this refuses is refused before the long work
    names = _names(table)
    notes = _check_columns(table, config.root)
    _check_place(out, config.root, table.store)
    with folder_written_whole(out, "--out") as folder:
        if files == "link":
            _try_link(table.store, folder, out)
        digests = _read(table, workers, report)
        joined = _join_contents(table, config, digests)
        part = _part(table, config, joined)
        places = [f"{SPLITS[number]}/{name}" for number, name in zip(part.tolist(), names, strict=True)]
        _place(table, folder, places, files, workers, report)
        _write_table(folder / "table.csv", table, places, part)
        sums = dict(zip(places, digests, strict=True))
        proof = _prove(folder, config, sums, workers, report)
        how = {
            "source": printable(str(config.root.absolute())),
            "missing": config.missing,
            "by": config.split,
            "fractions": config.split_fractions,
            "seed": config.split_seed,
            "files": files,
            "joined": joined.members,
            "joined_groups": joined.groups,
        }
        text = json.dumps({**how, **asdict(proof)}, indent=2, ensure_ascii=False) + "\n"
        (folder / "separation.json").write_text(text, encoding="utf-8")
        sums |= {"table.csv": proof.table_sha256, "separation.json": hashlib.sha256(text.encode()).hexdigest()}
        (folder / "SHA256SUMS").write_text("".join(map(_sum_line, sums.items())), encoding="utf-8")
    return proof, [*table.notes, *notes, *([f"{joined.why}."] if joined.why else [])]


def join(unit: NDArray[np.int64], content: NDArray[np.int64]) -> NDArray[np.int64]:
    """Units that have a content in common, directly or through other units, as groups.

    Args:
        unit: int64 [N], the identity of each image, or its row.
        content: int64 [N], 0 and up, the same for images with the same bytes.

    Returns:
        int64 [N], the smallest unit in the group of each image: its own where it has no content in common with another.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    units, number = np.unique(unit, return_inverse=True)
    # A graph with a node for each unit and for each content, and an edge for each image.
    size = len(units) + int(content.max()) + 1
    images = coo_array((np.ones(len(unit), dtype=np.int8), (number, len(units) + content)), shape=(size, size))
    _, component = connected_components(images, directed=False)
    _, first, group = np.unique(component[: len(units)], return_index=True, return_inverse=True)
    joined: NDArray[np.int64] = units[first[group]][number]
    return joined


def _names(table: Table) -> list[str]:
    """N different names for the images in the folders of their splits."""
    files = table.store.files
    bare = [posixpath.basename(file) for file in files]
    # Some file systems hold names for equal that differ in upper and lower case.
    if len({name.casefold() for name in bare}) == len(bare):
        return bare
    return list(map(posixpath.normpath, files))


def _check_columns(table: Table, root: Path) -> list[str]:
    """Refuse columns that a table.csv cannot have, and what `check_labels` refuses; its note."""
    taken = next((name for name in table.attributes if name in ("image", "split", "group")), None)
    if taken is not None:
        raise UserError(
            f"the table in {root} has an attribute called {taken}, which means something else in a table.csv: give the "
            f"column another name"
        )
    return check_labels(table)


def check_labels(table: Table) -> list[str]:
    """Refuse mistakes in columns, and a table without labels; a note on columns that are left out.

    Raises:
        UserError: with what to correct.
    """
    mistake = next((flaw for flaw in table.flaws.values() if flaw.remedy), None)
    if mistake is not None:
        raise UserError(f"{mistake.what}; {mistake.remedy}, or remove the column")
    if not table.attributes:
        table.select(("all",))  # refuses, with the reason
    return [f"Columns that hold no labels are left out: {few(list(table.flaws))}."] if table.flaws else []


def _check_place(out: Path, root: Path, store: Store) -> None:
    place = Path(os.path.realpath(out))
    folders = [root, store.folder] if isinstance(store, FolderStore) else [root]
    if any(place.is_relative_to(os.path.realpath(taken)) for taken in folders):
        raise UserError(f"--out {out} lies in the data set that is to be separated, {root}: choose a folder elsewhere")


def _try_link(store: Store, folder: Path, out: Path) -> None:
    """Refuse images that are no files, and a file system without symbolic links, before the long work."""
    if not isinstance(store, FolderStore):
        raise UserError(
            f"--files is link, but the images are no files of their own ({store.name(0)}): set --files to copy"
        )
    link = folder / "link"
    try:
        link.symlink_to(folder)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot hold symbolic links ({error.strerror or error}): set --files to copy, or choose a "
            f"folder on another file system"
        ) from None
    link.unlink()


def _read(table: Table, workers: int, report: OnProgress) -> list[str]:
    """SHA-256 of the files of the N images, none of which is damaged."""
    reader = ImageReader(table)

    def read(row: int) -> str:
        data = reader.read(row)
        reader.decode(row, data)
        return hashlib.sha256(data).hexdigest()

    return _for_each(read, len(table), workers, "reading images", report)


def _join_contents(table: Table, config: DataConfig, digests: Sequence[str]) -> Joined:
    """The identities, or else the images, that have an image's content in common."""
    kind, unit = ("images", np.arange(len(table))) if config.split == "image" else ("identities", table.identity)
    assert unit is not None
    _, content = np.unique(digests, return_inverse=True)
    group = join(unit, content)
    followers = group != unit
    if not followers.any():
        return Joined(None, 0, 0, "")
    leaders = np.unique(group[followers])
    members = len(leaders) + len(np.unique(unit[followers]))
    shared = np.flatnonzero(np.isin(content, crossing(content, unit)))
    why = (
        f"{members} {kind} were joined into {len(leaders)} group{'s' if len(leaders) > 1 else ''}, because images with "
        f"the same bytes are kept in one split ({few([table.names[row] for row in shared])})"
    )
    return Joined(group, members, len(leaders), why)


def _part(table: Table, config: DataConfig, joined: Joined) -> NDArray[np.int8]:
    """The split of each image: int8 [N], 0 train, 1 validation, 2 test."""
    try:
        splits = make_splits(table, config, joined.group)
    except UserError as error:  # not without groups, so they are too large
        raise UserError(f"{error}; {joined.why}") from None
    part = np.empty(len(table), dtype=np.int8)
    for number, rows in enumerate((splits.train, splits.valid, splits.test)):
        part[rows] = number
    return part


def _place(
    table: Table, folder: Path, places: Sequence[str], files: Literal["link", "copy"], workers: int, report: OnProgress
) -> None:
    """Link or copy the N images to these places in the folder."""
    store, reader = table.store, ImageReader(table)
    for parent in sorted({posixpath.dirname(place) for place in places}):
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def link(row: int) -> None:
        assert isinstance(store, FolderStore), "it is refused before that images which are no files are linked"
        (folder / places[row]).symlink_to(store.path(row).resolve())

    def copy(row: int) -> None:
        (folder / places[row]).write_bytes(reader.read(row))

    work, name = (link, "linking images") if files == "link" else (copy, "copying images")
    _for_each(work, len(table), workers, name, report)


def _write_table(file: Path, table: Table, places: Sequence[str], part: NDArray[np.int8]) -> None:
    others: dict[str, list[str] | list[int]] = {"split": [SPLITS[number] for number in part.tolist()]}
    if table.identity is not None:
        others["group"] = table.identity.tolist()
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", *table.attributes, *others])
        for place, values, *rest in zip(places, table.targets.tolist(), *others.values(), strict=True):
            writer.writerow([place, *values, *rest])


def _prove(folder: Path, config: DataConfig, sums: dict[str, str], workers: int, report: OnProgress) -> Proof:
    """What the files in a folder say of its splits.

    Args:
        folder: as written.
        config: of the data set that it was made from.
        sums: SHA-256 of each image when it was read there.
        workers: number of threads that read.
        report: called while the work is under way.

    Raises:
        UserError: if an image is another one now, or something is in two splits that should not be.
    """
    table = read_table(folder)
    part = np.array([SPLITS.index(name.partition("/")[0]) for name in table.names], dtype=np.int8)
    assert np.array_equal(part, np.array(table.split)), "the table says of an image that it is in another folder"
    assert not table.notes, "the table does not name every image"
    reader = ImageReader(table)
    digests = _for_each(
        lambda row: hashlib.sha256(reader.read(row)).hexdigest(), len(table), workers, "checking images", report
    )
    changed = [name for name, digest in zip(table.names, digests, strict=True) if digest != sums[name]]
    if changed:
        raise UserError(
            f"{config.root} changed while it was separated, in {len(changed)} of its {len(table)} images "
            f"({few(changed)}): run it again when nothing changes it"
        )
    _, content = np.unique(digests, return_inverse=True)
    contents = len(crossing(content, part))
    identities = images = None
    if table.identity is not None:
        people = crossing(table.identity, part)
        identities, images = len(people), int(np.isin(table.identity, people).sum())
    leaks = {"identities": identities if config.split == "identity" else 0, "image contents": contents}
    found = [f"{count} {kind}" for kind, count in leaks.items() if count]
    if found:
        raise UserError(
            f"{config.root} was not separated and nothing is kept, because {' and '.join(found)} were in more than one "
            f"split: this is a fault of distrib, please report it"
        )
    return Proof(
        images=_in_each(np.arange(len(table)), part),
        identities=None if table.identity is None else _in_each(table.identity, part),
        identities_in_more_than_one_split=identities,
        images_of_identities_in_more_than_one_split=images,
        contents=_in_each(content, part),
        contents_in_more_than_one_split=contents,
        table_sha256=hashlib.sha256((folder / "table.csv").read_bytes()).hexdigest(),
    )


def _in_each(member: NDArray[np.int64], part: NDArray[np.int8]) -> dict[str, int]:
    """How many different ones each split has."""
    return {name: len(np.unique(member[part == number])) for number, name in enumerate(SPLITS)}


def _sum_line(entry: tuple[str, str]) -> str:
    name, digest = entry
    # `sha256sum` marks a line with such a name by a backslash of its own.
    escaped = name.replace("\\", "\\\\")
    return ("\\" if escaped != name else "") + f"{digest}  {escaped}\n"


def _for_each(work: Callable[[int], T], count: int, workers: int, name: str, report: OnProgress) -> list[T]:
    """What `work` makes of each row, in order; in threads, since reading, decoding and hashing let others run."""

    def do(rows: range) -> list[T]:
        return [work(row) for row in rows]

    found: list[T] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in pool.map(do, [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]):
                found += part
                report(name, len(part), count)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what has not begun is given up
    return found
