"""The report that this project began from, beside the same experiments measured here.

Each of its findings is a section: the report's numbers, those of a study in configs/report/, and whether the report's
conclusion holds. The page and the Markdown are made of the same sections.

Spreads are sample standard deviations over seeds. Two means are told apart by Welch's t-test, at 5 %.
"""

import csv
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scipy.stats import ttest_ind

from distrib.config import Config
from distrib.errors import UserError
from distrib.studies.definition import Study
from distrib.studies.record import Setting, StudyRecord, TrialRecord
from distrib.studies.space import changed

Holds = Literal["holds", "does not hold", "undecided", "no claim"]
Rows = list[dict[str, float]]
# The columns of the report's tables, as metrics.csv has them; accuracy in per cent there.
COLUMNS = ("train_loss", "val_loss", "val_accuracy", "val_precision", "val_f1", "val_roc_auc")
HEADINGS = ("training loss", "validation loss", "accuracy", "precision", "F1", "ROC AUC")
DASH = "–"  # noqa: RUF001
# Accuracies this close are "marginally different": the report says so of 0.57 points between its batch sizes.
MARGINAL = 0.01
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
        found.setdefault(trial.settings[name], []).extend(_read_rows(record.folder / run) for run in trial.runs)
    return Evidence(study, record, {key: Measured(str(key), runs) for key, runs in found.items()}, numbers)


def _read_rows(run: Path) -> Rows:
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{run / 'metrics.csv'} cannot be read ({error}): remove the run, and reproduce again"
        ) from None


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


def _epoch_table(caption: str, report: Rows, measured: Measured | None) -> Table:
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


def _kept_row(label: str, measured: Measured) -> list[str]:
    epochs = [f"{epoch:.0f}" for epoch in measured.kept("epoch")]
    return [label, *(around(measured.kept(column)) for column in COLUMNS), ", ".join(epochs)]


KEPT_HEADER = ("", *HEADINGS, "epochs kept")


# --- the findings


def batch_size(evidence: Evidence) -> Section:
    """Tables 1-3."""
    section = Section(
        "batch-size",
        "Batch size",
        "Tables 1-3, Figures 1-3",
        "64 is slightly ahead in accuracy and F1, and the differences between 16, 32 and 64 are marginal.",
        "undecided",
        "",
    )
    measured = evidence.measured
    for table, size in (("1", 16), ("2", 32), ("3", 64)):
        report = report_epochs(evidence.numbers, table)
        section.tables.append(_epoch_table(f"Table {table}, batch size {size}", report, measured.get(size)))
        section.charts.append(_against(f"Validation loss, batch size {size}", report, measured.get(size), "val_loss"))
    sizes = [size for size in (16, 32, 64) if size in measured]
    section.tables.append(
        Table("At the epoch of the lowest validation loss", KEPT_HEADER, [
            cells for table, size in (("1", 16), ("2", 32), ("3", 64))
            for cells in (
                _kept_row(f"{size}, report", Measured("", [report_epochs(evidence.numbers, table)])),
                *([_kept_row(f"{size}, measured", measured[size])] if size in measured else []),
            )
        ])
    )  # fmt: skip
    if len(sizes) < 3:
        return _unfinished(section, evidence)
    accuracy = {size: measured[size].kept("val_accuracy") for size in sizes}
    f1 = {size: measured[size].kept("val_f1") for size in sizes}
    means = {size: statistics.fmean(values) for size, values in accuracy.items()}
    best = max(means, key=lambda size: means[size])
    best_f1 = max(f1, key=lambda size: statistics.fmean(f1[size]))
    width = max(means.values()) - min(means.values())
    worst = min(means, key=lambda size: means[size])
    marginal, told = width <= MARGINAL, apart(accuracy[best], accuracy[worst])
    section.holds = (
        "does not hold" if told and not marginal else "holds" if best == best_f1 == 64 and marginal else "undecided"
    )
    section.verdict = (
        f"Batch size {best} is the most accurate ({around(accuracy[best])}) and {best_f1} has the highest F1 "
        f"({around(f1[best_f1])}); from the least to the most accurate it is {points(width)}, which is "
        f"{'' if marginal else 'more than '}marginal{'' if marginal or told else ', but not told from chance'}"
        f"{'' if best == best_f1 == 64 else ', and 64 is not ahead in both'}."
    )
    section.notes.append(_robust_fit(measured, "batch size "))
    return section


def learning_rate(evidence: Evidence) -> Section:
    """The remarks on learning rates."""
    section = Section(
        "learning-rate",
        "Learning rate",
        "the text on learning rates",
        "0.01 is unstable, 0.001 stable; smaller ones are slightly better and much slower.",
        "undecided",
        "",
    )
    measured = evidence.measured
    section.tables.append(
        Table(
            "At the epoch of the lowest validation loss; restlessness is the mean step of the validation loss from one "
            "epoch to the next, up or down",
            (*KEPT_HEADER, "restlessness"),
            [[*_kept_row(str(rate), each), around(_restlessness(each))] for rate, each in measured.items()],
        )
    )
    section.charts.append(
        Chart("Validation loss", {f"{rate}": each.curve("val_loss") for rate, each in measured.items()})
    )
    if len(measured) < 3:
        return _unfinished(section, evidence)
    restless = {rate: statistics.fmean(_restlessness(each)) for rate, each in measured.items()}
    accuracy = {rate: each.kept("val_accuracy") for rate, each in measured.items()}
    slow = {rate: statistics.fmean(each.kept("epoch")) for rate, each in measured.items()}
    gain = statistics.fmean(accuracy[0.0003]) - statistics.fmean(accuracy[0.001])
    unstable = restless[0.01] > 1.5 * restless[0.001] or (
        statistics.fmean(accuracy[0.01]) < statistics.fmean(accuracy[0.001])
        and bool(apart(accuracy[0.01], accuracy[0.001]))
    )
    slower = slow[0.0003] > slow[0.001]
    better = gain > 0 and bool(apart(accuracy[0.0003], accuracy[0.001]))
    section.holds = "holds" if unstable and better and slower else "undecided" if unstable else "does not hold"
    section.verdict = (
        f"0.01 is {'less stable than' if unstable else 'as stable as'} 0.001 (restlessness "
        f"{restless[0.01]:.4f} against {restless[0.001]:.4f}; accuracy {around(accuracy[0.01])} "
        f"against {around(accuracy[0.001])}); 0.0003 is {points(abs(gain))} {'better' if gain > 0 else 'worse'} than "
        f"0.001{', which is within the spread' if apart(accuracy[0.0003], accuracy[0.001]) is False else ''}, and its "
        f"best epoch comes at {slow[0.0003]:.1f} instead of {slow[0.001]:.1f}."
    )
    return section


def epochs(evidence: Evidence) -> Section:
    """The remarks on epochs and the robust fit."""
    section = Section(
        "epochs",
        "Epochs and the robust fit",
        "the text on 10, 15 and 20 epochs",
        "The validation loss rises after the 3rd or 4th epoch while the training loss keeps falling; the weights of "
        "that epoch are kept.",
        "undecided",
        "",
    )
    if not evidence.measured:
        return _unfinished(section, evidence)
    (longest,) = evidence.measured.values()
    # 10, 15 and 20 epochs of the report, in the length that was run.
    lengths = sorted({max(2, round(share * longest.epochs)) for share in (0.5, 0.75, 1.0)})
    rows = [
        [str(length), *(around(longest.kept(column, length)) for column in COLUMNS),
         around(longest.kept("epoch", length), 1), around(longest.at("val_loss", length))]
        for length in lengths
    ]  # fmt: skip
    section.tables.append(
        Table(
            "Runs of so many epochs, at their epoch of the lowest validation loss",
            (*KEPT_HEADER, "loss at the end"),
            rows,
        )
    )
    section.charts.append(
        Chart("Loss", {"training": longest.curve("train_loss"), "validation": longest.curve("val_loss")})
    )
    kept, end = statistics.fmean(longest.kept("val_loss")), statistics.fmean(longest.at("val_loss", longest.epochs))
    turn = longest.kept("epoch")
    training = longest.curve("train_loss")
    turned = max(turn) < longest.epochs and end > kept and training[-1] < training[0]
    section.holds = (
        "holds" if turned and all(3 <= epoch <= 4 for epoch in turn) else "undecided" if turned else "does not hold"
    )
    section.verdict = (
        f"The validation loss is lowest after epoch {around(turn, 1)} of {longest.epochs} ({kept:.4f}) and "
        f"{'rises' if end > kept else 'goes'} to {end:.4f} at the end, while the training loss goes from "
        f"{training[0]:.4f} to {training[-1]:.4f}."
    )
    return section


def subset(evidence: Evidence) -> Section:
    """Table 5."""
    section = Section(
        "subset",
        "A subset of 80,000 images",
        "Table 5",
        "A subset of 80,000 images comes to about the same scores (84.71 % after 4 epochs) as all of them.",
        "undecided",
        "",
    )
    part, whole = evidence.measured.get(80000), evidence.measured.get(None)
    report = report_epochs(evidence.numbers, "5")
    section.tables.append(_epoch_table("Table 5, 80,000 images", report, part))
    section.charts.append(_against("Validation loss on the subset", report, part, "val_loss"))
    if part is None or whole is None:
        return _unfinished(section, evidence)
    section.tables.append(
        Table("At the epoch of the lowest validation loss", KEPT_HEADER, [
            _kept_row("80,000, report", Measured("", [report])), _kept_row("80,000, measured", part),
            _kept_row("all, measured", whole),
        ])
    )  # fmt: skip
    if evidence.study.config({"data.subset": 80000}, {}, None).data.subset is None:
        section.verdict = "The data set has fewer images than the subset: both were trained on all of them."
        return section
    difference = statistics.fmean(whole.kept("val_accuracy")) - statistics.fmean(part.kept("val_accuracy"))
    told = apart(whole.kept("val_accuracy"), part.kept("val_accuracy"))
    section.holds = "holds" if abs(difference) <= MARGINAL else "does not hold" if told else "undecided"
    section.verdict = (
        f"All images are {points(abs(difference))} {'more' if difference > 0 else 'less'} accurate than the subset "
        f"({around(whole.kept('val_accuracy'))} against {around(part.kept('val_accuracy'))})"
        f"{', which the spread over seeds does not tell apart' if told is False else ''}."
    )
    return section


def frozen_backbone(evidence: Evidence) -> Section:
    """Figure 6."""
    section = Section(
        "frozen-backbone",
        "A frozen backbone",
        "Figure 6",
        'With all layers before the last frozen, training gives "absurd values".',
        "undecided",
        "",
    )
    rows, measured = [], evidence.measured
    for trial in evidence.record.trials:
        label = str(trial.settings["backbone"])
        if label in measured:
            rows.append([*_kept_row(label, measured[label]), around(_positives(measured[label]))])
        else:
            rows.append([label, "not measured", *[DASH] * (len(KEPT_HEADER) - 1)])
            section.notes.append(f"Not measured: {label}. {trial.reason}")
    section.tables.append(
        Table("At the epoch of the lowest validation loss", (*KEPT_HEADER, "positives found (recall)"), rows)
    )
    section.charts.append(
        Chart(
            "Validation loss", {key: each.curve("val_loss") for key, each in measured.items() if isinstance(key, str)}
        )
    )
    section.notes.append(_refusal(evidence.study.base))
    trained, frozen = measured.get("trained"), measured.get("random, frozen")
    if trained is None or frozen is None:
        return _unfinished(section, evidence)
    auc = {key: statistics.fmean(each.kept("val_roc_auc")) for key, each in measured.items()}
    drop = auc["trained"] - auc["random, frozen"]
    told = apart(trained.kept("val_roc_auc"), frozen.kept("val_roc_auc"))
    section.holds = "holds" if told and drop > 0 else "undecided"
    others = {key: value for key, value in auc.items() if key not in ("trained", "random, frozen")}
    section.verdict = (
        f"A head on a random, frozen backbone comes to a ROC AUC of {around(frozen.kept('val_roc_auc'))} where the "
        f"trained network has {around(trained.kept('val_roc_auc'))}"
        + "".join(f"; {key}: {value:.4f}" for key, value in others.items())
        + "."
    )
    return section


def _refusal(base: Config) -> str:
    """What is said to the line of the report that froze everything, where it comes after the new head."""
    try:
        changed(base, {"model.freeze": "all"})
    except UserError as error:
        return (
            "`for param in model.parameters(): param.requires_grad = False` after the new head was made freezes the "
            "head too. PyTorch then refuses to go backward, so no number can have come of it, and here it is refused: "
            f"{error}"
        )
    raise AssertionError("a configuration that trains nothing was taken")


def _positives(measured: Measured) -> list[float]:
    return measured.kept("val_recall")


def optimizers(evidence: Evidence) -> Section:
    """Adam against SGD."""
    section = Section(
        "optimizers",
        "Optimisers",
        "the text on optimisers",
        "Adam is the choice; SGD with momentum was dismissed without a measurement.",
        "undecided",
        "",
    )
    measured = {str(key): each for key, each in evidence.measured.items()}
    section.tables.append(
        Table(
            "At the epoch of the lowest validation loss",
            KEPT_HEADER,
            [_kept_row(key, each) for key, each in measured.items()],
        )
    )
    section.charts.append(Chart("Validation loss", {key: each.curve("val_loss") for key, each in measured.items()}))
    if len(measured) < 4:
        return _unfinished(section, evidence)
    auc = {key: each.kept("val_roc_auc") for key, each in measured.items()}
    adam = max((key for key in auc if key.startswith("Adam")), key=lambda key: statistics.fmean(auc[key]))
    sgd = max((key for key in auc if key.startswith("SGD")), key=lambda key: statistics.fmean(auc[key]))
    ahead = statistics.fmean(auc[adam]) - statistics.fmean(auc[sgd])
    told = apart(auc[adam], auc[sgd])
    section.holds = "undecided" if not told else "holds" if ahead > 0 else "does not hold"
    section.verdict = (
        f"The best of Adam ({adam}) has a ROC AUC of {around(auc[adam])}, the best of SGD ({sgd}) of {around(auc[sgd])}"
        f"{'' if told else '; the spread over seeds does not tell them apart'}."
    )
    return section


def optuna(evidence: Evidence) -> Section:
    """Table 4."""
    section = Section(
        "optuna",
        "The Optuna search",
        "Table 4",
        "Of two trials the one with a learning rate of 0.0021 and batches of 16 has the higher value (0.8271).",
        "no claim",
        "",
    )
    with (evidence.numbers / "table-4.csv").open(newline="", encoding="utf-8") as file:
        report = [[f"{row['trial']}, report", row["learning_rate"], row["batch_size"], row["value"], row["time"], ""]
                  for row in csv.DictReader(file)]  # fmt: skip
    rows = [
        [f"{trial.number}, measured", f"{trial.settings['optim.lr']:.6f}", str(trial.settings["train.batch_size"]),
         f"{trial.values[0]:.6f}" if trial.values else DASH, f"{trial.seconds:.0f} s", trial.state]
        for trial in evidence.record.trials
    ]  # fmt: skip
    section.tables.append(
        Table("Table 4", ("trial", "learning rate", "batch size", "accuracy", "time", "state"), [*report, *rows])
    )
    finished = evidence.record.of_state("finished")
    if not evidence.record.front or len(finished) < 2:
        return _unfinished(section, evidence)
    best = finished[[trial.number for trial in finished].index(evidence.record.front[0])]
    values = [trial.values[0] for trial in finished if trial.values]
    section.verdict = (
        f"Of {len(evidence.record.trials)} trials ({len(finished)} trained to the end) the best has a learning rate of "
        f"{best.settings['optim.lr']:.6f} and batches of {best.settings['train.batch_size']}: {max(values):.4f}, where "
        f"the others that finished go down to {min(values):.4f}. Two trials, as in the report, say nothing about "
        "either setting: its values differ by 0.0043, one seed each."
    )
    return section


def split(evidence: Evidence) -> Section:
    """The leak-free separation."""
    section = Section(
        "split",
        "The leak-free split",
        "the text on the separation of the data",
        "A random split by image leaks: the same person is in training and validation, which flatters the scores.",
        "undecided",
        "",
    )
    measured = evidence.measured
    section.tables.append(
        Table("At the epoch of the lowest validation loss, over three draws of the split", KEPT_HEADER,
              [_kept_row(f"split by {key}", each) for key, each in measured.items()])
    )  # fmt: skip
    if len(measured) < 2:
        return _unfinished(section, evidence)
    auc = {key: each.kept("val_roc_auc") for key, each in measured.items()}
    flatters = statistics.fmean(auc["image"]) - statistics.fmean(auc["identity"])
    told = apart(auc["image"], auc["identity"])
    section.holds = "undecided" if not told else "holds" if flatters > 0 else "does not hold"
    section.verdict = (
        f"A random split by image gives a ROC AUC of {around(auc['image'])}, one without a person in two splits "
        f"{around(auc['identity'])}: the leak is worth {flatters:+.4f}"
        f"{'' if told else ', which the spread over the draws does not tell from nothing'}."
    )
    return section


def visualisations(evidence: Evidence) -> Section:
    """Figures 4, 5 and 7-17."""
    section = Section(
        "visualisations",
        "The visualisations",
        "Figures 4, 5 and 7-17",
        "ROC curve, confusion matrix, activation maps and filters of conv1 and layer1-4, an occlusion heat map.",
        "no claim",
        "",
    )
    pages = [f"{run}/report/index.html" for trial in evidence.record.of_state("finished") for run in trial.runs]
    pages = [page for page in pages if (evidence.record.folder / page).exists()]
    if not pages:
        return _unfinished(section, evidence)
    base = evidence.record.folder.name
    for label, anchor in (("ROC curve and confusion matrix (Figures 4, 5)", "decide"),
                          ("activation maps and filters (Figures 7-16)", "inside"),
                          ("occlusion heat map of a photograph (Figure 17)", "photograph")):  # fmt: skip
        section.links[label] = f"studies/{base}/{pages[0]}#{anchor}"
    section.verdict = "All of the report's figures are in the report page of the run that is linked here."
    section.notes.append(
        "The report calls 0.1154 the probability of the predicted class, Not Arched Eyebrows. It is the output of the "
        "sigmoid, the probability of the attribute: that of the predicted class is 0.8846."
    )
    return section


SECTIONS: dict[str, Callable[[Evidence], Section]] = {
    "batch-size": batch_size,
    "learning-rate": learning_rate,
    "epochs": epochs,
    "subset": subset,
    "frozen-backbone": frozen_backbone,
    "optimizers": optimizers,
    "optuna": optuna,
    "split": split,
    "visualisations": visualisations,
}


def make_section(evidence: Evidence) -> Section:
    """The section of a study, with links to its page and table."""
    section = SECTIONS[evidence.study.name](evidence)
    folder = f"studies/{evidence.record.folder.name}"
    section.links["the study"] = f"{folder}/study/index.html"
    section.links["its trials"] = f"{folder}/study.csv"
    return section


def _unfinished(section: Section, evidence: Evidence) -> Section:
    """A section whose runs did not all come to a result."""
    lost = [trial for trial in evidence.record.trials if trial.state != "finished"]
    section.holds = "undecided"
    section.verdict = f"Too few runs finished to say. {_why(lost)}".strip()
    return section


def _why(lost: Sequence[TrialRecord]) -> str:
    return " ".join(f"Trial {trial.number} is {trial.state}: {trial.reason}." for trial in lost[:3])


def _against(title: str, report: Rows, measured: Measured | None, column: str) -> Chart:
    lines: dict[str, Sequence[float]] = {"report": [row[column] for row in report]}
    if measured is not None:
        lines["measured"] = measured.curve(column)
    return Chart(title, lines)


def _restlessness(measured: Measured) -> list[float]:
    """The mean step of the validation loss from one epoch to the next, up or down, a value a run."""
    steps = [[abs(b["val_loss"] - a["val_loss"]) for a, b in itertools.pairwise(rows)] for rows in measured.runs]
    return [statistics.fmean(each) for each in steps if each]


def _robust_fit(measured: Mapping[Setting, Measured], what: str) -> str:
    """How far validation turns at each setting."""
    parts = []
    for key, each in measured.items():
        end = statistics.fmean(each.at("val_loss", each.epochs))
        parts.append(
            f"at {what}{key} the validation loss is lowest after epoch {around(each.kept('epoch'), 1)} "
            f"({around(each.kept('val_loss'))}) and {end:.4f} after the last"
        )
    return "The robust fit: " + "; ".join(parts) + "."
