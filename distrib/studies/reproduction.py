"""The report that this project began from, beside the same experiments measured here.

Each of its findings is a section: the report's numbers, those of a study in configs/report/, and whether the report's
conclusion holds. The page and the Markdown are made of the same sections.
"""

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence

from distrib.config import Config
from distrib.errors import UserError
from distrib.studies.evidence import (
    COLUMNS,
    DASH,
    KEPT_HEADER,
    Chart,
    Evidence,
    Measured,
    Section,
    Table,
    against,
    apart,
    around,
    epoch_table,
    kept_row,
    points,
    report_epochs,
    restlessness,
)
from distrib.studies.record import Setting, TrialRecord
from distrib.studies.space import changed

# Accuracies this close are "marginally different": the report says so of 0.57 points between its batch sizes.
MARGINAL = 0.01


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
        section.tables.append(epoch_table(f"Table {table}, batch size {size}", report, measured.get(size)))
        section.charts.append(against(f"Validation loss, batch size {size}", report, measured.get(size), "val_loss"))
    sizes = [size for size in (16, 32, 64) if size in measured]
    section.tables.append(
        Table("At the epoch of the lowest validation loss", KEPT_HEADER, [
            cells for table, size in (("1", 16), ("2", 32), ("3", 64))
            for cells in (
                kept_row(f"{size}, report", Measured("", [report_epochs(evidence.numbers, table)])),
                *([kept_row(f"{size}, measured", measured[size])] if size in measured else []),
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
            [[*kept_row(str(rate), each), around(restlessness(each))] for rate, each in measured.items()],
        )
    )
    section.charts.append(
        Chart("Validation loss", {f"{rate}": each.curve("val_loss") for rate, each in measured.items()})
    )
    if len(measured) < 3:
        return _unfinished(section, evidence)
    restless = {rate: statistics.fmean(restlessness(each)) for rate, each in measured.items()}
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
    section.tables.append(epoch_table("Table 5, 80,000 images", report, part))
    section.charts.append(against("Validation loss on the subset", report, part, "val_loss"))
    if part is None or whole is None:
        return _unfinished(section, evidence)
    section.tables.append(
        Table("At the epoch of the lowest validation loss", KEPT_HEADER, [
            kept_row("80,000, report", Measured("", [report])), kept_row("80,000, measured", part),
            kept_row("all, measured", whole),
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
            rows.append([*kept_row(label, measured[label]), around(measured[label].kept("val_recall"))])
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
            [kept_row(key, each) for key, each in measured.items()],
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
              [kept_row(f"split by {key}", each) for key, each in measured.items()])
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
