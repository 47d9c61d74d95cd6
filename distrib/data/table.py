"""The table of a data set: which images there are, and what is known about each.

Legend: N images, A attributes.
"""

import dataclasses
import posixpath
import re
import shlex
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.words import few, nearest
from distrib.data import annotations, image_files
from distrib.data.annotations import Annotations, Flaw
from distrib.data.parquet import find_parquet, read_parquet
from distrib.data.shards import INDEX, MANIFEST, is_packed, read_packed
from distrib.data.store import FolderStore, Store, ZipStore
from distrib.data.tar_files import find_tars, read_tars

# By their numbers in `Table.split`.
SPLITS = ("train", "valid", "test")
# Where CelebA's files lie: as in the archives of its authors (all in one folder, or in Anno, Eval and Img), one level
# down as torchvision puts them, and in a doubled folder as in the common CSV archive.
_BASES = ("", "celeba")
_PLACES = ("", "Anno", "Eval")
_IMAGES = (
    "img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba", "img_align_celeba_png",
    "img_align_celeba_png/img_align_celeba_png", "Img/img_align_celeba_png",
)  # fmt: skip
# What may be the table under another name, among those the ones that are called so, and what is something else.
_OTHER_TABLE = re.compile(r"\.(csv|tsv|txt|parquet|xlsx|xls|ods)$|(^|/)list_attr[^./]*$", re.IGNORECASE)
_NEAR_TABLE = re.compile(r"(.*attr|table)([^.]*|.*\.(csv|tsv|txt))$", re.IGNORECASE)
_NO_TABLE = re.compile("readme|licen[cs]e|requirements|partition|identity|bbox|landmark", re.IGNORECASE)
_NO_ATTRIBUTE = "no column holds that, so add one of 1 and 0 for each attribute"
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Table:
    """A row per image.

    Attributes:
        store: where the bytes of the N images are read.
        names: N names of images, as the table has them.
        attributes: A names.
        targets: uint8 [N, A] in {0, 1}.
        split: int8 [N], 0 train, 1 validation, 2 test; None where the data set has none.
        identity: int64 [N], the number of the person or group that the image belongs to; None where unknown.
        notes: warnings for the user, a sentence each.
        flaws: why the other columns of the table are no attributes.
        lost: the rows that are left out because their images are missing: their names, and their numbers in the file.
        surplus: files of images that no row names.
    """

    store: Store
    names: list[str]
    attributes: tuple[str, ...]
    targets: NDArray[np.uint8]
    split: NDArray[np.int8] | None
    identity: NDArray[np.int64] | None
    notes: tuple[str, ...]
    flaws: Mapping[str, Flaw] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    surplus: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def select(self, attributes: Sequence[str]) -> "Table":
        """This table with these attributes alone, in this order; ("all",) keeps all of them.

        Raises:
            UserError: if the table has no such attribute, or, for all of them, a column that is none.
        """
        if tuple(attributes) == ("all",):
            self._refuse_others()
            return self
        for name in attributes:
            if name in self.flaws:
                flaw = self.flaws[name]
                others = f"the columns that hold that are {few(self.attributes)}" if self.attributes else _NO_ATTRIBUTE
                raise UserError(f"{flaw.what}; {flaw.remedy or others}")
            if name not in self.attributes:
                hint = nearest(name, [*self.attributes, *self.flaws])
                there = f"its attributes are {', '.join(self.attributes)}" if self.attributes else _NO_ATTRIBUTE
                raise UserError(f"data.attributes names {name}, which is not a column of the table{hint}: {there}")
        columns = [self.attributes.index(name) for name in attributes]
        return dataclasses.replace(self, attributes=tuple(attributes), targets=self.targets[:, columns])

    def _refuse_others(self) -> None:
        if not self.flaws:
            return
        # A mistake in an attribute comes before a column that never was one.
        (name, flaw), *others = sorted(self.flaws.items(), key=lambda item: not item[1].remedy)
        also = f" (as {few([name for name, _ in others])} cannot be learned either)" if others else ""
        if not self.attributes:
            only = f", and name the columns to learn: --data.attributes {shlex.quote(name)}" if others else ""
            raise UserError(f"{flaw.what}{also}; {flaw.remedy + only if flaw.remedy else _NO_ATTRIBUTE}")
        mend = f"{flaw.remedy}; or " if flaw.remedy and not others else ""
        choice = " ".join(map(shlex.quote, self.attributes[:10])) + (" ..." if len(self.attributes) > 10 else "")
        raise UserError(f"{flaw.what}{also}; {mend}name the columns to learn, which may be: --data.attributes {choice}")


def read_table(root: Path, missing: Literal["stop", "skip"] = "stop", uses: Collection[str] = SPLITS) -> Table:
    """The table of the data set in a folder.

    If the folder is a packed data set (see `packing.pack`), its own index is the table.

    If it holds a table.csv, that is the table (see `annotations.read_attributes` for its columns). The file
    names in it are relative to the first of root, root/images and root/img_align_celeba that holds any of them.

    Otherwise the data set is CelebA: list_attr_celeba, and where there are such files list_eval_partition and
    identity_CelebA, each .txt or else .csv, in root or its folders Anno and Eval, with the images in img_align_celeba,
    img_align_celeba/img_align_celeba or Img/img_align_celeba, or in the same with _png; all of this also one level
    down, in root/celeba.

    In place of a folder of images its zip archive will do: img_align_celeba.zip where img_align_celeba is looked for.
    A root without such tables that holds Parquet files is read as `parquet.read_parquet` says, and one that holds tar
    files in the WebDataset layout as `tar_files.read_tars` says.

    What is taken for a name that is not there is said at `image_files.locate`. Nothing is written into the folder but
    the index of such tar files.

    Args:
        root: the folder.
        missing: what to do about rows whose image is missing: stop, or skip them and say so in the notes.
        uses: which of the data set's own splits the caller uses, if it has any. The images of the others may be
            missing, of which the rows stay (but where missing ones are skipped), and what no row names is not noted on
            unless all are used.

    Raises:
        UserError: if there is no such folder, table or image, or a file in it is not as expected.
    """
    try:
        if not root.is_dir():
            raise UserError(f"data.root is {root}, which is not a folder: {_folder_of(root)}")
        if is_packed(root):
            return _table(*read_packed(root), [])
        if (root / INDEX).is_file() and not (root / MANIFEST).exists():
            raise UserError(
                f"{root} looks like a packed data set without its {MANIFEST}: get that file again, or pack again"
            )
        own = root / "table.csv"
        if own.exists():
            folders = [root, root / "images", root / "img_align_celeba"]
            return _with_images(annotations.read_attributes(own), [], folders, root, missing, uses)
        base = celeba_base(root)
        if base is None and (files := find_parquet(root)):
            found, parquet, notes = read_parquet(root, files, missing)
            return _table(found, parquet, notes)
        if base is None and (files := find_tars(root)):
            found, shards, notes, lost, surplus = read_tars(root, files, missing)
            return dataclasses.replace(_table(found, shards, notes), lost=lost, surplus=surplus)
        return _with_images(*_read_celeba(root, base), root, missing, uses)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: check its permissions") from None
    except OSError as error:  # such as a name too long for the file system
        raise UserError(
            f"data.root {root} cannot be read ({error.strerror}): set it to the folder of the data set"
        ) from None


def celeba_base(root: Path) -> Path | None:
    """The folder around CelebA's files; None where they are not there."""
    return next((root / base for base in _BASES if _find(root / base, "list_attr_celeba")), None)


def _read_celeba(root: Path, base: Path | None) -> tuple[Annotations, list[str], list[Path]]:
    """CelebA's annotations, notes on them, and the folders that may hold its images."""
    file = base and _find(base, "list_attr_celeba")
    if base is None or file is None:
        places = [str(root / base / place) for base in _BASES for place in _PLACES]
        clause, remedy = _nearest_table(root)
        raise UserError(
            f"data.root {root} holds no table: looked for {root / 'table.csv'}, for list_attr_celeba.txt or .csv in "
            f"{', '.join(places)}, and for Parquet files with images, or tar files with images and labels{clause}; "
            f"{remedy or 'set data.root to the folder of the data set'}"
        )
    found = annotations.read_attributes(file)
    notes: list[str] = []
    if partition := _find(base, "list_eval_partition"):
        split, more = annotations.read_partition(partition, found.names)
        found, notes = dataclasses.replace(found, split=split), notes + more
    if people := _find(base, "identity_CelebA"):
        identity, more = annotations.read_identity(people, found.names)
        found, notes = dataclasses.replace(found, identity=identity), notes + more
    return found, notes, [base / folder for folder in _IMAGES]


def _find(base: Path, stem: str) -> Path | None:
    files = (base / place / f"{stem}{ending}" for ending in (".txt", ".csv") for place in _PLACES)
    return next((file for file in files if file.exists()), None)


def _folder_of(root: Path) -> str:
    """What to do about a root that is no folder."""
    if not zipfile.is_zipfile(root):
        return "set it to the folder of the data set"
    for base in root.absolute().parents[:2]:
        if (base / "table.csv").exists() or _find(base, "list_attr_celeba") is not None:
            return f"set it to {base}, which has the table of the images in the archive"
    out = root.with_suffix("") if root.suffix else root.with_name(f"{root.name}_unpacked")
    place = _base_in_archive(root) or root.parent
    return (
        f"unpack it with `unzip -qo {shlex.quote(str(root))} -d {shlex.quote(str(out))}`, and set data.root to "
        f"{out / place.relative_to(root.parent)}"
    )


def _base_in_archive(file: Path) -> Path | None:
    """The data set's folder once a zip archive is unpacked beside itself; None where there is no table in it."""
    try:
        inside = image_files.entries(file) if zipfile.is_zipfile(file) else []
    except OSError:
        return None
    return next((file.parent / _base(posixpath.dirname(name)) for name in inside if _is_table(name)), None)


def _nearest_table(root: Path) -> tuple[str, str]:
    """A clause on what is there in place of a table, and what to do about it, where that is known."""
    tree = image_files.Tree(root)
    tables = [file for file in tree.files if _is_table(file)]
    for base in root.absolute().parents[:2]:
        if (base / "table.csv").exists() or _find(base, "list_attr_celeba") is not None:
            return f"; {base} has one", f"set data.root to {base}"
    for file in tables:
        base = root / _base(posixpath.dirname(file))
        if base != root and ((base / "table.csv").exists() or _find(base, "list_attr_celeba") is not None):
            return f"; {root / file} is one", f"set data.root to {base}"
    others = [
        file for file in tree.files if _OTHER_TABLE.search(file) and not _NO_TABLE.search(posixpath.basename(file))
    ]
    near = tables or [file for file in others if _NEAR_TABLE.match(posixpath.basename(file))]
    if near:
        # What kind it is, its content says.
        is_own = posixpath.basename(near[0]).lower().startswith("table")
        ending = ".csv" if near[0].lower().endswith(".csv") else ".txt"
        name = "table.csv" if is_own else f"list_attr_celeba{ending}"
        return f"; {root / near[0]} is near", f"name it {root / name}"
    clause, remedy = image_files.unpacking(tree, _is_table)
    if clause:
        inside = (found for file in tree.files if (found := _base_in_archive(root / file)))
        base = next(inside, root)
        return f"; {clause}", remedy if base == root else f"{remedy}, and set data.root to {base}"
    if others:
        is_text = others[0].lower().endswith((".csv", ".tsv", ".txt"))
        remedy = (
            f"name the table {root / 'table.csv'}" if is_text else f"save the table, as CSV, as {root / 'table.csv'}"
        )
        return f"; there is {few([str(root / file) for file in others])}", remedy
    return image_files.not_searched(tree) if tree.too_large else "", ""


def _is_table(file: str) -> bool:
    name = posixpath.basename(file).lower()
    return name in ("table.csv", "list_attr_celeba.txt", "list_attr_celeba.csv") and image_files.is_kept(file)


def _base(folder: str) -> str:
    """The data set's folder of the one that holds its table."""
    return posixpath.dirname(folder) if posixpath.basename(folder) in _PLACES and folder else folder


def _with_images(
    found: Annotations,
    notes: list[str],
    folders: Sequence[Path],
    root: Path,
    missing: Literal["stop", "skip"],
    uses: Collection[str],
) -> Table:
    """The table of what is both annotated and there."""
    found, folders = _from_root(found, folders, root)
    needed, called = None, "in the table"
    if len(uses) < len(SPLITS):
        needed = set(found.names)
        if found.split is not None:
            used = np.isin(found.split, [SPLITS.index(split) for split in uses])
            needed, called = {found.names[row] for row in np.flatnonzero(used)}, f"of the split {', '.join(uses)}"
    located = image_files.locate(found.names, folders, root, missing, needed, called)
    # What a model has seen is told by the rows of the training too, whether or not their images are here. Where a run
    # skipped what is missing, it had no such rows.
    kept = set() if needed is None or missing == "skip" else set(found.names) - needed
    rows = [row for row, file in enumerate(located.files) if file is not None or found.names[row] in kept]
    files = [located.files[row] or found.names[row] for row in rows]
    lost = {}
    if len(rows) < len(found.names):
        lost = {found.names[row]: row for row in sorted(set(range(len(found.names))).difference(rows))}
        found = _only(found, rows)
    store: Store = FolderStore(located.folder, files)
    if located.archive is not None:
        store = ZipStore(*located.archive, files)
    return dataclasses.replace(_table(found, store, [*notes, *located.notes]), lost=lost, surplus=located.surplus)


def _table(found: Annotations, store: Store, notes: Sequence[str]) -> Table:
    return Table(
        store, found.names, found.attributes, found.targets, found.split, found.identity, tuple(notes), found.flaws
    )


def _from_root(found: Annotations, folders: Sequence[Path], root: Path) -> tuple[Annotations, Sequence[Path]]:
    """Absolute names as names relative to the root, and the folders that hold the images then.

    Raises:
        UserError: if one leads elsewhere, or two names are of one file.
    """
    if not any(map(_ABSOLUTE.match, found.names)):
        return found, folders
    starts = {f"{path.as_posix().rstrip('/')}/" for path in (root.absolute(), root.resolve())}
    names = []
    for name in found.names:
        start = next((start for start in starts if name.startswith(start)), None)
        if start is None and _ABSOLUTE.match(name):
            near = image_files.end_of(name, image_files.Tree(root))
            said = f"that is {near}" if near else "a link in that folder may lead to it"
            raise UserError(
                f"{found.file} names {name}, which lies outside of the folder of the data set, {root}: name it from "
                f"that folder on ({said})"
            )
        names.append(name[len(start) :] if start else name)
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"{found.file} names one file twice, {twice} by its whole path too: remove one of the two rows")
    return dataclasses.replace(found, names=names), [root, *folders]


def _only(found: Annotations, rows: list[int]) -> Annotations:
    return dataclasses.replace(
        found,
        names=[found.names[row] for row in rows],
        targets=found.targets[rows],
        split=None if found.split is None else found.split[rows],
        identity=None if found.identity is None else found.identity[rows],
    )
