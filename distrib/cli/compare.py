"""`distrib compare`: several runs side by side in one page.

distrib compare runs/first runs/second --out compare.html
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from distrib.base.files import check_output
from distrib.base.paths import OptionPath
from distrib.base.program import program


def compare(
    runs: Annotated[tyro.conf.Positional[tuple[OptionPath, ...]], tyro.conf.arg(metavar="RUN RUN …")],
    out: OptionPath = Path("compare.html"),
) -> None:
    """Put runs side by side in one HTML file: curves, scores, every attribute, and what differs in the configurations.

    Scores on test images are there for the runs that `distrib explain` has looked at, those on validation for all.

    Args:
        runs: Run folders, two or more; differences are from the first one.
        out: File to write.
    """
    check_output(out, "--out")
    from distrib.reporting.compare import render_comparison

    print(render_comparison(runs, out))


@program
def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status, 0."""
    tyro.cli(compare, prog="distrib compare", args=argv)
    return 0
