"""`distrib reproduce`: the report that this project began from, beside the same experiments measured here.

distrib reproduce --data.root data/celeba                                # all of it, as the report did it
distrib reproduce --data.root data/celeba --only batch-size --scale 0.02 # one finding, with a fiftieth of the images
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from distrib.base.collection import no_collection
from distrib.base.paths import OptionPath
from distrib.base.program import program
from distrib.reproduction.claims import CLAIMS


@dataclass(frozen=True)
class ReproduceOptions:
    """Run the report's experiments, and set what is measured beside what it says: a page, and Markdown.

    Takes the options of `distrib train` too, such as --data.root. The same command resumes where it stopped.
    """

    only: tuple[str, ...] = field(default=tuple(CLAIMS))
    """Findings to reproduce, by the names of their studies in configs/report/."""
    scale: float = 1.0
    """Share of the report's images, above 0 and up to 1; epochs and the side of the images shrink by its fourth
    root."""
    folder: OptionPath = Path("reproduction")
    """Where the studies, the page and the Markdown go."""
    workers: int = 1
    """Trials at a time on this machine, whose GPUs (or cores) are shared out over them."""
    retry_failed: bool = False
    """Train again what has failed or ran out of memory, each as a new trial; for once that has been mended."""


@program
def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status, as that of `distrib sweep`."""
    options, others = tyro.cli(
        ReproduceOptions, prog="distrib reproduce", args=argv, return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    with no_collection():
        from distrib.reproduction.run import reproduce  # takes seconds, for which no --help waits

    return reproduce(options.only, options.scale, options.folder, others, options.workers, options.retry_failed)
