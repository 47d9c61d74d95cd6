"""The job scripts, run by hand and, where a cluster answers, by Slurm.

The programs they start are stood in for by one that writes down how it was called.
"""

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from launching import ROOT, clean_environment

EXPLAIN = ROOT / "slurm/explain.sh"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as the repository is on a cluster: an environment with a `distrib`, and a run."""
    place = tmp_path / "my repository"
    (place / "runs/a run").mkdir(parents=True)
    program = place / ".venv/bin/distrib"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$OMP_NUM_THREADS" "$@" >called\nexit "${STATUS:-0}"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return place


def by_hand(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(EXPLAIN), *arguments], cwd=place, env=clean_environment(**environment), capture_output=True, text=True
    )


def calls(place: Path) -> list[str]:
    """The folder, the number of threads and the arguments with which `distrib` was called."""
    return (place / "called").read_text().splitlines()


def test_explain_hands_its_arguments_on_as_they_are(place: Path) -> None:
    done = by_hand(place, "runs/a run", "--only", "roc", "--explain.group", "*$(id)", SLURM_CPUS_PER_TASK="3")
    assert (done.returncode, done.stderr) == (0, "")
    wanted = [str(place), "3", "explain", "runs/a run", "--only", "roc", "--explain.group", "*$(id)"]
    assert calls(place) == wanted


@pytest.mark.parametrize("status", [1, 2])
def test_explain_ends_as_the_program_ends(place: Path, status: int) -> None:
    assert by_hand(place, "runs/a run", STATUS=str(status)).returncode == status


@pytest.mark.parametrize("arguments", [[], ["runs/other run"]])
def test_explain_refuses_a_run_that_is_not_there(place: Path, arguments: list[str]) -> None:
    done = by_hand(place, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("distrib: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert all(argument in done.stderr for argument in arguments)
    assert not (place / "called").exists()


def test_explain_says_so_where_distrib_is_not_installed(place: Path) -> None:
    shutil.rmtree(place / ".venv")
    done = by_hand(place, "runs/a run", PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert ".venv" in done.stderr


# --- by Slurm


@pytest.fixture
def slurm(place: Path) -> Path:
    """The folder, where a cluster answers."""
    if shutil.which("sbatch") is None or slurm_says("scontrol", "ping", check=False).returncode:
        pytest.skip("needs a Slurm cluster: sbatch that reaches its controller")
    return place


def slurm_says(*command: str, cwd: Path = ROOT, check: bool = True) -> subprocess.CompletedProcess[str]:
    kept = {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
    return subprocess.run(
        command, cwd=cwd, env=clean_environment(**kept), capture_output=True, text=True, timeout=30, check=check
    )


def submit(place: Path, *command: str) -> str:
    """The number of the job that sbatch queued."""
    return slurm_says("sbatch", "--parsable", *command, cwd=place).stdout.strip()


def ended(job: str) -> dict[str, str]:
    """What Slurm knows of a job, once it is over."""
    for _ in range(120):
        words = slurm_says("scontrol", "--oneliner", "show", "job", job).stdout.split()
        known = dict(word.split("=", 1) for word in words if "=" in word)
        if known["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            return known
        time.sleep(0.5)
    raise AssertionError(f"job {job} does not end: {known}")


SMALL = ("--cpus-per-task=2", "--mem=100M", "--gpus-per-node=0")


def test_explain_waits_for_a_training_and_comes_even_if_it_failed(slurm: Path) -> None:
    training = submit(slurm, *SMALL, "--wrap", "sleep 2; mkdir 'runs/new run'; exit 1")
    job = submit(slurm, *SMALL, f"--dependency=afterany:{training}", str(EXPLAIN), "runs/new run", "--only", "a b")
    assert ended(job)["JobState"] == "COMPLETED", (slurm / f"distrib-explain-{job}.log").read_text()
    assert ended(training)["JobState"] == "FAILED"
    assert calls(slurm) == [str(slurm), "2", "explain", "runs/new run", "--only", "a b"]


def test_explain_asks_for_a_gpu_and_its_log_says_what_is_wrong(slurm: Path) -> None:
    job = submit(slurm, str(EXPLAIN), "runs/nothing")
    known = ended(job)
    assert known["ExitCode"] == "2:0"
    assert "gres:gpu:1" in known["TresPerNode"]
    assert "runs/nothing" in (slurm / f"distrib-explain-{job}.log").read_text()
