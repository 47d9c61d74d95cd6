"""Studies that are made up, but agree with themselves: the values follow from the settings."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

from distrib.studies.record import Objective, Parameter, Setting, StudyRecord, TrialRecord

AUC, SPEED, LOSS = (
    Objective("val_roc_auc", "maximize"),
    Objective("images_per_second", "maximize"),
    Objective("val_loss", "minimize"),
)
LR = Parameter("optim.lr", low=1e-4, high=1e-1, log=True)
NAME = Parameter("optim.name", choices=("adamw", "sgd"))
MOMENTUM = Parameter("optim.momentum", low=0.5, high=0.99)  # of sgd alone
BATCH = Parameter("train.batch_size", choices=(32, 64, 128, 256))


def trial(
    number: int,
    settings: dict[str, Setting] | None = None,
    values: Sequence[float] | None = None,
    spread: Sequence[float] | None = None,
    **fields: object,
) -> TrialRecord:
    """A trial; without a state it is finished, and has one run without spread over seeds."""
    known = {
        "state": "finished",
        "curve": (),
        "epochs": 5,
        "seconds": 60.0 * (number + 1),
        "runs": (f"trial-{number:04d}",),
        "reason": "",
        **fields,
    }
    if values is not None and spread is None:
        spread = [math.nan] * len(values)
    return TrialRecord(
        number=number,
        settings=settings or {},
        values=None if values is None else tuple(values),
        spread=None if spread is None else tuple(spread),
        **known,  # type: ignore[arg-type]
    )


def study(
    trials: Sequence[TrialRecord],
    parameters: Sequence[Parameter] = (LR,),
    objectives: Sequence[Objective] = (AUC,),
    folder: Path = Path("studies/study"),
    planned: int | None = None,
    importance: Sequence[dict[str, float]] | None = None,
    name: str = "study",
) -> StudyRecord:
    """A study of these trials, with the front that follows from their values."""
    return StudyRecord(
        name=name,
        folder=folder,
        objectives=tuple(objectives),
        parameters=tuple(parameters),
        trials=tuple(trials),
        planned=planned,
        importance=tuple(importance) if importance is not None else tuple({} for _ in objectives),
        front=front_of(trials, objectives),
    )


def front_of(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> tuple[int, ...]:
    """The trials that no other one beats in every objective; with one objective, the best alone."""
    signs = [1 if objective.direction == "maximize" else -1 for objective in objectives]
    scored = {
        each.number: [sign * value for sign, value in zip(signs, each.values, strict=True)]
        for each in trials
        if each.state == "finished" and each.values is not None and all(map(math.isfinite, each.values))
    }
    beaten = {
        number
        for number, values in scored.items()
        for other in scored.values()
        if other != values and all(b >= a for a, b in zip(values, other, strict=True))
    }
    front = [number for number in scored if number not in beaten]
    return tuple(front[:1] if len(objectives) == 1 else front)


def searched(
    folder: Path, count: int = 30, seed: int = 0, objectives: Sequence[Objective] = (AUC, SPEED)
) -> StudyRecord:
    """A search over four parameters, one of them conditional; with one objective the bad trials are pruned."""
    chance = random.Random(seed)
    trials = [_searched(number, objectives, chance, last=number == count - 1) for number in range(count)]
    importance = [
        {"optim.lr": 0.61, "train.batch_size": 0.22, "optim.name": 0.14, "optim.momentum": 0.03},
        {"train.batch_size": 0.93, "optim.name": 0.05, "optim.lr": 0.02},
        {},
    ]
    parameters = (LR, NAME, MOMENTUM, BATCH)
    return study(trials, parameters, objectives, folder, count + 10, importance[: len(objectives)], "celeba-search")


def _searched(number: int, objectives: Sequence[Objective], chance: random.Random, last: bool) -> TrialRecord:
    lr, name, batch = 10 ** chance.uniform(-4, -1), chance.choice(("adamw", "sgd")), chance.choice((32, 64, 128, 256))
    settings: dict[str, Setting] = {"optim.lr": lr, "optim.name": name, "train.batch_size": batch}
    if name == "sgd":
        settings["optim.momentum"] = chance.uniform(0.5, 0.99)
    off = math.log10(lr) - (-2.6 if name == "adamw" else -1.6)
    height = 0.43 - 0.035 * off**2 - 0.00008 * abs(batch - 64) + chance.gauss(0, 0.004)
    curve = tuple((e, 0.5 + height * (1 - math.exp(-e / 2.2)) + chance.gauss(0, 0.004)) for e in range(1, 11))
    if last:
        return trial(number, settings, state="running", curve=curve[:4], epochs=4, seconds=130.0)
    if batch == 256 and number % 3 == 0:
        reason = "CUDA out of memory with batches of 256"
        return trial(number, settings, state="out of memory", epochs=0, seconds=9.0, reason=reason)
    if lr > 0.06:
        reason = "the loss was not finite at step 412 of epoch 2, on rank 0"
        return trial(number, settings, state="failed", curve=curve[:1], epochs=1, seconds=40.0, reason=reason)
    if height < 0.37 and len(objectives) == 1:
        end, value = curve[2 + number % 3]
        reason = f"at epoch {end}, {value:.3f} was below the median of the others"
        return trial(number, settings, state="pruned", curve=curve[:end], epochs=end, seconds=33.0 * end, reason=reason)
    found = {
        "val_roc_auc": curve[-1][1],
        "images_per_second": 900 * batch / (batch + 60) + chance.gauss(0, 8),
        "val_loss": 1 - curve[-1][1] + chance.gauss(0, 0.01),
    }
    values = [found[objective.score] for objective in objectives]
    return trial(number, settings, values, curve=curve, epochs=10, seconds=330.0 + chance.uniform(-20, 20))


def variants(folder: Path) -> StudyRecord:
    """Three variants by name with three seeds each, of which two lie within their spread."""
    names = ("trained from scratch", "ImageNet weights", "ImageNet weights, backbone frozen")
    parameter = Parameter("backbone", choices=names)
    found = ((0.8712, 0.0041), (0.9123, 0.0032), (0.9104, 0.0019))
    trials = [
        trial(
            number, {"backbone": name}, [value], [spread], curve=tuple((e, value - 0.2 / e**1.5) for e in range(1, 9)),
            epochs=24, seconds=1500.0 + 60 * number, runs=tuple(f"trial-{number:04d}-seed-{seed}" for seed in range(3)),
        )
        for number, (name, (value, spread)) in enumerate(zip(names, found, strict=True))
    ]  # fmt: skip
    return study(trials, (parameter,), (AUC,), folder, planned=3, name="backbone")
