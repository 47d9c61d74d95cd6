"""`distrib sweep`: a study, which is many trainings that differ in a few settings.

distrib sweep configs/report/batch-size.yaml --data.root data/celeba
distrib sweep study.yaml --workers 4              # on one machine, with its GPUs or cores shared out
distrib sweep study.yaml --workers-per-gpu 4      # small trials, four of them at a time on each GPU
distrib sweep study.yaml --best > best.yaml       # the best configuration so far
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from distrib.base.collection import no_collection
from distrib.base.errors import UserError
from distrib.base.paths import OptionPath, expanded_path
from distrib.base.program import program


@dataclass(frozen=True)
class SweepOptions:
    """Train every trial of a study, each as a run of its own; the same command resumes it.

    `distrib sweep STUDY.yaml` takes the options below, and those of `distrib train`, which win over the study's own.
    Start it on several machines with one --folder that all of them see, and they share the trials.
    """

    folder: OptionPath | None = None
    """Folder of the study; None: studies/NAME, after the file."""
    workers: int | None = None
    """Trials at a time on this machine, whose GPUs (or cores) are shared out over them; None: one, or as
    --workers-per-gpu says."""
    workers_per_gpu: int | None = None
    """Trials of one rank at a time on each GPU, for trials too small to fill one; None: one."""
    retry_failed: bool = False
    """Train again what has failed or ran out of memory, each as a new trial; for once that has been mended."""
    best: bool = False
    """Train nothing: print the configuration of the best trial so far, as --config takes it."""


@program
def main(argv: Sequence[str]) -> int:
    """Run the program.

    Returns:
        The exit status: 0; 1 if workers died again and again; 75 if it was asked to stop.
    """
    if argv[:1] in (["--help"], ["-h"]):
        tyro.cli(SweepOptions, prog="distrib sweep STUDY.yaml", args=["--help"])
    if not argv or argv[0].startswith("-"):
        raise UserError(f"which study? Name its file first: distrib sweep STUDY.yaml {' '.join(argv)}".rstrip())
    file, *rest = argv
    options, others = tyro.cli(
        SweepOptions, prog="distrib sweep STUDY.yaml", args=rest, return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    with no_collection():  # takes seconds, for which no --help waits
        from distrib.studies.run import best, read_with_options, run_study
        from distrib.studies.trial import Stop

    study = read_with_options(expanded_path(file), others)
    folder = options.folder or Path("studies") / study.name
    if options.best:
        print(best(study, folder), end="")
        return 0
    return run_study(study, folder, options.workers, Stop(), options.retry_failed, options.workers_per_gpu)
