"""The space of a study: the names that are varied, the values they may have, and what these set in the configuration.

A point is a mapping from names to values. An entry of the space is a list of values, a range, or variants by name; any
of them may exist only `when` another name has certain values.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distrib.base.errors import UserError
from distrib.base.words import nearest
from distrib.config import Config
from distrib.config.section import Takes, keys, plain, settled
from distrib.studies.record import Parameter, Setting

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

# What an entry of the space must have, and what it may have beside that.
SHAPES: tuple[tuple[set[str], set[str]], ...] = (
    ({"choices"}, set()),
    ({"variants"}, set()),
    ({"low", "high"}, {"step", "log"}),
)

# A grid of more points than that was hardly meant.
MAX_POINTS = 10_000
# What the study itself decides for each of its runs.
OWN = {
    "run.folder": "each run of a study has its own",
    "run.resume": "each run of a study resumes where it stopped",
    "tracking.group": "it is the study's name",
}
Point = dict[str, Setting]


@dataclass(frozen=True)
class Dimension:
    """A name in `space` and the values it may have.

    Attributes:
        name: a key of the configuration, or of a group of variants.
        distribution: of its values, as Optuna has them: numbers and texts.
        settings: what each of its choices sets in the configuration; None: a range, whose value sets the key itself.
        when: other name -> the values of it with which this one exists.
        grid: its values in order, where a grid is made of it; empty: a range without steps.
    """

    name: str
    distribution: "BaseDistribution"
    settings: Mapping[Setting, Mapping[str, Any]] | None
    when: Mapping[str, tuple[Setting, ...]]
    grid: tuple[Setting, ...]

    def exists(self, point: Mapping[str, Setting]) -> bool:
        """Whether a point with these values of the names before has this one."""
        return all(name in point and point[name] in values for name, values in self.when.items())

    def suggest(self, trial: "Trial") -> Setting:
        """The value that Optuna gives a trial."""
        from optuna.distributions import IntDistribution

        kind: Any = self.distribution
        if self.settings is not None:
            choice: Setting = trial.suggest_categorical(self.name, kind.choices)
            return choice
        if isinstance(kind, IntDistribution):
            return trial.suggest_int(self.name, kind.low, kind.high, step=kind.step, log=kind.log)
        return trial.suggest_float(self.name, kind.low, kind.high, step=kind.step, log=kind.log)

    def changes(self, value: Setting) -> Mapping[str, Any]:
        """What a value of it sets in the configuration: key -> value."""
        return {self.name: value} if self.settings is None else self.settings[value]

    def parameter(self) -> Parameter:
        """The same for people."""
        kind: Any = self.distribution
        if self.settings is not None:
            return Parameter(self.name, tuple(kind.choices))
        return Parameter(self.name, low=kind.low, high=kind.high, log=kind.log)


def settled_space(space: Any) -> Any:
    """A space as `read_settings` has read it, with the configuration's own words and values; what is none stays so."""
    if not isinstance(space, dict):
        return space
    return {str(name): _settled_entry(str(name), entry) for name, entry in space.items()}


def settled_keys(changes: Any) -> Any:
    """The same of changes to the configuration, key -> value."""
    if not isinstance(changes, dict):
        return changes
    return {str(key): settled(str(key), value) for key, value in changes.items()}


def _settled_entry(name: str, entry: Any) -> Any:
    if not isinstance(entry, dict):
        return settled(name, entry)
    found = {key: settled(name, value) if key == "choices" else value for key, value in entry.items()}
    found |= {key: _number(found[key]) for key in ("low", "high", "step") if isinstance(found.get(key), str)}
    if isinstance(found.get("variants"), dict):
        found["variants"] = {label: settled_keys(changes) for label, changes in found["variants"].items()}
    if isinstance(found.get("when"), dict):  # of other names, which may be those of variants
        found["when"] = {
            other: settled(other, value) if other in keys() else value for other, value in found["when"].items()
        }
    if "log" in found:
        found["log"] = plain(found["log"])
    return found


def _number(text: str) -> int | float | str:
    """The number that a text says, as 1e-3 is one in YAML; else the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def grid_points(dimensions: Sequence[Dimension], point: Point) -> Iterator[Point]:
    if not dimensions:
        yield point
        return
    first, *rest = dimensions
    if not first.exists(point):
        yield from grid_points(rest, point)
        return
    for value in first.grid:
        yield from grid_points(rest, {**point, first.name: value})


def keys_of(dimension: Dimension) -> set[str]:
    if dimension.settings is None:
        return {dimension.name}
    return {key for each in dimension.settings.values() for key in each}


def make_dimensions(space: Mapping[str, Any], base: Config) -> tuple[Dimension, ...]:
    """The space, ordered so that each name comes after those it depends on; else as in the file."""
    found: dict[str, Dimension] = {}
    waiting = dict(space)
    while waiting:
        ready = [name for name, entry in waiting.items() if not set(_conditions(entry)) & waiting.keys()]
        if not ready:
            raise UserError(f"space: the conditions (when) of {', '.join(waiting)} form a circle")
        for name in ready:
            found[name] = _dimension(name, waiting.pop(name), base, found)
    owners: dict[str, Dimension] = {}
    for each in found.values():
        for key in keys_of(each):
            other = owners.setdefault(key, each)
            if other is not each and not _apart(each, other):
                raise UserError(f"space varies {key} twice, by {other.name} and by {each.name}: leave one of them out")
    return tuple(found.values())


def _apart(one: Dimension, other: Dimension) -> bool:
    """Whether two dimensions are never in the same point: the same name decides on them, by other values."""
    return any(not set(values) & set(other.when[name]) for name, values in one.when.items() if name in other.when)


def _conditions(entry: Any) -> Mapping[str, Any]:
    found = entry.get("when", {}) if isinstance(entry, dict) else {}
    return found if isinstance(found, dict) else {}


def _dimension(name: str, entry: Any, base: Config, before: Mapping[str, Dimension]) -> Dimension:
    where = f"space.{name}"
    if isinstance(entry, list):
        entry = {"choices": entry}
    shape = next((each for each in SHAPES if isinstance(entry, dict) and entry.keys() & each[0]), None)
    if shape is None or not shape[0] <= entry.keys():
        raise UserError(
            f"{where} is {entry!r}: expected a list of values, {{low: …, high: …}}, or "
            "{variants: {name: {key: value}}}"
        )
    allowed = sorted(shape[0] | shape[1] | {"when"})
    for key in entry:
        if key not in allowed:
            raise UserError(f"{where} has {key}{nearest(str(key), allowed)}: expected {', '.join(allowed)}")
    when = _when(where, entry.get("when"), before)
    bases = _bases(base, when, before)
    if "variants" in entry:
        settings = _variants(name, entry["variants"], bases)
    else:
        check_key(name, "space")
        if "low" in entry:
            return _range(name, entry, bases, when)
        settings = _choices(name, entry["choices"], bases)
    from optuna.distributions import CategoricalDistribution

    labels = tuple(settings)
    return Dimension(name, CategoricalDistribution(labels), settings, when, labels)


def _bases(base: Config, when: Mapping[str, tuple[Setting, ...]], before: Mapping[str, Dimension]) -> list[Config]:
    """The base in each way in which conditions hold: some values are valid under them alone, as optim.nesterov is with
    sgd."""
    bases = [base]
    for name, values in when.items():
        condition = before[name]
        under = [each for base in bases for each in _bases(base, condition.when, before)]
        bases = [with_changes(each, "space", (condition.settings or {})[value]) for each in under for value in values]
    return bases


def _when(where: str, entry: Any, before: Mapping[str, Dimension]) -> dict[str, tuple[Setting, ...]]:
    if entry is None:
        return {}
    if not isinstance(entry, dict) or not entry:
        raise UserError(f"{where}.when is {entry!r}: expected the name of another setting in space, and its values")
    found = {}
    for name, values in entry.items():
        values = values if isinstance(values, list) else [values]
        if name not in before:
            raise UserError(f"{where}.when names {name}, which is not in space{nearest(str(name), list(before))}")
        choices = tuple(before[name].settings or ())  # none of a range
        for value in values:
            if value not in choices:
                raise UserError(f"{where}.when asks for {name} {value}, which is none of its values in space")
        found[name] = tuple(values)
    return found


def _choices(name: str, values: Any, bases: Sequence[Config]) -> dict[Setting, Mapping[str, Any]]:
    if not isinstance(values, list) or not values:
        raise UserError(f"space.{name} is {values!r}: expected a list of values")
    settings: dict[Setting, Mapping[str, Any]] = {}
    for value in values:
        _check(bases, "space", {name: value})
        label = value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)
        if label in settings:  # Optuna tells choices apart by ==, as a mapping does
            raise UserError(f"space.{name} names {short(label)} twice: name each value once")
        settings[label] = {name: value}
    return settings


def _variants(name: str, entry: Any, bases: Sequence[Config]) -> dict[Setting, Mapping[str, Any]]:
    if name in keys():
        raise UserError(f"space.{name} has variants, and is the name of a setting: choose another name")
    if not isinstance(entry, dict) or not all(isinstance(each, dict) for each in entry.values()) or not entry:
        raise UserError(f"space.{name}.variants is {entry!r}: expected names, and for each the settings it stands for")
    settings: dict[Setting, Mapping[str, Any]] = {}
    for label, changes in entry.items():
        _check(bases, f"space.{name}.variants.{label}", changes)
        settings[str(label)] = changes
    return settings


def _range(
    name: str, entry: Mapping[str, Any], bases: Sequence[Config], when: Mapping[str, tuple[Setting, ...]]
) -> Dimension:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    where = f"space.{name}"
    for key, value in (("low", low), ("high", high), ("step", step)):
        if key in entry and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{where}.{key} is {value!r}, which is refused: it should be a number")
    if not isinstance(log, bool):
        raise UserError(f"{where}.log is {log!r}, which is refused: it should be true or false")
    _check(bases, "space", {name: low})
    _check(bases, "space", {name: high})
    if int in _types(name):
        if isinstance(step, float) and not step.is_integer():
            raise UserError(f"{where}.step is {step}, which is refused: it should be a whole number, as {name} is")
        low, high, step = (int(each) if isinstance(each, float) else each for each in (low, high, step))
    numbers = [each for each in (low, high, step) if each is not None]
    whole = int in _types(name) and all(isinstance(each, int) for each in numbers)
    if max(abs(each) for each in numbers) >= 2**63:
        raise UserError(f"{where} goes from {short(low)} to {short(high)}: choose numbers below 2**63")
    if not low < high:
        raise UserError(f"{where} goes from {low} to {high}: expected low to be less than high")
    if log and (low <= 0 or step is not None):
        raise UserError(f"{where} is on a logarithmic scale: expected low to be more than 0, and no step")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{where}.step is {step}: expected a number above 0 and up to {high - low}")
    if not (whole or float in _types(name)):
        raise UserError(f"{where} is a range, and {name} is not a number: list its values instead")
    distribution: BaseDistribution
    # One more than a grid may have is enough to refuse it.
    count = 0 if log or (step is None and not whole) else int(min((high - low) / (step or 1) + 1e-8, MAX_POINTS)) + 1
    if whole:
        distribution = IntDistribution(low, high, log=log, step=step or 1)
        steps: list[Setting] = [low + i * (step or 1) for i in range(count)]
    else:
        distribution = FloatDistribution(low, high, log=log, step=step)
        # Rounded, as Optuna does, so that 0.1 + 2 x 0.1 is 0.3.
        steps = [round(low + i * (step or 0), 12) for i in range(count)]
    return Dimension(name, distribution, None, when, tuple(steps))


def _types(key: str) -> set[type]:
    """The types that a key of the configuration takes: of `int | None`, int and NoneType."""
    return set(Takes.of(keys()[key]).types)


def _check(bases: Sequence[Config], where: str, changes: Any) -> None:
    """Raises UserError if changes are not valid over each of these."""
    for base in bases:
        with_changes(base, where, changes)


def with_changes(config: Config, where: str, changes: Any) -> Config:
    """A configuration with some keys changed, each checked within its own group.

    What does not fit another group is found out once all changes are known.

    Raises:
        UserError: if it is no mapping of keys, names what is no key, or a value is out of type or range.
    """
    if not isinstance(changes, dict):
        raise UserError(f"{where} is {changes!r}: expected keys with their values, such as {{train.epochs: 10}}")
    trees: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        check_key(key, where)
        group, *path = key.split(".")
        _put(trees.setdefault(group, getattr(config, group).model_dump()), path, value)
    for group, tree in trees.items():
        try:
            checked = type(getattr(config, group)).model_validate(tree)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        config = config.model_copy(update={group: checked})
    return config


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A tree with one value of it changed in place."""
    *groups, name = path
    functools.reduce(lambda group, each: group[each], groups, tree)[name] = value
    return tree


def check_key(key: Any, where: str) -> None:
    """Refuse what is no key of the configuration, or is the study's own to say.

    Raises:
        UserError: with the key that may have been meant.
    """
    known = keys()
    if key in OWN:
        raise UserError(f"{where} sets {key}, which a study decides ({OWN[key]}): leave it out")
    if key not in known:
        spellings = {**{each.rpartition(".")[2]: each for each in known}, **{each: each for each in known}}
        raise UserError(f"{where} names {key}, which is not a key of the configuration{nearest(str(key), spellings)}")


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with some keys (`optim.lr`) changed, validated anew.

    Raises:
        UserError: if the result is no valid configuration.
    """
    tree = config.model_dump()
    for key, value in changes.items():
        _put(tree, key.split("."), value)
    return Config.model_validate(tree)


def describe_point(point: Mapping[str, Setting]) -> str:
    """A point on one line: `train.batch_size 32, optim.lr 0.001`."""
    return ", ".join(f"{name} {short(value)}" for name, value in point.items())


def short(value: Setting) -> str:
    """A value as people read it: numbers with four digits, and YAML's words for nothing and switches."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
