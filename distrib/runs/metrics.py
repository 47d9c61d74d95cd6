"""The one reader of a run's metrics.csv."""

import csv
from pathlib import Path

from distrib.base.errors import UserError


def read_metrics(run: Path) -> tuple[list[str], list[list[float]]]:
    """The header and the rows of a run's metrics.csv.

    Raises:
        UserError: if there is none, or it holds no epoch.
    """
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        values = [[float(value) for value in row] for row in rows]
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'metrics.csv'} cannot be read ({error}): name the folder of a training run") from None
    if not values:
        raise UserError(f"{run / 'metrics.csv'} holds no epoch yet: train first")
    return columns, values
