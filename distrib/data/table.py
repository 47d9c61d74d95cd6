"""The table of a data set: which images there are, and what is known about each.

Legend: N images, A attributes.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distrib.config import nearest
from distrib.data import annotations
from distrib.data.annotations import Annotations, few
from distrib.errors import UserError

# Where CelebA's files lie: as in the archives of its authors (all in one folder, or in Anno, Eval and Img), one level
# down as torchvision puts them, and in a doubled folder as in the common CSV archive.
_BASES = ("", "celeba")
_PLACES = ("", "Anno", "Eval")
_IMAGES = ("img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba")


@dataclass(frozen=True)
class Table:
    """A row per image.

    Attributes:
        folder: the folder that holds the images.
        names: N file names relative to the folder.
        attributes: A names.
        targets: uint8 [N, A] in {0, 1}.
        split: int8 [N], 0 train, 1 validation, 2 test; None where the data set has none.
        identity: int64 [N], the number of the person or group that the image belongs to; None where unknown.
        notes: warnings for the user, a sentence each.
    """

    folder: Path
    names: list[str]
    attributes: tuple[str, ...]
    targets: NDArray[np.uint8]
    split: NDArray[np.int8] | None
    identity: NDArray[np.int64] | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        """Where the image of a row lies."""
        return self.folder / self.names[row]

    def select(self, attributes: Sequence[str]) -> "Table":
        """This table with these attributes alone, in this order; ("all",) keeps all of them.

        Raises:
            UserError: if the table has no such attribute.
        """
        if tuple(attributes) == ("all",):
            return self
        for name in attributes:
            if name not in self.attributes:
                hint = nearest(name, self.attributes)
                raise UserError(
                    f"data.attributes names {name}, which is no column of the table{hint}: its attributes "
                    f"are {', '.join(self.attributes)}"
                )
        columns = [self.attributes.index(name) for name in attributes]
        return dataclasses.replace(self, attributes=tuple(attributes), targets=self.targets[:, columns])


def read_table(root: Path, missing: Literal["stop", "skip"] = "stop") -> Table:
    """The table of the data set in a folder.

    If the folder holds a table.csv, that is the table (see `annotations.read_table_csv` for its columns). The file
    names in it are relative to the first of root, root/images and root/img_align_celeba that holds any of them.

    Otherwise the data set is CelebA: list_attr_celeba, and where there are such files list_eval_partition and
    identity_CelebA, each .txt or else .csv, in root or its folders Anno and Eval, with the images in img_align_celeba,
    img_align_celeba/img_align_celeba or Img/img_align_celeba; all of this also one level down, in root/celeba.

    Args:
        root: the folder.
        missing: what to do about rows whose image is missing: stop, or skip them and say so in the notes.

    Raises:
        UserError: if there is no such folder, table or image, or a file in it is not as expected.
    """
    try:
        if not root.is_dir():
            raise UserError(f"data.root is {root}, which is not a folder: set it to the folder of the data set")
        own = root / "table.csv"
        if own.exists():
            images = [root, root / "images", root / "img_align_celeba"]
            return _with_images(annotations.read_table_csv(own), [], images, missing)
        return _with_images(*_read_celeba(root), missing)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read: check its permissions") from None
    except OSError as error:  # such as a name too long for the file system
        raise UserError(
            f"data.root {root} cannot be read ({error.strerror}): set it to the folder of the data set"
        ) from None


def _read_celeba(root: Path) -> tuple[Annotations, list[str], list[Path]]:
    """CelebA's annotations, notes on them, and the folders that may hold its images."""
    base, file = next(
        ((root / base, file) for base in _BASES if (file := _find(root / base, "list_attr_celeba"))), (root, None)
    )
    if file is None:
        places = [str(root / base / place) for base in _BASES for place in _PLACES]
        raise UserError(
            f"data.root {root} holds no table: looked for {root / 'table.csv'}, and for list_attr_celeba.txt or .csv "
            f"in {', '.join(places)}; set data.root to the folder of the data set"
        )
    found = annotations.read_attributes(file)
    notes: list[str] = []
    if partition := _find(base, "list_eval_partition"):
        split, more = annotations.read_partition(partition, found.names)
        found, notes = dataclasses.replace(found, split=split), notes + more
    if people := _find(base, "identity_CelebA"):
        identity, more = annotations.read_identity(people, found.names)
        found, notes = dataclasses.replace(found, identity=identity), notes + more
    return found, notes, [base / images for images in _IMAGES]


def _find(base: Path, stem: str) -> Path | None:
    files = (base / place / f"{stem}{ending}" for ending in (".txt", ".csv") for place in _PLACES)
    return next((file for file in files if file.exists()), None)


def _with_images(
    found: Annotations, notes: list[str], folders: Sequence[Path], missing: Literal["stop", "skip"]
) -> Table:
    """The table of what is both annotated and there."""
    folder, there = _find_images(found.names, folders)
    names = set(found.names)
    if surplus := _images_among(there - names, found.names):
        notes = [
            *notes,
            f"{folder} holds images without a row in the table: {len(surplus)} ({few(surplus)}), not used.",
        ]
    lost = names - there
    if lost:
        sentence = f"{folder} lacks {len(lost)} of the {len(names)} images in the table ({few(sorted(lost))})"
        if missing == "stop":
            raise UserError(f"{sentence}: put them there, or set data.missing to skip to do without them")
        notes = [*notes, f"{sentence}: their rows are skipped."]
        found = _only(found, [row for row, name in enumerate(found.names) if name not in lost])
    return Table(folder, found.names, found.attributes, found.targets, found.split, found.identity, tuple(notes))


def _find_images(names: Sequence[str], folders: Sequence[Path]) -> tuple[Path, set[str]]:
    """The first of the folders that holds any of these images, and all that lies beside them."""
    parents = {name.rpartition("/")[0] if "/" in name else "" for name in names}
    for folder in folders:
        there = _list_files(folder, parents)
        if not there.isdisjoint(names):
            return folder, there
    raise UserError(
        f"none of the {len(names)} images in the table ({few(names)}) is in "
        f"{', '.join(str(folder) for folder in folders)}: put the images into one of these folders"
    )


def _images_among(files: set[str], images: Sequence[str]) -> list[str]:
    """Those of the files that end as one of the images does, in order."""
    endings = {name.rpartition(".")[2] for name in images} if files else set()
    return sorted(name for name in files if name.rpartition(".")[2] in endings)


def _list_files(folder: Path, parents: set[str]) -> set[str]:
    """The entries of these subfolders, by one listing each and no look at single files."""
    there: set[str] = set()
    for parent in parents:
        try:
            entries = os.listdir(folder / parent)  # noqa: PTH208 - a Path for each of 202,599 files would take seconds
        except PermissionError:
            raise
        except OSError:
            continue  # not there, so its images are missing
        there.update(f"{parent}/{entry}" for entry in entries) if parent else there.update(entries)
    return there


def _only(found: Annotations, rows: list[int]) -> Annotations:
    return dataclasses.replace(
        found,
        names=[found.names[row] for row in rows],
        targets=found.targets[rows],
        split=None if found.split is None else found.split[rows],
        identity=None if found.identity is None else found.identity[rows],
    )
