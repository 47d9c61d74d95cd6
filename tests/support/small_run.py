"""A training that takes seconds, and how two of them are compared."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from launching import read_metrics
from safetensors.torch import load_file

from distrib.config import read_yaml
from distrib.data.plan import Plan
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.ranks.machine import cpu_computes_in_bf16

EPOCHS, BATCH, EVERY = 3, 16, 2
# Named, since `auto` measures, and two runs that are compared are to be of one precision.
PRECISION = "bf16" if cpu_computes_in_bf16() else "no"


def settings(faces: Path, folder: Path, *more: object) -> list[object]:
    """A run that takes seconds: three attributes at 32 x 32 pixels."""
    return [
        "--run.folder", folder, "--run.device", "cpu", "--data.root", faces,
        "--data.attributes", "Smiling", "Eyeglasses", "Male", "--data.image-size", 32, 32, "--data.min-zoom", 0.8,
        "--train.batch-size", BATCH, "--train.epochs", EPOCHS, "--train.log-every", 3, "--train.precision", PRECISION,
        "--optim.schedule", "one-cycle", "--checkpoint.every-steps", EVERY, "--checkpoint.keep", 3,
        "--explain.after-training", False, *more,
    ]  # fmt: skip


def the_plan(faces: Path, folder: Path) -> Plan:
    config = read_yaml(folder / "config.yaml")
    return Plan(make_splits(read_table(faces), config.data).train, config.train.seed, BATCH, config.data.min_zoom)


def observed(seen: Path) -> dict[int, list[int]]:
    """step -> the sorted ids of its global batch, as the ranks trained on them."""
    steps: dict[int, list[int]] = {}
    for file in seen.glob("rank-*.jsonl"):
        for step, ids in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(step, []).extend(ids)
    return {step: sorted(ids) for step, ids in steps.items()}


def copied(run: Path, folder: Path, ignore: Callable[[Any, list[str]], set[str]] | None = None) -> Path:
    """A copy of a run to go on with; what holds tensors is linked, as nothing ever writes into it."""

    def take(source: str, target: str) -> object:
        return os.link(source, target) if source.endswith((".pt", ".safetensors")) else shutil.copy2(source, target)

    return Path(shutil.copytree(run, folder, ignore=ignore, copy_function=take))


def go_back(run: Path, folder: Path, steps: int) -> Path:
    """A copy of a run, as it was when it had made so many steps."""
    later = {each.name for each in (run / "checkpoints").iterdir() if each.name > f"step-{steps:08d}"}
    copied(run, folder, lambda _, names: later.intersection(names))
    assert (folder / f"checkpoints/step-{steps:08d}").exists()
    return folder


def assert_same_training(one: Path, other: Path) -> None:
    """Weights and their average, the best, optimiser, progress and metrics, bit for bit; only clocks may differ."""
    newest = [max((folder / "checkpoints").iterdir()) for folder in (one, other)]
    assert newest[0].name == newest[1].name
    weights = [load_file(folder / "model.safetensors") for folder in newest]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name
    best = [load_file(folder / "best/model.safetensors") for folder in (one, other)]
    assert all(torch.equal(tensor, best[1][name]) for name, tensor in best[0].items())
    trainers = [torch.load(folder / "trainer.pt", weights_only=True) for folder in newest]
    states = [trainer["optimizer"]["state"] for trainer in trainers]
    assert states[0].keys() == states[1].keys()
    assert states[0]
    for number, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][number][name]), (number, name)
    networks = [trainer["network"] or {} for trainer in trainers]  # beside their average
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())
    assert trainers[0]["progress"] == trainers[1]["progress"]
    clocks = ("images_per_second", "seconds")
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in read_metrics(folder)] for folder in (one, other)
    ]
    assert rows[0] == rows[1]
    by_attribute = [(folder / "metrics_by_attribute.csv").read_text() for folder in (one, other)]
    assert by_attribute[0] == by_attribute[1]
