"""Scores a trained model on a data set, every image exactly once, on any number of ranks.

distrib evaluate runs/celeba --data.root data/celeba --split test
accelerate launch --config_file launch/one_node.yaml distrib/evaluate.py runs/celeba --json scores.json
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time
from collections.abc import Callable, Sequence

import tyro

from distrib.base.collection import no_collection
from distrib.base.streams import standard_streams
from distrib.model.options import EvaluateOptions
from distrib.ranks.ending import SPEAK_WITHIN, run_program
from distrib.ranks.environment import rank


@standard_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, or 2 for what the user can mend."""

    def prepare() -> Callable[[], None]:
        options = read_options(argv)
        with no_collection():
            from distrib.model.evaluation import prepare_evaluation  # takes seconds, for which no --help waits

        return prepare_evaluation(options)

    return run_program(prepare, lambda evaluate: evaluate(), "distrib: interrupted", "lower --batch-size")


def read_options(argv: Sequence[str] | None) -> EvaluateOptions:
    """The options of the command line.

    Raises:
        SystemExit: with status 0 after `--help`, with 2 after an error, which rank 0 prints.
    """
    try:
        return tyro.cli(EvaluateOptions, prog="distrib evaluate", args=argv, console_outputs=rank() == 0)
    except SystemExit as stop:
        if stop.code and rank() != 0:
            time.sleep(SPEAK_WITHIN)
        raise


if __name__ == "__main__":
    sys.exit(main())
