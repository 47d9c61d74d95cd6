"""Occlusion maps: how far each logit drops when a window of the image is covered (Zeiler and Fergus, ECCV 2014).

    heat_overlays(model, image_HWC, attributes) -> a uint8 [H, W, 4] each     # to lay over the fitted image

The maps are those of captum's `Occlusion` on the same image, window, stride and fill (`tests/explaining`); all
attributes come from one pass, and all positions of many images from few.

Legend: B images, H height, W width, A attributes; y and x count the positions of the window.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from distrib.base.threads import pool_for_torch
from distrib.explaining.grid import Grid, make_grid
from distrib.explaining.incremental import Places, network_for
from distrib.model.trained import TrainedModel

Fill = Literal["mean", "blur", "black"]
T = TypeVar("T")
R = TypeVar("R")

# Red and blue stand out from any skin, and people with any kind of colour vision can tell them apart.
RED, BLUE = (222, 18, 52), (0, 84, 200)
OPACITY = 0.85  # of the strongest place: the image below stays visible
FAINT = 0.01  # a map whose strongest place is less, in logits, is shown as faint as it is: it may be rounding alone


@dataclass(frozen=True)
class OcclusionMaps:
    """What covering parts of the images does.

    Attributes:
        grid: where the window stood.
        drops_BAyx: float32, by how much the logit drops: positive where the covered part speaks for the attribute.
    """

    grid: Grid
    drops_BAyx: torch.Tensor


def occlusion_maps(
    net: nn.Module,
    images_BHWC: torch.Tensor,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    fill: Fill = "mean",
    attributes: Sequence[int] | None = None,
    precision: torch.dtype | None = None,
    batch: int = 64,
    report: Callable[[int], None] = lambda finished: None,
) -> OcclusionMaps:
    """How far the logits drop when a window of each image is covered, for every position of the window.

    Args:
        net: float logits [B, A] of uint8 RGB images [B, H, W, 3], in evaluation mode.
        images_BHWC: uint8, on the device of the network.
        window: height and width in pixels, see `make_grid`.
        stride: down and to the right in pixels, see `make_grid`.
        fill: what covers the window, see `covering`.
        attributes: which of the network's attributes, in which order; None: all.
        precision: in which the convolutions compute, such as torch.bfloat16; None: float32.
        batch: at most this many images go through the network at a time.
        report: called with the number of images finished since the last call.

    Raises:
        UserError: if window or stride do not fit the image.
    """
    grid = make_grid((images_BHWC.shape[1], images_BHWC.shape[2]), window, stride)
    network = network_for(net, precision)
    chosen = slice(None) if attributes is None else list(attributes)
    positions = [(row, column) for row in grid.spans(0) for column in grid.spans(1)]

    @torch.inference_mode()
    def of(images: torch.Tensor) -> torch.Tensor:
        covers = covering(images, fill, grid.window)
        logits_BA, known = network.whole(images)
        together = max(1, batch // len(images))
        changed = [
            network.changed(known, *_patches(images, covers, positions[first : first + together]))
            for first in range(0, len(positions), together)
        ]
        changed_yxBA = torch.cat(changed).view(len(grid.spans(0)), len(grid.spans(1)), *logits_BA.shape)
        return (logits_BA - changed_yxBA)[..., chosen].permute(2, 3, 0, 1).cpu()

    # All windows that go together are computed as if their changes reached as far as the farthest one's. In one row
    # they differ little, so of several images a row at a time, and of one image as many rows as fill the batch.
    parts = torch.split(images_BHWC, max(1, batch // len(grid.spans(1))))
    drops = []
    with closing(_in_threads(of, parts, on_cpu=images_BHWC.device.type == "cpu")) as found:
        for drops_BAyx in found:
            drops.append(drops_BAyx)
            report(len(drops_BAyx))
    return OcclusionMaps(grid, torch.cat(drops))


def _in_threads(work: Callable[[T], R], parts: Sequence[T], on_cpu: bool) -> Generator[R, None, None]:
    """What the work makes of each part, in their order; closing it gives up what has not begun.

    A thread for each of torch's computes parts of its own: the many small operations of one part would leave most of
    them waiting for each other.
    """
    cores = torch.get_num_threads() if on_cpu else 1
    workers = min(cores, len(parts))
    if workers < 2:
        yield from map(work, parts)
        return
    with pool_for_torch(workers, "occlusion", cores // workers) as pool:
        try:
            yield from pool.map(work, parts)
        finally:
            pool.shutdown(cancel_futures=True)


def covering(images_BHWC: torch.Tensor, fill: Fill, window: tuple[int, int]) -> torch.Tensor:
    """What the windows show instead of the images, uint8 [B, H, W, 3].

    mean: each image's own mean colour. blur: the image after a Gaussian filter with the deviation of half a window,
    so that colours stay and what is smaller than the window goes. black: 0.
    """
    if fill == "black":
        return torch.zeros_like(images_BHWC)
    if fill == "mean":
        return images_BHWC.float().mean((1, 2), keepdim=True).round().byte().expand_as(images_BHWC)
    sigmas = [window[1] / 2, window[0] / 2]  # torchvision names the width first
    widths = (images_BHWC.shape[2], images_BHWC.shape[1])
    # Odd, up to three deviations to each side, and within the image, where it is mirrored at its edges.
    kernel = [2 * min(math.ceil(3 * sigma), side - 1) + 1 for sigma, side in zip(sigmas, widths, strict=True)]
    blurred_BCHW: torch.Tensor = gaussian_blur(images_BHWC.permute(0, 3, 1, 2), kernel, sigmas)
    return blurred_BCHW.permute(0, 2, 3, 1)


def heat_overlays(
    model: TrainedModel, image_HWC: NDArray[np.uint8], attributes: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """The occlusion maps of some attributes, to lay over the image: RGBA, uint8 [H, W, 4] each.

    Args:
        model: any that `distrib.load` returns.
        image_HWC: uint8, as `model.fit` made it.
        attributes: which of the model's; all come from one pass.
    """
    images_BHWC = torch.from_numpy(image_HWC)[None].to(model.device)
    found = occlusion_maps(model.net, images_BHWC, attributes=attributes)
    return [heat(found.grid.cells(drops_yx), found.grid.size) for drops_yx in found.drops_BAyx[0]]


def heat(cells_yx: torch.Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A map in colours: red speaks for the attribute, blue against it, and what matters little is transparent.

    Args:
        cells_yx: float, on the CPU; the cells tile the image.
        size: height and width of the result, interpolated smoothly.

    Returns:
        uint8 [height, width, 4]: red, green, blue, opacity; the strongest place of the map is the most opaque.
    """
    full = max(FAINT, float(cells_yx.abs().max()))
    smooth_HW = F.interpolate(cells_yx[None, None].float(), size, mode="bicubic", align_corners=False)[0, 0].numpy()
    strength_HW = np.clip(np.abs(smooth_HW) / full, 0, 1)
    rgb_HW3 = np.where(smooth_HW[..., None] > 0, RED, BLUE).astype(np.uint8)
    opacity_HW = np.rint(255 * OPACITY * strength_HW).astype(np.uint8)
    return np.dstack((rgb_HW3, opacity_HW))


def _patches(
    images_BHWC: torch.Tensor, covers_BHWC: torch.Tensor, positions: Sequence[tuple[tuple[int, int], tuple[int, int]]]
) -> tuple[torch.Tensor, Places]:
    """What the windows at these positions (rows, columns) show: patches of one size [N, h, w, 3], and their places.

    A window that the edge has cut off lies in a patch of the full size, beside pixels of the image.
    """
    height = max(bottom - top for (top, bottom), _ in positions)
    width = max(right - left for _, (left, right) in positions)
    patches, corners = [], []
    for (top, bottom), (left, right) in positions:
        y, x = min(top, images_BHWC.shape[1] - height), min(left, images_BHWC.shape[2] - width)
        patch = images_BHWC[:, y : y + height, x : x + width].clone()
        patch[:, top - y : bottom - y, left - x : right - x] = covers_BHWC[:, top:bottom, left:right]
        patches.append(patch)
        corners.append((y, x))
    return torch.cat(patches), Places(tuple(corners), height, width)
