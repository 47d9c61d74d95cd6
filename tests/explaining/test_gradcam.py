import pytest
import torch
from captum.attr import LayerGradCam
from random_model import write_model
from seeing import red_seer

from distrib.explaining.gradcam import at_pixels, grad_cam
from distrib.explaining.occlusion import occlusion_maps
from distrib.model.network import AttributeClassifier
from distrib.model.trained import load


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> AttributeClassifier:
    found = load(write_model(tmp_path_factory.mktemp("model") / "best", image_size=(110, 90))).net
    assert isinstance(found, AttributeClassifier)
    return found


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 110, 90, 3), dtype=torch.uint8, generator=torch.manual_seed(1))


def test_the_maps_are_captum_s_of_the_whole_network(net: AttributeClassifier) -> None:
    images_BHWC = pictures()
    found = grad_cam(net, images_BHWC)[:, [2, 0]]
    assert found.shape == (3, 2, 4, 3)
    method = LayerGradCam(net.net, net.net.layer4)
    for column, attribute in enumerate([2, 0]):
        wanted = method.attribute(net.normalise(images_BHWC), target=attribute)[:, 0]
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found[:, column], wanted.detach(), rtol=1e-4, atol=1e-5)


def test_batches_and_attributes_are_independent_and_nothing_is_left_behind(net: AttributeClassifier) -> None:
    whole = grad_cam(net, pictures())
    torch.testing.assert_close(grad_cam(net, pictures(), batch=1), whole, rtol=1e-4, atol=1e-5)
    assert not whole.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("corner", [(10, 10), (10, 70), (80, 10), (70, 60)])
def test_both_methods_find_what_a_known_network_looks_at(corner: tuple[int, int]) -> None:
    top, left = corner
    images_BHWC = torch.full((1, 110, 90, 3), 124, dtype=torch.uint8)
    images_BHWC[:, top : top + 12, left : left + 12] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    model = red_seer()
    occluded = occlusion_maps(model, images_BHWC, (12, 12), (8, 8))
    maps = {
        "occlusion": (occluded.grid.at_pixels(occluded.drops_BAyx)[0, 0], 12),
        "Grad-CAM": (at_pixels(grad_cam(model, images_BHWC), (110, 90))[0, 0], 32),
    }
    for method, (map_HW, reach) in maps.items():
        assert map_HW.max() > 0.01, method
        y, x = divmod(int(map_HW.argmax()), 90)
        assert top - reach <= y < top + 12 + reach, method
        assert left - reach <= x < left + 12 + reach, method


def test_a_cell_lies_where_the_network_has_looked() -> None:
    """The cell (1, 2) of layer4 has its middle at pixel (32, 64): what is there alone is what it sees."""
    model = red_seer()
    images_BHWC = torch.full((1, 110, 90, 3), 124, dtype=torch.uint8)
    images_BHWC[:, 32 - 2 : 32 + 3, 64 - 2 : 64 + 3] = torch.tensor([0, 0, 255], dtype=torch.uint8)
    cells_BAyx = grad_cam(model, images_BHWC)
    assert int(cells_BAyx[0, 1].argmax()) == 1 * 3 + 2
    map_HW = at_pixels(cells_BAyx, (110, 90))[0, 1]
    assert divmod(int(map_HW.argmax()), 90) == (32, 64)
    assert map_HW[32, 64] == cells_BAyx[0, 1, 1, 2]
    assert map_HW[32, 48] == pytest.approx(float(cells_BAyx[0, 1, 1, 1:].mean()))
