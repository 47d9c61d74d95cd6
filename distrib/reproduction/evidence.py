"""What the findings of the report are made of: trainings measured here, the report's own numbers, and both as text.

Spreads are sample standard deviations over seeds. All verdicts rest on `above`: that one mean is above another, told by
Welch's t-test at 5 %. A claim is True, False, or None where it cannot be told from chance.
"""

import csv
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distrib.base.words import DASH
from distrib.studies.definition import Study
from distrib.studies.record import Setting, StudyRecord, TrialRecord

if TYPE_CHECKING:
    from distrib.studies.results import MetricRows

Holds = Literal["holds", "does not hold", "undecided", "no claim"]
# The columns of the report's tables, as metrics.csv has them; accuracy in per cent there.
COLUMNS = ("train_loss", "val_loss", "val_accuracy", "val_precision", "val_f1", "val_roc_auc")
HEADINGS = ("training loss", "validation loss", "accuracy", "precision", "F1", "ROC AUC")
# The charts of a training: its lines by their columns.
CHARTS = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "Scores": {"val_accuracy": "accuracy", "val_f1": "F1", "val_roc_auc": "ROC AUC"},
}
# Two means are told apart below this p-value.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ShownTable:
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
class Line:
    """A line of a chart.

    Attributes:
        label: what it is of.
        values: an epoch each, from the first one on.
        tone: number of its colour.
        dashed: whether it is the report's.
    """

    label: str
    values: Sequence[float]
    tone: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over epochs.

    Attributes:
        title: what is shown.
        lines: in the order of the legend.
    """

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Verdict:
    """Whether a conclusion of the report holds here.

    Attributes:
        holds: so, or not, or not to be said; "no claim" where the report draws no conclusion.
        sentence: on that, with the numbers it goes by.
    """

    holds: Holds
    sentence: str


@dataclass(frozen=True)
class Claim:
    """What the report found.

    Attributes:
        title: what it is about.
        source: which tables and figures of the report.
        claim: what the report says.
        judge: adds what was measured to a section, and says what it comes to.
    """

    title: str
    source: str
    claim: str
    judge: "Callable[[Evidence, ClaimSection], Verdict]"


@dataclass
class ClaimSection:
    """A finding of the report, and what was measured.

    Attributes:
        id: the name of its study.
        finding: of the report.
        verdict: on it.
        tables: the report's numbers and those measured.
        charts: curves of both.
        notes: further sentences.
        links: label -> a file, relative to the folder of the reproduction.
    """

    id: str
    finding: Claim
    verdict: Verdict = Verdict("undecided", "")
    tables: list[ShownTable] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Several trainings of the same settings that differ in their seeds.

    Attributes:
        runs: the rows of metrics.csv of each.
    """

    runs: "Sequence[MetricRows]"

    @property
    def epochs(self) -> int:
        return max((len(rows) for rows in self.runs), default=0)

    def kept(self, column: str) -> list[float]:
        """A column at the epoch of the lowest validation loss, a value a run."""
        return [min(rows, key=_loss)[column] for rows in self.runs]

    def at(self, column: str, epoch: int) -> list[float]:
        """A column after an epoch, counted from 1, a value a run that came so far."""
        return [rows[epoch - 1][column] for rows in self.runs if len(rows) >= epoch]

    def curve(self, column: str) -> list[float]:
        """A column's mean over the runs, a value an epoch."""
        return [statistics.fmean(self.at(column, epoch)) for epoch in range(1, self.epochs + 1)]


def _loss(row: Mapping[str, float]) -> float:
    """The validation loss of an epoch, where none is the worst there is."""
    return math.inf if math.isnan(row["val_loss"]) else row["val_loss"]


@dataclass(frozen=True)
class Evidence:
    """What a section is made of.

    Attributes:
        study: as it was run.
        record: what it found.
        measured: value of the first parameter -> its runs; only those that finished.
        numbers: folder of the report's own numbers.
    """

    study: Study
    record: StudyRecord
    measured: Mapping[Setting, Measured]
    numbers: Path

    @property
    def values(self) -> tuple[Setting, ...]:
        """Of the first parameter, in the study's order; none of a range."""
        return self.study.parameters[0].choices or ()

    def of(self, value: Setting) -> Measured:
        """The runs of a value, none where none has finished."""
        assert value in self.values, f"{value} is not a value of {self.study.name} any more: judge by those it has"
        return self.measured.get(value, Measured([]))

    def trials(self, value: Setting) -> list[TrialRecord]:
        """The trials of a value, whatever came of them."""
        assert value in self.values, f"{value} is not a value of {self.study.name} any more: judge by those it has"
        return [each for each in self.record.trials if each.settings[self.study.parameters[0].name] == value]

    def lost(self) -> list[TrialRecord]:
        """The last trial of each point that has none that finished: a point may have been tried again."""
        last = {tuple(each.settings.items()): each for each in self.record.trials}
        finished = {tuple(each.settings.items()) for each in self.record.of_state("finished")}
        return [each for point, each in last.items() if point not in finished]


def gather(study: Study, record: StudyRecord, numbers: Path) -> Evidence:
    """Read the runs of a study, by the value of its first parameter.

    Raises:
        UserError: if the metrics of a run cannot be read.
    """
    from distrib.studies.results import read_rows

    name = study.parameters[0].name
    runs: dict[Setting, dict[str, None]] = {}
    for trial in record.of_state("finished"):
        # A trial of the same settings as an earlier one has the runs of that one, which count once.
        runs.setdefault(trial.settings[name], {}).update(dict.fromkeys(trial.runs))
    found = {key: Measured([read_rows(record.folder / run) for run in each]) for key, each in runs.items()}
    return Evidence(study, record, found, numbers)


def read_numbers(file: Path) -> list[dict[str, str]]:
    """The rows of a table of the report's own numbers."""
    with file.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def report_epochs(numbers: Path, table: str) -> "MetricRows":
    """The rows of one of the report's tables by our column names; accuracy as a share."""
    return [
        {
            "epoch": float(row["epoch"]),
            "val_accuracy": float(row["val_accuracy_percent"]) / 100,
            **{name: float(row[name]) for name in COLUMNS if name != "val_accuracy"},
        }
        for row in read_numbers(numbers / "tables-1-2-3-5.csv")
        if row["table"] == table
    ]


# --- verdicts


def above(one: Sequence[float], other: Sequence[float]) -> bool | None:
    """Whether the mean of one is above the other's, told by Welch's t-test (1947); None: not told from chance.

    A mean is told from a number where `other` is that number twice.
    """
    one, other = ([value for value in values if math.isfinite(value)] for values in (one, other))
    if min(len(one), len(other)) < 2:
        return None
    means, spreads = zip(*((statistics.fmean(each), statistics.stdev(each)) for each in (one, other)), strict=True)
    if not any(spreads):
        return means[0] > means[1] if means[0] != means[1] else None
    from scipy.stats import ttest_ind_from_stats

    found = ttest_ind_from_stats(means[0], spreads[0], len(one), means[1], spreads[1], len(other), equal_var=False)
    return means[0] > means[1] if found.pvalue < SIGNIFICANT else None


def either(*claims: bool | None) -> bool | None:
    """Whether any of some claims is true; None: that cannot be told."""
    return True if True in claims else None if None in claims else False


def every(*claims: bool | None) -> bool | None:
    """Whether all of some claims are true; None: that cannot be told."""
    return False if False in claims else None if None in claims else True


def holds(*claims: bool | None) -> Holds:
    """What comes of a conclusion that is made of some claims."""
    claim = every(*claims)
    return "undecided" if claim is None else "holds" if claim else "does not hold"


# --- numbers as text


def around(values: Sequence[float], digits: int = 4) -> str:
    """`0.9123 ± 0.0041`: mean and sample standard deviation; the value alone where there is one; a dash for none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return DASH
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def unless_told(claim: bool | None) -> str:
    """What is put behind a difference that chance explains."""
    return " (not told from chance)" if claim is None else ""


def points(value: float) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * value:.2f} points"


def epoch_table(caption: str, report: "MetricRows", measured: Measured) -> ShownTable:
    """The report's table with the measured value beside each of its own."""
    rows = []
    for epoch in range(1, max(len(report), measured.epochs) + 1):
        row = [str(epoch)]
        for column in COLUMNS:
            row.append(f"{report[epoch - 1][column]:.4f}" if epoch <= len(report) else DASH)
            row.append(around(measured.at(column, epoch)))
        rows.append(row)
    header = ["epoch", *(cell for name in HEADINGS for cell in (f"{name}, report", "measured"))]
    return ShownTable(caption, header, rows)


def kept_table(rows: Mapping[str, Measured], caption: str = "At the epoch of the lowest validation loss") -> ShownTable:
    """What trainings came to at the epoch that was kept, those that there are."""
    return ShownTable(caption, ("", *HEADINGS, "epochs kept"), [
        [label, *(around(each.kept(column)) for column in COLUMNS),
         ", ".join(f"{epoch:.0f}" for epoch in each.kept("epoch"))]
        for label, each in rows.items() if each.runs
    ])  # fmt: skip


def with_column(table: ShownTable, heading: str, cells: Sequence[str]) -> ShownTable:
    """A table with one more column, a cell a row."""
    rows = [[*row, cell] for row, cell in zip(table.rows, cells, strict=True)]
    return ShownTable(table.caption, [*table.header, heading], rows)


def learning_curves(what: str, report: "MetricRows", measured: Measured) -> list[Chart]:
    """Loss and scores of a training, as the report's figures have them, with the report's own as dashed lines."""
    charts = []
    for title, columns in CHARTS.items():
        lines = []
        for tone, (column, label) in enumerate(columns.items()):
            lines.append(Line(f"{label}, report", [row[column] for row in report], tone, dashed=True))
            lines.append(Line(label, measured.curve(column), tone))
        charts.append(Chart(f"{title}, {what}", [line for line in lines if line.values]))
    return [chart for chart in charts if chart.lines]


def validation_losses(measured: Mapping[Setting, Measured]) -> Chart:
    """The validation loss of each setting."""
    return Chart(
        "Validation loss",
        [Line(str(key), each.curve("val_loss"), tone) for tone, (key, each) in enumerate(measured.items())],
    )


def restlessness(measured: Measured) -> list[float]:
    """The mean step of the validation loss from one epoch to the next, up or down, a value a run of several epochs."""
    steps = [[abs(b["val_loss"] - a["val_loss"]) for a, b in itertools.pairwise(rows)] for rows in measured.runs]
    return [statistics.fmean(each) for each in steps if each]


def magnitudes(values: Sequence[float]) -> list[float]:
    """Logarithms to the base 10, for what spreads over orders of magnitude: there a mean is its largest value alone."""
    return [math.log10(max(value, sys.float_info.min)) for value in values]
