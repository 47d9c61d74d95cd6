"""Where the bytes of images come from: one interface over the forms in which data sets lie on disks."""

import lzma
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
# What zipfile raises where an entry is damaged, encrypted, gone, or packed by a method that it does not know.
_CANNOT_UNZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, NotImplementedError, RuntimeError,
)  # fmt: skip


class Store(Protocol):
    """The encoded images of N rows.

    Threads may read at the same time. Files are opened in each process when it first reads, so that a store can be
    handed to a process however that is started (fork or spawn).

    Attributes:
        files: N names of image files, each with the folder that it lies in where there is one.
    """

    files: Sequence[str]

    def read(self, row: int) -> bytes:
        """The file of a row.

        Raises:
            OSError: if it cannot be read.
            ValueError: if what is read is damaged.
        """
        ...

    def name(self, row: int) -> str:
        """Where a row's file is, to show to a person."""
        ...


class FolderStore:
    """A folder of image files.

    Args:
        folder: that holds them.
        files: their names relative to it.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder = folder
        self.files = files

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.folder / self.files[row]

    def read(self, row: int) -> bytes:
        return self.path(row).read_bytes()

    def name(self, row: int) -> str:
        return str(self.path(row))


class ZipStore:
    """A zip archive of image files, not unpacked.

    Args:
        archive: it.
        start: what their entries begin with, such as a folder and a slash.
        files: the rest of their entries' names.
    """

    def __init__(self, archive: Path, start: str, files: Sequence[str]) -> None:
        self.archive = archive
        self.files = files
        self._start = start
        self._zip = PerProcess(partial(zipfile.ZipFile, archive))

    def read(self, row: int) -> bytes:
        try:
            return self._zip().read(f"{self._start}{self.files[row]}")
        except _CANNOT_UNZIP as error:
            raise ValueError(f"it cannot be taken out of the zip archive: {error}") from None

    def name(self, row: int) -> str:
        return f"{self.archive}/{self._start}{self.files[row]}"


class PerProcess(Generic[T]):
    """Something that each process opens for itself when it first needs it.

    After a fork two processes would move one place in an open file, and a lock might be held by a thread that is not
    there. What is handed to a process that is spawned is not opened yet.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._of: dict[int, tuple[threading.Lock, list[T]]] = {}

    def __call__(self) -> T:
        lock, made = self._of.setdefault(os.getpid(), (threading.Lock(), []))
        with lock:
            if not made:
                made.append(self._make())
        return made[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return PerProcess, (self._make,)
