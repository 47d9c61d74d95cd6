"""A run's metrics.csv and speed.csv: their columns, and the one reader of each."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from distrib.base.errors import UserError

METRICS = (
    "epoch", "step", "train_loss", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_precision", "val_recall",
    "val_f1", "val_roc_auc", "val_average_precision", "lr", "images_per_second", "seconds",
)  # fmt: skip
# The last column, where the weights are averaged (`train.ema`): the validation loss of the trained network itself.
RAW_LOSS = "val_loss_raw"
# What the time of a training goes into.
PARTS = ("preparation", "data", "steps", "validation", "checkpoints", "report")
# The columns that files of earlier versions lack, whose `seconds` did not include these parts.
ADDED = ("preparation_share", "report_share")
SPEED = (
    "epoch", "step", "seconds", "data_share", "steps_share", "validation_share", "checkpoints_share", "flops",
    "peak_flops_per_second", "mfu", "device_memory", "host_memory", *ADDED,
)  # fmt: skip


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


def read_speed(run: Path) -> list[dict[str, float]]:
    """The rows of a run's speed.csv, NaN where a field is empty; none where there is none, as of earlier versions.

    Raises:
        UserError: if it is not whole.
    """
    file = run / "speed.csv"
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [dict.fromkeys(ADDED, "0") | row for row in csv.DictReader(stream)]
        return [{name: float(row[name] or math.nan) for name in SPEED} for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or remove it") from None


def seconds_by_part(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Part of the training -> its seconds, of rows of speed.csv."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for row in rows:
        for part in PARTS:
            seconds[part] += row["seconds"] * row[f"{part}_share"]
    return seconds


def model_flops_utilisation(rows: Iterable[Mapping[str, float]]) -> float:
    """MFU over rows of speed.csv; NaN where no row knows its device's peak."""
    # A resumed run may have changed its device.
    known = [row for row in rows if math.isfinite(row["mfu"])]
    possible = sum(
        row["seconds"] * (row["data_share"] + row["steps_share"]) * row["peak_flops_per_second"] for row in known
    )
    return sum(row["flops"] for row in known) / possible if known else math.nan


def peak_memory(rows: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Place, the device's or the host's memory -> the most bytes that rows of speed.csv have; known ones alone."""
    peaks = {place: [row[f"{place}_memory"] for row in rows] for place in ("device", "host")}
    known = {place: [size for size in sizes if math.isfinite(size)] for place, sizes in peaks.items()}
    return {place: int(max(sizes)) for place, sizes in known.items() if sizes}
