"""The report's experiments at work: a study for each finding, one after the other, and the page of them all."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from distrib.base.errors import UserError
from distrib.base.streams import standard_streams
from distrib.config import Config
from distrib.data.splits import make_splits
from distrib.data.table import Table, read_table
from distrib.ranks.machine import resolve
from distrib.ranks.stopping import STOPPED
from distrib.reporting.page import write_page
from distrib.reproduction.claims import CLAIMS, make_section
from distrib.reproduction.evidence import ClaimSection, gather
from distrib.reproduction.page import render_reproduction, to_markdown
from distrib.studies.definition import Study, read_study
from distrib.studies.results import read_record
from distrib.studies.run import read_with_options, run_study
from distrib.studies.scale import ALL_IMAGES, TRAINING_IMAGES, Scale
from distrib.studies.search import open_study
from distrib.studies.space import Point
from distrib.studies.trial import Stop

# What a study sets, and what the report had.
Value = TypeVar("Value", int, str)


@standard_streams(goes_on=True)
def reproduce(
    only: Sequence[str], share: float, folder: Path, arguments: Sequence[str], workers: int, retry_failed: bool
) -> int:
    """Run the studies one after the other, and write the page after each; returns the exit status of `distrib sweep`.

    Args:
        only: names in `CLAIMS`.
        share: of the report's images, above 0 and up to 1.
        folder: where the studies, the page and the Markdown go.
        arguments: options of the configuration, for all studies.
        workers: trials at a time.
        retry_failed: whether settings of failed trials are trained again.

    Raises:
        UserError: for all that the user can mend; what one study's trials come to is a result, and no error.
    """
    if not only:
        raise UserError(f"--only names no finding: choose from {', '.join(CLAIMS)}")
    unknown = [name for name in only if name not in CLAIMS]
    if unknown:
        raise UserError(f"--only names {unknown[0]}, which is none of the findings: choose from {', '.join(CLAIMS)}")
    if not 0 < share <= 1:
        raise UserError(f"--scale is {share}: expected a share of the report's images, above 0 and up to 1")
    here = report_folder()
    files = [here / f"{name}.yaml" for name in CLAIMS if name in only]
    studies = [read_with_options(file, arguments) for file in files]
    base = resolve(studies[0].base)
    table = read_table(base.data.root, base.data.missing).select(base.data.attributes)
    scale = Scale(share, available(table, studies))
    studies = [replace(study, scale=scale) for study in studies]
    notes = describe(list(zip(studies, map(read_study, files), strict=True)), scale, len(table) >= ALL_IMAGES)
    stop = Stop()
    for note in notes:
        print(note)
    began, sections = time.monotonic(), list[ClaimSection]()
    for number, study in enumerate(studies, 1):
        print(f"\n--- {number} of {len(studies)}: {study.name}", flush=True)
        status = run_study(study, folder / "studies" / study.name, workers, stop, retry_failed)
        if status != 0:
            return status
        sections.append(section_of(study, folder, here / "numbers"))
        write_page(folder / "reproduction.md", to_markdown(sections, notes))
        render_reproduction(sections, notes, folder / "index.html")
        if stop.reason is not None:
            return STOPPED
    print(f"\n{len(studies)} finding{'s' * (len(studies) > 1)} in {(time.monotonic() - began) / 60:.0f} minutes")
    for section in sections:
        print(f"{section.finding.title}: {section.verdict.holds}. {section.verdict.sentence}")
    print(f"\npage:     {folder / 'index.html'}\nmarkdown: {folder / 'reproduction.md'}")
    return 0


def report_folder() -> Path:
    """The report's studies and numbers: in the repository, or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(each for each in (package / "configs/report", package.parent / "configs/report") if each.is_dir())


def points(study: Study) -> list[Point]:
    """The points of a study; one that sets nothing where they are not known before."""
    return study.points() if study.is_grid else [{}]


def available(table: Table, studies: Sequence[Study]) -> dict[str, int]:
    """How many training images the data set has, by each way of splitting that the studies use.

    A split of whole identities differs in size from seed to seed: the smallest counts.

    Raises:
        UserError: if the data set lacks what a split needs.
    """
    whole = [study.config(point, {}, None).replace("data", subset=None) for study in studies for point in points(study)]
    drawn = {(config.data.split, config.data.split_seed, config.data.fold): config.data for config in whole}
    sizes: dict[str, list[int]] = {}
    for (split, *_), data in drawn.items():
        sizes.setdefault(split, []).append(len(make_splits(table, data).train))
    return {split: min(each) for split, each in sizes.items()}


def describe(studies: Sequence[tuple[Study, Study]], scale: Scale, whole: bool) -> list[str]:
    """What is done differently from the report: a sentence or two, or none.

    Args:
        studies: each as it is run, and as it is in configs/report/.
        scale: of what is done.
        whole: whether the data set has all images of CelebA.
    """
    images: dict[int, set[int]] = defaultdict(set)
    epochs: dict[int, set[int]] = defaultdict(set)
    pictures: dict[str, set[str]] = defaultdict(set)
    for study, report in studies:
        for point in points(study):
            here, there = study.config(point, {}, None), report.config(point, {}, None)
            epochs[there.train.epochs].add(here.train.epochs)
            pictures[side_by_side(there)].add(side_by_side(here))
            # The official split of all of CelebA and the random ones differ a little, and that is no change.
            if not whole or here.data.subset != there.data.subset:
                available = scale.available[here.data.split]
                images[there.data.subset or TRAINING_IMAGES].add(here.data.subset or available)
    found = [
        *changes(images, "{} training images where it had {}"),
        *changes(epochs, "{} epochs where it had {}"),
        *changes(pictures, "images of {} pixels where it had {}"),
    ]
    if not found:
        return []
    small = f"This is a small version of the report (--scale {scale.share:g})"
    what = small if scale.share < 1 else "This is done differently from the report"
    return [f"{what}: {', '.join(found)}. What it says of the report is an indication, not a verdict."]


def side_by_side(config: Config) -> str:
    """The size of a configuration's images."""
    height, width = config.data.image_size
    return f"{height} x {width}"


def changes(done: Mapping[Value, set[Value]], words: str) -> list[str]:
    """`words` with what is done and what the report had, for each value of the report that is another one here."""
    return [
        words.format(" to ".join(map(readable, sorted({min(here), max(here)}))), readable(there))
        for there, here in sorted(done.items(), reverse=True) if here != {there}
    ]  # fmt: skip


def readable(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def section_of(study: Study, folder: Path, numbers: Path) -> ClaimSection:
    """What a study that has been run says of the report."""
    place = folder / "studies" / study.name
    record = read_record(study, open_study(study, place), place, importance=False)
    return make_section(gather(study, record, numbers))
