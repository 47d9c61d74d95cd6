"""Whole trainings on two nodes of a real Slurm: whatever happens to the job, the run ends as if nothing had been."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cluster import Cluster, wait_until
from launching import ROOT, read_events, read_metrics
from random_model import write_model
from small_run import assert_same_training, settings

from distrib.config import Config

pytestmark = pytest.mark.slow

TRAIN, EXPLAIN = ROOT / "slurm/train.sh", ROOT / "slurm/explain.sh"
EPOCHS = 2
ON_CPUS = ("--gpus-per-node=0", "--mincpus=1", "--mem=4G")
NODES = ("node1", "node2")


@dataclass
class Training:
    """A training that has been given to Slurm, in a repository of its own."""

    cluster: Cluster
    place: Path
    job: str

    @property
    def run(self) -> Path:
        return self.place / "run"

    @property
    def log(self) -> str:
        file = self.place / f"distrib-train-{self.job}.log"
        return file.read_text() if file.exists() else ""

    def witnessed(self, rank: int) -> list[str]:
        """What the rank has written down at every step: its host, and the number of ranks that it trained with."""
        file = self.place / f"rank-{rank}"
        return file.read_text().splitlines() if file.exists() else []

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.run) if event["event"] != "epoch"]

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, 180, lambda: f"{what}; the log says\n{self.log}")

    def under_way(self) -> None:
        """Return when the training is in its midst: it has a checkpoint, and is far from its end."""
        self.until(lambda: list(self.run.glob("checkpoints/step-*")), "a checkpoint")

    def ended(self) -> dict[str, str]:
        return self.cluster.ended(self.job)

    def finished(self) -> None:
        """Return when the job has ended; it went well."""
        assert self.ended()["JobState"] == "COMPLETED", self.log


def repository(place: Path) -> Path:
    """A folder that is to a job what the repository is, with a witness of what is trained there."""
    (place / "distrib").mkdir()
    (place / "distrib/train.py").symlink_to(ROOT / "tests/cluster/witness.py")
    (place / "launch").symlink_to(ROOT / "launch")
    (place / ".venv").symlink_to(sys.prefix)
    return place


@pytest.fixture(scope="module")
def start(cluster: Cluster, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Training]:
    """Starts trainings that take seconds, on two nodes without GPUs, each in a repository of its own."""

    def start(*more: object, **environment: str) -> Training:
        place = repository(tmp_path_factory.mktemp("repository"))
        arguments = settings(faces, Path("run"), "--train.epochs", EPOCHS, "--checkpoint.every-steps", 4, *more)
        told = {"WITNESS": str(place), "PAUSE": "0.3", "WANDB_MODE": "disabled", **environment}
        job = cluster.submit("--nodes=2", *ON_CPUS, TRAIN, *arguments, cwd=place, **told)
        return Training(cluster, place, job)

    return start


@pytest.fixture(scope="module")
def undisturbed(start: Callable[..., Training]) -> Training:
    """The training that nothing happens to."""
    training = start(PAUSE="0")
    training.finished()
    return training


def test_two_nodes_train_one_model(undisturbed: Training) -> None:
    steps = int(read_metrics(undisturbed.run)[-1]["step"])
    assert undisturbed.witnessed(0) == ["node1 2"] * steps
    assert undisturbed.witnessed(1) == ["node2 2"] * steps
    assert [event["ranks"] for event in read_events(undisturbed.run, "start")] == [2]
    assert undisturbed.events() == ["start", "end"]
    assert not (undisturbed.run / "preempt").exists()


def test_at_its_time_limit_a_training_is_saved_and_requeued(
    cluster: Cluster, start: Callable[..., Training], undisturbed: Training
) -> None:
    training = start(PAUSE="3")
    after = (f"--dependency=afterok:{training.job}", "--kill-on-invalid-dep=yes", EXPLAIN, "run", "--only", "curves")
    report = cluster.submit(*ON_CPUS, *after, cwd=training.place)
    training.until(lambda: training.witnessed(1), "the first step")
    # Slurm looks every 30 s whether it is time for the signal that the script asks for, 3 minutes before the limit.
    cluster.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=4")
    training.until(lambda: cluster.job(training.job)["JobState"] == "PENDING", "the job to be queued again")
    cluster.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=60")
    training.finished()
    assert cluster.job(training.job)["Restarts"] == "1", training.log
    assert "USR1 from Slurm: training is to save and to leave" in training.log
    assert "SLURM_RESTART_COUNT=0" in training.log
    assert "SLURM_RESTART_COUNT=1" in training.log
    assert training.events()[:5] == ["start", "stop", "start", "resume", "end"]
    assert_same_training(training.run, undisturbed.run)

    # The report has waited for the end of it all.
    known = cluster.ended(report)
    assert known["JobState"] == "COMPLETED", (training.place / f"distrib-explain-{report}.log").read_text()
    assert known["StartTime"] >= cluster.job(training.job)["EndTime"]
    assert (training.run / "report/index.html").exists()


def test_a_node_that_loses_its_power_costs_nothing(
    cluster: Cluster, start: Callable[..., Training], undisturbed: Training
) -> None:
    training = start()
    training.under_way()
    cluster.fail("node1")  # the one with the batch shell and rank 0
    training.until(lambda: cluster.job(training.job)["JobState"] == "PENDING", "the job to be queued again")
    cluster.heal("node1")
    training.finished()
    assert cluster.job(training.job)["Restarts"] == "1", training.log
    assert training.events() == ["start", "start", "resume", "end"]
    assert_same_training(training.run, undisturbed.run)


def test_scancel_saves_and_ends(cluster: Cluster, start: Callable[..., Training], undisturbed: Training) -> None:
    training = start(STAGE="/dev/shm")
    training.under_way()
    assert [cluster.on(node, "ls", f"/dev/shm/distrib-{training.job}/data").returncode for node in NODES] == [0, 0]
    cluster.run("scancel", training.job)
    known = training.ended()
    assert known["JobState"] == "CANCELLED", training.log
    assert known["Restarts"] == "0"
    assert training.events() == ["start", "stop"], training.log
    assert "to resume: sbatch slurm/train.sh … --run.folder run --resume auto" in training.log
    assert not (training.run / "preempt").exists()
    assert [cluster.on(node, "ls", "/dev/shm").stdout for node in NODES] == ["", ""]
    last = read_events(training.run, "stop")[-1]
    steps = len(training.witnessed(0))
    assert last["epoch"] * (steps_of(undisturbed) // EPOCHS) + last["step"] == steps
    assert (training.run / f"checkpoints/step-{steps:08d}").is_dir()


def test_a_crash_restarts_in_place(start: Callable[..., Training], undisturbed: Training) -> None:
    training = start(CRASH="yes", STAGE="/dev/shm")
    training.finished()
    assert training.cluster.job(training.job)["Restarts"] == "0"
    assert "training crashed: restart 1 of 3" in training.log
    assert training.log.count("copies ") == 1
    assert f"root: /dev/shm/distrib-{training.job}/data\n" in (training.run / "config.yaml").read_text()
    assert [training.cluster.on(node, "ls", "/dev/shm").stdout for node in NODES] == ["", ""]
    assert_same_training(training.run, undisturbed.run)


def test_what_a_person_must_mend_ends_the_job_at_once(cluster: Cluster, start: Callable[..., Training]) -> None:
    training = start("--optim.lr", "-1")
    after = (f"--dependency=afterok:{training.job}", "--kill-on-invalid-dep=yes", EXPLAIN, "run")
    dependent = cluster.submit(*ON_CPUS, *after, cwd=training.place)
    known = training.ended()
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("FAILED", "2:0", "0")
    errors = [line for line in training.log.splitlines() if line.startswith("distrib: error: ")]
    assert len(errors) == 1
    assert "optim.lr" in errors[0]
    assert not training.run.exists()
    assert training.witnessed(0) == []
    # What was to follow it does not wait for ever.
    assert cluster.ended(dependent).get("JobState") in (None, "CANCELLED")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that is Slurm's alone")
@pytest.mark.parametrize("script", ["train", "explain", "sweep"])
def test_a_gpu_that_torch_cannot_use_is_no_work_for_the_cpu(
    cluster: Cluster, faces: Path, tmp_path: Path, script: str
) -> None:
    """As with a driver that is too old for torch's CUDA: Slurm gives the job a GPU, and torch finds none."""
    place = repository(tmp_path)
    config = Config().replace("data", root=faces).to_yaml()
    write_model(place / "run/best")
    (place / "run/config.yaml").write_text(config)
    (place / "base.yaml").write_text(config)
    (place / "study.yaml").write_text("base: base.yaml\nspace: {train.seed: [0, 1]}\nsampler: grid\n")
    words = {"train": "base.yaml", "explain": "run", "sweep": "study.yaml"}
    few = ("--gpus-per-node=1", "--cpus-per-gpu=1", "--mincpus=1", "--mem=4G", "--output=log")
    job = cluster.submit(*few, ROOT / f"slurm/{script}.sh", words[script], cwd=place)
    known = cluster.ended(job)
    log = (place / "log").read_text()
    assert (known["ExitCode"], known["Restarts"]) == ("2:0", "0"), log
    assert "run.device is cuda, but torch finds no GPU: check the driver" in log


def steps_of(training: Training) -> int:
    return int(read_metrics(training.run)[-1]["step"])
