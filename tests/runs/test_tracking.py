"""Tracking: the numbers arrive in W&B's files under their names, and no failure of W&B reaches the training."""

import json
import logging
import math
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from wandb_log import read_history, read_records, read_summary, run_ids, wandb_files

from distrib.base.errors import UserError
from distrib.config import TrackingConfig
from distrib.runs.tracking import Tracker, epoch_names, open_tracker
from distrib.runs.wandb_settings import resolve_wandb, run_id

KEY = "0123456789abcdef" * 2 + "01234567"
SECRET = "hunter2-do-not-log-me"
ROW = {
    "epoch": 1, "step": 40, "train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.875, "val_roc_auc": math.nan,
    "lr": 1e-3, "images_per_second": 1234.5, "seconds": 9.0,
}  # fmt: skip
SCORES = {"Smiling": {"f1": 0.5, "roc_auc": 0.75}, "Eyeglasses": {"f1": 0.25, "roc_auc": 1.0}}

# What a training run does, in a process of its own because W&B keeps global state. It prints how long each call took.
PROGRAM = """
import json, logging, os, signal, sys, time
from pathlib import Path
import psutil
from distrib.config import TrackingConfig
from distrib.runs import tracking

logging.basicConfig(level=logging.WARNING, format="WARNING %(message)s")
tracking.INIT_SECONDS, tracking.FINISH_SECONDS, tracking.GRACE_SECONDS = 3.0, 3.0, 5.0
folder, values = Path(sys.argv[1]), json.loads(sys.argv[2])
seconds = {**dict.fromkeys(("open", "step", "epoch", "finish"), 0.0), "began": time.time()}

def timed(name, function, *arguments):
    begin = time.monotonic()
    result = function(*arguments)
    seconds[name] = max(seconds[name], time.monotonic() - begin)
    return result

def service():
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("wandb-")]

def wait_for(condition):
    deadline = time.monotonic() + 15
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)

#before
config = TrackingConfig(**values)
tracker = timed("open", tracking.open_tracker, config, folder, {"optim": {"lr": 0.1}})
row = json.loads(os.environ["ROW"])
scores = json.loads(os.environ["SCORES"])
"""
PLAIN = """
for step in range(FIRST, FIRST + 60, 20):
    timed("step", tracker.step, {"train/loss": 1 / (1 + step), "train/images_per_second": 100.0}, step)
timed("epoch", tracker.epoch, row, scores, FIRST + 40)
tracker.best(folder / "best", {"epoch": 1, "roc_auc": 0.9})
timed("finish", tracker.finish)
tracker.finish()
print(json.dumps(seconds))
"""


def train(
    folder: Path,
    body: str = PLAIN,
    first: int = 0,
    environment: Mapping[str, str] | None = None,
    before: str = "",
    **values: Any,
) -> tuple[dict[str, float], str]:
    """Run a training program; returns the longest time of each call and what was written to stderr.

    What is to be done `before` the tracker is opened, whose thread goes on by itself from then on, is Python too.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM.replace("#before", textwrap.dedent(before)) + f"FIRST = {first}\n" + textwrap.dedent(body),
            folder,
            json.dumps(values),
        ],
        env={**clean, "HOME": str(home), "ROW": json.dumps(ROW), "SCORES": json.dumps(SCORES), **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"W&B wrote to the terminal: {done.stdout}"
    seconds = json.loads(done.stdout)
    return {**seconds, "program": time.time() - seconds["began"]}, done.stderr  # without the imports


@pytest.fixture(autouse=True)
def no_wandb_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no netrc and no W&B variables from the machine the tests run on."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def same(row: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return row.keys() == expected.keys() and all(
        math.isclose(row[key], expected[key], rel_tol=1e-12) or (math.isnan(row[key]) and math.isnan(expected[key]))
        for key in row
    )


def assert_tracked(rows: list[dict[str, float]], first: int = 0) -> None:
    """The rows of one program: three steps and an epoch."""
    steps = [
        {"train/loss": 1 / (1 + step), "train/images_per_second": 100.0, "step": step}
        for step in range(first, first + 60, 20)
    ]
    for row, expected in zip(rows, [*steps, {**epoch_names(ROW, SCORES), "step": first + 40}], strict=True):
        assert same(row, expected), (row, expected)


def test_names_are_stable() -> None:
    named = epoch_names(ROW, {"Smiling": {"f1": 0.5}})
    assert list(named) == [
        "epoch", "step", "train/epoch_loss", "val/loss", "val/accuracy", "val/roc_auc", "train/epoch_lr",
        "train/epoch_images_per_second", "train/epoch_seconds", "val/by_attribute/f1/Smiling",
    ]  # fmt: skip


def test_offline_by_default_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seconds, warnings = train(folder)
    assert warnings == ""
    assert seconds["step"] < 0.5
    assert_tracked(read_history(folder))
    assert read_summary(folder)["best/roc_auc"] == 0.9
    # The second part begins below the last step of the first, as after a crash between two checkpoints.
    train(folder, first=20)
    assert_tracked(read_history(folder)[:4])
    assert_tracked(read_history(folder)[4:], first=20)
    assert run_ids(folder) == [run_id(folder)] * 2
    assert all(file.parent.name.startswith("offline-run-") for file in wandb_files(folder))


def test_nothing_is_written_when_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for mode in ("disabled", "auto"):
        tracker = open_tracker(TrackingConfig(mode=mode), tmp_path / "run", {})
        assert type(tracker) is Tracker
        tracker.step({"train/loss": 1.0}, 0)
        tracker.epoch(ROW, SCORES, 40)
        tracker.best(tmp_path, {"epoch": 1})
        tracker.finish()
    assert not (tmp_path / "run").exists()


def test_wandb_is_not_imported_when_disabled(tmp_path: Path) -> None:
    body = PLAIN + "assert 'wandb' not in sys.modules"
    train(tmp_path / "run", body, mode="disabled")


@pytest.mark.parametrize("environment", [{}, {"WANDB_MODE": "online"}])
def test_online_without_a_key_is_refused_without_a_prompt(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = TrackingConfig(mode="auto" if environment else "online")
    with pytest.raises(UserError, match="is online, but no W&B key is configured: run `wandb login`"):
        open_tracker(config, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_an_unknown_wandb_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(UserError, match="WANDB_MODE is onlin: set it to online, offline or disabled"):
        open_tracker(TrackingConfig(), tmp_path / "run", {})


@pytest.mark.parametrize("server", ["refuses", "never answers"])
def test_an_unreachable_server_costs_no_time_and_no_number(server: str, tmp_path: Path, black_hole: str) -> None:
    """A key in the netrc file makes `auto` online; the server is then away."""
    address = "http://127.0.0.1:9" if server == "refuses" else black_hole
    netrc = tmp_path / "keys"
    netrc.write_text(f"machine {address.removeprefix('http://')}\n  login user\n  password {KEY}\n")
    folder = tmp_path / "run"
    seconds, warnings = train(folder, environment={"WANDB_BASE_URL": address, "NETRC": str(netrc)})
    assert warnings.count("WARNING") == warnings.count("\n") == 1
    assert "the run is tracked offline from here on" in warnings
    assert seconds["open"] < 5  # the import, where the machine is busy
    assert seconds["step"] < 0.5
    assert seconds["epoch"] < 0.5
    assert seconds["finish"] < 8
    assert seconds["program"] < 15  # nothing of W&B holds up the exit of Python
    assert_tracked(read_history(folder))


def test_a_killed_service_costs_no_time(tmp_path: Path) -> None:
    """What W&B had not yet flushed is gone; what comes after is tracked, in a second part of the same run."""
    folder = tmp_path / "run"
    body = """
        tracker.step({"train/loss": 0.0}, 0)
        wait_for(lambda: tracker._jobs.empty() and tracker._counter == 0)
        for process in service():
            process.kill()
        time.sleep(0.3)
    """
    seconds, warnings = train(folder, textwrap.dedent(body) + PLAIN, first=20, mode="offline")
    assert warnings.count("WARNING") == warnings.count("\n") == 1, warnings
    assert seconds["step"] < 0.5
    assert seconds["epoch"] < 0.5
    assert seconds["finish"] < 6
    assert_tracked(read_history(folder)[-4:], first=20)
    assert len(wandb_files(folder)) == 2


@pytest.mark.slow
def test_a_hanging_service_is_ended(tmp_path: Path) -> None:
    body = """
        tracking.FINISH_SECONDS, tracking.GRACE_SECONDS = 0.5, 3.0
        tracker.step({"train/loss": 0.0}, 0)
        wait_for(lambda: tracker._jobs.empty() and tracker._counter == 0)
        for process in service():
            process.suspend()
    """
    seconds, warnings = train(tmp_path / "run", textwrap.dedent(body) + PLAIN, first=20, mode="offline")
    assert warnings.count("WARNING") == 1
    assert "W&B failed (it does not finish)" in warnings
    assert seconds["step"] < 0.5
    assert seconds["finish"] < 8
    assert seconds["program"] < 15


def test_a_broken_wandb_ends_tracking_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def broken(**arguments: Any) -> None:
        raise RuntimeError("no W&B today")

    monkeypatch.setattr(wandb, "init", broken)
    with caplog.at_level(logging.WARNING, logger="distrib"):
        tracker = open_tracker(TrackingConfig(), tmp_path / "run", {})
        tracker.finish()
        tracker.step({"train/loss": 1.0}, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "W&B failed (no W&B today): nothing more is tracked, and training continues; nothing of it is in the run folder"
    ]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        pytest.param(None, "Permission denied", id="cannot be executed"),
        pytest.param("#!/bin/sh\nexec sleep 10\n", "after 1.0 seconds", id="is slow", marks=pytest.mark.slow),
    ],
)
def test_a_service_that_cannot_start_is_one_sentence(program: str | None, reason: str, tmp_path: Path) -> None:
    """On a disk without programs, or on another kind of machine; on a machine that is too busy for it."""
    core = tmp_path / "wandb-core"
    core.write_text(program or "")
    core.chmod(0o755 if program else 0o644)
    broken = f"""
        tracking.import_wandb()
        from wandb.sdk.lib.service import service_process
        service_process.get_core_path = lambda: {str(core)!r}
    """
    seconds, warnings = train(tmp_path / "run", environment={"WANDB_X_SERVICE_WAIT": "1"}, before=broken)
    assert warnings.count("WARNING") == warnings.count("\n") == 1, warnings
    assert reason in warnings
    assert "nothing more is tracked, and training continues; nothing of it is in the run folder" in warnings
    assert "wandb sync" not in warnings
    assert seconds["finish"] < 8
    assert seconds["program"] < 15


def test_no_secret_of_the_environment_reaches_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": SECRET, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    _, warnings = train(folder, environment=secrets, mode="online")
    assert warnings.count("\n") == 1
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(wandb_files(folder)) == 2
    for file in files:
        data = file.read_bytes()
        assert KEY.encode() not in data, file
        assert SECRET.encode() not in data, file


def test_the_best_weights_become_an_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "model.safetensors").write_bytes(b"weights")
    train(folder, mode="offline", upload_best=True)
    [file] = wandb_files(folder)
    [artifact] = [record.artifact for record in read_records(file) if record.HasField("artifact")]
    assert artifact.type == "model"
    assert [entry.path for entry in artifact.manifest.contents] == ["model.safetensors"]


def test_asking_for_a_key_leaves_nothing_for_the_processes_that_are_started_then() -> None:
    """A launcher asks before its ranks do; a service of its own would be theirs, and end with it."""
    before = set(psutil.Process().children(recursive=True))
    assert resolve_wandb(TrackingConfig(), None).mode == "offline"
    assert "WANDB_SERVICE" not in os.environ
    left = [each.name() for each in psutil.Process().children(recursive=True) if each not in before]
    assert not [name for name in left if name.startswith("wandb")]
