"""The report that this project began from, beside the same experiments measured here.

Each of its findings is a section: the report's numbers, those of a study in configs/report/, and whether the report's
conclusion holds. The page and the Markdown are made of the same sections.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

from distrib.base.errors import UserError
from distrib.base.words import DASH, duration
from distrib.config import Config
from distrib.reproduction.evidence import (
    Claim,
    ClaimSection,
    Evidence,
    Holds,
    Measured,
    ShownTable,
    Verdict,
    above,
    around,
    either,
    epoch_table,
    every,
    holds,
    kept_table,
    learning_curves,
    magnitudes,
    points,
    read_numbers,
    report_epochs,
    restlessness,
    unless_told,
    validation_losses,
    with_column,
)
from distrib.studies.record import TrialRecord
from distrib.studies.space import changed

Key = TypeVar("Key")

# Accuracies this close are "marginally different": the report says so of 0.57 points between its batch sizes.
MARGINAL = 0.01
# Shorter trainings cannot show that the validation loss turns after the 3rd or 4th epoch.
LEAST_TO_TURN = 6
# How a failed trial says that its loss was not finite: in training/loop.py, and in validation alone.
DIVERGED = ("was not finite", "val_loss is undefined")
# What is found by chance, by ROC AUC; and the share of positives below which a model is of no use.
CHANCE, FEW_FOUND = 0.5, 0.1
# What a candidate stands for, where it is as absurd as the report's values.
CAUSES = {
    "ImageNet, frozen": "that the backbone was frozen at all",
    "ImageNet, frozen, BatchNorm in training mode": "that BatchNorm kept counting in a frozen backbone",
    "random, frozen": "that there was nothing but a random backbone under the head",
    "random, frozen, BatchNorm in training mode": "that BatchNorm kept counting in a random backbone",
    "nothing trained, BatchNorm in training mode": "that the head was frozen too",
}


def batch_size(evidence: Evidence, section: ClaimSection) -> Verdict:
    """Tables 1-3."""
    measured = {size: evidence.of(size) for size in (16, 32, 64)}
    rows: dict[str, Measured] = {}
    for number, (size, each) in enumerate(measured.items(), 1):
        report = report_epochs(evidence.numbers, str(number))
        section.tables.append(epoch_table(f"Table {number}, batch size {size}", report, each))
        section.charts += learning_curves(f"batch size {size} (Figure {number})", report, each)
        rows |= {f"{size}, report": Measured([report]), f"{size}, measured": each}
    section.tables.append(kept_table(rows))
    if not all(each.runs for each in measured.values()):
        return too_few(evidence)
    section.notes.append(robust_fit(measured))
    accuracy, f1 = (
        {size: each.kept(column) for size, each in measured.items()} for column in ("val_accuracy", "val_f1")
    )
    worst, _, best = sorted(accuracy, key=lambda size: statistics.fmean(accuracy[size]))
    best_f1 = highest(f1)
    width = statistics.fmean(accuracy[best]) - statistics.fmean(accuracy[worst])
    marginal = True if width <= MARGINAL else False if above(accuracy[best], accuracy[worst]) else None
    ahead = {
        name: every(above(scores[64], scores[16]), above(scores[64], scores[32]))
        for name, scores in (("accuracy", accuracy), ("F1", f1))
    }
    said = {True: "is ahead", False: "is not ahead", None: "is not told from chance to be ahead"}
    sentence = (
        f"The most accurate is batch size {best} ({around(accuracy[best])}), and {best_f1} has the highest F1 "
        f"({around(f1[best_f1])}). From the least to the most accurate it is {points(width)}, "
        f"{'which is marginal' if marginal else 'more than marginal'}{unless_told(marginal)}. "
        + ", and ".join(f"64 {said[claim]} in {name}" for name, claim in ahead.items())
        + "."
    )
    return Verdict(holds(marginal, *ahead.values()), sentence)


def learning_rate(evidence: Evidence, section: ClaimSection) -> Verdict:
    """The remarks on learning rates."""
    rates = (0.01, 0.001, 0.0003)
    measured = {rate: evidence.of(rate) for rate in rates}
    large, middle, small = measured.values()
    diverged = {rate: [each for each in evidence.trials(rate) if has_diverged(each)] for rate in rates}
    table = kept_table({str(rate): each for rate, each in measured.items()})
    restless = [around(restlessness(each)) for each in measured.values() if each.runs]
    section.tables.append(with_column(table, "restlessness", restless))
    section.charts.append(validation_losses(evidence.measured))
    section.notes.append(
        "Restlessness is the mean step of the validation loss from one epoch to the next, up or down, compared by its "
        "logarithm: a single leap can be a million times the others."
    )
    for rate, trials in diverged.items():
        section.notes += [f"Learning rate {rate}, trial {each.number}: {each.reason}" for each in trials]
    if not all(measured[rate].runs or diverged[rate] for rate in rates):
        return too_few(evidence)
    accuracy = {rate: each.kept("val_accuracy") for rate, each in measured.items()}
    # One seed that diverges is enough: no chance lets a stable training do so.
    unstable = bool(diverged[0.01]) or either(
        above(magnitudes(restlessness(large)), magnitudes(restlessness(middle))),
        above(accuracy[0.001], accuracy[0.01]),
    )
    better = above(accuracy[0.0003], accuracy[0.001])
    slower = above(small.kept("epoch"), middle.kept("epoch"))
    parts = [f"at {rate} the loss became infinite, or no number" for rate in rates if diverged[rate]]
    if not diverged[0.01]:
        compared = {True: "less stable than", False: "no less stable than", None: "not told to be less stable than"}
        parts.append(
            f"0.01 is {compared[unstable]} 0.001 (restlessness {around(restlessness(large))} against "
            f"{around(restlessness(middle))}; accuracy {around(accuracy[0.01])} against {around(accuracy[0.001])})"
        )
    parts.append(
        f"0.0003 has an accuracy of {around(accuracy[0.0003])} where 0.001 has {around(accuracy[0.001])}"
        f"{unless_told(better)}, and its best epoch comes at {around(small.kept('epoch'), 1)} instead of "
        f"{around(middle.kept('epoch'), 1)}{unless_told(slower)}"
    )
    sentence = "; ".join(parts)
    return Verdict(holds(unstable, not diverged[0.001], better, slower), sentence[0].upper() + sentence[1:] + ".")


def has_diverged(trial: TrialRecord) -> bool:
    """Whether a trial came to nothing because its loss was not finite."""
    return trial.state == "failed" and any(words in trial.reason for words in DIVERGED)


def epochs(evidence: Evidence, section: ClaimSection) -> Verdict:
    """The remarks on epochs and the robust fit."""
    longest = evidence.of(20)
    if not longest.runs:
        return too_few(evidence)
    # 10, 15 and 20 epochs of the report, in the length that was run.
    lengths = sorted({max(1, round(share * longest.epochs)) for share in (0.5, 0.75, 1.0)})
    shorter = {str(length): Measured([rows[:length] for rows in longest.runs]) for length in lengths}
    table = kept_table(shorter, "Runs of so many epochs, at their epoch of the lowest validation loss")
    ends = [around(longest.at("val_loss", length)) for length in lengths]
    section.tables.append(with_column(table, "validation loss at the end", ends))
    section.charts += learning_curves(f"{longest.epochs} epochs", [], longest)
    turn, lowest, end = longest.kept("epoch"), longest.kept("val_loss"), longest.at("val_loss", longest.epochs)
    training = longest.kept("train_loss"), longest.at("train_loss", longest.epochs)
    if longest.epochs < LEAST_TO_TURN:
        return Verdict("undecided", f"{longest.epochs} epochs are too few to see a loss turn after the 3rd or 4th.")
    outside = either(above(turn, [4, 4]), above([3, 3], turn))
    third_or_fourth = True if all(3 <= epoch <= 4 for epoch in turn) else False if outside else None
    rises, falls = above(end, lowest), above(*training)
    sentence = (
        f"The validation loss is lowest after epoch {around(turn, 1)} of {longest.epochs} ({around(lowest)}) and "
        f"{'rises' if rises else 'goes'} to {around(end)} at the end{unless_told(rises)}, while the training loss goes "
        f"from {around(training[0])} to {around(training[1])}{unless_told(falls)}. That is "
        + {True: "the 3rd or 4th epoch", False: "not the 3rd or 4th epoch",
           None: "not told to be, or not to be, the 3rd or 4th epoch"}[third_or_fourth]
        + "."
    )  # fmt: skip
    return Verdict(holds(third_or_fourth, rises, falls), sentence)


def subset(evidence: Evidence, section: ClaimSection) -> Verdict:
    """Table 5."""
    part, whole = evidence.of(80000), evidence.of(None)
    report = report_epochs(evidence.numbers, "5")
    size = evidence.study.config({"data.subset": 80000}, {}, None).data.subset
    here = "all" if size is None else f"{size:,}"
    section.tables.append(epoch_table(f"Table 5, 80,000 images (measured: {here})", report, part))
    section.charts += learning_curves("80,000 images", report, part)
    section.tables.append(
        kept_table({"80,000, report": Measured([report]), f"{here}, measured": part, "no subset, measured": whole})
    )
    if not (part.runs and whole.runs):
        return too_few(evidence, "no claim")
    if size is None:
        return Verdict("no claim", "The data set has fewer images than the subset: both were trained on all of them.")
    accuracy = whole.kept("val_accuracy"), part.kept("val_accuracy")
    difference = statistics.fmean(accuracy[0]) - statistics.fmean(accuracy[1])
    return Verdict(
        "no claim",
        f"All images are {points(abs(difference))} {'more' if difference > 0 else 'less'} accurate than the subset "
        f"({around(accuracy[0])} against {around(accuracy[1])}){unless_told(above(*accuracy))}.",
    )


def frozen_backbone(evidence: Evidence, section: ClaimSection) -> Verdict:
    """Figure 6: which candidates are as absurd as what the report saw, and which are not."""
    trained, candidates = evidence.of("trained"), {label: evidence.of(label) for label in CAUSES}
    measured = {label: each for label, each in {"trained": trained, **candidates}.items() if each.runs}
    table = with_column(kept_table(measured), "positives found (recall)",
                        [around(each.kept("val_recall")) for each in measured.values()])  # fmt: skip
    missing = [str(label) for label in evidence.values if label not in measured]
    empty = [[label, "not measured", *[DASH] * (len(table.header) - 2)] for label in missing]
    section.tables.append(ShownTable(table.caption, table.header, [*table.rows, *empty]))
    for label, each in measured.items():
        section.charts += learning_curves(label, [], each)
    section.notes.append(
        "Absurd is called here what loses more than half of the ROC AUC that the trained network has above 0.5, which "
        "is guessing, or finds fewer than one positive in ten at a threshold of 0.5."
    )
    for label in missing:
        reason = next((each.reason for each in reversed(evidence.trials(label)) if each.reason), "no trial has ended")
        section.notes.append(f"Not measured is {label}: {reason}")
    section.notes.append(refusal(evidence.study.base))
    if not trained.runs or len(measured) < 2:
        return too_few(evidence)
    auc, recall = trained.kept("val_roc_auc"), trained.kept("val_recall")
    if not (above(auc, [CHANCE] * 2) and above(recall, [FEW_FOUND] * 2)):
        return Verdict(
            "undecided",
            f"The trained network itself is not told from guessing (ROC AUC {around(auc)}, positives found "
            f"{around(recall)}): nothing can be called absurd beside it.",
        )
    half = [(value + CHANCE) / 2 for value in auc]
    absurd = {
        label: either(above(half, each.kept("val_roc_auc")), above([FEW_FOUND] * 2, each.kept("val_recall")))
        for label, each in candidates.items() if each.runs
    }  # fmt: skip
    groups = {
        "Absurd": [label for label, claim in absurd.items() if claim],
        "Not absurd": [label for label, claim in absurd.items() if claim is False],
        "Not told from chance": [label for label, claim in absurd.items() if claim is None],
    }
    listed = [
        f"{group}: "
        + "; ".join(f"{label} (ROC AUC {around(measured[label].kept('val_roc_auc'), 3)}, positives found "
                    f"{around(measured[label].kept('val_recall'), 3)})" for label in labels)
        for group, labels in groups.items() if labels
    ]  # fmt: skip
    if missing:
        listed.append(f"Not measured: {'; '.join(missing)}")
    causes = " or ".join(CAUSES[label] for label in groups["Absurd"])
    listed.append(f"The cause may have been {causes}" if causes else "Nothing that was measured explains the values")
    frozen = [label for label in CAUSES if freezes(evidence, label)]
    claim = either(*(absurd.get(label) for label in frozen))
    return Verdict(holds(claim), ". ".join(listed) + ".")


def freezes(evidence: Evidence, label: str) -> bool:
    """Whether a candidate freezes the backbone and trains the head."""
    return evidence.study.dimensions[0].changes(label).get("model.freeze") == "backbone"


def refusal(base: Config) -> str:
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


def optimizers(evidence: Evidence, section: ClaimSection) -> Verdict:
    """Adam against SGD."""
    measured = {str(value): evidence.of(value) for value in evidence.values}
    section.tables.append(kept_table(measured))
    section.charts.append(validation_losses(evidence.measured))
    if not all(each.runs for each in measured.values()):
        return too_few(evidence)
    adam, sgd = (
        {label: each.kept("val_roc_auc") for label, each in measured.items() if label.startswith(f"{name},")}
        for name in ("Adam", "SGD")
    )
    ours, theirs = highest(adam), highest(sgd)
    ahead = above(adam[ours], sgd[theirs])
    return Verdict(
        holds(ahead),
        f"The best of Adam ({ours}) has a ROC AUC of {around(adam[ours])}, the best of SGD ({theirs}) of "
        f"{around(sgd[theirs])}{unless_told(ahead)}.",
    )


def optuna(evidence: Evidence, section: ClaimSection) -> Verdict:
    """Table 4."""
    report = [[f"{row['trial']}, report", row["learning_rate"], row["batch_size"], row["value"], row["time"], ""]
              for row in read_numbers(evidence.numbers / "table-4.csv")]  # fmt: skip
    trials = evidence.record.trials
    rows = [
        [f"{trial.number}, measured", f"{trial.settings['optim.lr']:.6f}", str(trial.settings["train.batch_size"]),
         f"{trial.values[0]:.6f}" if trial.values else DASH, duration(trial.seconds), trial.state]
        for trial in trials
    ]  # fmt: skip
    header = ("trial", "learning rate", "batch size", "accuracy", "time", "state")
    section.tables.append(ShownTable("Table 4", header, [*report, *rows]))
    values = {trial.number: trial.values[0] for trial in evidence.record.of_state("finished") if trial.values}
    if len(values) < 2:
        return too_few(evidence, "no claim")
    best = next(trial for trial in trials if trial.number == evidence.record.front[0])
    return Verdict(
        "no claim",
        f"Of {len(trials)} trials ({len(values)} trained to the end) the best has a learning rate of "
        f"{best.settings['optim.lr']:.6f} and batches of {best.settings['train.batch_size']}: "
        f"{values[best.number]:.4f}, where the others that finished go down to {min(values.values()):.4f}. Two trials, "
        "as in the report, say nothing about either setting: its values differ by 0.0043, one seed each.",
    )


def split(evidence: Evidence, section: ClaimSection) -> Verdict:
    """The leak-free separation."""
    identity, image = evidence.of("identity"), evidence.of("image")
    section.tables.append(
        kept_table({"split by identity": identity, "split by image": image},
                   "At the epoch of the lowest validation loss, three draws")
    )  # fmt: skip
    if not (identity.runs and image.runs):
        return too_few(evidence, "no claim")
    leaky, clean = image.kept("val_roc_auc"), identity.kept("val_roc_auc")
    return Verdict(
        "no claim",
        f"A random split by image gives a ROC AUC of {around(leaky)}, one without a person in two splits "
        f"{around(clean)}: the leak is worth {statistics.fmean(leaky) - statistics.fmean(clean):+.4f}"
        f"{unless_told(above(leaky, clean))}.",
    )


def visualisations(evidence: Evidence, section: ClaimSection) -> Verdict:
    """Figures 4, 5 and 7-17."""
    folder = evidence.record.folder
    pages = [f"{run}/report/index.html" for trial in evidence.record.of_state("finished") for run in trial.runs]
    pages = [page for page in pages if (folder / page).exists()]
    if not pages:
        return too_few(evidence, "no claim")
    for label, anchor in (("ROC curve and confusion matrix (Figures 4, 5)", "decide"),
                          ("activation maps and filters (Figures 7-16)", "inside"),
                          ("occlusion heat map of a photograph (Figure 17)", "photograph")):  # fmt: skip
        section.links[label] = f"studies/{folder.name}/{pages[0]}#{anchor}"
    section.notes.append(
        "The report calls 0.1154 the probability of the predicted class, Not Arched Eyebrows. It is the output of the "
        "sigmoid, the probability of the attribute: that of the predicted class is 0.8846."
    )
    return Verdict(
        "no claim", "All of the report's figures are in the report page of the run that was trained for them."
    )


CLAIMS: dict[str, Claim] = {
    "batch-size": Claim(
        "Batch size",
        "Tables 1-3, Figures 1-3",
        "64 is slightly ahead in accuracy and F1, and the differences between 16, 32 and 64 are marginal.",
        batch_size,
    ),
    "learning-rate": Claim(
        "Learning rate",
        "the text on learning rates",
        "0.01 is unstable, 0.001 stable; smaller ones are slightly better and much slower.",
        learning_rate,
    ),
    "epochs": Claim(
        "Epochs and the robust fit",
        "the text on 10, 15 and 20 epochs",
        "The validation loss rises after the 3rd or 4th epoch while the training loss keeps falling; the weights of "
        "that epoch are kept.",
        epochs,
    ),
    "subset": Claim(
        "A subset of 80,000 images",
        "Table 5",
        "Ten epochs on 80,000 images, 84.71 % accurate after the 4th. Whether all images come to more is not said "
        "there, and is asked here.",
        subset,
    ),
    "frozen-backbone": Claim(
        "A frozen backbone",
        "Figure 6",
        'With all layers before the last frozen, training gives "absurd values".',
        frozen_backbone,
    ),
    "optimizers": Claim(
        "Optimisers",
        "the text on optimisers",
        "Adam is the choice; SGD with momentum was dismissed without a measurement.",
        optimizers,
    ),
    "optuna": Claim(
        "The Optuna search",
        "Table 4",
        "Of two trials the one with a learning rate of 0.0021 and batches of 16 has the higher value (0.8271).",
        optuna,
    ),
    "split": Claim(
        "The leak-free split",
        "the text on the separation of the data",
        "Training, validation and test are to have no person in common. How much a random split by image, which leaks, "
        "would flatter the scores is not said there, and is asked here.",
        split,
    ),
    "visualisations": Claim(
        "The visualisations",
        "Figures 4, 5 and 7-17",
        "ROC curve, confusion matrix, activation maps and filters of conv1 and layer1-4, an occlusion heat map.",
        visualisations,
    ),
}  # fmt: skip


def make_section(evidence: Evidence) -> ClaimSection:
    """The section of a study, with links to its page and table."""
    name = evidence.study.name
    section = ClaimSection(name, CLAIMS[name])
    section.verdict = section.finding.judge(evidence, section)
    folder = f"studies/{evidence.record.folder.name}"
    section.links |= {"the study": f"{folder}/study/index.html", "its trials": f"{folder}/study.csv"}
    return section


def too_few(evidence: Evidence, verdict: Holds = "undecided") -> Verdict:
    """What is said where not all that is compared was trained to its end."""
    why = " ".join(f"Trial {trial.number} is {trial.state}: {trial.reason}." for trial in evidence.lost()[:3])
    return Verdict(verdict, f"Too few runs finished to say. {why}".strip())


def robust_fit(measured: Mapping[int, Measured]) -> str:
    """How far validation turns at each batch size."""
    return "The robust fit: " + "; ".join(
        f"at batch size {size} the validation loss is lowest after epoch {around(each.kept('epoch'), 1)} "
        f"({around(each.kept('val_loss'))}) and {around(each.at('val_loss', each.epochs))} after the last"
        for size, each in measured.items()
    ) + "."  # fmt: skip


def highest(scores: Mapping[Key, Sequence[float]]) -> Key:
    """Whose mean is the highest."""
    return max(scores, key=lambda key: statistics.fmean(scores[key]))
