"""Reading what a study has found so far, from Optuna and from the folders of its runs."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from distrib.base.errors import UserError
from distrib.config import read_yaml
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import read_metrics
from distrib.studies.definition import Study
from distrib.studies.methods import rung_step
from distrib.studies.record import Objective, State, StudyRecord, TrialRecord

MetricRows = list[dict[str, float]]
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}
# What a trial keeps of the failed one whose settings it tries again: its number.
RETRY_OF = "retry_of"
# Below so many finished trials nothing can be said about which settings matter.
ENOUGH_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class RunResult:
    """What a run that has ended came to.

    Attributes:
        values: of the objectives, at the epoch kept in best/.
        epochs: trained.
        seconds: they took, evaluations included.
        images: trained on, over all epochs.
        pruned: whether it was given up.
    """

    values: tuple[float, ...]
    epochs: int
    seconds: float
    images: int
    pruned: bool


def read_result(folder: Path, objectives: Sequence[Objective]) -> RunResult | None:
    """What a run came to; None where it has not ended.

    Raises:
        UserError: if its files cannot be read.
    """
    ends = RunFolder(folder).events("end")
    if not ends:
        return None
    rows = read_rows(folder)
    try:
        kept = next(row for row in rows if row["epoch"] == ends[-1]["best_epoch"])
        values = tuple(kept[objective.score] for objective in objectives)
        seconds = sum(row["seconds"] for row in rows)
    except (KeyError, StopIteration) as error:
        raise UserError(f"{folder} is not a complete run ({type(error).__name__}: {error}): remove it") from None
    images = round(rows[-1]["step"]) * read_yaml(folder / "config.yaml").train.batch_size
    return RunResult(values, len(rows), seconds, images, bool(ends[-1].get("pruned")))


def read_rows(run: Path) -> MetricRows:
    """The rows of a run's metrics.csv, an epoch each.

    Raises:
        UserError: if the file cannot be read.
    """
    columns, rows = read_metrics(run)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def mean(results: Sequence[RunResult]) -> tuple[float, ...]:
    """The mean of each objective over the runs."""
    return tuple(statistics.fmean(values) for values in zip(*(each.values for each in results), strict=True))


def spread(results: Sequence[RunResult]) -> tuple[float, ...]:
    """The sample standard deviation of each objective over the runs; NaN for one run."""
    if len(results) < 2:
        return tuple(math.nan for _ in results[0].values)
    return tuple(statistics.stdev(values) for values in zip(*(each.values for each in results), strict=True))


def read_record(study: Study, found: optuna.Study, folder: Path, importance: bool = True) -> StudyRecord:
    """The study as it stands.

    Args:
        study: its definition.
        found: its trials.
        folder: of the study.
        importance: whether to find out which settings matter, which takes a while for hundreds of trials.
    """
    trials = [trial for trial in found.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    again = {trial.user_attrs[RETRY_OF]: trial.number for trial in trials if RETRY_OF in trial.user_attrs}
    ranked = sorted(finished, key=lambda trial: study.objectives[0].rank(trial.values[0]))
    best = found.best_trials if len(study.objectives) > 1 else ranked[:1]
    return StudyRecord(
        name=study.name,
        folder=folder,
        objectives=study.objectives,
        parameters=study.parameters,
        trials=tuple(_trial(trial, study, again.get(trial.number)) for trial in trials),
        planned=None if study.planned is None else study.planned + len(again),
        importance=tuple(
            _importance(found, i, len(finished)) if importance else {} for i in range(len(study.objectives))
        ),
        front=tuple(trial.number for trial in best),
        seeds=len(study.seeds),
        rungs=len(study.rungs),
    )


def has_no_memory(trial: FrozenTrial) -> bool:
    """Whether a trial ran out of memory, for which Optuna has no word: the sampler may learn of it as a pruned one."""
    ended = trial.state in (TrialState.PRUNED, TrialState.FAIL)
    return ended and trial.user_attrs.get("outcome") == "out of memory"


def _trial(trial: FrozenTrial, study: Study, again: int | None) -> TrialRecord:
    kept: Mapping[str, Any] = trial.user_attrs
    state = STATES[trial.state]
    rungs = {rung_step(study.fields.pruner, rung): rung for rung in range(len(study.rungs))}
    curve = sorted(trial.intermediate_values.items())
    reason = kept.get("reason", "")
    return TrialRecord(
        number=trial.number,
        state="out of memory" if has_no_memory(trial) else state,
        settings=dict(trial.params),
        values=tuple(trial.values) if state == "finished" else None,
        spread=tuple(json.loads(kept["spread"])) if "spread" in kept else None,
        curve=tuple((rungs[step], value) for step, value in curve) if len(rungs) > 1 else tuple(curve),
        epochs=int(kept.get("epochs", 0)),
        seconds=float(kept.get("seconds", 0)),
        runs=tuple(kept.get("runs", ())),
        reason=reason if again is None else f"{reason} (tried again as trial {again})",
    )


def _importance(found: optuna.Study, objective: int, finished: int) -> dict[str, float]:
    """The share of each parameter in the variance of an objective, by fANOVA (Hutter et al., 2014)."""
    if finished < ENOUGH_FOR_IMPORTANCE:
        return {}
    try:
        return optuna.importance.get_param_importances(
            found, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[objective]
        )
    except Exception:  # all values are the same, or no setting is in all trials: each has an error of its own
        return {}
