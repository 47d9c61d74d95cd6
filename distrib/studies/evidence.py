"""What the findings of the report are made of: trainings measured here, the report's own numbers, and both as text.

Spreads are sample standard deviations over seeds. Two means are told apart by Welch's t-test, at 5 %.
"""

import csv
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scipy.stats import ttest_ind

from distrib.studies.definition import Study
from distrib.studies.record import Setting, StudyRecord
from distrib.studies.results import Rows, read_rows

Holds = Literal["holds", "does not hold", "undecided", "no claim"]
# The columns of the report's tables, as metrics.csv has them; accuracy in per cent there.
COLUMNS = ("train_loss", "val_loss", "val_accuracy", "val_precision", "val_f1", "val_roc_auc")
HEADINGS = ("training loss", "validation loss", "accuracy", "precision", "F1", "ROC AUC")
DASH = "–"  # noqa: RUF001
# Two means are told apart below this p-value.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Attributes:
        caption: what it is of.
        header: of its columns; those of the report say so.
        rows: of text.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """Lines over epochs.

    Attributes:
        title: what is shown.
        lines: label -> a value an epoch, from the first one on.
    """

    title: str
    lines: Mapping[str, Sequence[float]]


@dataclass
class Section:
    """One finding of the report, and what was measured.

    Attributes:
        id: the name of its study.
        title: what it is about.
        source: which tables and figures of the report.
        claim: what the report says.
        holds: whether that holds here.
        verdict: a sentence on that, with the numbers it goes by.
        tables: the report's numbers and those measured.
        charts: curves of both.
        notes: further sentences.
        links: label -> a file, relative to the folder of the reproduction.
    """

    id: str
    title: str
    source: str
    claim: str
    holds: Holds
    verdict: str
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Several trainings of the same settings that differ in their seeds.

    Attributes:
        label: what they are of.
        runs: the rows of metrics.csv of each.
    """

    label: str
    runs: Sequence[Rows]

    @property
    def epochs(self) -> int:
        return max((len(rows) for rows in self.runs), default=0)

    def kept(self, column: str, within: int | None = None) -> list[float]:
        """A column at the epoch of the lowest validation loss, a value a run; among the first epochs alone if given."""
        return [min(rows[:within], key=lambda row: row["val_loss"])[column] for rows in self.runs]

    def at(self, column: str, epoch: int) -> list[float]:
        """A column after an epoch, counted from 1, a value a run that came so far."""
        return [rows[epoch - 1][column] for rows in self.runs if len(rows) >= epoch]

    def curve(self, column: str) -> list[float]:
        """A column's mean over the runs, a value an epoch."""
        return [statistics.fmean(self.at(column, epoch)) for epoch in range(1, self.epochs + 1)]


@dataclass(frozen=True)
class Evidence:
    """What a section is made of.

    Attributes:
        study: as it was run.
        record: what it found.
        measured: point's label -> its runs; only those that finished.
        numbers: folder of the report's own numbers.
    """

    study: Study
    record: StudyRecord
    measured: Mapping[Setting, Measured]
    numbers: Path


def gather(study: Study, record: StudyRecord, numbers: Path) -> Evidence:
    """Read the runs of a study, by the value of its first parameter.

    Raises:
        UserError: if the metrics of a run cannot be read.
    """
    name = study.parameters[0].name
    found: dict[Setting, list[Rows]] = {}
    for trial in record.of_state("finished"):
        found.setdefault(trial.settings[name], []).extend(read_rows(record.folder / run) for run in trial.runs)
    return Evidence(study, record, {key: Measured(str(key), runs) for key, runs in found.items()}, numbers)


def report_epochs(numbers: Path, table: str) -> Rows:
    """The rows of one of the report's tables by our column names; accuracy as a share."""
    with (numbers / "tables-1-2-3-5.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == table]
    return [
        {
            "epoch": float(row["epoch"]),
            "val_accuracy": float(row["val_accuracy_percent"]) / 100,
            **{name: float(row[name]) for name in COLUMNS if name != "val_accuracy"},
        }
        for row in rows
    ]


# --- numbers as text


def around(values: Sequence[float], digits: int = 4) -> str:
    """`0.9123 ± 0.0041`: mean and sample standard deviation; the value alone where there is one; a dash for none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return DASH
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def apart(one: Sequence[float], other: Sequence[float]) -> bool | None:
    """Whether two means differ by more than chance would have it (Welch, 1947); None: too few runs to say."""
    if min(len(one), len(other)) < 2:
        return None
    if statistics.variance(one) == statistics.variance(other) == 0:
        return statistics.fmean(one) != statistics.fmean(other)
    return bool(ttest_ind(one, other, equal_var=False).pvalue < SIGNIFICANT)


def points(value: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * value:.2f} points"


def epoch_table(caption: str, report: Rows, measured: Measured | None) -> Table:
    """The report's table with the measured value beside each of its own."""
    epochs = max(len(report), measured.epochs if measured else 0)
    rows = []
    for epoch in range(1, epochs + 1):
        row = [str(epoch)]
        for column in COLUMNS:
            row.append(f"{report[epoch - 1][column]:.4f}" if epoch <= len(report) else DASH)
            row.append(around(measured.at(column, epoch)) if measured else DASH)
        rows.append(row)
    header = ["epoch", *(cell for name in HEADINGS for cell in (f"{name}, report", "measured"))]
    return Table(caption, header, rows)


def kept_row(label: str, measured: Measured) -> list[str]:
    epochs = [f"{epoch:.0f}" for epoch in measured.kept("epoch")]
    return [label, *(around(measured.kept(column)) for column in COLUMNS), ", ".join(epochs)]


KEPT_HEADER = ("", *HEADINGS, "epochs kept")


def against(title: str, report: Rows, measured: Measured | None, column: str) -> Chart:
    lines: dict[str, Sequence[float]] = {"report": [row[column] for row in report]}
    if measured is not None:
        lines["measured"] = measured.curve(column)
    return Chart(title, lines)


def restlessness(measured: Measured) -> list[float]:
    """The mean step of the validation loss from one epoch to the next, up or down, a value a run."""
    steps = [[abs(b["val_loss"] - a["val_loss"]) for a, b in itertools.pairwise(rows)] for rows in measured.runs]
    return [statistics.fmean(each) for each in steps if each]
