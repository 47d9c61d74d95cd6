"""Stochastic depth and dropout; on two ranks and after a resume they are in test_losses.py and test_ema.py."""

import numpy as np
import pytest
import torch

from distrib.config import Config
from distrib.model.network import AttributeClassifier
from distrib.training.dropping import Dropping, dropping_of


def dropping(epoch: int = 0, seed: int = 0, **model: float) -> Dropping:
    made = dropping_of(Config().replace("model", **model).replace("train", seed=seed), epoch)
    assert made is not None
    return made


def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(3))


def test_by_default_nothing_is_left_out() -> None:
    assert dropping_of(Config(), 0) is None


def test_what_an_image_does_without_depends_on_seed_epoch_and_image_alone() -> None:
    ids = np.arange(100)
    kept = dropping(stochastic_depth=0.5, dropout=0.3).kept(ids)
    order = np.random.default_rng(0).permutation(100)
    torch.manual_seed(77)
    assert torch.equal(dropping(stochastic_depth=0.5, dropout=0.3).kept(order), kept[order])
    for other in (dropping(1, stochastic_depth=0.5, dropout=0.3), dropping(0, 1, stochastic_depth=0.5, dropout=0.3)):
        assert 0.3 < (other.kept(ids) == kept).float().mean() < 0.8
    # Neither is tied to the other: dropout alone leaves the blocks whole.
    alone = dropping(dropout=0.3).kept(ids)
    assert (alone[:, :8] == 1).all()
    assert torch.equal(alone[:, 8:], kept[:, 8:])


def test_the_rates_are_those_asked_for_and_the_mean_is_left_as_it_is() -> None:
    kept = dropping(stochastic_depth=0.4, dropout=0.25).kept(np.arange(4000))
    assert kept.shape == (4000, 8 + 512)
    missing = (kept == 0).double().mean(0)
    np.testing.assert_allclose(missing[:8], [0.05 * block for block in range(1, 9)], atol=0.03)
    np.testing.assert_allclose(missing[8:], 0.25, atol=0.05)
    assert missing[8:].mean() == pytest.approx(0.25, abs=0.002)
    torch.testing.assert_close(kept.mean(0), torch.ones(520), rtol=0, atol=0.07)
    # Blocks and features are left out independently of each other.
    correlations = np.corrcoef(kept[:, :40].numpy().T) - np.eye(40)
    assert np.abs(correlations).max() < 0.08


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_with_nothing_left_out_it_is_torchvisions_forward_pass_to_the_bit(stem: str) -> None:
    net = AttributeClassifier(2, stem=stem)
    for columns in (8, 520):
        assert torch.equal(net(images(), torch.ones(4, columns)), net(images()))


def test_what_is_left_out_is_left_out_of_that_image_alone() -> None:
    net = AttributeClassifier(2)
    net.eval()  # so that no image sees another through BatchNorm
    kept = torch.ones(4, 520)
    kept[1, 7], kept[2, 8:] = 0, 0
    changed, whole = net(images(), kept), net(images())
    assert torch.equal(changed[[0, 3]], whole[[0, 3]])
    assert not torch.equal(changed[1], whole[1])
    assert torch.equal(changed[2], net.net.fc.bias)
    with torch.no_grad():
        net.net.layer4[1].conv2.weight.zero_()  # of a branch that is zero, BatchNorm makes its bias, which is 0 here
    torch.testing.assert_close(net(images())[1], changed[1])


def test_frozen_blocks_are_whole() -> None:
    net = AttributeClassifier(2).eval()
    net.freeze("layer4")
    kept = torch.ones(4, 8)
    kept[:, 2:] = 0
    assert torch.equal(net(images(), kept), net(images()))


def test_masks_are_taken_in_low_precision_too() -> None:
    net = AttributeClassifier(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images(), torch.ones(4, 520)).dtype == torch.bfloat16
