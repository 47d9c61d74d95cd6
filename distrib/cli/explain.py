"""Scores, figures, explanations and the report page of a finished run; training ends with them too.

distrib explain runs/NAME                        # all of it
distrib explain runs/NAME --only roc occlusion   # these alone, and the page anew
distrib explain runs/NAME --data.root /elsewhere --explain.fill blur
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from distrib.base.collection import no_collection
from distrib.base.errors import UserError
from distrib.base.paths import expanded_path
from distrib.base.program import program
from distrib.base.words import nearest
from distrib.config import Config, parse
from distrib.ranks.environment import rank
from distrib.reporting.panels import PANELS


@program
def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status: 0, or 1 if a part failed."""
    if rank() > 0:
        print(f"distrib: rank {rank()} leaves: one process makes the report", file=sys.stderr)
        return 0
    run, only, options = _arguments(argv)
    with no_collection():
        from distrib.explaining.run import explain_run  # takes seconds, for which no --help and no refusal waits

    return explain_run(run, only or tuple(PANELS), options)


def _arguments(argv: Sequence[str]) -> tuple[Path, tuple[str, ...], list[str]]:
    """The run, the parts after --only, and the configuration's options."""
    only: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in argv:
        if argument == "--only" or argument.startswith("--only="):
            taking = True
            only += argument.split("=", 1)[1:]
        elif argument.startswith("-"):
            taking = False
            rest.append(argument)
        else:
            (only if taking else rest).append(argument)
    if taking and not only:
        raise UserError(f"--only needs the names of parts: {', '.join(PANELS)}")
    for name in only:
        if name not in PANELS:
            raise UserError(
                f"--only {name}: there is no such part{nearest(name, list(PANELS))}: choose from {', '.join(PANELS)}"
            )
    if rest and rest[0] not in ("-h", "--help") and not rest[0].startswith("-"):
        return expanded_path(rest[0]), tuple(only), rest[1:]
    if "-h" in rest or "--help" in rest:
        print(__doc__)
        print(f"parts: {', '.join(PANELS)}\n\nOptions, with the run's own settings as defaults:\n")
        parse(["--help"], Config(), "distrib explain RUN [--only PART …]", "Makes the report of a finished run.")
    raise UserError("name the run first: distrib explain runs/NAME")
