import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.data.batch import Batch, Crop, Request, crop_regions, cut

UNIT = st.floats(0, 1)


def request(zoom: float, top: float = 0.5, left: float = 0.5, count: int = 1) -> Request:
    return Request(
        np.arange(count),
        zoom=np.full(count, zoom),
        top=np.full(count, top),
        left=np.full(count, left),
        flip=np.zeros(count, dtype=np.bool_),
    )


def region(
    height: int, width: int, crop: Crop, zoom: float, top: float = 0.5, left: float = 0.5
) -> tuple[int, int, int, int]:
    (found,) = crop_regions(request(zoom, top, left), np.array([height]), np.array([width]), crop).tolist()
    return tuple(found)


@settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    zoom=st.floats(0, 1, exclude_min=True),
    top=UNIT,
    left=UNIT,
    crop=st.sampled_from(["square", "full", 0.83]),
)
def test_a_region_lies_in_its_picture(
    height: int, width: int, zoom: float, top: float, left: float, crop: Crop
) -> None:
    y, x, h, w = region(height, width, crop, zoom, top, left)
    assert h >= 1
    assert w >= 1
    assert 0 <= y <= y + h <= height
    assert 0 <= x <= x + w <= width
    if crop != "full":
        assert h == w
        # … and within the largest centred square, or its share
        side = min(height, width)
        if crop != "square":
            side = max(1, round(side * crop))
        assert (height - side) // 2 <= y
        assert y + h <= (height - side) // 2 + side
        assert (width - side) // 2 <= x
        assert x + w <= (width - side) // 2 + side


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1), st.booleans(),
    st.sampled_from(["square", "full", 0.83]),
)  # fmt: skip
def test_one_image_is_cut_as_a_batch_is(
    height: int, width: int, zoom: float, top: float, left: float, flip: bool, crop: Crop
) -> None:
    pixels = np.arange(height * width * 3, dtype=np.uint64).reshape(height, width, 3).astype(np.uint8)
    wanted = dataclasses.replace(request(zoom, top, left), flip=np.array([flip]))
    (region,) = crop_regions(wanted, np.array([height]), np.array([width]), crop).tolist()
    expected = pixels[region[0] : region[0] + region[2], region[1] : region[1] + region[3]]
    found = cut(pixels, wanted, crop, (region[2], region[3]))
    np.testing.assert_array_equal(found, expected[:, ::-1] if flip else expected)


def test_the_centred_square_of_an_aligned_celeba_picture() -> None:
    assert region(218, 178, "square", 1.0) == (20, 0, 178, 178)
    assert region(178, 218, "square", 1.0) == (0, 20, 178, 178)
    assert region(218, 178, "full", 1.0) == (0, 0, 218, 178)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 500), width=st.integers(1, 500), top=UNIT, left=UNIT)
def test_the_largest_crop_never_moves(height: int, width: int, top: float, left: float) -> None:
    for crop in ("square", "full", 0.83):
        assert region(height, width, crop, 1.0, top, left) == region(height, width, crop, 1.0)
    assert region(height, width, "full", 1.0, top, left) == (0, 0, height, width)


def test_half_a_zoom_takes_half_of_each_side() -> None:
    assert region(218, 178, "full", 0.5, 0.0, 0.0) == (0, 0, 109, 89)
    assert region(218, 178, "full", 0.5, 1.0, 1.0) == (109, 89, 109, 89)
    assert region(218, 178, "square", 0.5, 0.0, 1.0) == (20, 89, 89, 89)
    assert region(218, 178, "square", 0.5, 0.5, 0.5) == (20 + 45, 45, 89, 89)


def test_evaluation_may_look_at_the_middle_of_a_crop() -> None:
    for zoom, crop, wanted in ((0.925, 0.83, [41, 21, 137, 137]), (0.9, "full", [11, 9, 196, 160])):
        (found,) = crop_regions(Request.centred(np.zeros(1, np.int64), zoom), np.array([218]), np.array([178]), crop)
        assert found.tolist() == wanted


def test_a_share_of_the_square_is_centred_in_it() -> None:
    assert region(218, 178, 0.83, 1.0) == (35, 15, 148, 148)
    assert region(218, 178, 1.0, 1.0) == region(218, 178, "square", 1.0)
    assert region(218, 178, 0.5, 0.5, 0.0, 1.0) == (64, 44 + 45, 44, 44)


@pytest.mark.parametrize("crop", ["square", "full"])
def test_every_place_is_reachable_and_equally_likely(crop: str) -> None:
    count = 10_000
    grid = np.linspace(0, 1, count, endpoint=False)
    wanted = Request(
        np.arange(count), zoom=np.full(count, 0.8), top=grid, left=grid[::-1], flip=np.zeros(count, dtype=np.bool_)
    )
    height, width = 30, 20
    found = crop_regions(wanted, np.full(count, height), np.full(count, width), crop)
    full_height, full_width = (20, 20) if crop == "square" else (30, 20)
    first_top, first_left = (height - full_height) // 2, (width - full_width) // 2
    for column, first, places in (
        (0, first_top, full_height - round(0.8 * full_height) + 1),
        (1, first_left, full_width - round(0.8 * full_width) + 1),
    ):
        values, counts = np.unique(found[:, column], return_counts=True)
        assert values.tolist() == list(range(first, first + places))
        assert counts.max() - counts.min() <= 2


def test_pictures_of_a_batch_may_differ_in_size() -> None:
    found = crop_regions(request(1.0, count=3), np.array([218, 100, 7]), np.array([178, 120, 7]), "square")
    assert found.tolist() == [[20, 0, 178, 178], [0, 10, 100, 100], [0, 0, 7, 7]]


def test_a_tiny_zoom_still_leaves_a_pixel() -> None:
    assert region(218, 178, "full", 1e-9)[2:] == (1, 1)


def test_a_centred_request_is_the_whole_crop_unmirrored() -> None:
    centred = Request.centred(np.array([5, 3, 9]))
    assert len(centred) == 3
    assert centred.ids.tolist() == [5, 3, 9]
    assert not centred.flip.any()
    assert centred.flip.dtype == np.bool_
    found = crop_regions(centred, np.full(3, 218), np.full(3, 178), "square")
    assert found.tolist() == [[20, 0, 178, 178]] * 3


def test_a_part_of_a_request_keeps_what_belongs_together() -> None:
    whole = Request(
        np.array([5, 3, 9, 4]),
        zoom=np.array([0.1, 0.2, 0.3, 0.4]),
        top=np.array([0.5, 0.6, 0.7, 0.8]),
        left=np.array([0.0, 0.1, 0.2, 0.3]),
        flip=np.array([True, False, True, False]),
    )
    part = whole[1::2]
    assert len(part) == 2
    assert part.ids.tolist() == [3, 4]
    assert part.zoom.tolist() == [0.2, 0.4]
    assert part.top.tolist() == [0.6, 0.8]
    assert part.left.tolist() == [0.1, 0.3]
    assert part.flip.tolist() == [False, False]


def test_a_batch_knows_its_length() -> None:
    batch = Batch(torch.zeros(5, 8, 8, 3, dtype=torch.uint8), torch.zeros(5, 2), torch.arange(5))
    assert len(batch) == 5
