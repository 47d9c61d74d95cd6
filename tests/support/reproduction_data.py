"""Studies of the report whose trainings are made up."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launching import ROOT

from distrib.reproduction.claims import make_section
from distrib.reproduction.evidence import ClaimSection, gather
from distrib.runs.metrics import METRICS
from distrib.studies.definition import Study, read_study
from distrib.studies.record import Setting, StudyRecord, TrialRecord
from distrib.studies.scale import Scale

REPORT = ROOT / "configs/report"
NUMBERS = REPORT / "numbers"
# The columns that count, by seed and epoch.
Curve = Callable[[int, int], Mapping[str, float]]
# Columns that no verdict goes by.
PLAIN = dict.fromkeys(METRICS, 0.5)


def finding(
    folder: Path,
    name: str,
    points: Mapping[Setting, Curve],
    epochs: int = 4,
    seeds: int = 3,
    lost: Sequence[tuple[Setting, str]] = (),
    scale: Scale | None = None,
) -> ClaimSection:
    """A section of trainings that are made up.

    Args:
        folder: of the reproduction.
        name: of the finding.
        points: value of the study's first parameter -> the curves of its runs.
        epochs: of each run.
        seeds: runs of each point.
        lost: trials that have failed before: value, reason.
        scale: of the study.
    """
    study = replace(read_study(REPORT / f"{name}.yaml"), scale=scale)
    own = folder / "studies" / name
    trials = [a_trial(study, number, value, "failed", reason=reason) for number, (value, reason) in enumerate(lost)]
    for number, (value, curve) in enumerate(points.items(), len(trials)):
        runs = [f"trials/{number}-{seed}" for seed in range(seeds)]
        for seed, run in enumerate(runs):
            write_metrics(own / run, curve, seed, epochs)
        trials.append(a_trial(study, number, value, "finished", runs))
    return make_section(gather(study, a_record(study, own, trials), NUMBERS))


def write_metrics(run: Path, curve: Curve, seed: int, epochs: int) -> None:
    run.mkdir(parents=True, exist_ok=True)
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, METRICS)
        writer.writeheader()
        for epoch in range(1, epochs + 1):
            writer.writerow({**PLAIN, **curve(seed, epoch), "epoch": epoch})


def a_trial(
    study: Study, number: int, value: Setting, state: str, runs: Sequence[str] = (), reason: str = ""
) -> TrialRecord:
    settings = {study.parameters[0].name: value}
    if study.name == "optuna":
        settings["train.batch_size"] = 32
    values = (0.8 + number / 100,) if state == "finished" else None
    return TrialRecord(number, state, settings, values, None, (), 4, 9.0, tuple(runs), reason)  # type: ignore[arg-type]


def a_record(study: Study, folder: Path, trials: Sequence[TrialRecord]) -> StudyRecord:
    front = tuple(each.number for each in trials if each.state == "finished")[-1:]
    return StudyRecord(study.name, folder, study.objectives, study.parameters, tuple(trials), None, ({},), front)


def turning(accuracy: float, f1: float = 0.7, **others: float) -> Curve:
    """A validation loss that is lowest after the third epoch, and scores that differ a little from seed to seed."""
    return lambda seed, epoch: {
        "val_loss": 0.4 + 0.1 * abs(epoch - 3), "train_loss": 1 / epoch, "val_accuracy": accuracy + 0.001 * seed,
        "val_f1": f1 + 0.001 * seed, "val_roc_auc": accuracy + 0.001 * seed, **others,
    }  # fmt: skip


def spread_out(accuracy: float, f1: float | None = None) -> Curve:
    """The same, and scores that differ much from seed to seed."""
    return lambda seed, epoch: {
        **turning(accuracy)(seed, epoch),
        "val_accuracy": accuracy + 0.05 * (seed - 1),
        "val_f1": (accuracy if f1 is None else f1) + 0.05 * (seed - 1),
        "val_roc_auc": accuracy + 0.05 * (seed - 1),
    }


def everything(folder: Path) -> list[ClaimSection]:
    """All findings, with something of every kind to show."""
    found = {
        "batch-size": {16: turning(0.84), 32: turning(0.841), 64: turning(0.846, 0.72)},
        "learning-rate": {0.001: turning(0.84), 0.0003: turning(0.85)},
        "epochs": {20: turning(0.84)},
        "subset": {80000: turning(0.84), None: spread_out(0.842)},
        "frozen-backbone": {
            "trained": turning(0.9),
            "random, frozen": turning(0.55, 0.02, val_recall=0.01),
            "random, frozen, BatchNorm in training mode": turning(0.8),
            "nothing trained, BatchNorm in training mode": turning(0.5, 0.0, val_recall=0.0),
        },
        "optimizers": {
            "Adam, constant": turning(0.84), "Adam, one-cycle": turning(0.86), "SGD, constant": turning(0.8),
            "SGD, one-cycle": spread_out(0.85),
        },
        "optuna": {0.002: turning(0.84), 0.0005: turning(0.85)},
        "split": {"identity": turning(0.88), "image": turning(0.92)},
        "visualisations": {64: turning(0.84)},
    }  # fmt: skip
    lost = {
        "learning-rate": [(0.01, "the loss or its gradient was not finite in step 12 (epoch 1); no weight has moved")],
        "frozen-backbone": [("ImageNet, frozen", "no way to the store of the weights")],
    }
    page = folder / "studies/visualisations/trials/0-0/report/index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    return [finding(folder, name, points, epochs=15, lost=lost.get(name, ())) for name, points in found.items()]
