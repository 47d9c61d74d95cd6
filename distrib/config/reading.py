"""A configuration from its defaults, a YAML file and a command line; later wins."""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from distrib.base.errors import UNPRINTABLE, UserError
from distrib.base.paths import MAX_NAME, MAX_PATH, expanded_path
from distrib.base.words import nearest
from distrib.config.schema import Config
from distrib.config.section import SWITCHES, Switch, Takes, as_taken, keys, spellings
from distrib.config.yaml_files import read_settings

# Settings of earlier versions that were taken out, as they brought nothing (docs/recipe.md): what each was when it did
# nothing, as in most files that a run has written. Some did nothing whatever they were, as another one of them was off.
WHATEVER = object()
REMOVED = {
    "model.dropout": 0, "model.stochastic_depth": 0, "augment.cutmix": 0, "augment.erasing": 0, "augment.blur": 0,
    "augment.saturation": 0, "augment.hue": 0, "augment.brightness": 0, "augment.contrast": 0, "augment.grey": 0,
    "augment.rotation": 0, "augment.translation": 0, "augment.scale": 0, "optim.layer_decay": None, "train.loss": "bce",
    "train.focal_gamma": WHATEVER, "train.gamma_positive": WHATEVER, "train.gamma_negative": WHATEVER,
    "train.margin": WHATEVER,
}  # fmt: skip
# Bytes of a command line that are no text in the locale, as Python has them.
UNDECODED = re.compile("[\udc80-\udcff]")


def load_config(
    argv: Sequence[str], prog: str = "train.py", does: str = "Trains ResNet18 on face attributes."
) -> tuple[Config, str]:
    """The configuration that a command line asks for.

    Args:
        argv: `--config FILE` (at most once, anywhere) and options such as `--optim.lr 3e-4`.
        prog: name of the program, and what it takes beside these, for `--help`.
        does: what the program does, for `--help`.

    Returns:
        The configuration, and a name for the run: the stem of the YAML file, or "run".

    Raises:
        UserError: for anything that is not a valid configuration.
        SystemExit: with status 0 after `--help`.
    """
    arguments = ["--run.resume" if argument == "--resume" else argument for argument in argv]
    arguments = [re.sub(r"^--resume=", "--run.resume=", argument) for argument in arguments]
    file, arguments = _take_config(arguments)
    config = Config() if file is None else read_yaml(file)
    description = (
        f"{does} --config FILE reads a YAML file with these same fields; options on the command line win over it. "
        "--resume is short for --run.resume."
    )
    asked = parse(arguments, config, prog, description)
    if file is not None and not any(re.match(r"--run\.folder(=|$)", argument) for argument in arguments):
        _refuse_moved(file, asked)
    return asked, "run" if file is None else file.stem


def _refuse_moved(file: Path, config: Config) -> None:
    """Refuse the config.yaml in a run's folder that names another one: which of the two is meant, nobody knows."""
    there, named = file.parent, config.run.folder
    if file.name != "config.yaml" or named is None or not (there / "checkpoints").is_dir():
        return
    if named.resolve() != there.resolve():
        raise UserError(
            f"{file} is in the folder of a run, and its run.folder is {named}, which is not that folder from here: the "
            f"run was moved or copied, or began in another directory. Say --run.folder {there} to go on with the run "
            "there, or name the folder of the run that you mean"
        )


def parse(argv: Sequence[str], default: Config, prog: str, description: str) -> Config:
    """A configuration with the options of a command line (`--optim.lr 3e-4`) put over it.

    Args:
        argv: options alone.
        default: the configuration beneath.
        prog: name of the program, for `--help`.
        description: of the program, for `--help`.

    Raises:
        UserError: for anything that is not a valid configuration.
        SystemExit: with status 0 after `--help`; with that of `standard_streams` where the help cannot be written.
    """
    arguments = list(argv)
    helps = not {"-h", "--help"}.isdisjoint(arguments)
    errors = io.StringIO()
    # Beside the help, standard error says why that could not be written.
    taken_down: contextlib.AbstractContextManager[None] = contextlib.nullcontext() if helps else _taken_down(errors)
    try:
        _refuse_unknown(arguments)
        arguments = ["--help"] if helps else list(_in_the_fields_words(arguments))
        with taken_down:
            config = tyro.cli(
                Config,
                default=default,
                args=arguments,
                prog=prog,
                description=description,
                config=(tyro.conf.FlagConversionOff,),
            )
        _refuse_unusable(config)
    except UserError as error:
        raise UserError(str(error)) from None
    except SystemExit as stop:
        if stop.code and not helps:
            raise UserError(_first_paragraph(errors.getvalue())) from None
        raise
    return config


def read_yaml(file: Path) -> Config:
    """The configuration in a YAML file; what it leaves out has its default.

    Raises:
        UserError: if the file is missing, is not YAML, or holds what the tree does not know, unless it is a setting of
            an earlier version that did nothing.
    """
    values = read_settings(file, "--config ", "groups such as data: and optim:")
    try:
        _leave_removed(values)
        config = Config.model_validate(values)
        _refuse_unusable(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return config


def _leave_removed(values: dict[Any, Any]) -> None:
    """Take settings of earlier versions out of the groups of a file; refuse them where they did something."""
    for key, off in REMOVED.items():
        section, _, name = key.partition(".")
        group = values.get(section)
        if isinstance(group, dict) and name in group and (value := group.pop(name)) != off and off is not WHATEVER:
            raise UserError(
                f"{key} is {value}, a setting that later versions do not have, because it brought nothing: use the "
                "version that wrote this, or remove the line to do without"
            )


def _in_the_fields_words(arguments: Iterable[str]) -> Iterator[str]:
    """Options, with `no`, `off`, `yes` and the like of fields that have a word for it in that word."""
    key = ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        key = name[2:].replace("-", "_") or key
        if key in keys() and value.lower() in SWITCHES:
            takes = Takes.of(keys()[key])
            if bool in takes.types or takes.words:
                value = str(as_taken(takes, Switch(value)))
        yield f"{name}{equals}{value}"


def _refuse_unusable(config: Config) -> None:
    """Refuse names that cannot be printed, and whole numbers that nothing counts to."""
    for key in keys():
        value = functools.reduce(getattr, key.split("."), config)
        names = value if isinstance(value, tuple) and key != "data.attributes" else (value,)  # the table knows those
        for name in map(str, (each for each in names if isinstance(each, str | Path))):
            unprintable = UNPRINTABLE.search(name)
            if UNDECODED.search(name) or (isinstance(value, Path) and not unprintable and not _can_be_named(name)):
                encoding = sys.getfilesystemencoding()
                remedy = "choose another name" if encoding == "utf-8" else "set LC_ALL=C.UTF-8, or choose another name"
                raise UserError(f"{key} is {name}, which is not text in this locale ({encoding}): {remedy}")
            if unprintable:
                raise UserError(f"{key} is {name}, which has a character that no terminal shows: choose another name")
            if len(name) > MAX_PATH or max(len(part.encode()) for part in name.split("/")) > MAX_NAME:
                raise UserError(f"{key} is {name[:40]}..., which is too long for a file system: choose another name")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{key} has a value of {value.bit_length()} bits: choose one below 2**63")


def _can_be_named(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _take_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    files, rest = [], []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--config":
            files.append(next(pending, ""))
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if any(not file or file.startswith("--") for file in files):
        raise UserError("--config needs the path of a YAML file, such as configs/celeba.yaml")
    if len(files) > 1:
        raise UserError(f"--config is given {len(files)} times ({', '.join(files)}): give it once")
    return (expanded_path(files[0]) if files else None), rest


def _refuse_unknown(arguments: list[str]) -> None:
    valid = keys()
    for argument in arguments:
        if not argument.startswith("--") or argument == "--help":
            continue
        key = argument[2:].partition("=")[0].replace("-", "_")
        if key not in valid:
            hint = nearest(key, spellings()).replace("mean ", "mean --").replace("_", "-")
            raise UserError(f"{argument.partition('=')[0]} is not a known option{hint}; `--help` lists all options")


@contextlib.contextmanager
def _taken_down(errors: io.StringIO) -> Iterator[None]:
    """Keep tyro's error for reading it back as one sentence, and from being wrapped."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        with contextlib.redirect_stderr(errors):
            yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _first_paragraph(box: str) -> str:
    """The message inside the box that tyro draws around an error, of other characters where UTF-8 is not shown."""
    lines = [line.strip(" │|") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    body = [line for line in lines[1:] if line.strip(" ╭╮╰╯─+-")]
    end = next((i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full helptext"))), None)
    said, *_ = " ".join(body[:end]).partition(". Got errors:")  # of each type that a field may have, in Python's words
    return said.rstrip(".") + "; `--help` lists all options"
