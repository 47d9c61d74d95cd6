"""`distrib reproduce`: the report that this project began from, beside the same experiments measured here.

distrib reproduce --data.root data/celeba                                # all of it, as the report did it
distrib reproduce --data.root data/celeba --only batch-size --scale 0.02 # one finding, with a fiftieth of the images
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from distrib.config import Config
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.errors import UserError
from distrib.reporting.reproduction import render_reproduction, to_markdown
from distrib.studies.definition import Study
from distrib.studies.evidence import Section, gather
from distrib.studies.reproduction import SECTIONS, make_section
from distrib.studies.results import read_record
from distrib.studies.scale import TRAINING_IMAGES, Scale
from distrib.studies.search import open_study
from distrib.studies.trial import Stop
from distrib.sweep import read, run_study
from distrib.training.preemption import STOPPED
from distrib.training.run_folder import write_whole
from distrib.training.runtime import resolve


@dataclass(frozen=True)
class ReproduceOptions:
    """Run the report's experiments, and set what is measured beside what it says: a page, and Markdown.

    Takes the options of `distrib train` too, such as --data.root. The same command again goes on where it was.
    """

    only: tuple[str, ...] = field(default=tuple(SECTIONS))
    """Findings to reproduce, by the names of their studies in configs/report/."""
    scale: float = 1.0
    """Share of the report's images, above 0 and up to 1; epochs and the side of the pictures shrink by its fourth
    root."""
    folder: Path = Path("reproduction")
    """Where the studies, the page and the Markdown go."""
    workers: int = 1
    """Trials at a time on this machine, whose GPUs (or cores) are shared out over them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status, as that of `distrib sweep`."""
    options, others = tyro.cli(
        ReproduceOptions, prog="distrib reproduce", args=sys.argv[1:] if argv is None else list(argv),
        return_unknown_args=True,
    )  # fmt: skip
    try:
        return reproduce(options, others)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def reproduce(options: ReproduceOptions, arguments: Sequence[str]) -> int:
    """Run the studies one after the other, and write the page after each.

    Args:
        options: of this program.
        arguments: options of the configuration, for all studies.

    Raises:
        UserError: for all that the user can mend; what one study's trials come to is a result, and no error.
    """
    if not options.only:
        raise UserError(f"--only names no finding: choose from {', '.join(SECTIONS)}")
    unknown = [name for name in options.only if name not in SECTIONS]
    if unknown:
        raise UserError(f"--only names {unknown[0]}, which is none of the findings: choose from {', '.join(SECTIONS)}")
    if not 0 < options.scale <= 1:
        raise UserError(f"--scale is {options.scale}: expected a share of the report's images, above 0 and up to 1")
    here = report_folder()
    studies = [read(here / f"{name}.yaml", arguments) for name in SECTIONS if name in options.only]
    scale = Scale(options.scale, available(studies))
    studies = [replace(study, scale=scale) for study in studies]
    notes = describe(scale, studies[0].base)
    stop = Stop()
    for note in notes:
        print(note)
    began = time.monotonic()
    for number, study in enumerate(studies, 1):
        print(f"\n--- {number} of {len(studies)}: {study.name}", flush=True)
        status = run_study(study, options.folder / "studies" / study.name, options.workers, stop)
        if status != 0:
            return status
        sections = [section_of(each, options.folder, here / "numbers") for each in studies[:number]]
        write(options.folder, sections, notes)
        if stop.reason is not None:
            return STOPPED
    print(f"\n{len(studies)} finding{'s' * (len(studies) > 1)} in {(time.monotonic() - began) / 60:.0f} minutes")
    for section in sections:
        print(f"{section.title}: {section.holds}. {section.verdict}")
    print(f"\npage:     {options.folder / 'index.html'}\nmarkdown: {options.folder / 'reproduction.md'}")
    return 0


def report_folder() -> Path:
    """The report's studies and numbers: in the repository, or in the installed package."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "configs/report", here.parent / "configs/report") if folder.is_dir())


def available(studies: Sequence[Study]) -> dict[str, int]:
    """How many training images the data set has, by each way of splitting that the studies use.

    Raises:
        UserError: if the data set is not as it should be, or lacks what a split needs.
    """
    base = resolve(studies[0].base)
    points = [(study, point) for study in studies for point in (study.points() if study.is_grid else [{}])]
    splits = {study.config(point, {}, None).data.split for study, point in points}
    table = read_table(base.data.root, base.data.missing).select(base.data.attributes)
    whole = base.replace("data", subset=None)
    return {split: len(make_splits(table, whole.replace("data", split=split).data).train) for split in splits}


def describe(scale: Scale, config: Config) -> list[str]:
    """What is done otherwise than in the report, a sentence each.

    Args:
        scale: of what is done.
        config: of the report.
    """
    small = scale(config.replace("data", split=next(iter(scale.available))))
    images = small.data.subset or max(scale.available.values())
    if scale.share < 1:
        height, width = small.data.image_size
        return [
            f"This is a small version (--scale {scale.share:g}): {images:,} training images where the report had "
            f"{TRAINING_IMAGES:,}, {small.train.epochs} epochs where it had 15 (and as much less where it had others), "
            f"pictures of {height} x {width} pixels where it had 178 x 178. What it says of the report is an "
            "indication, not a verdict."
        ]
    if images < TRAINING_IMAGES:
        return [
            f"The data set has {images:,} training images, and the report had {TRAINING_IMAGES:,}: what is said here "
            "is an indication, not a verdict."
        ]
    return []


def section_of(study: Study, folder: Path, numbers: Path) -> Section:
    """What a study that has been run says of the report."""
    place = folder / "studies" / study.name
    return make_section(gather(study, read_record(study, open_study(study, place), place), numbers))


def write(folder: Path, sections: Sequence[Section], notes: Sequence[str]) -> None:
    """The Markdown and the page.

    Raises:
        UserError: if they cannot be written.
    """
    try:
        write_whole(folder / "reproduction.md", to_markdown(sections, notes))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --folder") from None
    render_reproduction(sections, notes, folder / "index.html")


if __name__ == "__main__":
    sys.exit(main())
