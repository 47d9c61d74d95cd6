"""`distrib prepare`: make data ready for training.

distrib prepare faces --out data/faces --count 3000
distrib prepare split --root data/celeba --out data/separated --by identity --fractions 0.8 0.1 0.1 --seed 0
distrib prepare pack --root data/celeba --out data/packed
distrib prepare check data/packed
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from distrib.base.cores import cores
from distrib.base.errors import UserError, printable
from distrib.base.paths import OptionPath
from distrib.base.program import program
from distrib.config import DataConfig

if TYPE_CHECKING:
    from distrib.data.separation import OnProgress, Proof

# What a data set's readers call by its key in the configuration is an option here.
OPTION_OF = {"root": "--root", "split": "--by", "split_fractions": "--fractions", "split_seed": "--seed",
             "missing": "--missing"}  # fmt: skip


def prepare_faces(out: OptionPath, count: int, seed: int = 0, workers: int = cores()) -> None:
    """Draw faces in CelebA's folder format, with the box of every drawn part in boxes.csv.

    Args:
        out: Folder to write; it must not exist yet, or be empty.
        count: Number of images.
        seed: The same seed and count give the same files, byte for byte.
        workers: Number of processes that draw.

    Raises:
        UserError: a setting is out of range, or the folder is in use or cannot be written.
    """
    from distrib.faces import write_faces

    with _progress() as report:
        write_faces(out, count, seed, workers, lambda done: report("drawing faces", done, count))
    print(f"{count} faces in {out}")


def prepare_split(
    root: OptionPath,
    out: OptionPath,
    by: Literal["identity", "image"] = "identity",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    files: Literal["link", "copy"] = "link",
    missing: Literal["stop", "skip"] = "stop",
    workers: int = cores(),
) -> None:
    """Separate a data set at random into the folders train, valid and test, and prove that they have nothing in common.

    The images are those that data.split and data.split_seed choose in training, but images with the same bytes stay
    together. The folder is a data set of its own, with a table.csv for data.split official; the proof is in
    separation.json, and `sha256sum --check SHA256SUMS` checks the files.

    Args:
        root: Folder of the data set, in any form that training takes.
        out: Folder to write, outside of the data set; it must not exist yet, or be empty.
        by: identity: no identity in two splits; image: image by image.
        fractions: Shares of training, validation and test; they add up to 1.
        seed: The same seed gives the same splits.
        files: link: symbolic links to where the images lie now; copy: copies of them.
        missing: What to do about rows whose image is missing: stop, or skip them.
        workers: Number of threads that read and copy.

    Raises:
        UserError: a setting is out of range, the data set is not as expected, or the folder is in use or cannot be
            written.
    """
    from distrib.data.separation import separate

    try:
        config = DataConfig(root=root, split=by, split_fractions=fractions, split_seed=seed, missing=missing)
        with _progress() as report:
            proof, notes = separate(config, out, files, workers, report)
    except UserError as error:
        keys = rf"(?<!\S)data\.({'|'.join(OPTION_OF)})(?!\w)"
        raise UserError(re.sub(keys, lambda found: OPTION_OF[found[1]], str(error))) from None
    for note in notes:
        print(f"distrib: warning: {note}", file=sys.stderr)
    print(_summary(proof))
    folder = printable(str(out))
    print(f"{folder} is ready for --data.root; the proof is in separation.json, the sums are in SHA256SUMS")


def prepare_pack(
    root: OptionPath,
    out: OptionPath,
    on_error: Literal["stop", "quarantine"] = "stop",
    force: bool = False,
    workers: int = cores(),
) -> None:
    """Verify every image of a data set, and pack it into tar shards that are read several times as fast.

    Every image is decoded strictly. What cannot be decoded, and rows without an image, are errors; what is unusual is
    reported and packed. The bytes of the images stay as they are. The folder is a data set of its own, and each of its
    tar files a WebDataset. An interrupted pack continues where it stopped, if it is started again.

    Args:
        root: Folder of the data set, in any form that training takes.
        out: Folder to write, outside of the data set; it must not exist yet, or be empty.
        on_error: What to do about errors, once all images have been read: stop; or leave them out of the pack, and list
            them.
        force: Replace the packed data set in the folder, or an unfinished pack of other data for it.
        workers: Number of threads that read and decode.

    Raises:
        UserError: a setting is out of range, the data set is not as expected, an image is broken, or the folder is in
            use or cannot be written.
    """
    from distrib.data.packing import VERIFICATION, pack
    from distrib.data.verification import summary

    try:
        with _progress() as report:
            packed = pack(root, out, on_error, workers, report, force)
    except UserError as error:
        sentence = str(error).replace("data.missing to skip", "--on-error to quarantine")
        raise UserError(re.sub(r"(?<!\S)data\.root(?!\w)", "--root", sentence)) from None
    for note in packed.notes:
        print(f"distrib: warning: {note}", file=sys.stderr)
    print(summary(packed.findings, packed.images))
    print(f"{printable(str(out))} is ready for --data.root; every finding is in its {VERIFICATION}")


def prepare_check(folder: tyro.conf.Positional[OptionPath], workers: int = cores()) -> None:
    """Read a packed data set again, and compare each file with the SHA-256 that was written down when it was packed.

    Args:
        folder: The packed data set.
        workers: Number of threads that read.

    Raises:
        UserError: it is none, or not whole.
    """
    from distrib.data.packing import check

    with _progress() as report:
        manifest = check(folder, workers, report)
    sizes = ", ".join(f"{name} {count:,}" for name, count in manifest.images.items())
    print(f"{printable(str(folder))} is whole: {len(manifest.shards):,} shards, {sizes} images")


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


@program
def main(argv: Sequence[str]) -> int:
    """Run one of the preparations; returns the exit status: 0, or 130 after Ctrl-C."""
    preparations: dict[str, Callable[..., None]] = {
        "faces": prepare_faces, "split": prepare_split, "pack": prepare_pack, "check": prepare_check,
    }  # fmt: skip
    try:
        tyro.extras.subcommand_cli_from_dict(preparations, prog="distrib prepare", args=argv)
    except KeyboardInterrupt:
        what = "the same command continues where it stopped" if argv[0] == "pack" else "nothing was written"
        print(f"distrib: interrupted; {what}", file=sys.stderr)
        return 130
    return 0
