"""An array of workers on one study, on a real Slurm: whatever happens to the workers, each trial is trained once."""

import csv
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, wait_until
from launching import ROOT, read_events, read_metrics

pytestmark = pytest.mark.slow

SWEEP = ROOT / "slurm/sweep.sh"
# So much memory that a node has room for one worker.
ON_CPUS = ("--gpus-per-node=0", "--mincpus=1", "--mem=150G")


def test_an_array_trains_each_trial_once_whatever_happens_to_its_workers(
    cluster: Cluster, faces: Path, tmp_path: Path
) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    fixed = {
        "data.root": str(faces), "data.attributes": ["Smiling"], "data.image_size": [32, 32], "train.batch_size": 16,
        "train.epochs": 3, "checkpoint.every_steps": 5, "explain.after_training": False, "run.ranks": 1,
    }  # fmt: skip
    study = {"set": fixed, "space": {"optim.lr": [0.01, 0.003, 0.001], "train.seed": [0, 1]}, "sampler": "grid"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    folder = tmp_path / "studies/study"
    # A node each, so that the loss of one is the loss of one worker.
    options = ("--array=0-1", *ON_CPUS)
    job = cluster.submit(*options, SWEEP, "study.yaml", cwd=tmp_path, WANDB_MODE="disabled")
    workers = [f"{job}_{number}" for number in range(2)]

    def log(number: int) -> str:
        file = tmp_path / f"distrib-sweep-{job}-{number}.log"
        return file.read_text() if file.exists() else ""

    def logs() -> str:
        return f"{log(0)}\n---\n{log(1)}"

    wait_until(lambda: "trial" in log(0) and "trial" in log(1), 180, lambda: f"both workers to begin: {logs()}")
    nodes = [cluster.job(worker)["BatchHost"] for worker in workers]
    assert sorted(nodes) == ["node1", "node2"]
    # One worker comes near its time limit, the other one's node loses its power.
    cluster.run("scancel", "--batch", "--signal=USR1", workers[0])
    wait_until(lambda: "requeues job" in log(0), 120, lambda: f"the first worker to be requeued: {logs()}")
    cluster.fail(nodes[1])
    for worker in workers:
        wait_until(lambda worker=worker: cluster.job(worker).get("Restarts", "0") == "1", 120, logs)
    cluster.heal(nodes[1])
    for worker in workers:
        assert cluster.ended(worker)["JobState"] == "COMPLETED", logs()

    with (folder / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["state"] for row in rows) == {"finished": 6}, logs()
    assert len({(row["optim.lr"], row["train.seed"]) for row in rows}) == 6
    for row in rows:
        assert len(read_metrics(folder / row["runs"])) == 3
        assert len(read_events(folder / row["runs"], "end")) == 1
    # What was under way was resumed, and nothing else was begun twice.
    starts = [len(read_events(folder / row["runs"], "start")) for row in rows]
    assert sum(starts) <= 8
    assert (folder / "study/index.html").exists()
