"""A run's metrics.csv: its columns, and the one reader of it."""

import csv
from pathlib import Path

from distrib.base.errors import UserError

METRICS = (
    "epoch", "step", "train_loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_precision", "val_recall",
    "val_f1", "val_roc_auc", "val_average_precision", "lr", "images_per_second", "seconds",
)  # fmt: skip


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
