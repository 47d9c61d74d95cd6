"""The page of a study: what it has found, as one HTML file that needs nothing else and links to its runs."""

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard, get_args
from urllib.parse import quote

from distrib.base.words import DASH, MINUS, duration, plural, words
from distrib.reporting.page import compose, render, score_name, write_page
from distrib.studies.record import Objective, Parameter, Setting, State, StudyRecord, TrialRecord

# The front is that of several objectives; the last section alone needs no trial.
SECTIONS = (
    ("front", "The trade-off"),
    ("best", "The best trials"),
    ("history", "How the search went"),
    ("curves", "How they learnt"),
    ("importance", "What matters"),
    ("slices", "One setting at a time"),
    ("together", "All settings together"),
    ("every", "Every trial"),
    ("space", "What is searched"),
)
STATES: tuple[State, ...] = get_args(State)
# Trials in the table of the best where there is one objective, and settings in the headline.
BEST, TOLD = 10, 3
# Letters of a setting that a cell has room for.
LONGEST = 120
# What is in metrics.csv beside the scores, and in which unit.
MEASURES = {"images_per_second": ("speed", "images a second"), "seconds": ("time", "seconds")}
LINES = {"train_": "training ", "val_": "validation "}


@dataclass(frozen=True)
class Goal:
    """An objective as the page tells it.

    Attributes:
        place: among the objectives.
        objective: of the study.
        digits: decimals of its values.
    """

    place: int
    objective: Objective
    digits: int

    @property
    def name(self) -> str:
        """What a sentence calls it."""
        score = self.objective.score
        for prefix, line in LINES.items():
            if score.startswith(prefix):
                called = score_name(score.removeprefix(prefix))
                return line + (called.lower() if called[1:2].islower() else called)
        return MEASURES[score][0] if score in MEASURES else words(score)

    @property
    def unit(self) -> str:
        """Of its values; scores have none."""
        return MEASURES[self.objective.score][1] if self.objective.score in MEASURES else ""

    @property
    def title(self) -> str:
        """What a heading calls it."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def better(self) -> str:
        """What a better value is."""
        return "higher" if self.objective.direction == "maximize" else "lower"

    @property
    def most(self) -> str:
        """What the best value is."""
        return "highest" if self.objective.direction == "maximize" else "lowest"

    def value(self, trial: TrialRecord) -> float | None:
        """Of a trial; None where there is none."""
        return _number(trial.values, self.place)

    def spread(self, trial: TrialRecord) -> float | None:
        """Over the seeds of a trial; None where it is not known."""
        return _number(trial.spread, self.place)

    def rank(self, trial: TrialRecord) -> float:
        """What trials are sorted by: the best one comes first, and those without a value last."""
        return self.objective.rank(self.value(trial))

    def text(self, value: float | None) -> str:
        """A value with its decimals, a dash for what is none."""
        return DASH if value is None else f"{value:,.{self.digits}f}".replace("-", MINUS)

    def told(self, trial: TrialRecord) -> str:
        """The value of a trial with its unit, and with the standard deviation over its seeds where it has several."""
        spread = self.spread(trial)
        return self.measured(self.text(self.value(trial)) + ("" if spread is None else f" ± {self.text(spread)}"))

    def measured(self, text: str) -> str:
        """A value with its unit."""
        return f"{text} {self.unit}".rstrip()


@dataclass(frozen=True)
class Axis:
    """A parameter as the page shows it.

    Attributes:
        parameter: of the study.
        label: its name, as short as it can be among the others.
        choices: its values in the study's order, and then those that trials have beside them; None: a range.
        low: where the range begins, in the study or in a trial.
        high: where it ends.
    """

    parameter: Parameter
    label: str
    choices: tuple[Setting, ...] | None
    low: float | None
    high: float | None

    @property
    def numeric(self) -> bool:
        """Whether all its values are numbers."""
        return self.choices is None or all(_numeric(choice) for choice in self.choices)

    @property
    def searched(self) -> str:
        """The values it may have."""
        if self.choices is not None:
            return ", ".join(self.text(choice) for choice in self.choices)
        return f"{self.text(self.low)} to {self.text(self.high)}"

    @property
    def log(self) -> bool:
        """Whether it is drawn on a logarithmic scale."""
        return self.parameter.log and self.low is not None and self.low > 0

    def has(self, trial: TrialRecord) -> bool:
        """Whether a trial has it; some exist only where another one has certain values."""
        return self.parameter.name in trial.settings

    def place(self, trial: TrialRecord) -> float | None:
        """Where a trial stands on it: a number of the range, or the index of a choice; None where it has none."""
        if not self.has(trial):
            return None
        value = trial.settings[self.parameter.name]
        if self.choices is not None:
            return next((i for i, choice in enumerate(self.choices) if _same(choice, value)), None)
        return value if _numeric(value) else None

    def text(self, value: Setting) -> str:
        """A value of it."""
        return setting_text(value, 3 if self.choices is None else 6)

    def told(self, trial: TrialRecord) -> str:
        """The value of a trial, a dash where it has none."""
        return self.text(trial.settings[self.parameter.name]) if self.has(trial) else DASH


@dataclass(frozen=True)
class Leader:
    """The best trial by one objective.

    Attributes:
        goal: the objective.
        trial: the best one.
        others: the other finished trials that have a value of it, the best first.
    """

    goal: Goal
    trial: TrialRecord
    others: tuple[TrialRecord, ...]

    @property
    def value(self) -> str:
        """Its value."""
        return self.goal.text(self.goal.value(self.trial))

    @property
    def level(self) -> list[int]:
        """The trials whose values are the same as far as the page tells them, itself among them."""
        equal = [each for each in self.others if self.goal.text(self.goal.value(each)) == self.value]
        return sorted(each.number for each in (self.trial, *equal))

    @property
    def ranked(self) -> tuple[TrialRecord, ...]:
        """All finished trials that have a value of it, the best first."""
        return (self.trial, *self.others)

    @property
    def strip(self) -> list[float]:
        """Where the values of all stand between the smallest and the largest one, from 0 to 1."""
        reach = self.behind(self.ranked[-1]) or 1.0
        shares = [self.behind(each) / reach for each in self.ranked]
        return shares if self.goal.better == "lower" else [1 - share for share in shares]

    def behind(self, trial: TrialRecord) -> float:
        """How far another one is behind."""
        return self.goal.rank(trial) - self.goal.rank(self.trial)


def render_study(record: StudyRecord, file: Path) -> Path:
    """Write the page of a study.

    Args:
        record: what it has found so far.
        file: to write; its folder is made.

    Returns:
        The page.

    Raises:
        UserError: if the page cannot be written.
    """
    goals = [_goal(record.trials, place, objective) for place, objective in enumerate(record.objectives)]
    labels = _labels([parameter.name for parameter in record.parameters])
    axes = [_axis(record.trials, parameter, labels[parameter.name]) for parameter in record.parameters]
    leaders = [leader for leader in (_leader(record, goal) for goal in goals) if leader is not None]
    scales: list[Axis | Goal] = [*axes, *goals]
    several = len(goals) > 1
    front = sorted((trial for trial in record.trials if trial.number in record.front), key=goals[0].rank)
    best = front if several else [trial for leader in leaders for trial in leader.ranked[:BEST]]
    context = {
        "title": record.name,
        "record": record,
        "headline": _headline(record, goals, axes, leaders, front),
        "notes": [doubt for doubt in map(_doubt, leaders) if doubt],
        "goals": goals,
        "axes": axes,
        "labels": labels,
        "fields": [_field(record.trials, each) for each in scales],
        "leaders": leaders,
        "best": best,
        "counts": {state: len(record.of_state(state)) for state in STATES},
        "to_come": max(0, (record.planned or 0) - len(record.trials)),
        "seeds": any(goal.spread(trial) is not None for goal in goals for trial in record.trials),
        "runs": lambda trial: [_run(record.folder / name, name, file) for name in trial.runs],
        "duration": duration,
        "median": median,
    }
    sections = [section for section in SECTIONS if record.trials or section[0] == "space"]
    parts = [
        {"id": name, "title": title, "html": render(f"study/{name}.html.j2", context)}
        for name, title in sections
        if several or name != "front"
    ]
    numbers = _numbers(record, goals, axes, front if several else best[:1])
    page = compose("study.html.j2", "study.js", numbers, {**context, "parts": parts})
    with suppress(OSError):  # which is said when the page is written
        file.parent.mkdir(parents=True, exist_ok=True)
    write_page(file, page)
    return file


def setting_text(value: Setting, digits: int) -> str:
    """A setting as people write it, no longer than a cell has room for.

    Args:
        value: of the setting.
        digits: that a number with decimals has at most.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value).replace("-", MINUS)
    if isinstance(value, float):
        if not math.isfinite(value):
            return DASH
        # 1e-05 is 1e-5.
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.{digits}g}").replace("-", MINUS)
    return (value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…") or '""'


def _goal(trials: Sequence[TrialRecord], place: int, objective: Objective) -> Goal:
    """An objective, with as many decimals as tell the better half of its values apart."""
    values = [value for value in (_number(trial.values, place) for trial in trials) if value is not None]
    values.sort(reverse=objective.direction == "maximize")
    half = values[: max(2, (len(values) + 1) // 2)] or [0.0]
    least = 3 if abs(half[0]) < 10 else 0
    apart = abs(half[0] - half[-1])
    return Goal(place, objective, max(least, min(6, 1 - math.floor(math.log10(apart)))) if apart else least)


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """For each key its last word, or the whole key where others end in the same; a name says whose it is."""
    ends = [" ".join(key.split(".")[-2 if key.endswith(".name") else -1 :]) for key in keys]
    return {key: words(end) if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def _axis(trials: Sequence[TrialRecord], parameter: Parameter, label: str) -> Axis:
    found = [trial.settings[parameter.name] for trial in trials if parameter.name in trial.settings]
    if parameter.choices is None:
        ends = [end for end in (parameter.low, parameter.high, *found) if _numeric(end)]
        return Axis(parameter, label, None, min(ends, default=0.0), max(ends, default=1.0))
    choices: list[Setting] = []
    for value in (*parameter.choices, *found):
        if not any(_same(value, choice) for choice in choices):
            choices.append(value)
    return Axis(parameter, label, tuple(choices), None, None)


def _leader(record: StudyRecord, goal: Goal) -> Leader | None:
    """The best finished trial by an objective; None where none has a value."""
    scored = [trial for trial in record.of_state("finished") if goal.value(trial) is not None]
    scored.sort(key=goal.rank)
    return Leader(goal, scored[0], tuple(scored[1:])) if scored else None


def _field(trials: Sequence[TrialRecord], scale: Axis | Goal) -> dict[str, Any]:
    """The control that filters by a parameter or an objective: its label, its choices, and whether trials lack it."""
    if isinstance(scale, Goal):
        return {"label": scale.title, "choices": None, "lacking": any(scale.value(trial) is None for trial in trials)}
    choices = None if scale.choices is None else [scale.text(choice) for choice in scale.choices]
    return {"label": scale.label, "choices": choices, "lacking": any(scale.place(trial) is None for trial in trials)}


def _run(folder: Path, name: str, file: Path) -> dict[str, str | None]:
    """A run by its name, with links to its report and its folder as seen from the page, where there are such."""
    seen = quote(Path(os.path.relpath(folder, file.parent)).as_posix())
    report = f"{seen}/report/index.html" if (folder / "report" / "index.html").is_file() else None
    return {"name": name, "report": report, "folder": f"{seen}/" if folder.is_dir() else None}


def _headline(
    record: StudyRecord,
    goals: Sequence[Goal],
    axes: Sequence[Axis],
    leaders: Sequence[Leader],
    front: Sequence[TrialRecord],
) -> str:
    """What has been found, as a sentence."""
    count, finished = len(record.trials), len(record.of_state("finished"))
    if not count:
        return "No trial has begun yet"
    if not finished:
        yet = " yet" if record.of_state("running") else ""
        return f"The one trial has not finished{yet}" if count == 1 else f"None of the {count} trials has finished{yet}"
    if len(goals) > 1 and finished > 1:
        names = _listed([goal.name for goal in goals])
        if not front:
            return f"No finished trial has a value of each of {names}"
        if len(front) == 1:
            return f"Trial {front[0].number} is the best of {plural(finished, 'finished trial')} in {names} alike"
        return f"{len(front)} of {finished} finished trials are on the Pareto front of {names}"
    if not leaders:
        return f"No finished trial has a value of {goals[0].name}"
    if len(goals) > 1:
        return f"Trial {leaders[0].trial.number} is the only one that has finished"
    return _best_told(record, axes, leaders[0], finished)


def _best_told(record: StudyRecord, axes: Sequence[Axis], leader: Leader, finished: int) -> str:
    """The best trial by the only objective, with the settings that matter most."""
    goal, trial, level = leader.goal, leader.trial, leader.level
    seeds = goal.spread(trial) is not None
    name = f"mean {goal.name}" if seeds else goal.name
    if len(level) > 1:
        who = f"Trials {_listed([str(number) for number in level])}" if len(level) < 4 else f"{len(level)} trials"
        return f"{who} are level at the {goal.most} {name}: {goal.measured(leader.value)}"
    found = "is the only one that has finished:" if finished == 1 else f"has the {goal.most}"
    shares = record.importance[0] if record.importance else {}
    having = [axis for axis in axes if axis.has(trial)]
    main = sorted(having, key=lambda axis: -shares.get(axis.parameter.name, 0.0))[:TOLD]
    settings = _listed([f"{axis.label} {axis.told(trial)}" for axis in having if axis in main])
    told = [f"Trial {trial.number} {found} {name}{'' if finished == 1 else ':'} {goal.told(trial)}"]
    told += [" over its seeds,"] * seeds + [f" with {settings}"] * bool(settings)
    return "".join(told).removesuffix(",")


def _doubt(leader: Leader) -> str:
    """Why a lead may be chance; empty where the seeds give no reason to think so."""
    goal, trial = leader.goal, leader.trial
    spreads = [goal.spread(each) for each in (trial, *leader.others[:1])]
    spread = max((each for each in spreads if each is not None), default=0.0)
    within = [each for each in leader.others if leader.behind(each) < spread]
    if not within:
        return ""
    lead = goal.measured(goal.text(leader.behind(within[0])))
    near = "" if len(within) == 1 else f"; {len(within) - 1} more {'is' if len(within) == 2 else 'are'} as near"
    return (
        f"Trial {trial.number} leads trial {within[0].number} in {goal.name} by {lead}, which is less than the "
        f"standard deviation over the seeds of one trial, {goal.text(spread)}{near}. More seeds may turn the order "
        "around."
    )


def _numbers(
    record: StudyRecord, goals: Sequence[Goal], axes: Sequence[Axis], marked: Sequence[TrialRecord]
) -> dict[str, Any]:
    """What the script draws; marked are the front, or the best trial."""
    return {
        "step": "rung" if record.rungs > 1 else "epoch",
        "goals": [
            {"name": " in ".join(filter(None, (goal.name, goal.unit))), "title": goal.title, "better": goal.better}
            for goal in goals
        ],
        "axes": [
            {
                "label": axis.label,
                "log": axis.log,
                "low": axis.low,
                "high": axis.high,
                "choices": None if axis.choices is None else [axis.text(choice) for choice in axis.choices],
            }
            for axis in axes
        ],
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "values": [goal.value(trial) for goal in goals],
                "spread": [goal.spread(trial) for goal in goals],
                "curve": trial.curve,
                "places": [axis.place(trial) for axis in axes],
                "told": _told(trial, goals, axes),
            }
            for trial in record.trials
        ],
        "marked": [trial.number for trial in marked],
    }


def _told(trial: TrialRecord, goals: Sequence[Goal], axes: Sequence[Axis]) -> str:
    """All that is known of a trial, as a sentence."""
    told = [
        ", ".join(f"{goal.name} {goal.told(trial)}" for goal in goals if goal.value(trial) is not None),
        ", ".join(f"{axis.label} {axis.told(trial)}" for axis in axes if axis.has(trial)),
        f"{plural(trial.epochs, 'epoch')}, {duration(trial.seconds)}",
        trial.reason,
    ]
    return f"Trial {trial.number}, {trial.state}: {'; '.join(filter(None, told))}"


def _number(values: Sequence[float] | None, place: int) -> float | None:
    """One of several values; None where it is not known."""
    return values[place] if values is not None and math.isfinite(values[place]) else None


def _numeric(value: Setting) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _same(value: Setting, other: Setting) -> bool:
    """Whether two settings are the same; true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
