"""`distrib compare`: several runs side by side in one page.

distrib compare runs/first runs/second --out compare.html
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distrib.base.errors import UserError
from distrib.base.files import check_output
from distrib.base.paths import OptionPath
from distrib.base.streams import standard_streams


@dataclass(frozen=True)
class CompareOptions:
    """Put runs side by side in one HTML file: curves, scores, every attribute, and what differs in the configurations.

    Scores on test images are there for the runs that `distrib explain` has looked at, those on validation for all.
    """

    runs: Annotated[tyro.conf.Positional[tuple[OptionPath, ...]], tyro.conf.arg(metavar="RUN RUN …")]
    """Run folders, two or more; differences are from the first one."""
    out: OptionPath = Path("compare.html")
    """File to write."""


@standard_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, or 2 for what the user can mend."""
    try:
        options = tyro.cli(CompareOptions, prog="distrib compare", args=argv)
        check_output(options.out, "--out")
        from distrib.reporting.compare import render_comparison

        page = render_comparison(options.runs, options.out)
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    print(page)
    return 0
