"""Data sets of several files, of which each holds many images, and whose names say their splits.

Legend: N rows.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.words import few
from distrib.data.annotations import SPLIT_NUMBERS
from distrib.data.image_files import is_kept


def find_files(root: Path, ending: str) -> list[Path]:
    """The files of this ending in a folder and two levels below it."""
    # Such as data/, default/train/ or img_align+identity+attr/.
    found = sorted(file for depth in ("", "*/", "*/*/") for file in root.glob(f"{depth}*.{ending}"))
    return [file for file in found if file.is_file() and is_kept(file.name)]


def refuse_several(root: Path, files: Sequence[Path], kind: str) -> None:
    """Refuse files of several data sets: all lie in one folder, or in one for each split."""
    folders = sorted({str(file.parent.parent if _split_of_folder(file, root) else file.parent) for file in files})
    if len(folders) > 1:
        raise UserError(
            f"data.root {root} holds {kind} files of several data sets, in {few(folders)}: set data.root to one of "
            f"these folders"
        )


def by_split(root: Path, files: Sequence[Path]) -> dict[Path, str | None]:
    """The files in the order of CelebA's own table, each with the word for its split that its name, or that of its
    folder, begins with; None for all of them where there are no splits.

    Raises:
        UserError: if only some have one.
    """
    words = {file: _split_in(file.stem) or _split_of_folder(file, root) for file in files}
    unsplit = [str(file) for file, word in words.items() if word is None]
    if unsplit and len(unsplit) < len(files):
        raise UserError(
            f"the name of {few(unsplit)} says no split, as those of other files in {root} do: begin it with train, "
            f"validation or test, or move what is not to be used elsewhere"
        )
    return dict(sorted(words.items(), key=lambda item: (SPLIT_NUMBERS[item[1]] if item[1] else -1, item[0])))


def splits_of_rows(words: Iterable[str | None], sizes: Sequence[int]) -> NDArray[np.int8] | None:
    """int8 [N], the split of each row of these files, by words as in `by_split`; None where there are no splits."""
    numbers = [SPLIT_NUMBERS[word] for word in words if word]
    return np.repeat(np.array(numbers, dtype=np.int8), sizes) if numbers else None


def not_whole(file: Path, kind: str, reason: str) -> UserError:
    """The sentence for a file that is none of its kind."""
    with file.open("rb") as opened:
        start = opened.read(20)
    remedy = "fetch it again"
    if start.startswith(b"version https://git"):
        reason, remedy = "it is a Git LFS pointer", "fetch the file itself with `git lfs pull`"
    elif start.startswith(b"\x1f\x8b"):
        reason, remedy = "it is compressed", f"name it {file.name}.gz, and decompress it with gunzip"
    return UserError(f"{file} is not a whole {kind} file ({reason}): {remedy}")


def _split_in(name: str) -> str | None:
    """The word for a split that a name of a file or folder begins with."""
    word = re.split(r"[^a-z]", name.lower())[0]
    return word if word in SPLIT_NUMBERS else None


def _split_of_folder(file: Path, root: Path) -> str | None:
    """The split that a file's folder, if it is one in the root, is called by."""
    return _split_in(file.parent.name) if file.parent != root else None
