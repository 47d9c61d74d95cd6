"""What W&B reads by itself: WANDB_… variables, its settings files and the key; and what they come to for a run.

W&B takes them wherever it is imported, and raises for what it refuses at whatever place that comes up. Here they are
put into W&B's own `Settings` before anything is written, one by one, so that what it refuses becomes one sentence that
names the variable or the file. The first of these that says something wins:

1. the options `tracking.…`;
2. for a run that is resumed, what its first start came to, from the run folder: it is the same run in W&B, whatever the
   shell says by then. Of the mode alone a variable or a file says more, for it may be another machine;
3. the variables; an empty one is not set;
4. `wandb/settings` (`.wandb/settings` where there is a `.wandb/`) in the working directory, where `wandb offline` and
   `wandb disabled` write, then the user's own.
"""

import configparser
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pydantic

from distrib.base.errors import UNPRINTABLE, UserError, printable
from distrib.base.files import write_whole
from distrib.config import TrackingConfig

Mode = Literal["online", "offline", "disabled"]

# The spellings of a mode, W&B's older ones included.
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# Where W&B's variables and files name no project; W&B itself would make one up from the Git repository around it.
PROJECT = "distrib"

# What makes a run the same one in W&B, beside its id: as its first start has found it.
KEPT = ("entity", "project", "run_group", "run_name", "run_tags", "run_notes", "run_job_type", "base_url")
# What is the same in every run, and why.
FIXED: dict[str, tuple[Any, str]] = {
    "root_dir": (None, "W&B's files stay in wandb/ in the run folder"),
    "use_dot_wandb": (False, "W&B's files stay in wandb/ in the run folder"),
    "x_files_dir": (None, "W&B's files stay in wandb/ in the run folder"),
    "x_sync_dir_suffix": ("", "W&B's files stay in wandb/ in the run folder"),
    "console": ("off", "the terminal belongs to the trainer"),
    "sync_tensorboard": (False, "the trainer writes nothing for TensorBoard"),
    "relogin": (False, "the trainer asks for no key"),
    "x_skip_transaction_log": (False, "every row is kept in the run folder first"),
}
# Which run of W&B's is resumed is for the run folder to say; these values leave it to that.
RESUMING: dict[str, tuple[str, ...]] = {"resume": ("allow", "auto"), "resume_from": (), "fork_from": ()}
# A settings file is for all runs, and these are one run's.
NOT_IN_FILES = {"run_id": "WANDB_RUN_ID", "run_name": "WANDB_NAME"}
# What W&B passes over in its files.
PASSED_OVER = ("anonymous", "settings_system", "root_dir")
# Where W&B puts what artifacts and tables are made of: under the user's home, unless these say otherwise.
FOLDERS = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}

MAX_ID, MAX_SHOWN = 128, 60
SECRET = re.compile("KEY|TOKEN|SECRET|PASS|HEADER|URL|PROX", re.IGNORECASE)
USERINFO = re.compile(r"(?<=//)[^/?#\s]*@")  # the user and the password of an address


@dataclass(frozen=True)
class WandbSettings:
    """What a run's W&B settings come to.

    Attributes:
        mode: where the rows go.
        values: a `wandb.Settings`; None where the mode is disabled.
        notes: what has no effect, and why, a sentence each.
        asked: whether somebody has asked for the mode; else it comes from there being a key, or none.
    """

    mode: Mode
    values: Any = None
    notes: list[str] = field(default_factory=list)
    asked: bool = True


def resolve_wandb(config: TrackingConfig, folder: Path | None) -> WandbSettings:
    """What options, an earlier start, variables and W&B's files come to; nothing is written.

    Empty variables leave the environment of this process: they are not set, for W&B and for what is started then.

    Args:
        config: the options.
        folder: of the run; None: it has no name yet.

    Raises:
        UserError: for what W&B refuses, where the run is to be online and no key is configured, or where what the first
            start has kept is damaged.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]
    if config.mode == "disabled":
        return _disabled("tracking.mode=disabled")
    if config.mode == "auto":
        mode, label = _mode_of_variables()
        if mode == "disabled":
            return _disabled(label)
    try:
        return _Resolution().resolve(config, folder)
    except UserError:
        raise
    except Exception as error:  # W&B raises its own at every place
        raise UserError(
            f"W&B cannot read its settings ({_reason(error)}): correct what it names, or choose "
            "--tracking.mode disabled"
        ) from None


def keep(settings: WandbSettings, folder: Path) -> str:
    """Write to the run folder what the next start is to find there, the first time alone.

    Returns:
        The run's W&B id.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _kept_file(folder).exists():
        kept = {name: getattr(settings.values, name) for name in KEPT}
        # W&B's own server may be another one by then; and an address with a password in it is asked for each time.
        if "base_url" not in settings.values.model_fields_set or USERINFO.search(kept["base_url"]):
            del kept["base_url"]
        mode = {"mode": settings.mode} if settings.asked else {}
        write_whole(_kept_file(folder), json.dumps({**mode, **kept}, indent=2, ensure_ascii=False) + "\n")
    return run_id(folder, settings.values.run_id)


def run_id(folder: Path, wanted: str | None = None) -> str:
    """The W&B id of the run in this folder: made once, so that a resumed run continues the same W&B run.

    Args:
        folder: of the run.
        wanted: the id where there is none yet; None: a new one.

    Raises:
        OSError: if it cannot be read or written.
    """
    file = _id_file(folder)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, (wanted or secrets.token_hex(4)) + "\n")
    return file.read_text(encoding="utf-8").strip()


def take_over(folder: Path) -> dict[str, str | None]:
    """Leave W&B no variable to read by itself that has been read here, and let it write where it can.

    Args:
        folder: of the run, absolute; in its `wandb/` is what W&B has no other place for.

    Returns:
        The variables that this has changed, as they were; None: not set. For `give_back`.
    """
    wandb = import_wandb()
    variables: dict[str, str | None] = {}
    for name in [name for name in os.environ if name.startswith("WANDB_") and _fields(name)]:
        variables[name] = os.environ.pop(name)
    os.environ.pop("WANDB_SERVICE", None)  # another program's: it ends with that
    for name, place in zip(FOLDERS, (wandb.env.get_cache_dir(), wandb.env.get_data_dir()), strict=True):
        if not _can_be_written(Path(place)):
            variables[name] = os.environ.get(name)
            os.environ[name] = str(folder / "wandb" / FOLDERS[name])
    return variables


def give_back(variables: Mapping[str, str | None]) -> None:
    """Set again what `take_over` has changed: the next run in this process, as in a notebook, is to find it."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def import_wandb() -> Any:
    """The module, made quiet; imported here alone, so that other ranks and disabled runs do not pay for it."""
    # W&B's reports about itself go to its server too: with the server away they hold up Python's exit for ten seconds.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.termsetup(wandb.Settings(silent=True), None)
    return wandb


def without_password(text: str) -> str:
    """The same, with no user and password in the addresses that are in it."""
    return USERINFO.sub("", text)


class _Resolution:
    """Puts what each of them says into W&B's `Settings`, the later ones over the earlier, and notes what is beaten."""

    def __init__(self) -> None:
        _find_home()
        self._values: Any = import_wandb().Settings()
        self._labels: dict[str, str] = {}  # field -> who has said it, and what
        self._notes: list[str] = []
        self._workspace = Path(self._values.settings_workspace)  # in .wandb/ where there is one, whatever is FIXED
        for name, (value, _) in FIXED.items():
            if (
                name != "root_dir" and name in type(self._values).model_fields
            ):  # W&B may give up those that begin with x_
                setattr(self._values, name, value)

    def resolve(self, config: TrackingConfig, folder: Path | None) -> WandbSettings:
        self._read_files()
        self._read_variables()
        self._decide(config, {} if folder is None else _kept(folder))
        values = self._values
        values.resume = "allow"
        values.project = values.project or PROJECT
        if values.run_name is None and folder is not None:
            values.run_name = folder.resolve().name
        return self._settings()

    def _read_files(self) -> None:
        """W&B's settings files: the user's, then that of the working directory."""
        configured = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
        for file in (Path(configured).expanduser() / "settings", self._workspace):
            for name, value in _read_file(file):
                label = _label(name, value, f" in {file}")
                _refuse_resuming(name, value, label)
                if name in NOT_IN_FILES:
                    raise UserError(f"{label} would be shared by every run: remove it, and set {NOT_IN_FILES[name]}")
                if name not in PASSED_OVER:
                    name = f"x{name}" if name.startswith("_") else name
                    self._put(name, value.split(",") if name == "ignore_globs" else value, label)

    def _read_variables(self) -> None:
        for name, value in os.environ.items():
            if name.startswith("WANDB_"):
                label = _label(name, value)
                _refuse_resuming(name.removeprefix("WANDB_").lower(), value, label)
                for each, read in _fields(name).items():
                    self._put(each, read, label)
        parameters = self._values.sweep_param_path
        if parameters and not Path(parameters).is_file():
            raise UserError(f"{self._labels['sweep_param_path']} is not a file: unset it, or run `wandb agent` again")
        for name in FOLDERS:
            if name in os.environ and not _can_be_written(Path(os.environ[name])):
                raise UserError(f"{_label(name, os.environ[name])} cannot be written: choose another folder")
        mode, label = _mode_of_variables()
        if mode is not None:
            self._put("mode", mode, label)

    def _decide(self, config: TrackingConfig, kept: dict[str, Any]) -> None:
        """Put what the run's first start has kept over W&B's own reading, and the options over both."""
        options = {
            "mode": ("tracking.mode", None if config.mode == "auto" else config.mode),
            "project": ("tracking.project", config.project),
            "entity": ("tracking.entity", config.entity),
            "run_group": ("tracking.group", config.group),
        }
        if "mode" in self._labels:
            kept.pop("mode", None)
        for name, value in kept.items():
            said = "" if SECRET.search(name) else f" ({_shown(value)})"
            self._win(name, value, f"the {name} of this run's first start{said}")
        for name, (option, value) in options.items():
            if value is not None:
                self._win(name, value, _label(option, value))

    def _win(self, name: str, value: Any, label: str) -> None:
        """Put a value over another, and note where that was another one."""
        earlier, beaten = getattr(self._values, name), self._labels.get(name)
        self._put(name, value, label)
        if beaten is not None and getattr(self._values, name) != earlier:
            self._notes.append(f"{label} wins over {beaten}")

    def _put(self, name: str, value: Any, label: str) -> None:
        if name in FIXED:
            fixed, why = FIXED[name]
            if value != fixed:
                self._notes.append(f"{label} has no effect: {why}")
            return
        try:
            setattr(self._values, name, value)
            if name == "run_id" and value is not None:
                _check_id(value)
        except Exception as error:
            raise _refusal(label, error) from None
        self._labels[name] = label

    def _settings(self) -> WandbSettings:
        """The mode by what was said, else by whether there is a key."""
        label = self._labels.get("mode")
        asked = label is not None
        mode = MODES.get(self._values.mode) if asked else None
        if label is not None and mode is None:
            raise UserError(f"{_said(label)}: set it to online, offline or disabled, or remove it")
        if mode == "disabled":
            return WandbSettings("disabled", notes=self._notes)
        if mode != "offline":
            has_key = self._has_key()
            if label is not None and not has_key:
                raise UserError(
                    f"{_said(label)}, but no W&B key is configured: run `wandb login`, set WANDB_API_KEY, or choose "
                    "--tracking.mode offline"
                )
            mode = "online" if has_key else "offline"
        self._values.mode = mode
        return WandbSettings(mode, self._values, self._notes, asked)

    def _has_key(self) -> bool:
        """Whether W&B finds a key without asking: in a variable, a settings file or the netrc file.

        Raises:
            UserError: if it finds one that it refuses.
        """
        from wandb.sdk.lib import wbauth

        values, labels = self._values, self._labels
        if values.api_key and values.identity_token_file:
            raise UserError(f"{labels['api_key']} and {labels['identity_token_file']} exclude each other: unset one")
        if values.identity_token_file and not Path(values.identity_token_file).is_file():
            raise UserError(f"{labels['identity_token_file']} is not a file: name the one that holds the token")
        host = wbauth.HostUrl(values.base_url, app_url=values.app_url)
        label = labels.get("api_key", f"the key for {host} in {os.environ.get('NETRC', '~/.netrc')}")
        warnings: list[str] = []
        ear = SimpleNamespace(info=lambda _: None, warning=warnings.append, error=warnings.append)
        wandb = import_wandb()
        wandb.termsetup(wandb.Settings(silent=True), ear)
        try:
            if values.api_key:
                wbauth.AuthApiKey(host=host, api_key=values.api_key)
                return True
            return bool(values.identity_token_file or wbauth.read_netrc_auth(host=host))
        except OSError as error:  # a home folder of somebody else
            warnings.append(f"{error.filename} was not searched for a key ({error.strerror})")
            return False
        except Exception as error:
            raise _refusal(label, error, ", or choose --tracking.mode offline") from None
        finally:
            import_wandb()
            self._notes += ["W&B: " + each.removeprefix("wandb: WARNING ") for each in warnings]


def _refuse_resuming(name: str, value: str, label: str) -> None:
    """Refuse what would resume another W&B run than the folder says.

    Raises:
        UserError: if this is it.
    """
    if name in RESUMING and value not in RESUMING[name]:
        raise UserError(f"{label} says which W&B run is resumed; --resume and the run folder decide that: remove it")


def _disabled(label: str) -> WandbSettings:
    """W&B left alone, before it is asked for anything; by whom."""
    asked = os.environ.get("WANDB_MODE", "disabled")
    return WandbSettings("disabled", notes=[] if asked == "disabled" else [f"{label} wins over WANDB_MODE={asked}"])


def _mode_of_variables() -> tuple[Mode | None, str]:
    """The mode that the variables ask for, None where they do not, and which has.

    Raises:
        UserError: if they name none of W&B's modes.
    """
    # W&B has given WANDB_DISABLED up; those who set it are to be left alone by W&B still.
    disabled = os.environ.get("WANDB_DISABLED", "false")
    try:
        if pydantic.TypeAdapter(bool).validate_python(disabled.strip()):
            return "disabled", _label("WANDB_DISABLED", disabled)
    except pydantic.ValidationError:
        raise UserError(f"WANDB_DISABLED is {disabled}: set it to true or false, or unset it") from None
    asked = os.environ.get("WANDB_MODE")
    if asked is None:
        return None, ""
    if asked not in MODES:
        raise UserError(f"WANDB_MODE is {asked}: set it to online, offline or disabled, or unset it")
    return MODES[asked], _label("WANDB_MODE", asked)


def _fields(variable: str) -> dict[str, Any]:
    """The fields of W&B's settings that a variable sets.

    Raises:
        UserError: if W&B refuses its value.
    """
    alone = import_wandb().Settings()
    value = os.environ[variable]
    try:
        alone.update_from_env_vars({variable: value})
    except Exception as error:
        raise _refusal(_label(variable, value), error) from None
    return {name: getattr(alone, name) for name in alone.model_fields_set}


def _read_file(file: Path) -> list[tuple[str, str]]:
    """The names and values in one of W&B's settings files; none where there is no such file.

    Raises:
        UserError: if it is not one.
    """
    parser = configparser.ConfigParser()
    try:
        parser.read(file, encoding="utf-8")
        return parser.items("default") if parser.has_section("default") else []
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"W&B's settings in {file} cannot be read ({_reason(error)}): correct or remove it") from None


def _kept(folder: Path) -> dict[str, Any]:
    """What the first start has left for this one; nothing where this is the first.

    Raises:
        UserError: if it is damaged.
    """
    file = _kept_file(folder)
    kept: dict[str, Any] = {}
    if file.exists():
        try:
            kept = {name: value for name, value in json.loads(file.read_bytes()).items() if name in ("mode", *KEPT)}
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged ({_reason(error)}): remove it, and name --tracking.project where the run is not in "
                f"the project {PROJECT}"
            ) from None
        if kept.get("run_tags") is not None:
            kept["run_tags"] = tuple(kept["run_tags"])
    elif _id_file(folder).exists():  # of a version that kept no more than the id, and had these for every run
        kept = {"project": PROJECT, "run_name": folder.resolve().name}
    if _id_file(folder).exists():
        try:
            kept["run_id"] = run_id(folder)
            _check_id(kept["run_id"])
            import_wandb().Settings(run_id=kept["run_id"])
        except OSError:
            raise
        except Exception as error:  # W&B's own
            raise UserError(
                f"{_id_file(folder)} holds no W&B run ID ({_reason(error)}): write the run's into it, or remove it to "
                "begin another run in W&B"
            ) from None
    return kept


def _check_id(identity: str) -> None:
    """What W&B's server alone would refuse.

    Raises:
        ValueError: if it would.
    """
    if UNPRINTABLE.search(identity) or len(identity) > MAX_ID:
        raise ValueError(f"a run ID has at most {MAX_ID} printable characters")


def _kept_file(folder: Path) -> Path:
    return folder / "wandb_settings.json"


def _id_file(folder: Path) -> Path:
    return folder / "wandb_run_id"


def _find_home() -> None:
    """Let there be a home folder where the system knows of none, as for a container's user without a name."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as Docker and Kubernetes have it


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that is there, takes files."""
    folder = folder.absolute()
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    except OSError:  # it may not even be looked for
        return False


def _label(name: str, value: str, place: str = "") -> str:
    """`NAME=value` for a sentence; without the value where that may be a secret."""
    return f"{name}{place}" if SECRET.search(name) else f"{name}={_shown(value)}{place}"


def _shown(value: str | Sequence[str] | None) -> str:
    text = value if isinstance(value, str) else ", ".join(value or ["none"])
    return printable(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


def _said(label: str) -> str:
    return label.replace("=", " is ", 1)


def _refusal(label: str, error: Exception, remedy: str = "") -> UserError:
    return UserError(f"W&B refuses {label} ({_reason(error)}): correct or remove it{remedy}")


def _reason(error: Exception) -> str:
    """What is wrong, in W&B's words and on one line."""
    said = str(error.errors()[0]["msg"]) if isinstance(error, pydantic.ValidationError) else str(error)
    line = without_password(said.removeprefix("Value error, ").strip().partition("\n")[0].rstrip("."))
    return line or type(error).__name__
