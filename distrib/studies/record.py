"""What a study has found so far, as plain values: for study.csv, the page and the terminal.

study.csv      a trial a row: its state, objectives, settings, cost and runs
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["finished", "pruned", "out of memory", "failed", "running"]
Direction = Literal["minimize", "maximize"]
# A setting as a study writes it: a number, text, a switch or nothing; a list of values stands there as JSON text.
Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Objective:
    """What a study makes as large or as small as it can.

    Attributes:
        score: a column of metrics.csv.
        direction: minimize or maximize.
    """

    score: str
    direction: Direction

    def rank(self, value: float | None) -> float:
        """What values are sorted by: the best one comes first, and none, or no number, last."""
        if value is None or math.isnan(value):
            return math.inf
        return -value if self.direction == "maximize" else value


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched over.

    Attributes:
        name: a key of the configuration, or the name of a group of variants.
        choices: its values in the study's order; None: a range.
        low: of a range.
        high: of a range.
        log: whether a range is searched on a logarithmic scale.
    """

    name: str
    choices: tuple[Setting, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False


@dataclass(frozen=True)
class TrialRecord:
    """A point of the space, and what came of it.

    Attributes:
        number: counted from 0.
        state: finished; pruned: stopped because others were better; out of memory; failed; running.
        settings: parameter -> value; without those that this point does not have (they depend on others).
        values: an objective each, the mean over the seeds; None where there is none.
        spread: an objective each, the standard deviation over the seeds; NaN for one seed; None where there is none.
        curve: (epoch, or rung counted from 0 where the study has a fidelity; first objective), as pruning saw it.
        epochs: trained in all, over all of its runs.
        seconds: of its runs together, from launch to end.
        runs: folders of its runs, relative to the study's.
        reason: why it was pruned or failed, and which trial has tried it again; empty where it was not.
    """

    number: int
    state: State
    settings: dict[str, Setting]
    values: tuple[float, ...] | None
    spread: tuple[float, ...] | None
    curve: tuple[tuple[int, float], ...]
    epochs: int
    seconds: float
    runs: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands.

    Attributes:
        name: of the study.
        folder: of the study.
        objectives: one, or several for a Pareto front.
        parameters: that are searched over.
        trials: by their numbers.
        planned: trials of the budget, and those that are tried again; None: as many as there is time for.
        importance: for each objective, parameter -> its share in the variance of the objective, the largest first;
            empty where there are too few finished trials to tell.
        front: numbers of the finished trials that no other is better than in every objective; with one objective, the
            best alone.
        seeds: runs of a trial whose mean counts.
        rungs: trainings of rising cost that a trial may have; 1: there is no fidelity.
    """

    name: str
    folder: Path
    objectives: tuple[Objective, ...]
    parameters: tuple[Parameter, ...]
    trials: tuple[TrialRecord, ...]
    planned: int | None
    importance: tuple[dict[str, float], ...]
    front: tuple[int, ...]
    seeds: int = 1
    rungs: int = 1

    def of_state(self, state: State) -> list[TrialRecord]:
        """The trials in a state."""
        return [trial for trial in self.trials if trial.state == state]


def study_csv(record: StudyRecord) -> str:
    """The text of study.csv, one trial a row, with the file's header."""
    scores = [objective.score for objective in record.objectives]
    names = [parameter.name for parameter in record.parameters]
    header = ["trial", "state", *scores, *(f"{score}_sd" for score in scores), *names, "epochs", "seconds", "runs",
              "reason"]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for trial in record.trials:
        writer.writerow(
            [
                trial.number,
                trial.state,
                *_cells(trial.values, len(scores)),
                *_cells(trial.spread, len(scores)),
                *(trial.settings.get(name, "") for name in names),
                trial.epochs,
                round(trial.seconds, 1),
                " ".join(trial.runs),
                trial.reason,
            ]
        )
    return text.getvalue()


def _cells(values: Sequence[float] | None, count: int) -> list[float | str]:
    """As many cells as there are objectives, empty ones where nothing is known."""
    return ["" if math.isnan(value) else value for value in values] if values is not None else [""] * count
