"""`distrib prepare`: make data ready for training.

distrib prepare faces --out data/faces --count 3000
distrib prepare split --root data/celeba --out data/separated --by identity --fractions 0.8 0.1 0.1 --seed 0
distrib prepare pack --root data/celeba --out data/packed
distrib prepare check data/packed
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from distrib.base.errors import UserError, printable
from distrib.base.paths import OptionPath
from distrib.base.streams import standard_streams
from distrib.config import DataConfig

if TYPE_CHECKING:
    from distrib.data.separation import OnProgress, Proof

# What a data set's readers call by its key in the configuration is an option here.
OPTION_OF = {"root": "--root", "split": "--by", "split_fractions": "--fractions", "split_seed": "--seed",
             "missing": "--missing"}  # fmt: skip


@dataclass(frozen=True)
class Faces:
    """Draw faces in CelebA's folder format, with the box of every drawn part in boxes.csv."""

    out: OptionPath
    """Folder to write; it must not exist yet, or be empty."""
    count: int
    """Number of images."""
    seed: int = 0
    """The same seed and count give the same files, byte for byte."""
    workers: int = os.cpu_count() or 1
    """Number of processes that draw."""


@dataclass(frozen=True)
class Split:
    """Separate a data set at random into the folders train, valid and test, and prove that they have nothing in common.

    The images are those that data.split and data.split_seed choose in training, but images with the same bytes stay
    together. The folder is a data set of its own, with a table.csv for data.split official; the proof is in
    separation.json, and `sha256sum --check SHA256SUMS` checks the files.
    """

    root: OptionPath
    """Folder of the data set: CelebA as downloaded, or images with a table.csv."""
    out: OptionPath
    """Folder to write, outside of the data set; it must not exist yet, or be empty."""
    by: Literal["identity", "image"] = "identity"
    """identity: no identity in two splits; image: image by image."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test; they add up to 1."""
    seed: int = 0
    """The same seed gives the same splits."""
    files: Literal["link", "copy"] = "link"
    """link: symbolic links to where the images lie now; copy: copies of them."""
    missing: Literal["stop", "skip"] = "stop"
    """What to do about rows whose image is missing: stop, or skip them."""
    workers: int = os.cpu_count() or 1
    """Number of threads that read and copy."""


@dataclass(frozen=True)
class Pack:
    """Verify every image of a data set, and pack it into tar shards that are read several times as fast.

    Every image is decoded strictly. What cannot be decoded, and rows without an image, are errors; what is unusual is
    reported and packed. The bytes of the images stay as they are. The folder is a data set of its own, and each of its
    tar files a WebDataset. An interrupted pack continues where it stopped, if it is started again.
    """

    root: OptionPath
    """Folder of the data set, in any form that training takes."""
    out: OptionPath
    """Folder to write, outside of the data set; it must not exist yet, or be empty."""
    on_error: Literal["stop", "quarantine"] = "stop"
    """What to do about errors, once all images have been read: stop; or leave them out of the pack, and list them."""
    force: bool = False
    """Replace the packed data set in the folder."""
    workers: int = os.cpu_count() or 1
    """Number of threads that read and decode."""


@dataclass(frozen=True)
class Check:
    """Read a packed data set again, and compare each file with the SHA-256 that was written down when it was packed."""

    folder: tyro.conf.Positional[OptionPath]
    """The packed data set."""
    workers: int = os.cpu_count() or 1
    """Number of threads that read."""


def prepare_faces(settings: Faces) -> None:
    """Draw the faces and show how far it is.

    Raises:
        UserError: a setting is out of range, or the folder is in use or cannot be written.
    """
    from distrib.faces import write_faces

    with _progress() as report:
        write_faces(
            settings.out,
            settings.count,
            settings.seed,
            settings.workers,
            lambda done: report("drawing faces", done, settings.count),
        )
    print(f"{settings.count} faces in {settings.out}")


def prepare_split(settings: Split) -> None:
    """Separate the data set, show how far it is, and say what came of it.

    Raises:
        UserError: a setting is out of range, the data set is not as expected, or the folder is in use or cannot be
            written.
    """
    from distrib.data.separation import separate

    try:
        config = DataConfig(
            root=settings.root,
            split=settings.by,
            split_fractions=settings.fractions,
            split_seed=settings.seed,
            missing=settings.missing,
        )
        with _progress() as report:
            proof, notes = separate(config, settings.out, settings.files, settings.workers, report)
    except UserError as error:
        keys = rf"(?<!\S)data\.({'|'.join(OPTION_OF)})(?!\w)"
        raise UserError(re.sub(keys, lambda found: OPTION_OF[found[1]], str(error))) from None
    for note in notes:
        print(f"distrib: warning: {note}", file=sys.stderr)
    print(_summary(proof))
    out = printable(str(settings.out))
    print(f"{out} is ready for --data.root; the proof is in separation.json, the sums are in SHA256SUMS")


def prepare_pack(settings: Pack) -> None:
    """Verify and pack, show how far it is, and say what was found.

    Raises:
        UserError: a setting is out of range, the data set is not as expected, an image is broken, or the folder is in
            use or cannot be written.
    """
    from distrib.data.packing import VERIFICATION, pack
    from distrib.data.verification import summary

    try:
        with _progress() as report:
            packed = pack(settings.root, settings.out, settings.on_error, settings.workers, report, settings.force)
    except UserError as error:
        sentence = str(error).replace("data.missing to skip", "--on-error to quarantine")
        raise UserError(sentence.replace("data.root", "--root")) from None
    except KeyboardInterrupt:
        print("distrib: interrupted; the same command continues where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
    for note in packed.notes:
        print(f"distrib: warning: {note}", file=sys.stderr)
    print(summary(packed.findings, packed.images))
    print(f"{printable(str(settings.out))} is ready for --data.root; every finding is in its {VERIFICATION}")


def prepare_check(settings: Check) -> None:
    """Check a packed data set and say that it is whole.

    Raises:
        UserError: it is none, or not whole.
    """
    from distrib.data.packing import check

    with _progress() as report:
        manifest = check(settings.folder, settings.workers, report)
    sizes = ", ".join(f"{name} {count:,}" for name, count in manifest.images.items())
    print(f"{printable(str(settings.folder))} is whole: {len(manifest.shards):,} shards, {sizes} images")


def _summary(proof: "Proof") -> str:
    """The sizes of the splits, and what is proved of them."""
    from distrib.data.table import SPLITS

    lines = [f"{'':5}  {'images':>9}  {'identities':>10}"]
    for name in SPLITS:
        identities = "unknown" if proof.identities is None else f"{proof.identities[name]:,}"
        lines.append(f"{name:5}  {proof.images[name]:9,}  {identities:>10}")
    if proof.identities is None:
        lines.append("Identities in more than one split: unknown, since the data set names none.")
    else:
        lines.append(
            f"Identities in more than one split: {proof.identities_in_more_than_one_split:,}"
            + (
                f", with {proof.images_of_identities_in_more_than_one_split:,} images; scores flatter a model that has "
                f"seen these people, and --by identity keeps them apart."
                if proof.identities_in_more_than_one_split
                else "."
            )
        )
    lines.append(f"Image contents (SHA-256) in more than one split: {proof.contents_in_more_than_one_split}.")
    return "\n".join(lines)


@contextmanager
def _progress() -> "Iterator[OnProgress]":
    """How far each part of the work is: a bar on a terminal; elsewhere a line for each tenth, for logs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(work: str, done: int, total: int) -> None:
            if work not in tasks:
                tasks[work] = progress.add_task(work, total=total)
            progress.advance(tasks[work], done)

        yield advance


class _Rate(ProgressColumn):
    """How many are done in a second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f}/s" if rate else "")


class _PlainProgress:
    """A line for each tenth of the work, for logs."""

    def __init__(self) -> None:
        self._done: Counter[str] = Counter()

    def __call__(self, work: str, done: int, total: int) -> None:
        tenths_before = 10 * self._done[work] // total
        self._done[work] += done
        if 10 * self._done[work] // total > tenths_before:
            print(f"{work}: {self._done[work]} of {total}", file=sys.stderr, flush=True)


@standard_streams()
def main(argv: list[str] | None = None) -> int:
    """Run one of the preparations; returns the exit status: 0, 2 for what the user can mend, or 130 after Ctrl-C."""
    try:
        settings = tyro.extras.subcommand_cli_from_dict(
            {"faces": Faces, "split": Split, "pack": Pack, "check": Check}, prog="distrib prepare", args=argv
        )
        match settings:
            case Faces():
                prepare_faces(settings)
            case Split():
                prepare_split(settings)
            case Pack():
                prepare_pack(settings)
            case Check():
                prepare_check(settings)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("distrib: interrupted, and nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
