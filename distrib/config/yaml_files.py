"""YAML as people write it: what is read from a file of settings or of keys, and what is written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from distrib.base.errors import UserError, first_line
from distrib.config.section import SWITCHES, Switch

# Keys in one group of a YAML file: by merges of merges (`<<`) a few lines would else fill the memory.
MAX_KEYS = 1000


def read_mapping(file: Path, option: str, expected: str) -> dict[Any, Any]:
    """The keys and values of a YAML file; none where it is empty. `no`, `on` and the like are false and true.

    Args:
        file: to read.
        option: what an error begins with, before the file.
        expected: what an error says should be in it.

    Raises:
        UserError: if the file is missing, or is not YAML with keys and values.
    """
    return _load(file, option, expected, lambda text: yaml.load(text, _Loader))


def read_settings(file: Path, option: str, expected: str) -> dict[Any, Any]:
    """The same of a file with keys of the configuration.

    Of what YAML 1.1 takes for something else than it looks like, 010 (8), 1:30 (90) and 2026-01-01 (a date) are text,
    from which a field of numbers reads 10, or nothing; so is 1e-3, from which it reads 0.001. `no`, `on` and the like
    are `Switch`, which `Section` and `settled` take by what the field is. `None`, as `--help` has it, is null.
    """
    return _load(file, option, expected, lambda text: yaml.load(text, _SettingsLoader))


def _load(file: Path, option: str, expected: str, read: Callable[[str], Any]) -> dict[Any, Any]:
    try:
        values = read(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{option}{file}: there is no such file; the ready-made ones are in configs/") from None
    except OSError as error:
        raise UserError(f"{option}{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:  # PowerShell's `>` writes UTF-16
        raise UserError(f"{option}{file} cannot be read, because it is not UTF-8 text: save it as UTF-8") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise UserError(f"{option}{file}{where} is not valid YAML: {problem}") from None
    except (ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        # PyYAML builds numbers, dates and nested lists without a look at what they hold.
        raise UserError(f"{option}{file} holds a value that YAML cannot read: {first_line(error)}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{option}{file} holds a {type(values).__name__}: expected {expected}")
    return values


class _Loader(yaml.SafeLoader):
    """Safe YAML, without what a configuration has no use for."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names into a group."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise yaml.constructor.ConstructorError(
                problem=f"a group has more than {MAX_KEYS} keys", problem_mark=node.start_mark
            )


class _SettingsLoader(_Loader):
    """With what people mean; see `read_settings`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [each for each in found if each[0].rpartition(":")[2] not in ("int", "float", "timestamp", "value")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Dumper(yaml.SafeDumper):
    """Safe YAML that `_SettingsLoader` reads as it was."""


def _refuse_set(_: _Loader, node: yaml.Node) -> NoReturn:
    # It would be another list of attributes on each rank.
    raise yaml.constructor.ConstructorError(problem="a !!set has no order", problem_mark=node.start_mark)


def _switch(loader: _Loader, node: yaml.ScalarNode) -> Switch:
    word = str(loader.construct_scalar(node))
    if word.lower() not in SWITCHES:
        raise yaml.constructor.ConstructorError(problem=f"{word} is not a !!bool", problem_mark=node.start_mark)
    return Switch(word)


_Loader.add_constructor("tag:yaml.org,2002:set", _refuse_set)
_SettingsLoader.add_constructor("tag:yaml.org,2002:bool", _switch)
for _each in (_SettingsLoader, Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])
# PyYAML's own, without 010 and 1:30.
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile("^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
