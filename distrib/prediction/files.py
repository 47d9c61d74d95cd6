"""Files that a program writes for its user: refused before the work begins, and written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distrib.errors import UserError


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
    staged = file.with_name(f".{file.name}.staged")
    try:
        yield staged
        staged.replace(file)
    except OSError as error:
        raise UserError(f"{option} {file} cannot be written ({error.strerror or error}): name another place") from None
    finally:
        staged.unlink(missing_ok=True)
