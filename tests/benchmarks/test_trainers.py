"""benchmarks/train.py: its peers see the images that this project sees, and all of them train to their end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from train import part_of
from trainers import MEAN, STD, Job, datasets

from distrib.config import Config
from distrib.data.batch import Request
from distrib.data.decoders import TorchDecoder
from distrib.data.table import read_table

SIZE = (48, 48)


@pytest.mark.parametrize("recipe", ["one-cycle", "adam", "torchvision", "timm"])
def test_peers_validate_on_the_pixels_and_targets_that_this_project_validates_on(
    faces: Path, tmp_path: Path, recipe: str
) -> None:
    folder = part_of(faces, tmp_path / "part", 64)
    job = Job("Accelerate", False, "no", recipe, str(folder), SIZE, 16, 1, 0, 0, "none")
    train, valid = datasets(job)
    table = read_table(folder)
    config = Config().data.model_copy(update={"root": folder, "image_size": SIZE, "crop": "square"})
    rows = np.flatnonzero(table.split == 1)
    (ours,) = TorchDecoder(config, table, torch.device("cpu")).batches([Request.centred(rows)])
    theirs = torch.stack([valid[number][0] for number in range(len(valid))])
    theirs = theirs * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    off = (theirs * 255 - ours.images_BHWC.permute(0, 3, 1, 2)).abs()
    assert off.max() <= 2
    assert torch.equal(valid.targets, ours.targets_BA)
    assert len(train) == 64
    assert train[0][0].shape == (3, *SIZE)


@pytest.mark.slow
def test_all_peers_that_are_there_train_to_their_end(faces: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/train.py"), "--root", str(faces), "--part", "engine"]
    small = ["--sizes", "32", "--images", "64", "--batch-size", "16", "--epochs", "1", "--rounds", "1"]
    files = ["--json", str(tmp_path / "train.json"), "--plot", str(tmp_path / "train.png")]
    done = subprocess.run([*command, *small, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "train.json").read_text())
    there = {"torchvision's reference", "timm", "Lightning", "Accelerate"} - set(result["left_out"])
    assert {"torchvision's reference", "Accelerate"} <= there
    rates = result["engine"]["32x32"]["images_per_second"]
    assert set(rates) == {"distrib"} | {f"{peer}, {form}" for peer in there for form in ("as it comes", "by hand")}
    assert all(rate["median"] > 0 for rate in rates.values())
    assert all(f"left out: {peer} (pip install" in done.stderr for peer in result["left_out"])
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")
