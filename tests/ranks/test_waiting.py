"""How OpenMP's threads wait: what is measured, who chooses, and that it is in time for torch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import launch, read_events
from small_run import settings

from distrib.ranks import waiting
from distrib.ranks.waiting import BUSY, CHOICES, MEASURED, choose_waiting, cores_busy_elsewhere, waiting_line

SPIN = "while True: pass"


@pytest.fixture(autouse=True)
def _nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets is gone after it, too."""
    for name in (*CHOICES, MEASURED):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def stranger() -> Iterator[None]:
    """A busy process that is not of this process's family: its parent has left."""
    code = f"""if True:
        import subprocess, sys
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        print(subprocess.Popen([sys.executable, "-c", {SPIN!r}], **quiet).pid)"""
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    yield
    os.kill(pid, 9)


@pytest.mark.usefixtures("stranger")
def test_a_stranger_is_measured_and_a_child_is_not() -> None:
    """Whatever else this machine does can only add to what is measured."""
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        before = waiting._family_seconds()
        assert cores_busy_elsewhere(2.0) > 0.1
        assert waiting._family_seconds()[child.pid] > before[child.pid]
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(("busy", "policy"), [(0.0, None), (BUSY - 0.01, None), (BUSY, "PASSIVE"), (3.0, "PASSIVE")])
def test_threads_sleep_beside_busy_programs(busy: float, policy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "cores_busy_elsewhere", lambda seconds: busy)
    choose_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    assert waiting.waiting()["cores_busy_elsewhere"] == pytest.approx(busy, abs=0.005)
    assert (waiting_line() is None) == (policy is None)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_choice_of_a_person_stands(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "cores_busy_elsewhere", lambda seconds: pytest.fail("nothing is to be measured"))
    os.environ[choice] = "1"
    choose_waiting()
    assert waiting.waiting() == {"variables": {choice: "1"}, "cores_busy_elsewhere": None}
    assert waiting_line() is None


def test_the_ranks_keep_what_their_launcher_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "cores_busy_elsewhere", lambda seconds: 2.0)
    choose_waiting()
    monkeypatch.setattr(waiting, "cores_busy_elsewhere", lambda seconds: pytest.fail("it has been measured"))
    choose_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "2.0 cores busy" in str(waiting_line())


def test_it_is_chosen_without_torch() -> None:
    code = "import sys; import distrib.ranks.waiting as w; w.choose_waiting(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.usefixtures("stranger")
def test_a_busy_machine_is_told_of(faces: Path, tmp_path: Path) -> None:
    short = ["--train.epochs", 1, "--data.subset", 32, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    done = launch(*settings(faces, tmp_path / "run", *short), ranks=1)
    assert done.returncode == 0, done.stderr
    (start,) = read_events(tmp_path / "run", "start")
    assert start["openmp"]["variables"] == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert start["openmp"]["cores_busy_elsewhere"] >= BUSY
    assert "cores busy: OpenMP's threads sleep while they wait" in done.stdout
