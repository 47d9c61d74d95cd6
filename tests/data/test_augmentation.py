"""Augmentation: what each part of it does, and that it depends on nothing but seed, epoch and row."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sentences import refusal

from distrib.config import AugmentConfig, Config, load_config
from distrib.data.augmentation import Augmentation, mean_colours, mix, move, recolour
from distrib.data.batch import Batch, Replacement
from distrib.training.losses import attribute_loss

PER_IMAGE: dict[str, Any] = {
    "brightness": 0.2, "contrast": 0.2, "grey": 0.3, "rotation": 5, "translation": 0.05,
    "scale": 0.05,
}  # fmt: skip


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


def planes(images_BHWC: torch.Tensor) -> torch.Tensor:
    return images_BHWC.permute(0, 3, 1, 2).float().contiguous()


def always(value: float, count: int = 1) -> np.ndarray:
    """Random numbers that are none: 1 is the far end of each range, and 0.5 its middle."""
    return np.full((4, count), float(value))


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
    st.permutations(range(11)),
    st.integers(1, 10),
)
def test_an_image_is_augmented_to_the_same_bits_in_whatever_batch_it_is(
    seed: int, epoch: int, size: tuple[int, int], order: list[int], cut: int
) -> None:
    batch = noise(11, *size, first=5)
    whole = augmented(batch, epoch, seed, **PER_IMAGE)
    for places in (order[:cut], order[cut:]):
        part = augmented(part_of(batch, places), epoch, seed, **PER_IMAGE)
        assert same(part, part_of(whole, places))
        assert part.images_BHWC.is_contiguous()  # as a decoder's are, so that nothing is compiled anew


def test_the_bits_are_the_same_where_threads_share_out_a_batch() -> None:
    batch, before = noise(64, 48, 48), torch.get_num_threads()
    wholes = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            wholes.append(augmented(batch, **PER_IMAGE, mixup=0.4))
    finally:
        torch.set_num_threads(before)
    assert same(*wholes)
    alone = [augmented(part_of(batch, [place]), **PER_IMAGE) for place in range(64)]
    whole = augmented(batch, **PER_IMAGE)
    assert torch.equal(torch.cat([each.images_BHWC for each in alone]), whole.images_BHWC)


@pytest.mark.parametrize("part", [{name: value} for name, value in PER_IMAGE.items()] + [{"mixup": 1}])
def test_each_epoch_and_seed_has_its_own(part: dict[str, Any]) -> None:
    batch = noise(32)
    ends = [augmented(batch, epoch, seed, **part).images_BHWC for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert torch.equal(ends[0], ends[3])
    assert not any(torch.equal(ends[0], other) for other in (batch.images_BHWC, *ends[1:3]))


def test_no_two_parts_share_their_random_numbers() -> None:
    """What one of them does to an image says nothing about what another does."""
    ramp_HWC = torch.arange(60, 156, 6, dtype=torch.uint8)[:, None, None].expand(16, 16, 3)
    batch = dataclasses.replace(noise(400, 16, 16), images_BHWC=ramp_HWC.expand(400, 16, 16, 3))
    colours = dataclasses.replace(batch, images_BHWC=batch.images_BHWC // torch.tensor([1, 2, 1], dtype=torch.uint8))
    done = np.stack([
        (augmented(colours, grey=0.5).images_BHWC != colours.images_BHWC).flatten(1).any(1).double(),
        augmented(batch, brightness=0.2).images_BHWC.double().mean((1, 2, 3)),
        augmented(batch, contrast=0.2).images_BHWC.double().std((1, 2, 3)),
        augmented(batch, translation=0.1).images_BHWC[:, 8].double().mean((1, 2)),
    ])  # fmt: skip
    assert (done.std(axis=1) > 0.4).all()
    assert abs(np.corrcoef(done) - np.eye(4)).max() < 0.15  # 3 standard deviations


def test_what_stands_in_for_a_broken_image_is_augmented_as_that_would_have_been() -> None:
    batch = noise(4)
    instead = dataclasses.replace(
        batch, ids_B=torch.tensor([0, 99, 2, 3]), replaced={1: Replacement(epoch=0, row=1, by=99, reason="torn")}
    )
    assert instead.requested.tolist() == [0, 1, 2, 3]
    assert instead.ids_B.tolist() == [0, 99, 2, 3]
    for settings in (PER_IMAGE, {"mixup": 1}):
        assert same(augmented(instead, **settings), augmented(batch, **settings))


# --- what it does


def test_an_image_is_turned_about_its_middle() -> None:
    batch = noise(1, 16, 16)
    x_BCHW = planes(batch.images_BHWC)
    turned = move(x_BCHW, AugmentConfig(rotation=90), always(1))
    quarters = [torch.rot90(x_BCHW, times, (2, 3)) for times in (1, 3)]
    assert min((turned - quarter).abs().max() for quarter in quarters) < 0.01
    assert torch.allclose(move(x_BCHW, AugmentConfig(rotation=90), always(0.5)), x_BCHW, atol=1e-3)
    # On an image that is not square too: a disc stays one.
    y, x = np.mgrid[:24, :40] - np.array([11.5, 19.5])[:, None, None]
    disc = torch.from_numpy(np.clip(12 - np.hypot(y, x), 0, 6)).float()[None, None]
    off = (move(disc, AugmentConfig(rotation=33), always(1)) - disc)[0, 0].abs()
    assert off[np.hypot(y, x) < 11].max() < 0.3  # outside of it are the borders' mirror images


def test_an_image_is_shifted_and_mirrored_at_its_borders() -> None:
    x_BCHW = planes(noise(1, 16, 8).images_BHWC)
    shifted = move(x_BCHW, AugmentConfig(translation=0.25), always(1))
    mirrored = np.pad(x_BCHW.numpy(), ((0, 0), (0, 0), (4, 0), (2, 0)), mode="symmetric")[:, :, :16, :8]
    assert np.allclose(shifted.numpy(), mirrored, atol=1e-3)


def test_an_image_is_enlarged_about_its_middle() -> None:
    square = torch.zeros(1, 1, 32, 32)
    square[..., 12:20, 12:20] = 100
    for end, side in ((1, 12), (0, 4)):  # and mirror images of it lie at the borders of a small one
        moved = move(square, AugmentConfig(scale=0.5), always(end))[0, 0, 8:24, 8:24]
        assert (moved > 50).sum() == side**2


@pytest.mark.parametrize(("name", "reference"), [
    ("brightness", TF.adjust_brightness), ("contrast", TF.adjust_contrast),
])  # fmt: skip
@pytest.mark.parametrize("end", [-1, 1])
def test_colours_change_as_by_torchvision(name: str, reference: Any, end: int) -> None:
    x_BCHW = planes(noise(2, 16, 16).images_BHWC // 4 + 90)  # far from where values are clamped
    config, random = AugmentConfig(**{name: 0.25}), always((1 + end) / 2, 2)
    ours = recolour(x_BCHW, config, mean_colours(x_BCHW), random, always(0.5, 2))
    assert torch.allclose(ours, reference(x_BCHW / 255, 1 + end * 0.25) * 255, atol=0.1)


def test_colours_are_clamped_and_not_wrapped_around() -> None:
    images = augmented(noise(16), brightness=1.0, contrast=1.0).images_BHWC
    assert ((images == 0) | (images == 255)).double().mean() > 0.2
    light = torch.full((1, 3, 8, 8), 250.0)
    assert recolour(light, AugmentConfig(brightness=0.5), None, always(1), always(0.5)).unique().tolist() == [255]


def test_only_the_images_that_are_chosen_lose_their_colours() -> None:
    batch = noise(300, 12, 12)
    after = augmented(batch, grey=0.3).images_BHWC
    chosen = (after != batch.images_BHWC).flatten(1).any(1)
    assert chosen.double().mean() == pytest.approx(0.3, abs=0.09)  # 3 standard deviations
    images = after[chosen].int()
    assert (images.amax(3) == images.amin(3)).all()
    expected = TF.rgb_to_grayscale(planes(batch.images_BHWC[chosen]))[:, 0]
    assert (images[..., 0] - expected).abs().max() < 1


# --- mixtures


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


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 100])
def test_a_share_is_one_for_every_alpha(alpha: float) -> None:
    x_BCHW, targets_BA = torch.zeros(2, 3, 8, 8), torch.tensor([[0.0], [1.0]])
    for quantile in (0.0, 0.3, 0.5, 0.7, 1 - 2**-32):
        _, mixed_BA = mix(x_BCHW, targets_BA, alpha, quantile)
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
        ("--augment.brightness 1.1", ["augment.brightness", "less than or equal to 1"]),
        ("--augment.scale 1", ["augment.scale", "less than 1"]),
        ("--augment.rotation -5", ["augment.rotation", "greater than or equal to 0"]),
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
