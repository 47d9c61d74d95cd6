"""Photographs as people keep them: found on the disk, read, and turned upright.

HWC: height, width, channels (RGB).
"""

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.paths import expanded
from distrib.data.images import ENDINGS, Warn
from distrib.data.images import decode as decode_photograph

# No photograph that is read needs more bytes, and a device such as /dev/zero has no end.
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Photograph:
    """A photograph that has not been read yet.

    Attributes:
        name: to show: its path, with an escape for what no terminal can show; "stdin" for standard input.
        file: where it lies; None: standard input.
    """

    name: str
    file: Path | None

    def read(self, warn: Warn = lambda sentence: None) -> NDArray[np.uint8]:
        """Its pixels, uint8 [H, W, 3], see `distrib.data.images`.

        Args:
            warn: called with a sentence on what is wrong with a photograph that is read all the same.

        Raises:
            UserError: if it cannot be read, or is no whole image.
        """
        try:
            if self.file is None:
                data = sys.stdin.buffer.read(MAX_BYTES + 1)
            else:
                with self.file.open("rb") as stream:
                    data = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read ({error.strerror}): check the file and the disk") from None
        if len(data) > MAX_BYTES:
            raise UserError(f"{self.name} has more than {MAX_BYTES:,} bytes: save it as a JPEG")
        try:
            return decode_photograph(data, lambda clause: warn(f"{self.name} {clause}"))
        except ValueError as error:
            raise UserError(f"{self.name} cannot be read as a photograph: {error}") from None


def expand(argument: str) -> list[Photograph]:
    """The photographs that an argument of the command line means.

    Args:
        argument: a file; a folder, for the photographs directly inside, by their endings; a pattern such as `*.jpg`
            that no shell has expanded, for the photographs among its matches; or `-`, for one on standard input.

    Raises:
        UserError: if there are none.
    """
    if argument == "-":
        return [Photograph("stdin", None)]
    if not os.path.lexists(argument):  # a shell's `*` has files such as ~$report.jpg as they are
        argument = expanded(argument)
    path = Path(argument)
    try:
        return [Photograph(shown(file), file) for file in _files(argument, path)]
    except OSError as error:  # such as a name too long for the file system
        raise UserError(
            f"{shown(path)} cannot be read ({error.strerror}): check the name and the permissions"
        ) from None


def _files(argument: str, path: Path) -> list[Path]:
    """Those that an argument means, which is this path where it is no pattern."""
    if path.is_dir():
        files = _pictures(list(path.iterdir()))
        if not files:
            raise UserError(f"the folder {shown(path)} has no photographs directly inside: name one that has, or files")
        return files
    if glob.has_magic(argument) and not path.exists():
        # Path.glob takes no absolute pattern.
        files = _pictures([Path(match) for match in glob.glob(argument, recursive=True)])  # noqa: PTH207
        if not files:
            raise UserError(f"the pattern {shown(path)} matches no photograph: check it, or name files")
        return files
    if not os.path.lexists(path):
        raise UserError(f"{shown(path)} does not exist: check the name")
    return [path]


def shown(path: Path) -> str:
    """A path that any terminal can show, on one line; what it would not show stands there as an escape such as \\n."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(path)
    )


def _pictures(paths: list[Path]) -> list[Path]:
    """The image files among these paths, by their endings, without hidden ones, sorted by name."""
    return sorted(
        path
        for path in paths
        if path.suffix[1:].lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    )
