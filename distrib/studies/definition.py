"""A study as its YAML file says: what is varied over which configuration, how it is searched, and what counts.

    base: configs/arched_eyebrows.yaml     # the configuration beneath; relative to this file
    set: {train.epochs: 10}                # changed in all trials
    space:
      train.batch_size: [16, 32, 64]                                  # one of these
      optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}                # a range
      optim.momentum: {low: 0.5, high: 0.99, when: {optim.name: sgd}} # only where another setting is so
      backbone:                                                       # several settings under one name
        variants:
          trained: {}
          frozen: {model.weights: imagenet, model.freeze: backbone}
    sampler: tpe                           # or {name: tpe, multivariate: true}
    pruner: median
    objective: val_roc_auc                 # or several: [val_roc_auc, {score: seconds, direction: minimize}]
    seeds: [0, 1, 2]
    budget: {trials: 30, hours: 8}

A point of the space is a mapping from the names in `space` to values; the configuration of a trial is `base`, over it
`set`, over it the point, over it a rung of `fidelity`.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import pydantic
import yaml
from pydantic import Field

from distrib.base.errors import UserError
from distrib.base.paths import ConfigPath, ConfigPathText
from distrib.base.words import nearest
from distrib.config import Config, read_yaml
from distrib.config.section import Section, Words
from distrib.config.yaml_files import read_settings
from distrib.runs.metrics import METRICS
from distrib.studies.methods import PRUNERS, SAMPLERS, Method
from distrib.studies.record import Direction, Objective, Parameter, Setting
from distrib.studies.scale import Scale
from distrib.studies.space import (
    MAX_POINTS,
    Dimension,
    Point,
    changed,
    check_key,
    describe_point,
    grid_points,
    keys_of,
    make_dimensions,
    settled_keys,
    settled_space,
    with_changes,
)

if TYPE_CHECKING:
    from optuna.trial import Trial

# Bytes of a study's name, to which its runs add their numbers.
MAX_STEM = 160
# Columns of metrics.csv that are no result.
NO_OBJECTIVE = ("epoch", "step", "lr")


class ObjectiveConfig(Section):
    """A score to make as large, or as small, as can be."""

    section: ClassVar[str] = "objective"

    score: str
    """A column of metrics.csv, at the epoch that a run keeps in best/."""
    direction: Direction | None = None
    """None: minimize losses and seconds, maximize all else."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _score_alone(cls, value: Any) -> Any:
        return {"score": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        logged = [column for column in METRICS if column not in NO_OBJECTIVE]
        if self.score not in logged:
            meant = {**{column.removeprefix("val_"): column for column in logged}, **{each: each for each in logged}}
            raise UserError(
                f"objective {self.score} is not logged{nearest(self.score, meant)}: choose one of {', '.join(logged)}"
            )
        return self

    def resolved(self) -> Objective:
        """The objective with its direction."""
        smaller = self.score.endswith("loss") or self.score == "seconds"
        return Objective(self.score, self.direction or ("minimize" if smaller else "maximize"))


class Budget(Section):
    """When no new trial begins any more; what is running then is finished."""

    section: ClassVar[str] = "budget"

    trials: int | None = Field(None, ge=1, le=100_000)
    """Trials in all, whatever came of them; None: a grid's points, or as many as there is time for."""
    hours: float | None = Field(None, gt=0)
    """Hours since the first trial began; None: no limit."""


class StudyFile(Section):
    """The fields of a study's YAML file."""

    base: ConfigPath | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any]
    sampler: Method = Method(name="tpe")
    pruner: Annotated[Method, Words(tuple(PRUNERS))] = Method(name="none")
    objective: tuple[ObjectiveConfig, ...] = (ObjectiveConfig(score="val_roc_auc"),)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] | None = None
    budget: Budget = Budget()
    fidelity: tuple[dict[str, Any], ...] = ()
    warm_start: bool = True
    storage: Annotated[ConfigPathText, Words(("journal", "sqlite"))] = "journal"
    launch: ConfigPath | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    hint = nearest(str(key), list(cls.model_fields))
                    raise UserError(f"{key} is not a key of a study{hint}: the keys are {', '.join(cls.model_fields)}")
        return values

    @pydantic.field_validator("set", "space", "fidelity", mode="before")
    @classmethod
    def _settle(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Let the words of YAML that stand for true and false be what the keys of the configuration take."""
        if info.field_name == "fidelity":
            return [settled_keys(rung) for rung in value] if isinstance(value, list) else value
        return settled_space(value) if info.field_name == "space" else settled_keys(value)

    @pydantic.field_validator("objective", mode="before")
    @classmethod
    def _one_objective(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        return list(range(value)) if type(value) is int and 0 < value <= 1000 else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        for kind, method, names in (("sampler", self.sampler, list(SAMPLERS)), ("pruner", self.pruner, list(PRUNERS))):
            if method.name not in names:
                raise UserError(
                    f"{kind} {method.name} is not known{nearest(method.name, names)}: choose one of {', '.join(names)}"
                )
        if not self.space:
            raise UserError("space is empty: name at least one setting to vary")
        for name, several in (("objective", [each.score for each in self.objective]), ("seeds", self.seeds or [0])):
            if len(set(several)) < len(several) or not several:
                raise UserError(f"{name} is {several}: name at least one, and each once")
        if len(self.objective) > 1 and self.pruner.name != "none":
            raise UserError("pruner goes by one objective, and this study has several: say pruner: none")
        if len(self.fidelity) == 1:
            raise UserError("fidelity has one rung: name at least two, from the cheapest to the whole training")
        if self.fidelity and self.pruner.name == "none":
            raise UserError("fidelity needs a pruner that says which trials continue, such as pruner: halving")
        if self.sampler.name != "grid" and self.budget.trials is None and self.budget.hours is None:
            raise UserError(
                f"budget has no limit, and sampler {self.sampler.name} never ends by itself: say budget: {{trials: 30}}"
            )
        if self.storage not in ("journal", "sqlite") and "://" not in self.storage:
            raise UserError(
                f"storage {self.storage} is not known: say journal, sqlite, or a URL such as postgresql://user@host/name"
            )
        if _has_password(self.storage):
            raise UserError(
                "storage has a password in its URL, which would be written into files: put it into PGPASSWORD or "
                "~/.pgpass, and say postgresql://user@host/name"
            )
        return self


def _has_password(storage: str) -> bool:
    """Whether a storage's URL says a password; one that is no URL is refused when it is opened."""
    if "://" not in storage:
        return False
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):
        return "password" in storage.lower()
    return url.password is not None or any("password" in key.lower() for key in url.query)


@dataclass(frozen=True)
class Study:
    """A study that has been checked.

    Attributes:
        name: the stem of its file.
        fields: of the file.
        base: the configuration of all trials, before the space is put over it.
        dimensions: of the space, each after those it depends on.
        objectives: the first one is what pruning goes by.
        scale: makes each configuration smaller; None: they are as they are.
        data: digest of what the base configuration trains on; None: it has not been read.
        precision: of all trials, chosen where the base configuration leaves it open; None: not chosen.
    """

    name: str
    fields: StudyFile
    base: Config
    dimensions: tuple[Dimension, ...]
    objectives: tuple[Objective, ...]
    scale: Scale | None = None
    data: str | None = None
    precision: str | None = None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(dimension.parameter() for dimension in self.dimensions)

    @property
    def varied(self) -> set[str]:
        """The keys of the configuration in which trials differ from the base, or rungs do."""
        return {key for each in self.dimensions for key in keys_of(each)} | {key for rung in self.rungs for key in rung}

    @property
    def rungs(self) -> tuple[Mapping[str, Any], ...]:
        """What each rung of a trial sets, the whole training last; one of nothing where there is no fidelity."""
        return self.fields.fidelity or ({},)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Of the runs of each trial; None: the base configuration's own, or the space's."""
        return self.fields.seeds or (None,)

    @property
    def is_grid(self) -> bool:
        """Whether its trials are all points of the space."""
        return self.fields.sampler.name == "grid"

    @property
    def planned(self) -> int | None:
        """How many trials there will be; None: as many as there is time for."""
        if not self.is_grid:
            return self.fields.budget.trials
        return min(len(self.points()), self.fields.budget.trials or MAX_POINTS)

    def points(self) -> list[Point]:
        """The points of the grid, the last name in `space` moving fastest.

        Raises:
            UserError: if a range has no steps, or there are too many points.
        """
        for dimension in self.dimensions:
            if not dimension.grid:
                raise UserError(
                    f"space.{dimension.name} is a range without steps, and sampler grid needs values: give it a step, "
                    "list its values, or choose another sampler"
                )
        found = list(itertools.islice(grid_points(self.dimensions, {}), MAX_POINTS + 1))
        if len(found) > MAX_POINTS:
            raise UserError(f"space has more than {MAX_POINTS} points for sampler grid: choose random or tpe")
        return found

    def suggest(self, trial: "Trial") -> Point:
        """The point of a trial; the same one again where it has been asked for before."""
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.exists(point):
                point[dimension.name] = dimension.suggest(trial)
        return point

    def config(self, point: Mapping[str, Setting], rung: Mapping[str, Any], seed: int | None) -> Config:
        """The configuration of one run, without its folder.

        Raises:
            UserError: if its values do not fit each other.
        """
        changes: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.name in point:
                changes.update(dimension.changes(point[dimension.name]))
        changes.update(rung)
        if seed is not None:
            changes["train.seed"] = seed
        if self.precision is not None:
            changes["train.precision"] = self.precision
        changes["tracking.group"] = self.name
        config = changed(self.base, changes)
        return config if self.scale is None else self.scale(config)


def read_study(file: Path, options: Mapping[str, Any] | None = None) -> Study:
    """A study from its file, checked as far as that can be done before the first trial.

    Args:
        file: its YAML.
        options: of the command line, key -> value; they win over the study's `base` and `set`.

    Raises:
        UserError: if the file is no study, names what the configuration does not have, a value is out of type, an
            objective is not logged, or a point of a grid is no valid configuration.
    """
    if not re.fullmatch(r"[\w.-]+", file.stem):
        raise UserError(
            f"{file} names its study {file.stem}, which becomes a part of folder names: rename the file with letters, "
            "digits, dots, dashes and underscores"
        )
    if len(file.stem.encode()) > MAX_STEM:
        raise UserError(
            f"{file} has a name too long to be a part of folder names: at most {MAX_STEM} bytes are allowed"
        )
    try:
        fields = StudyFile.model_validate(read_settings(file, "", "keys such as space: and objective:"))
        base = Config() if fields.base is None else read_yaml(file.parent / fields.base)
        if fields.launch is not None:
            launch = file.parent / fields.launch
            if not launch.is_file():
                raise UserError(f"launch {launch} is not a file: name a configuration of accelerate's")
            fields = fields.model_copy(update={"launch": launch.resolve()})
        return make_study(file.stem, fields, base, options or {})
    except UserError as error:
        sentence = str(error)
        raise UserError(sentence if str(file) in sentence else f"{file}: {sentence}") from None


def make_study(name: str, fields: StudyFile, base: Config, options: Mapping[str, Any]) -> Study:
    """A study of its parts, checked; as `read_study`."""
    with_changes(base, "set", fields.set)
    base = changed(base, fields.set)
    scores = [each.resolved() for each in fields.objective]
    chosen = scores[0].score
    if chosen.startswith("val_") and "checkpoint.best_score" not in fields.set:
        # The epoch that a trial keeps is the best one by what the study is about.
        base = changed(base, {"checkpoint.best_score": chosen.removeprefix("val_")})
    dimensions = make_dimensions(fields.space, base)
    varied = {key for each in dimensions for key in keys_of(each)}
    for rung in fields.fidelity:
        with_changes(base, "fidelity", rung)
    places = {"fidelity": {key for rung in fields.fidelity for key in rung}, "the command line": set(options)}
    for place, named in places.items():
        if clash := sorted(named & varied):
            raise UserError(f"{clash[0]} is varied by space, and {place} sets it too: leave one of the two out")
    for key in options:
        check_key(key, "the command line")
    base = changed(base, options)
    if fields.seeds is not None and "train.seed" in varied:
        raise UserError("seeds and space both vary train.seed: leave one of the two out")
    study = Study(name, fields, base, dimensions, tuple(scores))
    if study.is_grid:
        for point in study.points():
            for each in study.rungs:
                try:
                    study.config(point, each, None)
                except UserError as error:
                    raise UserError(f"space has a point that is refused, {describe_point(point)}: {error}") from None
    return study


def to_yaml(study: Study) -> str:
    """The study and its base configuration as one YAML text."""
    fields = study.fields.model_dump(mode="json", exclude={"base", "set"})
    scale = {} if study.scale is None else {"scale": study.scale.share}
    data = {} if study.data is None else {"data": study.data}
    return yaml.safe_dump({**fields, **scale, **data, "config": study.base.model_dump(mode="json")}, sort_keys=False)
