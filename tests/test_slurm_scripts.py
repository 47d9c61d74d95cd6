"""The job scripts, run by hand, with programs that write down how they were called; tests/cluster/ has a real Slurm."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from launching import ROOT, clean_environment

from distrib.runs.folder import RunFolder

EXPLAIN, SWEEP, TRAIN, SYNC = (
    ROOT / "slurm" / name for name in ("explain.sh", "sweep.sh", "train.sh", "wandb_sync.sh")
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as the repository is on a cluster: an environment with the programs, Slurm's beside it, and a run."""
    place = tmp_path / "my repository"
    for folder in ("runs/a run", "distrib", ".venv/bin", "slurm/bin"):
        (place / folder).mkdir(parents=True)
    (place / "distrib/train.py").touch()
    for name in ("distrib", "accelerate", "wandb"):
        program = place / ".venv/bin" / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$OMP_NUM_THREADS" "$@" >called\nexit "${STATUS:-0}"\n')
        program.chmod(0o755)
    for name in ("srun", "scontrol", "squeue"):  # on machines without Slurm, too; none of them is to be called
        program = place / "slurm/bin" / name
        program.write_text("#!/bin/sh\nexit 99\n")
        program.chmod(0o755)
    return place


def by_hand(script: Path, place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment["PATH"] = f"{place}/slurm/bin:{environment.get('PATH', os.environ['PATH'])}"
    return subprocess.run(
        [str(script), *arguments], cwd=place, env=clean_environment(**environment), capture_output=True, text=True
    )


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The script ended with one sentence that has these parts."""
    assert done.returncode == 2
    assert done.stderr.startswith("distrib: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert all(part in done.stderr for part in parts), done.stderr


def calls(place: Path) -> list[str]:
    """The folder, the number of threads and the arguments with which a program was called."""
    return (place / "called").read_text().splitlines()


# --- explain.sh


def test_explain_hands_its_arguments_on_as_they_are(place: Path) -> None:
    arguments = ("runs/a run", "--only", "roc", "--explain.group", "*$(id)")
    done = by_hand(EXPLAIN, place, *arguments, SLURM_CPUS_ON_NODE="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert calls(place) == [str(place), "3", "explain", *arguments]


def test_explain_works_on_the_gpu_that_it_is_given(place: Path) -> None:
    """auto would take the CPU where torch cannot use it; a device of the command line comes later, and wins."""
    done = by_hand(EXPLAIN, place, "runs/a run", "--run.device", "cpu", SLURM_GPUS_ON_NODE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert calls(place)[2:] == ["explain", "runs/a run", "--run.device", "cuda", "--run.device", "cpu"]


@pytest.mark.parametrize("status", [1, 2])
def test_explain_ends_as_the_program_ends(place: Path, status: int) -> None:
    assert by_hand(EXPLAIN, place, "runs/a run", STATUS=str(status)).returncode == status


@pytest.mark.parametrize("arguments", [[], ["runs/other run"]])
def test_explain_refuses_a_run_that_is_not_there(place: Path, arguments: list[str]) -> None:
    refused(by_hand(EXPLAIN, place, *arguments), *arguments)
    assert not (place / "called").exists()


# --- sweep.sh


def test_sweep_is_a_job_on_a_study(place: Path) -> None:
    refused(by_hand(SWEEP, place, "study.yaml"), "is a job", "distrib sweep STUDY")
    refused(by_hand(SWEEP, place, "study.yaml", SLURM_JOB_ID="7"), "study.yaml is not a file", str(place))
    refused(by_hand(SWEEP, place, SLURM_JOB_ID="7"), "name a study")


def test_sweep_hands_its_arguments_on_and_ends_as_the_program_ends(place: Path) -> None:
    (place / "my study.yaml").touch()
    arguments = ("my study.yaml", "--data.root", "*$(id)")
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8", "SLURM_GPUS_ON_NODE": "2"}
    done = by_hand(SWEEP, place, *arguments, **job)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls(place) == [str(place), "4", "sweep", "my study.yaml", "--run.device", "cuda", *arguments[1:]]
    for status in ("2", "75"):
        assert by_hand(SWEEP, place, *arguments, **job, STATUS=status).returncode == int(status)


@pytest.mark.parametrize(
    ("gpus", "options"),
    [
        (2, ["--workers-per-gpu", "3"]),
        (6, ["--workers", "2"]),  # which share the GPUs out, and start no more ranks than there are
        (0, ["--workers=3"]),
        (0, ["--workers", "3", "--folder", "a"]),
    ],
)
def test_sweep_shares_the_cores_of_its_job_among_all_trials_at_a_time(
    place: Path, gpus: int, options: list[str]
) -> None:
    (place / "study.yaml").touch()
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "24", "SLURM_GPUS_ON_NODE": str(gpus)}
    assert by_hand(SWEEP, place, "study.yaml", *options, **job).returncode == 0
    assert calls(place)[1] == "4"


@pytest.mark.parametrize(("restarts", "kept"), [("0", ["--retry-failed"]), ("1", [])])
def test_sweep_tries_failed_trials_again_in_its_first_start_alone(place: Path, restarts: str, kept: list[str]) -> None:
    (place / "study.yaml").touch()
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "2", "SLURM_RESTART_COUNT": restarts}
    assert by_hand(SWEEP, place, "study.yaml", "--retry-failed", "--folder=a b", **job).returncode == 0
    assert calls(place)[2:] == ["sweep", "study.yaml", *kept, "--folder=a b"]


# --- train.sh


ON_A_NODE = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1"}


@pytest.mark.parametrize("environment", [{}, {"SLURM_JOB_ID": "7"}])
def test_train_is_a_job_and_says_so(place: Path, environment: dict[str, str]) -> None:
    refused(by_hand(TRAIN, place, "--config", "a.yaml", **environment), "sbatch slurm/train.sh", "distrib train")


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"MAX_RESTARTS": "many"}, ["MAX_RESTARTS is 'many'", "from 0 on"]),
        ({"MAX_RESTARTS": "-1"}, ["MAX_RESTARTS is '-1'"]),
        ({"RANKS_PER_NODE": "0"}, ["RANKS_PER_NODE is '0'", "from 1 on"]),
        ({"RANKS_PER_NODE": "08"}, ["RANKS_PER_NODE is '08'"]),
        ({"STAGE": "scratch"}, ["STAGE is 'scratch'", "such as /tmp"]),
    ],
)
def test_train_refuses_what_it_cannot_use(place: Path, environment: dict[str, str], parts: list[str]) -> None:
    refused(by_hand(TRAIN, place, "--config", "a.yaml", **ON_A_NODE, **environment), *parts)
    assert not (place / "called").exists()


def test_train_needs_a_configuration_and_the_repository(place: Path) -> None:
    refused(by_hand(TRAIN, place, **ON_A_NODE), "--config configs/celeba.yaml")
    (place / "distrib/train.py").unlink()
    refused(by_hand(TRAIN, place, "--config", "a.yaml", **ON_A_NODE), str(place), "submit in the repository")


# --- wandb_sync.sh


def part_of(run: Path, name: str, uploaded: bool = False) -> str:
    """A folder as W&B makes it for a run, or for a part of one; as the script names it."""
    part = run / "wandb" / name
    part.mkdir(parents=True)
    (part / "run-id.wandb").touch()
    if uploaded:
        (part / "run-id.wandb.synced").touch()
        os.utime(part / "run-id.wandb", (0, 0))
    return str(part.relative_to(run.parents[1]))


def test_sync_uploads_what_is_not_uploaded_yet(place: Path) -> None:
    runs = place / "runs"
    first, second = part_of(runs / "a run", "offline-run-1"), part_of(runs / "a run", "offline-run-2")
    part_of(runs / "a run", "offline-run-0", uploaded=True)
    grown = part_of(runs / "a run", "offline-run-3", uploaded=True)
    os.utime(place / grown / "run-id.wandb")
    os.utime(place / grown / "run-id.wandb.synced", (0, 0))
    other = part_of(runs / "other", "offline-run-1")
    online = part_of(runs / "other", "run-1")  # the server was away at its end
    part_of(runs / "other", "run-0", uploaded=True)
    options = ["sync", "--include-online", "--include-synced"]
    assert by_hand(SYNC, place).returncode == 0
    assert calls(place)[2:] == [*options, first, second, grown, other, online]
    assert by_hand(SYNC, place, "--dry-run", "runs/other/").returncode == 0
    assert calls(place)[2:] == [*options, "--dry-run", other, online]
    assert by_hand(SYNC, place, "runs/other", STATUS="1").returncode == 1


@pytest.mark.parametrize("arguments", [[], ["runs/a run"]])
def test_sync_says_so_where_there_is_nothing(place: Path, arguments: list[str]) -> None:
    part_of(place / "runs/a run", "offline-run-1", uploaded=True)
    done = by_hand(SYNC, place, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("distrib: nothing to upload: ")
    assert len(done.stdout.splitlines()) == 1
    assert not (place / "called").exists()


def test_sync_leaves_to_wandb_what_a_run_under_way_uploads_itself(place: Path) -> None:
    run = RunFolder(place / "runs/a run")
    offline, online = part_of(run.path, "offline-run-1"), part_of(run.path, "run-2")
    run.lock()
    assert by_hand(SYNC, place).returncode == 0
    assert calls(place)[3:] == ["--include-online", "--include-synced", offline]
    run.unlock()
    (run.path / "run.lock").touch()  # as a crash leaves it
    assert by_hand(SYNC, place).returncode == 0
    assert calls(place)[3:] == ["--include-online", "--include-synced", offline, online]


def test_sync_refuses_what_it_does_not_know(place: Path) -> None:
    refused(by_hand(SYNC, place, "runs/other run"), "runs/other run", "runs/NAME")
    refused(by_hand(SYNC, place, "--include-online"), "--include-online", "--dry-run")


def test_sync_and_wandb_agree_on_what_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    if not (tmp_path / ".venv/bin/wandb").exists():
        pytest.skip("needs the environment in .venv")
    program = "import wandb; run = wandb.init(dir='runs/one', id='abc'); run.log({'loss': 1}); run.finish()"
    subprocess.run(
        [tmp_path / ".venv/bin/python", "-c", program],
        cwd=tmp_path, env=clean_environment(WANDB_MODE="offline"), capture_output=True, check=True,
    )  # fmt: skip
    [part] = (tmp_path / "runs/one/wandb").glob("offline-run-*")
    for name in (part.name, part.name.removeprefix("offline-")):
        part = part.rename(part.with_name(name))
        done = by_hand(SYNC, tmp_path, "--dry-run")
        assert done.returncode == 0
        assert "Would sync 1 run" in done.stdout + done.stderr, name
        assert "run-abc.wandb" in done.stdout + done.stderr


# --- all of them


@pytest.mark.parametrize(("script", "word"), [(EXPLAIN, "runs/a run"), (SWEEP, "study.yaml"), (TRAIN, "a.yaml")])
def test_what_sbatch_does_not_export_is_not_kept_from_steps(place: Path, script: Path, word: str) -> None:
    (place / "study.yaml").touch()
    for name in ("distrib", "srun", "scontrol", "squeue"):
        program = place / ".venv/bin" / name
        program.write_text("#!/bin/sh\nenv >>environment\n")
        program.chmod(0o755)
    by_hand(
        script, place, word, **ON_A_NODE, SLURM_JOB_NODELIST="node1", SLURM_EXPORT_ENV="NONE", SRUN_EXPORT_ENV="NIL"
    )
    written = (place / "environment").read_text().splitlines()
    assert {line for line in written if "EXPORT_ENV=" in line} == {"SLURM_EXPORT_ENV=ALL", "SRUN_EXPORT_ENV=ALL"}


@pytest.mark.parametrize(
    ("script", "arguments", "environment"),
    [
        (EXPLAIN, ["runs/a run"], {}),
        (TRAIN, ["--config", "a.yaml"], ON_A_NODE),
        (SYNC, ["runs/a run"], {}),
    ],
)
def test_a_missing_environment_is_one_sentence(
    place: Path, script: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    shutil.rmtree(place / ".venv")
    refused(by_hand(script, place, *arguments, PATH="/usr/bin:/bin", **environment), ".venv")
