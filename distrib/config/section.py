"""A group of settings: frozen, refuses what it does not know, and says in one sentence what is wrong with a value."""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import pydantic

from distrib.base.errors import UserError
from distrib.base.words import nearest

# Lists within lists that a value may be of; YAML has some without end (`&a [*a]`).
DEPTH = 2

# What pydantic says of these types of error is about Python.
EXPECTED = {
    "tuple_type": "a list of values, such as [178, 178]",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
    "bool_parsing": "true or false",
    "path_type": "a path",
}
# YAML 1.1's words for true and false.
SWITCHES = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
# What a field may call it that something is on, or off.
ON, OFF = ("yes", "on", "true"), ("no", "off", "false", "disabled", "never", "none")


@dataclass(frozen=True)
class Words:
    """Annotates a text with words that it may be beside names and paths."""

    words: tuple[str, ...]


class Switch(str):
    """`no`, `off`, `yes` or the like without quotes in a YAML file: true or false by YAML 1.1, and a word to people."""

    def __bool__(self) -> bool:
        return SWITCHES[self.lower()]


class Section(pydantic.BaseModel):
    """A frozen group of fields that refuses unknown keys; what does not validate becomes a `UserError`."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )
    section: ClassVar[str] = ""
    tree: ClassVar[type["Section"]]  # the whole configuration, whose keys are suggested in the place of an unknown one

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():  # the line breaks of this file are not those of --help
            field.description = " ".join((field.description or "").split())

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _speak_in_sentences(cls, values: Any, validate: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        if values is None:  # a YAML group with nothing under it
            values = {}
        unclear: dict[str, Switch] = {}
        if isinstance(values, Mapping):
            fields = {key: cls.model_fields[key] for key in values if key in cls.model_fields}
            taken = {key: as_taken(Takes.of(field), values[key]) for key, field in fields.items()}
            unclear = {key: word for key in taken for word in _switches(taken[key])}
            values = {**values, **taken}
        try:
            made = validate(values)
        except pydantic.ValidationError as error:
            raise UserError(_sentence(cls, *error.errors())) from None
        for key, word in unclear.items():
            field = f"{cls.section}.{key}".strip(".")
            words = Takes.of(cls.model_fields[key]).words
            remedy = f"choose one of {', '.join(words)}, or put another name in quotes" if words else "put it in quotes"
            raise UserError(f"{field} has {word}, which YAML takes for {str(bool(word)).lower()}: {remedy}")
        return made


@dataclass(frozen=True)
class Takes:
    """What a field takes.

    Attributes:
        types: of it, or of its parts where it has several.
        words: that it may be.
    """

    types: frozenset[Any]
    words: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether it may be of one type or another, or a word."""
        return len(self.types - {type(None), ...}) + bool(self.words) > 1

    @classmethod
    def of(cls, field: pydantic.fields.FieldInfo) -> Self:
        """What a field of a section takes."""
        types, words = set[Any](), [word for each in field.metadata if isinstance(each, Words) for word in each.words]
        waiting = [field.annotation]
        while waiting:
            annotation = waiting.pop()
            origin, parts = get_origin(annotation), get_args(annotation)
            if origin is Literal:
                words += parts
            elif origin is Annotated:
                waiting.append(parts[0])
            elif parts:
                waiting += parts
            else:
                types.add(annotation)
        return cls(frozenset(types), tuple(words))


def settled(key: str, value: Any) -> Any:
    """A value of `read_settings` as a key of the configuration takes it.

    What it does not take is left as it is, for the configuration to refuse.
    """
    field = keys().get(key)
    return plain(value) if field is None else as_taken(Takes.of(field), value)


def plain(value: Any) -> Any:
    """A value of `read_settings`, with true or false for a `Switch`."""
    return bool(value) if isinstance(value, Switch) else value


def as_taken(takes: Takes, value: Any, depth: int = 0) -> Any:
    """A value as a field takes it; a `Switch` stays where the field takes other text."""
    if depth > DEPTH:
        return value
    if isinstance(value, list | tuple):
        return type(value)(as_taken(takes, each, depth + 1) for each in value)
    if isinstance(value, Mapping) and not any(each is Any or _is_section(each) for each in takes.types):
        return {key: as_taken(takes, each, depth + 1) for key, each in value.items()}
    if isinstance(value, Switch) and bool in takes.types:
        return bool(value)
    if isinstance(value, Switch) or (not takes.types and str(value).lower() in SWITCHES):
        said = str(value).lower()
        words = (said, *(ON if SWITCHES[said] else OFF))
        return next((word for word in words if word in takes.words), value)
    return value


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _switches(value: Any, depth: int = 0) -> Iterator[Switch]:
    """Those within a value for which no word was found."""
    if isinstance(value, Switch):
        yield value
    elif isinstance(value, list | tuple) and depth <= DEPTH:
        for each in value:
            yield from _switches(each, depth + 1)


def keys() -> dict[str, pydantic.fields.FieldInfo]:
    """Every key of the tree (`optim.lr`) with its field."""
    return dict(_walk(Section.tree, ""))


def _walk(section: type[Section], prefix: str) -> Iterator[tuple[str, pydantic.fields.FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def spellings() -> dict[str, str]:
    """What a person may have meant by a wrong key: the key, its last part, or the first words of its description."""
    spellings: dict[str, str] = {}
    for key, field in keys().items():
        words = re.split(r"[,.:;(]", field.description or "")[0].strip().lower().replace(" ", "_")
        said = () if words in Takes.of(field).words else (words,)
        for spelling in (*said, key.rpartition(".")[2], key):
            spellings[spelling] = key
    return spellings


def _groups() -> list[str]:
    """Every group of keys of the tree: `data`, `data.dali`."""
    parts = [key.split(".")[:-1] for key in keys()]
    return list(dict.fromkeys(".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)))


def _unknown_key(section: str, path: str, value: Any) -> str:
    """What is said of a key in a section of a file that is none."""
    key, groups = ".".join(part for part in (section, path) if part), _groups()
    near = {**spellings(), **{each: each for each in groups if isinstance(value, Mapping)}}
    if not section and (value is None or isinstance(value, Mapping)):  # a group, or one with nothing under it
        near = {each: each for each in groups}
    said, remedy = f"{key} is not a known key", "`--help` lists all keys"
    meant = next((each for each in (path, key) if each in (*keys(), *groups)), None)
    if meant is None:
        said += nearest(key, near) or nearest(path, near)
    if "." in path:
        *above, last = (meant or "optim.lr").split(".")
        lines = [*(f"`{'  ' * depth}{name}:`" for depth, name in enumerate(above)), f"`{'  ' * len(above)}{last}: …`"]
        remedy = f"a file has each part of a key below the one before: {', then '.join(lines)}"
    return f"{said}; {remedy}"


def _sentence(made: type[Section], error: Any, *others: Any) -> str:
    """One sentence for the first of pydantic's errors in a section."""
    section = made.section
    field = made.model_fields.get(str(error["loc"][0])) if error["loc"] else None
    takes = None if field is None else Takes.of(field)
    path = ".".join(map(shown, error["loc"]))
    if error["type"] == "extra_forbidden":
        return _unknown_key(section, path, error["input"])
    loc = list(error["loc"])
    if len(loc) > 1 and isinstance(loc[-1], str) and takes is not None and takes.several:  # pydantic's name of one
        del loc[-1]
    path = ".".join(map(shown, loc))
    key = ".".join(part for part in (section, path) if part)
    found = shown(error["input"], reprlib.repr) if not isinstance(error["input"], Path) else repr(str(error["input"]))
    if error["type"] in ("string_type", "path_type") and type(error["input"]) in (int, float):
        return f"{key} is {found}, which YAML takes for a number: put it in quotes"
    if error["type"] in EXPECTED:
        return f"{key} is {found}, which is refused: it should be {EXPECTED[error['type']]}"
    if error["type"] == "missing":
        return f"{key.rpartition('.')[0]} is {found}, which is refused: a value is missing at the end"
    problem = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    if error["type"] == "literal_error":  # of a field that may be a word or a number, the number's error follows
        number = next((each["msg"] for each in others if each["loc"][: len(loc)] == tuple(loc)), "")
        bound = number.removeprefix("Input should be ") if "than" in number else ""
        kind = "a number" if takes is not None and float in takes.types else "a whole number"
        problem += f", or {kind} {bound}".rstrip() if number else ""
    return f"{key} is {found}, but {problem}".replace("but should be", "which is refused: it should be")


def shown(value: Any, show: Callable[[Any], str] = str) -> str:
    try:
        return show(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number with thousands of digits"
