"""Files and folders written whole or not at all, on the disk when that is said; and refused before the work."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from distrib.base.errors import UserError, afterwards, first_line
from distrib.base.paths import fitting_name, staged_beside

if TYPE_CHECKING:
    import torch


def check_output(file: Path, option: str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        file: to be written.
        option: that names it, such as `--out`.

    Raises:
        UserError: if it is a folder, or its folder is missing or closed to us.
    """
    try:
        folder, has_parent = file.is_dir(), file.parent.is_dir()
    except OSError as error:  # such as a name that is too long, or a folder on the way that is closed
        raise UserError(f"{option} {file} cannot be written ({error.strerror}): name another") from None
    if folder:
        raise UserError(f"{option} {file} is a folder: name a file in it")
    if not has_parent:
        raise UserError(f"{option} {file} cannot be written: {file.parent} is not a folder; make it, or name another")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{option} {file} cannot be written: you have no permission to write in {file.parent}; name another"
        )


@contextmanager
def staged(file: Path) -> Iterator[Path]:
    """A path beside the file to write to: on the disk in the file's place at the end, or removed after an error.

    Raises:
        OSError: if it cannot be written.
    """
    path = staged_beside(file)
    with afterwards(lambda: path.unlink(missing_ok=True)):
        yield path
        fsync(path)
        path.replace(file)
        fsync(file.parent)


def write_whole(file: Path, text: str) -> None:
    """Write a text whole or not at all; bytes in it that are no text stand there as escapes.

    Raises:
        OSError: if it cannot be written.
    """
    with staged(file) as path:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def written_whole(file: Path, option: str) -> Iterator[Path]:
    """As `staged`, for a file that an option names.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with staged(file) as path:
            yield path
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


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make or replace a folder so that at every moment the old one or the new one is there whole.

    `write` fills a staged folder beside it, which is fsynced and renamed. Where there is an old one, it is moved to
    `.NAME.old` for the instant between two renames; `recover_folder` puts it back after a crash in that instant.

    Raises:
        UserError: if it cannot be written.
    """
    new, old = target.with_name(f".{target.name}.staged"), target.with_name(f".{target.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        write(new)
        for path in [*new.iterdir(), new]:
            fsync(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
        fsync(target.parent)
    except OSError as error:
        with suppress(OSError):
            recover_folder(target)
        raise UserError(
            f"{target} cannot be written ({first_line(error)}): check the free space and permissions of "
            f"{target.parent}, then resume with --resume auto"
        ) from None
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Undo what a crash cut off in the folder of checkpoints, so that nothing half-written is left."""
    if folder.is_dir():
        for leftover in folder.iterdir():
            if match := re.fullmatch(r"\.(step-\d{8,})\.(staged|old)", leftover.name):
                recover_folder(folder / match[1])


def recover_folder(target: Path) -> None:
    """Undo a `replace_folder` that a crash cut off."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (old, target.with_name(f".{target.name}.staged")):
        shutil.rmtree(leftover, ignore_errors=True)


def save_weights(weights: dict[str, "torch.Tensor"], file: Path) -> None:
    """Weights as safetensors, which knows neither devices nor channels_last."""
    import safetensors.torch

    # `save_file` makes files that the owner alone may read, whatever the umask says.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    file.write_bytes(safetensors.torch.save(tensors))


def fsync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    with afterwards(lambda: os.close(descriptor)):
        os.fsync(descriptor)
