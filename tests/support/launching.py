"""Starting the programs as a user starts them."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from distrib.ranks.waiting import MEASURED

ROOT = Path(__file__).resolve().parents[2]


def launch(
    *arguments: object,
    ranks: int = 2,
    restarts: int = 0,
    script: str = "distrib/train.py",
    timeout: float = 400,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program on so many CPU ranks, through `accelerate launch` where there are several."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
        command += ["--num_processes", str(ranks), "--main_process_port", str(free_port()),
                    "--max_restarts", str(restarts)]  # fmt: skip
    command += [script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(**environment), capture_output=True, text=True, timeout=timeout
    )


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change a run: other launchers' variables, and W&B's.

    OpenMP's number of threads stays: a run has as many here as there.
    """
    foreign = ("WANDB_", "ACCELERATE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "SLURM_", "OMP_W", "OMP_P", MEASURED)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, **changes}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def read_events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The events of a run, or those of one kind."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if kind in (None, event["event"])]
