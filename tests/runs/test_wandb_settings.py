"""What W&B reads by itself is in force, or refused in one sentence that names it, before anything is written."""

import os
import pwd
from pathlib import Path

import pytest
from wandb_log import read_history, read_records, wandb_files

from distrib.__main__ import check
from distrib.base.errors import UserError
from distrib.config import TrackingConfig
from distrib.runs.tracking import Tracker, open_tracker
from distrib.runs.wandb_settings import resolve_wandb, run_id

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def nothing_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no W&B variables and no settings file from the machine the tests run on; an empty working directory."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def say(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def settings_file(text: str, folder: Path | None = None) -> Path:
    """W&B's settings file in the working directory, or in a folder of the user's."""
    file = (folder or Path("wandb")) / "settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file.absolute()


def track(folder: Path, loss: float = 0.5, **options: str | None) -> None:
    """One start of a run, offline: a row, and its end."""
    tracker = open_tracker(TrackingConfig.model_validate(options), folder, {})
    tracker.step({"train/loss": loss}, 1)
    tracker.finish()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "distrib"]


def recorded(folder: Path) -> list[dict[str, object]]:
    """What each part of a run says of itself in W&B."""
    runs = [next(r.run for r in read_records(file) if r.HasField("run")) for file in wandb_files(folder)]
    return [
        {
            "id": run.run_id, "project": run.project, "entity": run.entity, "group": run.run_group,
            "name": run.display_name, "tags": list(run.tags), "notes": run.notes, "job_type": run.job_type,
        }
        for run in runs
    ]  # fmt: skip


def test_what_the_variables_say_is_in_force_and_kept_for_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    first = {
        "WANDB_PROJECT": "face-lab", "WANDB_ENTITY": "team", "WANDB_RUN_GROUP": "ablation", "WANDB_NAME": "mine",
        "WANDB_TAGS": "a,b", "WANDB_NOTES": "first try", "WANDB_JOB_TYPE": "training", "WANDB_RUN_ID": "my-own",
    }  # fmt: skip
    say(monkeypatch, **first)
    track(folder)
    expected = {
        "id": "my-own", "project": "face-lab", "entity": "team", "group": "ablation", "name": "mine",
        "tags": ["a", "b"], "notes": "first try", "job_type": "training",
    }  # fmt: skip
    assert recorded(folder) == [expected]
    assert run_id(folder) == "my-own"
    assert warnings(caplog) == []

    # By the time of a resume the shell says something else, or nothing.
    for name in first:
        monkeypatch.delenv(name, raising=False)
    say(monkeypatch, WANDB_PROJECT="elsewhere", WANDB_RUN_ID="another", WANDB_TAGS="c")
    track(folder)
    assert recorded(folder) == [expected] * 2
    assert [each.partition(" of this run's first start ")[2] for each in warnings(caplog)] == [
        "(face-lab) wins over WANDB_PROJECT=elsewhere",
        "(a, b) wins over WANDB_TAGS=c",
        "(my-own) wins over WANDB_RUN_ID=another",
    ]


def test_an_option_wins_over_a_variable_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    say(monkeypatch, WANDB_PROJECT="face-lab", WANDB_ENTITY="team", WANDB_RUN_GROUP="same", WANDB_MODE="online")
    track(tmp_path / "run", mode="offline", project="mine", group="same")
    [run] = recorded(tmp_path / "run")
    assert (run["project"], run["entity"], run["group"], run["name"]) == ("mine", "team", "same", "run")
    assert warnings(caplog) == [
        "tracking.mode=offline wins over WANDB_MODE=online",
        "tracking.project=mine wins over WANDB_PROJECT=face-lab",
    ]


def test_what_the_folder_alone_can_say_is_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    say(monkeypatch, WANDB_DIR=str(tmp_path / "elsewhere"), WANDB_USE_DOT_WANDB="true")
    say(monkeypatch, WANDB_X_SKIP_TRANSACTION_LOG="true", WANDB_CONSOLE="wrap", WANDB_SERVICE="of another program")
    say(monkeypatch, WANDB_X_SYNC_DIR_SUFFIX="a/b")
    track(tmp_path / "run")
    assert len(read_history(tmp_path / "run")) == 1
    assert not (tmp_path / "elsewhere").exists()
    assert {each.partition(" has no effect: ")[0].partition("=")[0] for each in warnings(caplog)} == {
        "WANDB_DIR", "WANDB_USE_DOT_WANDB", "WANDB_X_SKIP_TRANSACTION_LOG", "WANDB_CONSOLE", "WANDB_X_SYNC_DIR_SUFFIX",
    }  # fmt: skip


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_variable_is_not_set(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["MODE", "TAGS", "BASE_URL", "SILENT", "API_KEY", "RUN_ID", "RESUME", "PROJECT", "DISABLED", "CACHE_DIR"]
    say(monkeypatch, **{f"WANDB_{name}": empty for name in names}, WANDB_HTTP_TIMEOUT=empty, WANDB_ENTITY="team")
    resolved = resolve_wandb(TrackingConfig(), None)
    assert resolved.mode == "offline"
    assert (resolved.values.project, resolved.values.entity) == ("distrib", "team")
    assert resolved.notes == []
    left = {name for name in os.environ if name.startswith("WANDB_")}
    assert left == {"WANDB_ENTITY", "WANDB_ERROR_REPORTING"}


REFUSED = {
    "WANDB_MODE": ["onlin", "shared"], "WANDB_DISABLED": ["maybe"], "WANDB_SILENT": ["perhaps"],
    "WANDB_RESUME": ["true", "must", "never"], "WANDB_RESUME_FROM": ["a?_step=1"], "WANDB_FORK_FROM": ["a?_step=1"],
    "WANDB_PROJECT": ["a/b", "a" * 129], "WANDB_RUN_ID": ["a/b", " a", "a" * 129, "a\tb"],
    "WANDB_TAGS": ["celeba,", "a" * 65], "WANDB_BASE_URL": ["wandb.example", "http://api.wandb.ai"],
    "WANDB_API_KEY": [f"{KEY}\n", f" {KEY}", "short", f"{KEY}!"], "WANDB_IDENTITY_TOKEN_FILE": ["missing"],
    "WANDB_SWEEP_ID": [" a"], "WANDB_SWEEP_PARAM_PATH": ["missing.yaml"], "WANDB_INIT_TIMEOUT": ["soon"],
    "WANDB_X_DISABLE_STATS": ["maybe"], "WANDB__DISABLE_STATS": ["maybe"], "WANDB_CONSOLE": ["loud"],
    "WANDB_CONFIG_PATHS": ["a.yaml"], "WANDB_CACHE_DIR": ["file/cache"], "WANDB_DATA_DIR": ["file"],
    "WANDB_HTTP_TIMEOUT": ["soon"], "WANDB_X_EXTRA_HTTP_HEADERS": ["{"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_variable_that_wandb_refuses_is_named_and_nothing_is_written(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    say(monkeypatch, **{name: value})
    with pytest.raises(UserError, match=name) as refusal:
        open_tracker(TrackingConfig(), tmp_path / "run", {})
    assert "\n" not in str(refusal.value)
    assert KEY not in str(refusal.value)
    assert not (tmp_path / "run").exists()
    # What the sentence may offer at the least does help.
    assert type(open_tracker(TrackingConfig(mode="disabled"), tmp_path / "run", {})) is Tracker


def test_two_kinds_of_credentials_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").touch()
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"))
    with pytest.raises(UserError, match="WANDB_API_KEY and WANDB_IDENTITY_TOKEN_FILE exclude each other"):
        resolve_wandb(TrackingConfig(), None)
    monkeypatch.delenv("WANDB_API_KEY")
    assert resolve_wandb(TrackingConfig(), None).mode == "online"


def test_an_option_that_wandb_refuses_is_named() -> None:
    with pytest.raises(UserError, match=r"W&B refuses tracking\.project=a/b"):
        resolve_wandb(TrackingConfig(project="a/b"), None)


def test_check_refuses_before_anything_is_written(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch, WANDB_RESUME="true")
    options = ["--data.root", str(faces), "--train.batch-size", "8", "--run.folder", str(tmp_path / "run")]
    assert check(options) == 2
    assert capsys.readouterr().err.startswith("distrib: error: WANDB_RESUME=true says which W&B run is resumed")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("said", "mode"), [("true", "disabled"), ("1", "disabled"), ("false", "online")])
def test_wandb_disabled_is_obeyed(said: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_DISABLED=said)
    assert resolve_wandb(TrackingConfig(), None).mode == mode
    assert resolve_wandb(TrackingConfig(mode="offline"), None).mode == "offline"
    say(monkeypatch, WANDB_MODE="online")
    beaten = [f"WANDB_DISABLED={said} wins over WANDB_MODE=online"] if mode == "disabled" else []
    assert resolve_wandb(TrackingConfig(), None).notes == beaten


def test_wandb_disabled_said_in_the_folder_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_file("[default]\nmode = disabled\n")
    say(monkeypatch, WANDB_API_KEY=KEY)
    assert type(open_tracker(TrackingConfig(), tmp_path / "run", {})) is Tracker
    assert not (tmp_path / "run").exists()


def test_settings_files_are_in_force_and_wandb_is_silent_about_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings_file("[default]\nentity = team\nproject = everywhere\n", tmp_path / "home/.config/wandb")
    settings_file("[default]\nmode = offline\nproject = here\nrun_group = group\n")
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_RUN_GROUP="other")
    track(tmp_path / "run")
    [run] = recorded(tmp_path / "run")
    assert (run["project"], run["entity"], run["group"]) == ("here", "team", "other")
    assert [file.parent.name.partition("-run-")[0] for file in wandb_files(tmp_path / "run")] == ["offline"]
    assert capfd.readouterr() == ("", "")
    # The run stays offline in another folder that says nothing, unless somebody says otherwise.
    monkeypatch.chdir(tmp_path)
    assert resolve_wandb(TrackingConfig(), tmp_path / "run").mode == "offline"
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_MODE="online")
    assert resolve_wandb(TrackingConfig(), tmp_path / "run").mode == "online"


def test_wandb_disabled_said_after_the_first_start_is_obeyed_on_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_file("[default]\nmode = offline\n")
    track(tmp_path / "run")
    say(monkeypatch, WANDB_API_KEY=KEY)
    settings_file("[default]\nmode = online\n")
    assert resolve_wandb(TrackingConfig(), tmp_path / "run").mode == "online"
    settings_file("[default]\nmode = disabled\n")
    assert type(open_tracker(TrackingConfig(), tmp_path / "run", {})) is Tracker
    assert resolve_wandb(TrackingConfig(mode="offline"), tmp_path / "run").mode == "offline"


def test_the_settings_file_is_where_wandb_has_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself reads, and `wandb disabled` writes, .wandb/settings where there is a .wandb/."""
    settings_file("[default]\nproject = hidden\n", Path(".wandb"))
    assert resolve_wandb(TrackingConfig(), None).values.project == "hidden"


@pytest.mark.parametrize(
    "text",
    [
        "mode = offline\n", "[default\nmode", "[default]\nmode = sometimes\n", "[default]\nproject = a/b\n",
        "[default]\nunknown = 1\n", "[default]\nproject = 100%\n", "[default]\nrun_id = one\n",
        "[default]\nmode = offline\nmode = online\n", "[default]\nresume = must\n", "[default]\nmode =\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mine", [False, True])
def test_a_settings_file_that_wandb_refuses_is_named(
    text: str, mine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, WANDB_CONFIG_DIR=str(tmp_path / "mine"))
    file = settings_file(text, tmp_path / "mine" if mine else None)
    with pytest.raises(UserError, match=str(file)):
        resolve_wandb(TrackingConfig(), None)


def test_a_key_that_wandb_refuses_in_the_netrc_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    say(monkeypatch, WANDB_BASE_URL="http://127.0.0.1:9")
    netrc.write_text("machine 127.0.0.1:9\n  login user\n  password short\n")
    with pytest.raises(UserError, match=f"the key for http://127.0.0.1:9 in {netrc} .API key must have 40"):
        resolve_wandb(TrackingConfig(), None)
    assert resolve_wandb(TrackingConfig(mode="offline"), None).mode == "offline"
    netrc.write_text("nonsense\n")
    [note] = resolve_wandb(TrackingConfig(), None).notes
    assert str(netrc) in note


def test_a_user_without_a_name_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("NETRC")
    assert resolve_wandb(TrackingConfig(), tmp_path / "run").mode == "offline"
    monkeypatch.setenv("HOME", str(tmp_path))  # else W&B would write to the machine's root here
    track(tmp_path / "run")
    assert len(read_history(tmp_path / "run")) == 1


def test_a_home_that_cannot_be_looked_into_holds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of another user: the system raises another error than for one that is not there."""
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", f"/{'a' * 300}")
    assert resolve_wandb(TrackingConfig(), None).mode == "offline"


def test_a_home_that_cannot_be_written_costs_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file/home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    tracker = open_tracker(TrackingConfig(), tmp_path / "run", {})
    tracker.step({"train/loss": 0.5}, 1)
    tracker.media({}, {"scores": (["attribute", "f1"], [["Smiling", 0.5]])}, 1)
    tracker.step({"train/loss": 0.25}, 2)
    tracker.finish()
    assert [set(row) for row in read_history(tmp_path / "run")] == [
        {"train/loss", "step"}, {"tables/scores"}, {"train/loss", "step"}
    ]  # fmt: skip
    assert len(wandb_files(tmp_path / "run")) == 1


def test_going_offline_does_not_need_what_has_just_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """W&B reads the parameters of a sweep when a run starts, and raises for a file that it cannot read."""
    (tmp_path / "sweep.yaml").write_text("{")
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_PROJECT="face-lab")
    say(monkeypatch, WANDB_SWEEP_ID="sweep", WANDB_SWEEP_PARAM_PATH=str(tmp_path / "sweep.yaml"))
    track(tmp_path / "run")
    assert len(read_history(tmp_path / "run")) == 1
    assert recorded(tmp_path / "run")[-1]["project"] == "face-lab"
    [warning] = warnings(caplog)
    assert "the run is tracked offline from here on" in warning


def test_going_offline_does_not_need_the_file_of_a_launched_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "launch.json").write_text("{")
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_INIT_TIMEOUT="1")
    say(monkeypatch, WANDB_LAUNCH="true", WANDB_LAUNCH_CONFIG_PATH=str(tmp_path / "launch.json"))
    track(tmp_path / "run")
    assert len(read_history(tmp_path / "run")) == 1
    [warning] = warnings(caplog)
    assert "the run is tracked offline from here on" in warning


def test_a_second_training_in_one_process_finds_the_variables_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook; where the home folder takes nothing, each run has its own place for what tables are made of."""
    (tmp_path / "file").touch()
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    say(monkeypatch, HOME=str(tmp_path / "file/home"), WANDB_PROJECT="face-lab", WANDB_TAGS="a,b", WANDB_API_KEY=KEY)
    say(monkeypatch, WANDB_MODE="offline")
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    for name in ("first", "second"):
        track(tmp_path / name)
        [run] = recorded(tmp_path / name)
        assert (run["project"], run["tags"]) == ("face-lab", ["a", "b"])
    after = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    assert after == {"WANDB_ERROR_REPORTING": "false", **before}


def test_a_password_in_an_address_is_neither_kept_nor_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, secret = tmp_path / "run", "planted-3Qe7"
    say(monkeypatch, WANDB_API_KEY=KEY, WANDB_INIT_TIMEOUT="1", WANDB_BASE_URL=f"http://me:{secret}@127.0.0.1:9")
    track(folder)
    assert len(read_history(folder)) == 1
    assert [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()] == []
    # The address is the present start's to say.
    say(monkeypatch, WANDB_BASE_URL=f"http://me:{secret}@127.0.0.1:8")
    assert resolve_wandb(TrackingConfig(), folder).values.base_url == f"http://me:{secret}@127.0.0.1:8"
    say(monkeypatch, WANDB_BASE_URL=f"http://me:{secret}@wandb.ai")
    with pytest.raises(UserError, match=r"WANDB_BASE_URL .http://wandb\.ai is not a valid server address"):
        resolve_wandb(TrackingConfig(), folder)
    assert secret not in caplog.text


def test_a_server_is_kept_only_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    track(tmp_path / "run")
    say(monkeypatch, WANDB_BASE_URL="http://127.0.0.1:9")
    assert resolve_wandb(TrackingConfig(), tmp_path / "run").values.base_url == "http://127.0.0.1:9"
    track(tmp_path / "named")
    say(monkeypatch, WANDB_BASE_URL="http://127.0.0.1:8")
    resolved = resolve_wandb(TrackingConfig(), tmp_path / "named")
    assert resolved.values.base_url == "http://127.0.0.1:9"
    assert resolved.notes == ["the base_url of this run's first start wins over WANDB_BASE_URL"]


def test_a_run_of_a_version_that_kept_the_id_alone_stays_in_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    assert run_id(folder, "earlier") == "earlier"
    say(monkeypatch, WANDB_PROJECT="elsewhere", WANDB_NAME="other")
    track(folder)
    [run] = recorded(folder)
    assert (run["id"], run["project"], run["name"]) == ("earlier", "distrib", "run")
    assert warnings(caplog) == [
        "the project of this run's first start (distrib) wins over WANDB_PROJECT=elsewhere",
        "the run_name of this run's first start (run) wins over WANDB_NAME=other",
    ]
    assert run_id(tmp_path / "asked", "earlier") == "earlier"
    assert resolve_wandb(TrackingConfig(project="mine"), tmp_path / "asked").values.project == "mine"


@pytest.mark.parametrize("content", [b"", b"\n", b"a/b\n", b"\xff\n", b"a" * 129])
def test_a_damaged_id_is_named_by_its_file_and_the_remedy_is_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "wandb_run_id").write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path}/wandb_run_id holds no W&B run ID .* remove it") as refusal:
        resolve_wandb(TrackingConfig(), tmp_path)
    assert "\n" not in str(refusal.value)
    (tmp_path / "wandb_run_id").unlink()
    assert resolve_wandb(TrackingConfig(), tmp_path).mode == "offline"


def test_time_limits_for_a_server_lose_no_row_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, WANDB_INIT_TIMEOUT="-1", WANDB_FINISH_TIMEOUT="nan")
    track(tmp_path / "run", mode="offline")
    assert len(read_history(tmp_path / "run")) == 1


def test_what_the_first_start_has_kept_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "wandb_settings.json").write_text("{")
    with pytest.raises(UserError, match=r"wandb_settings\.json is damaged .* remove it"):
        resolve_wandb(TrackingConfig(), tmp_path)
