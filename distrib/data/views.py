"""Crop, resize and mirror a whole batch at once, on the device where its images are.

Legend: N images in memory, B images of a batch, H and W their height and width, h and w those of the result, C colours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

# The largest weight, times the power of two that all weights of an image are multiplied by, rounds to less than 2^15.
_LARGEST_WEIGHT = 2**15 - 0.5


def views(images_NHWC: torch.Tensor, asked_B6: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Regions of some images, resized and mirrored: what `distrib.data.batch.cut` makes of one image after another.

    The pixels are the very same, unless a region is more than four times as long as the result; then few differ, by 1.

    Args:
        images_NHWC: uint8.
        asked_B6: of `views_of`, in the host's memory; pinned, where the images are on a GPU.
        size: h and w.

    Returns:
        uint8 [B, h, w, 3] on the device of the images.
    """
    height, width = size
    resized = (asked_B6.numpy()[:, 3:5] != size).any()
    place, top, left, region_height, region_width, flip = asked_B6.to(images_NHWC.device, non_blocking=True).T
    down, across = (torch.arange(side, device=place.device) for side in size)
    if not resized:
        rows_Bh = top[:, None] + down
        columns_Bw = left[:, None] + torch.where(flip[:, None] == 1, across.flip(0), across)
        return images_NHWC[place[:, None, None], rows_Bh[:, :, None], columns_Bw[:, None, :]]
    down_BhH = _filters(top, region_height, images_NHWC.shape[1], height)
    across_BwW = _filters(left, region_width, images_NHWC.shape[2], width)
    across_BwW = torch.where(flip[:, None, None] == 1, across_BwW.flip(1), across_BwW)
    # Channels between rows and columns: so each product is one of a matrix an image, and no filter is copied.
    chosen_BHCW = images_NHWC.index_select(0, place).transpose(2, 3)
    images_BHCW = chosen_BHCW.to(torch.float32, memory_format=torch.contiguous_format)
    with _whole_float32():
        # The reference makes rows narrower first, and rounds to whole grey levels before it goes down the columns.
        narrow = (images_BHCW.flatten(1, 2) @ across_BwW.transpose(1, 2)).add_(0.5).floor_()  # [B, H C, w]
        resized_BhCw = (down_BhH @ narrow.view(len(place), -1, 3 * width)).add_(0.5).floor_().view(-1, height, 3, width)
    return resized_BhCw.to(torch.uint8).transpose(2, 3).contiguous()


def views_of(places_B: NDArray[np.int64], regions_B4: NDArray[np.int64], flip_B: NDArray[np.bool_]) -> torch.Tensor:
    """What is asked of each image of a batch, as `views` takes it: int64 [B, 6], so that one copy brings it to a GPU.

    Args:
        places_B: in 0 … N-1, of the images.
        regions_B4: top, left, height and width of each in whole pixels, see `distrib.data.batch.crop_regions`.
        flip_B: whether each is mirrored left to right.
    """
    return torch.from_numpy(np.column_stack((places_B, regions_B4, flip_B)).astype(np.int64))


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Products of all 24 bits of float32: TF32, which containers and launchers may have switched on, keeps 11."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _filters(starts_B: torch.Tensor, counts_B: torch.Tensor, pixels: int, outputs: int) -> torch.Tensor:
    """The weight of each pixel of a line in each output, float32 [B, outputs, pixels].

    Bilinear with antialias, as in Pillow: an output is the mean of the pixels around its centre, weighted by a triangle
    that reaches one output to each side, or one pixel where that is more; nothing outside of the region counts. The
    weights are whole numbers of 15 bits in a power of two, as torch has them for uint8 (`UpSampleKernel.cpp`,
    `compute_index_ranges_int16_weights`): of these float32 makes exact sums, in whatever order, while a region is at
    most four times as long as the result.

    Args:
        starts_B: int64, first pixel of the region.
        counts_B: int64, pixels of the region.
        pixels: of the line.
        outputs: that the region is resized to.
    """
    device = starts_B.device
    scale_B11 = (counts_B.double() / outputs)[:, None, None]
    support_B11 = scale_B11.clamp(min=1)
    centre_Bo1 = (torch.arange(outputs, device=device, dtype=torch.float64)[:, None] + 0.5) * scale_B11
    # No output looks at more pixels than these, from its first one on.
    reach = 2 * -(-max(pixels, outputs) // outputs) + 1
    pixel_Bok = (centre_Bo1 - support_B11 + 0.5).floor_() + torch.arange(reach, device=device)
    weight_Bok = (1 - (pixel_Bok + 0.5 - centre_Bo1).abs() / support_B11).clamp_(min=0)
    weight_Bok *= (pixel_Bok >= 0) & (pixel_Bok < counts_B[:, None, None])
    weight_Bok /= weight_Bok.sum(dim=2, keepdim=True)
    largest_B11 = weight_Bok.amax(dim=(1, 2), keepdim=True)
    power_B11 = torch.exp2((_LARGEST_WEIGHT / largest_B11).log2().floor_())
    whole_Bok = (weight_Bok * power_B11 + 0.5).floor_() / power_B11
    places_Bok = (pixel_Bok.long() + starts_B[:, None, None]).clamp_(0, pixels - 1)
    filters = torch.zeros(len(starts_B), outputs, pixels, device=device)
    return filters.scatter_add_(2, places_Bok, whole_Bok.float())
