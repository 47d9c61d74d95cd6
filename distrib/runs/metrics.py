"""A run's metrics.csv: its columns, and the one reader of it."""

import csv
from pathlib import Path

from distrib.base.errors import UserError

METRICS = (
    "epoch", "step", "train_loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_precision", "val_recall",
    "val_f1", "val_roc_auc", "val_average_precision", "lr", "images_per_second", "seconds",
)  # fmt: skip
# The last column, where the weights are averaged (`train.ema`): the validation loss of the trained network itself.
RAW_LOSS = "val_loss_raw"


def read_metrics(run: Path) -> tuple[list[str], list[list[float]]]:
    """The header and the rows of a run's metrics.csv.

    Raises:
        UserError: if there is none, it is not whole, or it holds no epoch.
    """
    file = run / "metrics.csv"
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            columns, *rows = csv.reader(stream)
        values = [[float(value) for value in row] for row in rows]
        if "epoch" not in columns or any(len(row) != len(columns) for row in values):
            raise ValueError("its rows do not fit its header")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or leave the run out") from None
    if not values:
        raise UserError(f"{file} has no epoch yet: let the run finish one first")
    return columns, values
