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

from train import fastest, part_of
from trainers import MEAN, STD, Job, loaders, timm_loaders

from distrib.config import Config
from distrib.data.batch import Request
from distrib.data.decoders import TorchDecoder
from distrib.data.table import read_table

SIZE = (48, 48)


@pytest.fixture
def job(faces: Path, tmp_path: Path) -> Job:
    folder = part_of(faces, tmp_path / "part", 64)
    return Job("Accelerate", False, "no", "one-cycle", str(folder), SIZE, 16, 1, 0, 0, "none")


def validated_on(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """The images float32 [N, 3, H, W] and the targets that this project validates on."""
    root = Path(job.folder)
    table = read_table(root)
    config = Config().data.model_copy(update={"root": root, "image_size": SIZE, "crop": "square"})
    (batch,) = TorchDecoder(config, table, torch.device("cpu")).batches(
        [Request.centred(np.flatnonzero(table.split == 1))]
    )
    return batch.images_BHWC.permute(0, 3, 1, 2).float(), batch.targets_BA.float()


def assert_seen(job: Job, images: torch.Tensor, targets: torch.Tensor) -> None:
    ours = validated_on(job)
    pixels = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    assert (pixels - ours[0]).abs().max() <= 2
    assert torch.equal(targets.float(), ours[1])


@pytest.mark.parametrize("recipe", ["one-cycle", "adam", "torchvision", "timm"])
def test_peers_validate_on_the_pixels_and_targets_that_this_project_validates_on(job: Job, recipe: str) -> None:
    train, valid = loaders(job._replace(recipe=recipe))
    images, targets = (torch.cat(each) for each in zip(*valid, strict=True))
    assert_seen(job, images, targets)
    assert [tuple(images.shape) for images, _ in train] == [(16, 3, *SIZE)] * 4


def test_timm_does_too(job: Job) -> None:
    pytest.importorskip("timm")
    train, valid = timm_loaders(job._replace(trainer="timm", workers=1))
    images, targets = (torch.cat(each) for each in zip(*valid, strict=True))
    assert_seen(job, images, targets)
    assert [tuple(images.shape) for images, _ in train] == [(16, 3, *SIZE)] * 4


def test_the_engines_peers_train_on_crops_and_mirror_images_as_this_project_does(job: Job) -> None:
    train, _ = loaders(job._replace(recipe="one-cycle"))
    crop, mirror, *_ = train.dataset.transform.transforms
    torch.manual_seed(0)
    sides = [crop.get_params(torch.empty(3, 178, 178), crop.scale, crop.ratio)[2:] for _ in range(400)]
    assert all(height == width for height, width in sides)
    assert 0.845 * 178 < min(sides)[0] < 0.87 * 178
    assert max(sides)[0] > 0.98 * 178
    assert mirror.p == 0.5


def test_the_recipes_are_tried_in_the_fastest_loop_by_hand_if_one_was_measured() -> None:
    peers = ["timm", "Accelerate"]
    by_hand, as_it_comes = ({form: {"peer": f"timm, {form}"}} for form in ("by hand", "as it comes"))
    engine = {"sizes": {"112x112": {"of_best": by_hand}}}
    assert fastest({"engine": engine}, peers) == "timm"
    assert fastest({"engine": {"sizes": {"112x112": {"of_best": as_it_comes}}}}, peers) == "Accelerate"
    assert fastest({}, peers) == "Accelerate"


@pytest.mark.slow
def test_all_peers_that_are_there_train_to_their_end(faces: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/train.py"), "--root", str(faces), "--part", "engine"]
    small = ["--sizes", "32", "--images", "64", "--batch-size", "16", "--epochs", "3", "--rounds", "1"]
    files = ["--json", str(tmp_path / "train.json"), "--plot", str(tmp_path / "train.png")]
    done = subprocess.run([*command, *small, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "train.json").read_text())
    there = {"torchvision's reference", "timm", "Lightning", "Accelerate"} - set(result["left_out"])
    assert {"torchvision's reference", "Accelerate"} <= there
    rates = result["engine"]["sizes"]["32x32"]["images_per_second"]
    assert set(rates) == {"distrib"} | {f"{peer}, {form}" for peer in there for form in ("as it comes", "by hand")}
    assert all(rate["median"] > 0 for rate in rates.values())
    assert all(f"left out: {peer} (pip install" in done.stderr for peer in result["left_out"])
    assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")
