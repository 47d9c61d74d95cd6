"""Images by row of the table: read, decoded, and named where something is wrong with one."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import PASSING, UserError, printable
from distrib.data.images import decode
from distrib.data.store import FolderStore
from distrib.data.table import Table

_SAMPLED = 16  # images that stand for all
# Grey levels by which an image's mean colour may differ between decoders, or after it was saved in another format.
_SAME_COLOUR = 3.0
_PAUSES = (0.1, 0.5)  # seconds before a file that could not be read is tried again


class ImageReader:
    """Reads and decodes the images of a table; threads may do so at the same time."""

    def __init__(self, table: Table) -> None:
        self._store = table.store
        self._said: set[str] = set()

    def read(self, row: int) -> bytes:
        """The file of one row; where a disk or a network has failed it is tried again.

        Raises:
            UserError: if it cannot be read.
        """
        for pause in (*_PAUSES, None):
            try:
                return self._store.read(row)
            except ValueError as error:
                raise self.broken(row, error) from None
            except OSError as error:
                if error.errno in PASSING and pause is not None:
                    time.sleep(pause)
                    continue
                raise UserError(
                    f"{self.name(row)} cannot be read ({error.strerror or error}): check the file and the disk"
                ) from None
        raise AssertionError("the last attempt returns or raises")

    def name(self, row: int) -> str:
        """Where a row's file is, to show to a person."""
        return self._store.name(row)

    def decode(self, row: int, data: bytes) -> NDArray[np.uint8]:
        """The image that a row's file holds, uint8 [H, W, 3], see `distrib.data.images`.

        Raises:
            UserError: if it is no whole image.
        """
        try:
            return decode(data, lambda sentence: self._warn(row, sentence))
        except ValueError as error:
            raise self.broken(row, error) from None

    def broken(self, row: int, reason: ValueError) -> UserError:
        """The sentence for a file that is no whole image."""
        remedy = "replace the file, or take its row out of the table"
        if not isinstance(self._store, FolderStore):
            remedy = "get the data set again, or leave it out by `distrib prepare pack --on-error quarantine`"
        return UserError(f"{self.name(row)} cannot be decoded ({reason}): {remedy}")

    def _warn(self, row: int, sentence: str) -> None:
        """Said of the first such file: a data set has thousands from the same camera."""
        if sentence in self._said:
            return
        self._said.add(sentence)
        line = printable(f"{self.name(row)} {sentence}; others like it are not named")
        with suppress(OSError):
            print(f"distrib: warning: {line}", file=sys.stderr, flush=True)


def sample_colours(table: Table, rows: NDArray[np.int64]) -> list[list[float] | None]:
    """The mean colour, red, green and blue from 0 to 255, of images from all over these rows; None: it is broken.

    By it other images under the same names are noticed, without keeping anything that shows what is on them.
    """
    reader = ImageReader(table)
    colours: list[list[float] | None] = []
    for row in rows[:: max(1, len(rows) // _SAMPLED)][:_SAMPLED].tolist():
        try:
            colours.append(decode(reader.read(row)).mean(axis=(0, 1)).round(1).tolist())
        except (UserError, ValueError):  # which is said when it is trained on
            colours.append(None)
    return colours


def other_colours(before: Sequence[list[float] | None], now: Sequence[list[float] | None]) -> bool:
    """Whether `sample_colours` has found another colour than before, where neither image is broken.

    Raises:
        ValueError: if they are not of as many images.
    """
    known = [(one, other) for one, other in zip(before, now, strict=True) if one and other]
    return bool(known) and bool(np.abs(np.subtract(*zip(*known, strict=True))).max() > _SAME_COLOUR)
