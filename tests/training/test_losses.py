"""What is trained on, held to its formula in float64, and to torch."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forked_ranks import on_ranks
from launching import read_metrics
from safetensors.torch import load_file
from small_run import settings

from distrib import train as program
from distrib.config import read_yaml
from distrib.training.check import read_data
from distrib.training.losses import attribute_loss


def by_formula(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """The binary cross-entropy in float64; a label between 0 and 1 is the mean over what it may be."""
    p = logits.double().sigmoid()
    targets = targets.double() * (1 - smoothing) + smoothing / 2
    return -(targets * p.log() * (1.0 if weight is None else weight) + (1 - targets) * (1 - p).log()).mean()


def some_logits(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.manual_seed(0)
    logits = 4 * torch.randn(64, 3, generator=generator, dtype=dtype)
    return logits, (torch.rand(64, 3, generator=generator) < 0.3).to(dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_cross_entropy_of_smoothed_labels_and_weighted_positives(smoothing: float, weighted: bool) -> None:
    weight = torch.tensor([0.5, 3.0, 7.0]) if weighted else None
    logits, targets = some_logits()
    soft = targets.lerp(torch.rand(64, 3, generator=torch.manual_seed(1)), 0.4)  # as mixup makes them
    for each in (targets, soft):
        torch.testing.assert_close(
            attribute_loss(logits, each, smoothing, weight), by_formula(logits, each, smoothing, weight).float()
        )


def test_by_default_it_is_torchs_own_to_the_bit() -> None:
    logits, targets = some_logits()
    plain = F.binary_cross_entropy_with_logits(logits, targets)
    assert torch.equal(attribute_loss(logits, targets, 0.0, None), plain)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_large_logits_have_a_finite_loss_and_gradient(target: float) -> None:
    for size in (0.0, 1e-30, 20.0, 90.0, 200.0, 1e4, 1e30):
        logits = torch.tensor([[size], [-size]], requires_grad=True)
        loss = attribute_loss(logits, torch.full((2, 1), target), 0.0, None)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all(), (size, logits.grad)
    # Where the model is wrong by far it still learns.
    wrong = torch.tensor([[-1e4]], requires_grad=True)
    attribute_loss(wrong, torch.ones(1, 1), 0.0, None).backward()
    assert wrong.grad.item() == -1


def test_the_gradient_is_that_of_the_formula() -> None:
    logits, targets = some_logits()
    grads = []
    for loss in (lambda x: attribute_loss(x, targets, 0.05, None), lambda x: by_formula(x, targets, 0.05)):
        x = logits.clone().requires_grad_()
        loss(x).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)


def test_its_type_is_float64_with_a_network_in_float64_and_else_float32() -> None:
    logits, targets = some_logits()
    assert attribute_loss(logits.double(), targets, 0.1, torch.ones(3)).dtype == torch.float64
    assert attribute_loss(logits.bfloat16(), targets, 0.1, None).dtype == torch.float32


@pytest.mark.parametrize("bad", ["logit", "target"])
def test_what_is_not_a_number_stays_so(bad: str) -> None:
    logits, targets = some_logits()
    (logits if bad == "logit" else targets)[5, 1] = math.nan
    assert attribute_loss(logits, targets, 0.0, None).isnan()


def trained(arguments: list[str]) -> int:
    """The program on this rank."""
    return program.main(arguments)


@pytest.mark.slow
def test_two_ranks_lower_the_loss_that_one_does_and_validate_by_the_cross_entropy(faces: Path, tmp_path: Path) -> None:
    rows = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        options = settings(
            faces, folder, "--train.epochs", 1, "--train.precision", "no", "--train.norm-size", 32, "--data.subset",
            64, "--train.batch-size", 64, "--optim.name", "sgd", "--train.positive-weight", "balanced",
            "--train.label-smoothing", 0.1, "--tracking.mode", "disabled",
        )  # fmt: skip
        assert on_ranks(ranks, trained, [str(each) for each in options]) == [0] * ranks
        rows += read_metrics(folder)
    one, two = rows
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    table, splits = read_data(read_yaml(folder / "config.yaml"))
    logits = load_file(folder / "best/validation.safetensors")["logits"].double()
    targets = torch.from_numpy(table.targets[splits.valid]).double()
    assert two["val_loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-4)
    assert two["train_loss"] != pytest.approx(two["val_loss"], rel=0.05)
