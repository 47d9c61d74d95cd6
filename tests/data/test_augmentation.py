"""Augmentation: what it does, and that it depends on nothing but seed, epoch and row."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sentences import refusal

from distrib.config import AugmentConfig, Config, load_config
from distrib.data.augmentation import Augmentation, mix
from distrib.data.batch import Batch, Replacement
from distrib.training.losses import attribute_loss


def noise(count: int = 8, height: int = 24, width: int = 20, first: int = 0) -> Batch:
    """Noise, each row's its own."""
    rows = range(first, first + count)
    pixels = [np.random.default_rng(row).integers(0, 256, (height, width, 3), np.uint8) for row in rows]
    targets = [np.random.default_rng(row).integers(0, 2, 5) for row in rows]
    return Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(np.stack(targets)).float(), torch.tensor(rows))


def part_of(batch: Batch, places: list[int]) -> Batch:
    return Batch(batch.images_BHWC[places], batch.targets_BA[places], batch.ids_B[places])


def augmented(batch: Batch, epoch: int = 0, seed: int = 0, **settings: Any) -> Batch:
    return Augmentation(AugmentConfig(**settings), seed)(batch, epoch)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images_BHWC, other.images_BHWC) and torch.equal(one.targets_BA, other.targets_BA)


# --- what it depends on


def test_with_everything_off_a_batch_passes_as_it_is() -> None:
    batch = noise()
    assert augmented(batch) is batch
    assert Config().augment == AugmentConfig()


@examples(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(8, 9), (24, 20), (33, 57)]),
    st.integers(2, 11),
)
def test_an_image_is_mixed_to_the_same_bits_in_a_group_of_whatever_size(
    seed: int, epoch: int, size: tuple[int, int], count: int
) -> None:
    """Its partner is the one before it; where a kernel's vectors end must make no difference."""
    batch = noise(11, *size, first=5)
    whole = augmented(batch, epoch, seed, mixup=0.4)
    part = augmented(part_of(batch, list(range(count))), epoch, seed, mixup=0.4)
    assert same(part_of(part, list(range(1, count))), part_of(whole, list(range(1, count))))
    assert part.images_BHWC.is_contiguous()  # as a decoder's are, so that nothing is compiled anew


def test_the_bits_are_the_same_where_threads_share_out_a_batch() -> None:
    batch, before = noise(64, 48, 48), torch.get_num_threads()
    wholes = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            wholes.append(augmented(batch, mixup=0.4))
    finally:
        torch.set_num_threads(before)
    assert same(*wholes)


def test_each_epoch_and_seed_has_its_own() -> None:
    batch = noise(32)
    ends = [augmented(batch, epoch, seed, mixup=1).images_BHWC for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert torch.equal(ends[0], ends[3])
    assert not any(torch.equal(ends[0], other) for other in (batch.images_BHWC, *ends[1:3]))


def test_what_stands_in_for_a_broken_image_is_augmented_as_that_would_have_been() -> None:
    batch = noise(4)
    instead = dataclasses.replace(
        batch, ids_B=torch.tensor([99, 1, 2, 3]), replaced={0: Replacement(epoch=0, row=0, by=99, reason="torn")}
    )
    assert instead.requested.tolist() == [0, 1, 2, 3]
    assert instead.ids_B.tolist() == [99, 1, 2, 3]
    assert same(augmented(instead, mixup=1), augmented(batch, mixup=1))


# --- what it does


def test_mixup_mixes_images_and_targets_by_one_share() -> None:
    batch = noise(6)
    shares = []
    for epoch in range(40):
        mixed = augmented(batch, epoch, mixup=0.4)
        before, partner = (each.double() for each in (batch.targets_BA, batch.targets_BA.roll(1, 0)))
        share = (mixed.targets_BA - before)[before != partner].abs()
        assert share.max() - share.min() < 1e-6
        shares.append(share.mean().item())
        one, other = batch.images_BHWC.double(), batch.images_BHWC.roll(1, 0).double()
        assert (one + (other - one) * shares[-1] - mixed.images_BHWC).abs().max() < 0.51
        assert mixed.targets_BA.min() >= 0
        assert mixed.targets_BA.max() <= 1
    # Of the Beta distribution of 0.4 and 0.4: mean 1/2, variance 1 / (4 (2 x 0.4 + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.18)  # 3 standard errors
    assert np.var(shares) == pytest.approx(1 / 7.2, abs=0.05)


@pytest.mark.parametrize(("seed", "epoch", "first", "share"), [(0, 0, 0, 0.7154698), (3, 7, 41, 0.0543209)])
def test_golden_values_of_the_share(seed: int, epoch: int, first: int, share: float) -> None:
    """What a run has mixed by must be what it mixes by when a later version resumes it."""
    batch = noise(2, first=first)
    batch = dataclasses.replace(batch, targets_BA=torch.tensor([[0.0], [1.0]]))
    assert augmented(batch, epoch, seed, mixup=0.4).targets_BA[0].item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 100])
def test_a_share_is_one_for_every_alpha(alpha: float) -> None:
    images_BHWC, targets_BA = torch.zeros(2, 8, 8, 3), torch.tensor([[0.0], [1.0]])
    for quantile in (0.0, 0.3, 0.5, 0.7, 1 - 2**-32):
        _, mixed_BA = mix(images_BHWC, targets_BA, alpha, quantile)
        assert mixed_BA.sum() == pytest.approx(1)
        assert mixed_BA.min() >= 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_targets_is_the_losses_mixed(smoothing: float) -> None:
    logits_BA, weight_A = torch.randn(4, 5, generator=torch.manual_seed(0)), torch.tensor([0.5, 1, 2, 4, 8])
    one_BA, other_BA = torch.zeros(4, 5), torch.ones(4, 5)
    one, other = (attribute_loss(logits_BA, each, smoothing, weight_A) for each in (one_BA, other_BA))
    mixed = attribute_loss(logits_BA, one_BA.lerp(other_BA, 0.3), smoothing, weight_A)
    torch.testing.assert_close(mixed, 0.7 * one + 0.3 * other)


# --- settings


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--augment.mixup 101", ["augment.mixup", "less than or equal to 100"]),
        ("--augment.mixup -1", ["augment.mixup", "greater than or equal to 0"]),
        (
            "--augment.mixup 1 --train.norm-size batch",
            ["augment.mixup mixes the images of a group", "train.norm_size to auto", "or augment.mixup to 0"],
        ),
    ],
)
def test_bad_values_are_refused(words: str, parts: list[str]) -> None:
    refusal(lambda: load_config(words.split()), *parts)


def test_groups_of_one_image_have_no_partners() -> None:
    idle = ["--augment.mixup", ".2", "--train.norm-size", "1"]
    (warning,) = load_config(idle)[0].ineffective()
    assert warning.startswith("augment.mixup has no effect because train.norm_size is 1")
    batch = noise(1)
    assert same(augmented(batch, mixup=1.0), batch)
