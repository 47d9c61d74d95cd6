"""What takes long to make and is only read: made by the first of pytest-xdist's workers that needs it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this session, in which `make` has been called once; the other workers wait for it.

    If `make` raises, the next worker that asks tries it again, in an empty folder.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own in the session's
    made = base / f"{name}-made"
    with FileLock(base / f"{name}.lock"):
        if not made.exists():
            folder = factory.mktemp(name)
            make(folder)
            made.write_text(str(folder))
    return Path(made.read_text())
