"""`distrib prepare`: make data ready for training."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distrib.data.faces import write_faces
from distrib.errors import UserError


@dataclass(frozen=True)
class Faces:
    """Draw faces in CelebA's folder format, with the box of every drawn part in boxes.csv."""

    out: Path
    """Folder to write; it must not exist yet, or be empty."""
    count: int
    """Number of pictures."""
    seed: int = 0
    """The same seed and count give the same files, byte for byte."""
    workers: int = os.cpu_count() or 1
    """Number of processes that draw."""


def prepare_faces(settings: Faces) -> None:
    """Draw the faces and show how far it is.

    Raises:
        UserError: a setting is out of range, or the folder is in use or cannot be written.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("drawing faces"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("faces", total=settings.count)
            write_faces(
                settings.out, settings.count, settings.seed, settings.workers, lambda done: progress.advance(task, done)
            )
    else:
        write_faces(settings.out, settings.count, settings.seed, settings.workers, _PlainProgress(settings.count))
    print(f"{settings.count} faces in {settings.out}")


class _PlainProgress:
    """A line for each tenth of the work, for logs."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, done: int) -> None:
        tenths_before = 10 * self._done // self._total
        self._done += done
        if 10 * self._done // self._total > tenths_before:
            print(f"drawing faces: {self._done} of {self._total}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run one of the preparations; returns the exit status, 2 for what the user can mend."""
    settings = tyro.extras.subcommand_cli_from_dict({"faces": Faces}, prog="distrib prepare", args=argv)
    try:
        prepare_faces(settings)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
