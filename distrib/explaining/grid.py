"""Where the occluding window stands on an image; torch is imported when there are maps.

Legend: H height, W width; y and x count the positions of the window.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distrib.base.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Grid:
    """The positions of the window, in pixels of the network's input.

    As captum has them: from the top left corner on by the stride until the far edge is covered; a window that would
    reach over the edge is cut off there.

    Attributes:
        size: height and width of the image.
        window: height and width.
        stride: from one position to the next, down and to the right.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]

    def spans(self, axis: int) -> list[tuple[int, int]]:
        """First pixel, and the one after the last, of each position along the height (0) or the width (1)."""
        size, window, stride = self.size[axis], self.window[axis], self.stride[axis]
        count = math.ceil((size - window) / stride) + 1
        return [(start, min(start + window, size)) for start in range(0, count * stride, stride)]

    def at_pixels(self, drops_yx: "torch.Tensor") -> "torch.Tensor":
        """Maps [..., H, W] of the drops [..., y, x]: the mean over the windows that cover a pixel."""
        import torch

        weights = []
        for axis in (0, 1):
            covers = torch.zeros(len(self.spans(axis)), self.size[axis])
            for position, (start, end) in enumerate(self.spans(axis)):
                covers[position, start:end] = 1
            weights.append(covers / covers.sum(0))
        return weights[0].T @ drops_yx @ weights[1]

    def cells(self, drops_yx: "torch.Tensor") -> "torch.Tensor":
        """The map of one image and attribute at the resolution it has: a cell for each stride, [rows, columns]."""
        import torch.nn.functional as F

        rows, columns = (math.ceil(size / stride) for size, stride in zip(self.size, self.stride, strict=True))
        return F.adaptive_avg_pool2d(self.at_pixels(drops_yx)[None], (rows, columns))[0]


def make_grid(
    size: tuple[int, int], window: tuple[int, int] | None = None, stride: tuple[int, int] | None = None
) -> Grid:
    """The positions of a window on images of this height and width.

    Args:
        size: height and width in pixels.
        window: height and width in pixels; None: a square of an eighth of the image's longer side.
        stride: down and to the right, in pixels; None: half of the window.

    Raises:
        UserError: if the window does not fit into the image, or the stride would leave gaps.
    """
    if window is None:
        window = (min(max(2, round(max(size) / 8)), *size),) * 2
    if stride is None:
        stride = (max(1, window[0] // 2), max(1, window[1] // 2))
    for side, covered, step in zip(size, window, stride, strict=True):
        if not 1 <= covered <= side:
            raise UserError(
                f"the occluding window is {window[0]} x {window[1]} pixels, which does not fit into the network's "
                f"input of {size[0]} x {size[1]}: choose a smaller explain.window, at least 1"
            )
        if not 1 <= step <= covered:
            raise UserError(
                f"the occluding window of {window[0]} x {window[1]} pixels moves by {stride[0]} x {stride[1]}, which "
                "would leave gaps: choose explain.stride from 1 to the window's side"
            )
    return Grid(size, window, stride)
