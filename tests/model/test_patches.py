"""First filters from patches of training images: what they are, and that runs begin with them on any ranks."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forked_ranks import train_on_ranks
from launching import read_events
from safetensors.torch import load_file
from small_run import assert_same_training, go_back, settings, the_plan

from distrib.config import Config, read_yaml
from distrib.data.decoders import TorchDecoder
from distrib.data.plan import Plan
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.model.network import AttributeClassifier
from distrib.model.patches import principal_filters
from distrib.training.start import first_images, unmeasured_statistics


@pytest.fixture
def smooth_images() -> torch.Tensor:
    """Of noise that is smooth, as photographs are, so that no two components have the same variance."""
    noise_BCHW = torch.rand(70, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    smooth_BCHW = F.avg_pool2d(noise_BCHW, 5, 1)
    return (255 * smooth_BCHW).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(("stem", "side", "pairs"), [("imagenet", 7, 32), ("small", 3, 27)])
def test_filters_are_the_components_of_patches_and_their_negatives(
    stem: str, side: int, pairs: int, smooth_images: torch.Tensor
) -> None:
    torch.manual_seed(1)
    model = AttributeClassifier(2, stem=stem)  # type: ignore[arg-type]
    before = model.net.conv1.weight.detach().clone()
    found = principal_filters(model, smooth_images.split(30))
    assert torch.equal(model.net.conv1.weight, before)
    torch.testing.assert_close(found, principal_filters(model, [smooth_images]), rtol=0, atol=1e-5)

    components = found[:pairs]
    assert torch.equal(found[pairs : 2 * pairs], -components)
    assert torch.equal(found[2 * pairs :], before[2 * pairs :])
    flat = components.flatten(1).double()
    length = math.sqrt(2 * 3 / 64)
    torch.testing.assert_close(flat @ flat.T, length**2 * torch.eye(pairs).double(), rtol=0, atol=1e-7)
    assert before.flatten(1).norm(dim=1).mean() == pytest.approx(length, rel=0.1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()

    images = model.normalise(smooth_images).double().numpy()
    patches = np.stack([
        images[:, :, y : y + side, x : x + side].reshape(len(images), -1)
        for y in range(0, 36 - side + 1, 2)
        for x in range(0, 32 - side + 1, 2)
    ]).reshape(-1, 3 * side * side)  # fmt: skip
    variances = ((patches - patches.mean(0)) @ (flat.numpy().T / length)).var(0)
    largest = np.linalg.svd(patches - patches.mean(0), compute_uv=False)[:pairs] ** 2 / len(patches)
    np.testing.assert_allclose(variances, largest, rtol=1e-4)


def test_what_does_not_vary_is_no_component(smooth_images: torch.Tensor) -> None:
    grey = smooth_images.float().mean(3, keepdim=True).expand(-1, -1, -1, 3).to(torch.uint8)
    model = AttributeClassifier(2, stem="small")
    found = principal_filters(model, [grey])
    assert torch.equal(found[9:18], -found[:9])
    assert torch.equal(found[18:], model.net.conv1.weight[18:])


def test_runs_begin_with_the_same_filters_on_any_number_of_ranks(faces: Path, tmp_path: Path) -> None:
    """With a learning rate of nearly nothing the checkpoint has them as they were made."""
    wanted = ["--model.weights", "patches", "--optim.lr", "1e-12", "--train.epochs", "1", "--data.subset", "128"]
    weights = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        ended = train_on_ranks(ranks, *settings(faces, folder), *wanted, "--train.accumulation", 2 // ranks)
        assert ended.returncode == 0, ended.stderr
        assert "random weights, but conv1.weight from patches of 128 training images" in ended.stdout
        weights.append(load_file(folder / "best/model.safetensors")["conv1.weight"])
    assert torch.equal(*weights)

    config = read_yaml(folder / "config.yaml")
    (start,) = (event for event in read_events(folder) if event["event"] == "start")
    assert "from patches" in start["weights"]["summary"]
    plan, table = the_plan(faces, folder), read_table(faces)
    decoder = TorchDecoder(config.data, table, torch.device("cpu"))
    images = [batch.images_BHWC for batch in decoder.batches(plan.batch(0, step) for step in range(8))]
    torch.testing.assert_close(weights[0], principal_filters(AttributeClassifier(3), images), rtol=0, atol=1e-5)


PATCHES = ["--model.weights", "patches", "--data.subset", 64, "--train.epochs", 2]
KEPT_AS_THEY_ARE = ["--model.freeze", "conv1", "--model.frozen-statistics", "updated"]


def test_a_run_with_fixed_filters_resumes_as_if_it_had_not_stopped(faces: Path, tmp_path: Path) -> None:
    growing = ["--data.image-size", 48, 48, "--data.grow", "32@0 48@0.6"]
    wanted = settings(faces, tmp_path / "whole", *PATCHES, *KEPT_AS_THEY_ARE, *growing)
    assert train_on_ranks(1, *wanted).returncode == 0
    whole = tmp_path / "whole"
    newest = max((whole / "checkpoints").iterdir())
    stopped = go_back(whole, tmp_path / "stopped", min(int(each.name[5:]) for each in newest.parent.iterdir()))
    again = [stopped if value == whole else value for value in wanted]
    ended = train_on_ranks(1, *again, "--resume", "auto", "--checkpoint.every-steps", 99)
    assert ended.returncode == 0, ended.stderr
    assert "resumes from" in ended.stdout
    assert_same_training(whole, stopped)
    begun = load_file(min((whole / "checkpoints").iterdir()) / "model.safetensors")["conv1.weight"]
    assert torch.equal(begun, load_file(newest / "model.safetensors")["conv1.weight"])


def test_a_broken_image_is_named_or_replaced_before_training_begins(faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    settled = [*settings(root, tmp_path / "run", *PATCHES), "--train.epochs", 1]
    split = make_splits(read_table(root), Config().data.model_copy(update={"subset": 64})).train
    broken = root / "img_align_celeba" / f"{split[0] + 1:06}.jpg"
    broken.write_bytes(b"not an image")
    ended = train_on_ranks(1, *settled)
    assert ended.returncode == 2
    assert broken.name in ended.stderr
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["events.jsonl"]  # which has the error
    ended = train_on_ranks(1, *settled, "--data.on-error", "skip")
    assert ended.returncode == 0, ended.stderr
    assert "from patches of 64 training images" in ended.stdout


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        ({"freeze": "conv1"}, True),
        ({"freeze": "layer2 3:none", "weights": "patches"}, True),
        ({"freeze": "conv1", "frozen_statistics": "updated"}, False),
        ({"freeze": "conv1", "weights": "imagenet"}, False),
        ({"freeze": "backbone"}, False),  # has no effect at all, and is said to
        ({}, False),
    ],
)
def test_frozen_layers_that_would_not_normalise_are_warned_of(model: dict[str, str], warned: bool) -> None:
    notes = unmeasured_statistics(Config().replace("model", **model))
    assert [note.partition(": BatchNorm")[0] for note in notes] == (
        [f"model.freeze is {model['freeze']}, and model.weights {model.get('weights', 'none')}"] if warned else []
    )


def test_the_first_images_of_a_run_are_enough() -> None:
    plan = Plan(np.arange(100), 3, 16)
    found = first_images(plan, 40)
    assert [len(request) for request in found] == [16, 16, 8]
    assert np.concatenate([request.ids for request in found]).tolist() == plan.order(0)[:40].tolist()
    assert sum(map(len, first_images(plan, 1000))) == 96
