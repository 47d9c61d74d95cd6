"""A batch that is cut out at once is, to the last bit, what the reference cuts out of one image after another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from distrib.data.batch import Request, crop_regions, cut
from distrib.data.images import decode
from distrib.data.table import read_table
from distrib.data.views import views, views_of

CELEBA_MINI = Path(__file__).resolve().parents[3] / "shared/celeba-mini"


def both(
    images: NDArray[np.uint8], request: Request, crop: str, size: tuple[int, int], device: str = "cpu"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The batch of a request, cut out at once and by the reference."""
    _, height, width, _ = images.shape
    regions = crop_regions(request, np.full(len(request), height), np.full(len(request), width), crop)
    at_once = views(torch.from_numpy(images).to(device), views_of(request.ids, regions, request.flip), size).cpu()
    assert at_once.is_contiguous()
    reference = [cut(images[row], request[i : i + 1], crop, size) for i, row in enumerate(request.ids)]
    return at_once.numpy().astype(np.int64), np.stack(reference).astype(np.int64)


def some_views(count: int, of: int, rng: np.random.Generator, zooms: tuple[float, float]) -> Request:
    """Views of random images, the first two at opposite corners."""
    top, left = rng.random(count), rng.random(count)
    top[:2] = left[:2] = 0, 1
    return Request(rng.integers(0, of, count), rng.uniform(*zooms, count), top, left, rng.random(count) < 0.5)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_of_noise_in_any_sizes_every_bit_is_the_same(data: st.DataObject) -> None:
    sides = st.integers(3, 90)
    height, width = data.draw(sides), data.draw(sides)
    # A result of a quarter of a side or more, up to many times the side.
    size = (data.draw(st.integers(-(-height // 4), 120)), data.draw(st.integers(-(-width // 4), 120)))
    low = data.draw(st.floats(0.01, 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = data.draw(st.sampled_from([(0, 256), (0, 2)]))  # grey levels, or black and white
    images = rng.integers(*values, (5, height, width, 3)).astype(np.uint8) * (255 // (values[1] - 1))
    request = some_views(6, len(images), rng, (low, 1))
    at_once, reference = both(images, request, data.draw(st.sampled_from(["square", "full"])), size)
    assert np.array_equal(at_once, reference)


@pytest.mark.parametrize("size", [(8, 8), (8, 200)])
def test_of_much_larger_images_few_pixels_differ_and_by_one(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 218, 178, 3)).astype(np.uint8)
    at_once, reference = both(images, some_views(16, 4, rng, (0.7, 1)), "full", size)
    difference = np.abs(at_once - reference)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.skipif(not CELEBA_MINI.is_dir(), reason=f"no real images in {CELEBA_MINI}")
@pytest.mark.parametrize(
    ("size", "crop", "zooms"),
    [((218, 178), "full", (0.85, 1)), ((112, 112), "square", (0.6, 0.9)), ((218, 178), "full", (0.3, 0.5)),
     ((178, 178), "square", (1, 1))],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_of_real_images_every_bit_is_the_same(
    size: tuple[int, int], crop: str, zooms: tuple[float, float], device: str
) -> None:
    table = read_table(CELEBA_MINI)
    images = np.stack([decode(table.store.read(row)) for row in range(8)])
    at_once, reference = both(images, some_views(16, 8, np.random.default_rng(0), zooms), crop, size, device)
    assert np.array_equal(at_once, reference)


@pytest.mark.gpu
def test_images_beyond_two_gigabytes_are_found() -> None:
    images = torch.zeros(20_000, 218, 178, 3, dtype=torch.uint8, device="cuda")
    images[-1] = 7
    for height in (178, 200):
        asked = views_of(np.array([0, 19_999]), np.tile([0, 0, height, 178], (2, 1)), np.array([False, True]))
        batch = views(images, asked, (178, 178))
        assert (int(batch[0].max()), int(batch[1].min())) == (0, 7)


def test_other_products_stay_as_they_were_allowed() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        both(np.zeros((1, 9, 9, 3), np.uint8), Request.centred(np.array([0])), "full", (5, 5))
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no GPUs")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("height", [150, 178])
def test_on_a_gpu_everything_is_on_the_gpu(height: int) -> None:
    asked = views_of(np.arange(6), np.tile([3, 0, height, 178], (6, 1)), np.array([True, False] * 3))
    with FakeTensorMode(allow_non_fake_inputs=True):  # it refuses operations between tensors of the CPU and of a GPU
        images = torch.empty(100, 218, 178, 3, dtype=torch.uint8, device="cuda")
        batch = views(images, asked, (178, 178))
        assert (batch.device.type, batch.dtype, tuple(batch.shape)) == ("cuda", torch.uint8, (6, 178, 178, 3))
