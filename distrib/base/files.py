"""Files and folders that a program writes for its user: refused before the work, and written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distrib.base.errors import UserError, afterwards
from distrib.base.paths import fitting_name, staged_beside


def check_output(file: Path, option: str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        file: to be written.
        option: that names it, such as `--out`.

    Raises:
        UserError: if it is a folder, or its folder is missing or closed to us.
    """
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder: name a file in it")
    if not file.parent.is_dir():
        raise UserError(f"{option} {file} cannot be written: {file.parent} is no folder; make it, or name another")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(f"{option} {file} cannot be written: you have no right to write in {file.parent}; name another")


@contextmanager
def written_whole(file: Path, option: str) -> Iterator[Path]:
    """A path beside the file to write to; it takes the file's place at the end, or is removed after an error.

    Raises:
        UserError: if it cannot be written.
    """
    staged = staged_beside(file)
    try:
        with afterwards(lambda: staged.unlink(missing_ok=True)):
            yield staged
            staged.replace(file)
    except OSError as error:
        raise UserError(f"{option} {file} cannot be written ({error.strerror or error}): name another place") from None


@contextmanager
def folder_written_whole(folder: Path, option: str) -> Iterator[Path]:
    """A new folder beside the one to write; it takes its place at the end, or is removed after an error.

    Raises:
        UserError: if the folder to write exists and is not empty, or cannot be written.
    """
    # Absolute, so that a folder such as `.` has a name and a parent too.
    folder = folder.absolute()
    staged = folder.parent / fitting_name(f".{folder.name}", f".partial-{os.getpid()}")
    new: list[Path] = []
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{option} {folder} exists and is not an empty folder: choose another, or remove this one")
        new += [parent for parent in folder.parents if not parent.exists()]
        staged.mkdir(parents=True)
        yield staged
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
    except OSError as error:
        raise UserError(
            f"{option} {folder} cannot be written ({error}): choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):  # they hold the folder now, or are as empty as they were made
            for parent in new:
                parent.rmdir()
