"""What is trained on, held to the formulas of the papers in float64, and to torchvision."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forked_ranks import on_ranks
from launching import read_metrics
from safetensors.torch import load_file
from small_run import settings
from torchvision.ops import sigmoid_focal_loss

from distrib import train as program
from distrib.config import Config, TrainConfig, read_yaml
from distrib.training.check import read_data
from distrib.training.losses import attribute_loss

KINDS = ["bce", "focal", "asymmetric"]


def by_formula(
    logits: torch.Tensor, targets: torch.Tensor, config: TrainConfig, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Ridnik et al. (2021), equations 4 to 6, in float64; a label between 0 and 1 is the mean over what it may be."""
    p = logits.double().sigmoid()
    positive, negative, margin = {
        "bce": (0.0, 0.0, 0.0),
        "focal": (config.focal_gamma, config.focal_gamma, 0.0),
        "asymmetric": (config.gamma_positive, config.gamma_negative, config.margin),
    }[config.loss]
    q = (p - margin).clamp(min=0)
    of_positives, of_negatives = -((1 - p) ** positive) * p.log(), -(q**negative) * (1 - q).log()
    targets = targets.double() * (1 - config.label_smoothing) + config.label_smoothing / 2
    return (targets * of_positives * (1.0 if weight is None else weight) + (1 - targets) * of_negatives).mean()


def some_logits(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.manual_seed(0)
    logits = 4 * torch.randn(64, 3, generator=generator, dtype=dtype)
    return logits, (torch.rand(64, 3, generator=generator) < 0.3).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"focal_gamma": 0.5, "gamma_positive": 1.0, "gamma_negative": 0.5}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_papers(kind: str, settings: dict[str, float], smoothing: float, weighted: bool) -> None:
    config = TrainConfig(loss=kind, label_smoothing=smoothing, **settings)
    weight = torch.tensor([0.5, 3.0, 7.0]) if weighted else None
    logits, targets = some_logits()
    soft = targets.lerp(torch.rand(64, 3, generator=torch.manual_seed(1)), 0.4)  # as mixup makes them
    for each in (targets, soft):
        torch.testing.assert_close(
            attribute_loss(logits, each, config, weight), by_formula(logits, each, config, weight).float()
        )


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_is_torchvisions(gamma: float) -> None:
    logits, targets = some_logits()
    theirs = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(
        attribute_loss(logits, targets, TrainConfig(loss="focal", focal_gamma=gamma), None), theirs
    )


def test_without_focusing_it_is_the_cross_entropy() -> None:
    logits, targets = some_logits()
    plain = F.binary_cross_entropy_with_logits(logits, targets)
    assert torch.equal(attribute_loss(logits, targets, TrainConfig(), None), plain)
    for kind in ("focal", "asymmetric"):
        config = TrainConfig(loss=kind, focal_gamma=0, gamma_positive=0, gamma_negative=0, margin=0)
        torch.testing.assert_close(attribute_loss(logits, targets, config, None), plain)


def test_of_asymmetric_negatives_below_the_margin_cost_nothing_and_positives_their_whole_loss() -> None:
    config = TrainConfig(loss="asymmetric")
    sure = torch.tensor([[math.log(0.04 / 0.96)]], requires_grad=True)  # a probability of 0.04, of 0.05
    attribute_loss(sure, torch.zeros(1, 1), config, None).backward()
    assert sure.grad.item() == 0
    assert attribute_loss(sure, torch.zeros(1, 1), config, None).item() == 0
    assert attribute_loss(sure, torch.ones(1, 1), config, None).item() == pytest.approx(-math.log(0.04), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_large_logits_have_a_finite_loss_and_gradient(kind: str, gamma: float, margin: float, target: float) -> None:
    config = TrainConfig(loss=kind, focal_gamma=gamma, gamma_positive=gamma, gamma_negative=gamma, margin=margin)
    for size in (0.0, math.log(margin / (1 - margin)) if margin else 1e-30, 20.0, 90.0, 200.0, 1e4, 1e30):
        logits = torch.tensor([[size], [-size]], requires_grad=True)
        loss = attribute_loss(logits, torch.full((2, 1), target), config, None)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all(), (size, logits.grad)
    # Where the model is wrong by far it still learns: the gradient of a positive is that of the cross-entropy.
    wrong = torch.tensor([[-1e4]], requires_grad=True)
    attribute_loss(wrong, torch.ones(1, 1), config, None).backward()
    assert wrong.grad.item() == -1


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_formula(kind: str) -> None:
    config = TrainConfig(loss=kind, gamma_positive=1.0, label_smoothing=0.05)
    logits, targets = some_logits()
    grads = []
    for loss in (lambda x: attribute_loss(x, targets, config, None), lambda x: by_formula(x, targets, config)):
        x = logits.clone().requires_grad_()
        loss(x).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_its_type_is_float64_with_a_network_in_float64_and_else_float32(kind: str) -> None:
    config = TrainConfig(loss=kind, label_smoothing=0.1)
    logits, targets = some_logits()
    assert attribute_loss(logits.double(), targets, config, torch.ones(3)).dtype == torch.float64
    assert attribute_loss(logits.bfloat16(), targets, config, None).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["logit", "target"])
def test_what_is_not_a_number_stays_so(kind: str, bad: str) -> None:
    logits, targets = some_logits()
    (logits if bad == "logit" else targets)[5, 1] = math.nan
    assert attribute_loss(logits, targets, TrainConfig(loss=kind), None).isnan()


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
            64, "--train.batch-size", 64, "--optim.name", "sgd", "--train.loss", "asymmetric",
            "--train.positive-weight", "balanced", "--train.label-smoothing", 0.1, "--tracking.mode", "disabled",
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


def test_focusing_that_does_nothing_is_told() -> None:
    config = Config().replace("train", focal_gamma=1.0, margin=0.1)
    assert [note.partition(" has no effect")[0] for note in config.ineffective()] == [
        "train.focal_gamma", "train.margin",
    ]  # fmt: skip
    assert config.replace("train", loss="asymmetric", focal_gamma=2.0).ineffective() == []
