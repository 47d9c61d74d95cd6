from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from random_model import write_model
from scipy.stats import spearmanr
from torch import nn

from distrib.base.errors import UserError
from distrib.explaining.grid import make_grid
from distrib.explaining.incremental import network_for
from distrib.explaining.occlusion import Fill, covering, heat_overlays, occlusion_maps
from distrib.model.network import AttributeClassifier
from distrib.model.trained import Description, TrainedModel, load

SIZE = (61, 50)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> AttributeClassifier:
    found = load(write_model(tmp_path_factory.mktemp("model") / "best", image_size=SIZE)).net
    assert isinstance(found, AttributeClassifier)
    return found


def pictures(count: int = 3, size: tuple[int, int] = SIZE, seed: int = 2) -> torch.Tensor:
    """Smooth noise, uint8 [B, H, W, 3]."""
    coarse = torch.rand(count, 3, 9, 8, generator=torch.manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (255 * fine).byte().permute(0, 2, 3, 1).contiguous()


def by_captum(
    net: nn.Module,
    images_BHWC: torch.Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    covers_BHWC: torch.Tensor,
    attribute: int,
) -> torch.Tensor:
    method = Occlusion(lambda x_BCHW: net(x_BCHW.permute(0, 2, 3, 1)))
    with torch.inference_mode():
        return method.attribute(
            images_BHWC.permute(0, 3, 1, 2).float(),
            sliding_window_shapes=(3, *window),
            strides=(3, *stride),
            baselines=covers_BHWC.permute(0, 3, 1, 2).float(),
            target=attribute,
        )[:, 0]


# --- the maps


@pytest.mark.parametrize(
    ("window", "stride", "fill"),
    [
        ((12, 12), (6, 6), "mean"),
        ((20, 13), (9, 13), "blur"),
        ((7, 30), (7, 11), "black"),
        ((61, 50), (61, 50), "mean"),
        ((3, 50), (3, 3), "black"),
    ],
)
def test_the_maps_are_captum_s(
    net: AttributeClassifier, window: tuple[int, int], stride: tuple[int, int], fill: Fill
) -> None:
    images_BHWC = pictures(2)
    found = occlusion_maps(net, images_BHWC, window, stride, fill, attributes=[2, 0])
    covers_BHWC = covering(images_BHWC, fill, window)
    maps_BAHW = found.grid.at_pixels(found.drops_BAyx)
    assert maps_BAHW.shape == (2, 2, *SIZE)
    for column, attribute in enumerate([2, 0]):
        wanted_BHW = by_captum(net, images_BHWC, window, stride, covers_BHWC, attribute)
        assert wanted_BHW.abs().max() > 1e-2
        torch.testing.assert_close(maps_BAHW[:, column], wanted_BHW, rtol=0, atol=1e-4)


def test_computing_everything_anew_gives_the_same(net: AttributeClassifier) -> None:
    images_BHWC = pictures(1)
    with torch.inference_mode():
        logits = [network_for(each, None).whole(images_BHWC)[0] for each in (net, nn.Sequential(net))]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    for window, stride in [((11, 14), (8, 9)), ((40, 9), (13, 9)), ((5, 4), (5, 4))]:
        incremental = occlusion_maps(net, images_BHWC, window, stride)
        plain = occlusion_maps(nn.Sequential(net), images_BHWC, window, stride)  # any network, not known to be a ResNet
        torch.testing.assert_close(incremental.drops_BAyx, plain.drops_BAyx, rtol=0, atol=1e-4)


def test_behind_the_small_stem_too(net: AttributeClassifier) -> None:
    torch.manual_seed(0)
    small = AttributeClassifier(len(net.net.fc.bias), stem="small")
    with torch.no_grad():
        small(pictures(8))  # BatchNorm's statistics
    both = [occlusion_maps(each, pictures(1), (22, 25), (20, 20)) for each in (small.eval(), nn.Sequential(small))]
    torch.testing.assert_close(both[0].drops_BAyx, both[1].drops_BAyx, rtol=0, atol=1e-4)


def test_the_size_of_a_batch_is_a_matter_of_speed(net: AttributeClassifier) -> None:
    one = occlusion_maps(net, pictures(), (16, 16), (9, 9), batch=1)
    for batch in (5, 1000):
        other = occlusion_maps(net, pictures(), (16, 16), (9, 9), batch=batch)
        torch.testing.assert_close(other.drops_BAyx, one.drops_BAyx, rtol=0, atol=1e-4)


def test_the_number_of_threads_is_a_matter_of_speed_and_is_left_as_it_is(net: AttributeClassifier) -> None:
    images, threads, finished = pictures(7), torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        alone = occlusion_maps(net, images, (16, 16), (9, 9), batch=5)
        torch.set_num_threads(3)
        shared = occlusion_maps(net, images, (16, 16), (9, 9), batch=5, report=finished.append)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert sum(finished) == len(images)
    assert len(finished) > 3
    torch.testing.assert_close(shared.drops_BAyx, alone.drops_BAyx, rtol=0, atol=1e-4)


def test_half_precision_keeps_the_order_of_the_places(net: AttributeClassifier) -> None:
    exact = occlusion_maps(net, pictures(), (12, 12), (6, 6))
    rounded = occlusion_maps(net, pictures(), (12, 12), (6, 6), precision=torch.bfloat16)
    assert not torch.equal(exact.drops_BAyx, rounded.drops_BAyx)
    for one, other in zip(exact.drops_BAyx.flatten(0, 1), rounded.drops_BAyx.flatten(0, 1), strict=True):
        assert spearmanr(one.flatten(), other.flatten()).statistic > 0.98


def test_the_network_is_left_as_it_is(net: AttributeClassifier) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]
    images_BHWC = pictures()
    occlusion_maps(net, images_BHWC, (16, 16), (9, 9), precision=torch.bfloat16)
    assert torch.equal(images_BHWC, pictures())
    assert kinds == [type(module) for module in net.modules()]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class CornerNetwork(nn.Module):
    """Sees the brightness of the upper left 10 x 10 pixels alone; its second logit is the first one's negative."""

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        brightness_B = images_BHWC[:, :10, :10].float().mean((1, 2, 3)) / 255
        return torch.stack((brightness_B, -brightness_B), dim=1)


def test_the_place_that_a_network_looks_at_is_found() -> None:
    images_BHWC = torch.full((1, *SIZE, 3), 200, dtype=torch.uint8)
    found = occlusion_maps(CornerNetwork(), images_BHWC, (10, 10), (5, 5), fill="black")
    for_it_HW, against_it_HW = found.grid.at_pixels(found.drops_BAyx)[0]
    assert for_it_HW[:5, :5].min() == pytest.approx(200 / 255)  # only the window that covers all of it reaches there
    assert not for_it_HW[15:].any()
    assert not for_it_HW[:, 15:].any()
    torch.testing.assert_close(against_it_HW, -for_it_HW)


def test_windows_reach_the_far_edges_and_leave_no_pixel_out() -> None:
    for size, window, stride in [(61, 12, 6), (50, 13, 5), (20, 20, 20), (21, 20, 20), (10, 1, 1)]:
        spans = make_grid((size, size), (window, window), (stride, stride)).spans(0)
        covered = np.zeros(size, int)
        for start, end in spans:
            covered[start:end] += 1
        assert covered.min() >= 1
        assert spans[0] == (0, window)
        assert spans[-1][1] == size
        assert [start for start, _ in spans] == list(range(0, len(spans) * stride, stride))


# --- window, stride and fill


@pytest.mark.parametrize(
    ("window", "stride", "said"),
    [
        ((62, 10), (5, 5), "62 x 10"),
        ((10, 51), (5, 5), "10 x 51"),
        ((0, 10), (1, 5), "0 x 10"),
        ((10, 10), (11, 5), "gaps"),
        ((10, 10), (5, 0), "gaps"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(
    net: AttributeClassifier, window: tuple[int, int], stride: tuple[int, int], said: str
) -> None:
    with pytest.raises(UserError, match="explain") as error:
        occlusion_maps(net, pictures(1), window, stride)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(110, 90), (178, 178), (218, 178), (8, 8), (8, 200), (1, 1)])
def test_without_a_window_one_is_chosen_that_fits(size: tuple[int, int]) -> None:
    grid = make_grid(size)
    assert 1 <= grid.stride[0] <= grid.window[0] <= size[0]
    assert 1 <= grid.stride[1] <= grid.window[1] <= size[1]
    assert len(grid.spans(0)) * len(grid.spans(1)) <= 400 or min(size) < 50


def test_the_fills_are_what_they_are_called() -> None:
    images_BHWC = pictures()
    assert not covering(images_BHWC, "black", (9, 9)).any()
    mean_BHWC = covering(images_BHWC, "mean", (9, 9))
    for image, cover in zip(images_BHWC.numpy(), mean_BHWC.numpy(), strict=True):
        assert np.unique(cover.reshape(-1, 3), axis=0).tolist() == [np.rint(image.mean((0, 1))).tolist()]
    blurred = covering(images_BHWC, "blur", (10, 10)).float()
    changes = [each.diff(dim=1).abs().mean() for each in (images_BHWC.float(), blurred)]
    assert changes[1] < changes[0] / 2
    assert torch.allclose(blurred.mean((1, 2)), images_BHWC.float().mean((1, 2)), atol=8)
    flat = torch.full((1, *SIZE, 3), 77, dtype=torch.uint8)
    assert torch.equal(covering(flat, "blur", (61, 50)), flat)


# --- the overlay


def test_the_overlay_is_red_where_the_evidence_is_and_clear_elsewhere() -> None:
    about = Description(
        architecture="resnet18", attributes=("A", "B"), image_size=(96, 80), crop="full", temperature=(1, 1),
        thresholds=(0.5, 0.5),
    )  # fmt: skip
    model = TrainedModel(CornerNetwork().eval(), about, Path("planted"))
    image_HWC = np.zeros((96, 80, 3), np.uint8)
    image_HWC[:10, :10] = 255
    for attribute, channel in ((0, 0), (1, 2)):  # red for it, blue against it
        overlay = heat_overlays(model, image_HWC, [attribute])[0]
        assert overlay.shape == (96, 80, 4)
        assert overlay.dtype == np.uint8
        assert overlay[4, 4, :3].argmax() == channel
        assert overlay[4, 4, 3] > 150
        assert overlay[40:, :, 3].max() < 10
        assert overlay[:, 40:, 3].max() < 10


def test_the_overlay_of_a_network_that_sees_nothing_is_clear(net: AttributeClassifier) -> None:
    about = Description(
        architecture="resnet18", attributes=("A", "B", "C"), image_size=SIZE, crop="full", temperature=(1, 1, 1),
        thresholds=(0.5, 0.5, 0.5),
    )  # fmt: skip
    flat_HWC = np.full((*SIZE, 3), 90, np.uint8)  # whose mean colour is what it has everywhere
    assert heat_overlays(TrainedModel(nn.Sequential(net), about, Path("planted")), flat_HWC, [1])[0][..., 3].max() < 10
