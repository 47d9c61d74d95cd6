"""Paths as people write them, with `~` for a home folder and `$NAME` or `${NAME}` for an environment variable; and
names that are made of others.

A shell expands paths on its own command line; nobody does in a YAML file, in quotes, or after `--option=`.
"""

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any

import pydantic
import tyro

from distrib.base.errors import UserError

# What file systems take: bytes in one name, characters in a path.
MAX_NAME, MAX_PATH = 255, 1000
# `a$` and `$5` are names of files.
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
# What shells and configuration languages know beside a variable's name, as in ${NAME:-default} and $(command).
_FOREIGN = re.compile(r"\$(?:\{(?![A-Za-z_][A-Za-z0-9_]*\})[^}/]*[A-Za-z_]|\([^)/]*[A-Za-z_])")


def expanded(text: str) -> str:
    """A path, or another text with variables in it, with its variables and a `~` or `~user` at its beginning expanded.

    Raises:
        UserError: if a variable is not set, there is no such user, or there is more in `${…}` than a name.
    """
    try:
        return _expanded(text)
    except ValueError as error:
        raise UserError(f"the path {text} cannot be expanded, because {error}") from None


def expanded_path(path: str | Path) -> Path:
    """The same of a path.

    Raises:
        UserError: as `expanded` does.
    """
    return Path(expanded(str(path)))


def fitting_name(stem: str, ending: str) -> str:
    """A file's name of these two, of at most `MAX_NAME` bytes.

    A stem that is too long is cut after a whole character, and a digest of it keeps it apart from others.
    """

    def size(text: str) -> int:
        return len(text.encode("utf-8", "surrogateescape"))

    if size(stem) + size(ending) <= MAX_NAME:
        return stem + ending
    ending = f"-{hashlib.sha256(stem.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}{ending}"
    kept = len(stem)
    while kept and (size(stem[:kept]) + size(ending) > MAX_NAME or unicodedata.combining(stem[kept])):
        kept -= 1
    return stem[:kept] + ending


def is_text(path: Path) -> bool:
    """Whether a path is text; some libraries open no other, though a file's name may have any bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def staged_beside(file: Path) -> Path:
    """Where a file is written before it takes its name."""
    return file.with_name(fitting_name(f".{file.name}", ".staged"))


def _expanded(text: str) -> str:
    """As `expanded`, whose errors are ValueErrors here."""
    if foreign := _FOREIGN.search(text):
        wrong = "no command is run in $(…)" if foreign[0][1] == "(" else "no other ${…} than ${NAME} is known"
        raise ValueError(f"{wrong}: write $NAME for a variable, or write the path out")

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            raise ValueError(f"the environment variable {name} {state}: set it, or write the path out")
        return os.environ[name]

    path = _VARIABLE.sub(value, text)
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError(f"{path.partition('/')[0]} is not a user's home folder: write the path out") from None


def _in_configuration(value: Any) -> Any:
    """For pydantic, which names the key; what is no path is left for it to refuse."""
    return type(value)(_expanded(str(value))) if isinstance(value, str | Path) else value


# A field of the configuration that holds a path, or text that may be one.
ConfigPath = Annotated[Path, pydantic.BeforeValidator(_in_configuration)]
ConfigPathText = Annotated[str, pydantic.BeforeValidator(_in_configuration)]
# An option or argument of another program's command line.
OptionPath = Annotated[
    Path,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: expanded_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]
