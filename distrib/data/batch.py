"""What is asked of a decoder and what it delivers.

Legend: B images, H height, W width, A attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

# Which part of an image the network may see: its largest centred square, or the centred square of a share of that
# one's side; or the whole image.
Crop = Literal["square", "full"] | float


@dataclass(frozen=True, slots=True)
class Request:
    """Which images to deliver and which part of each; positions are relative, so no image has to be opened.

    Attributes:
        ids: int64 [B], rows of the table.
        zoom: float64 [B] in (0, 1], side of the crop as a fraction of the largest crop.
        top: float64 [B] in [0, 1], where the crop lies between the upper (0) and the lower (1) edge.
        left: float64 [B] in [0, 1], where it lies between the left (0) and the right (1) edge.
        flip: bool [B], whether the crop is mirrored left to right.
        epoch: of the training, by which images that are broken are replaced; None: none is, as in evaluation.
        size: height and width of the result in pixels; None: data.image_size.
    """

    ids: NDArray[np.int64]
    zoom: NDArray[np.float64]
    top: NDArray[np.float64]
    left: NDArray[np.float64]
    flip: NDArray[np.bool_]
    epoch: int | None = None
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Request":
        arrays = (self.ids[part], self.zoom[part], self.top[part], self.left[part], self.flip[part])
        return Request(*arrays, self.epoch, self.size)

    @classmethod
    def centred(cls, ids: NDArray[np.int64], zoom: float = 1.0) -> "Request":
        """The middle of the crop of each image, not mirrored: what evaluation looks at.

        Args:
            ids: int64 [B], rows of the table.
            zoom: in (0, 1], its height and width as a fraction of the crop's; 1: the whole crop.
        """
        count = len(ids)
        half = np.full(count, 0.5)
        return cls(ids, zoom=np.full(count, zoom), top=half, left=half, flip=np.zeros(count, dtype=np.bool_))


def crop_regions(
    request: Request, heights: NDArray[np.int64], widths: NDArray[np.int64], crop: Crop
) -> NDArray[np.int64]:
    """The region of each image that a request asks for, in whole pixels.

    Args:
        request: of B images.
        heights: int64 [B], height of each image in pixels.
        widths: int64 [B], width of each image in pixels.
        crop: the largest crop, as `data.crop` in the configuration.

    Returns:
        int64 [B, 4]: top, left, height and width.
    """
    side = np.maximum(1, np.rint(np.minimum(heights, widths) * _share(crop))).astype(np.int64)
    full_height, full_width = (heights, widths) if crop == "full" else (side, side)
    height = np.maximum(1, np.rint(full_height * request.zoom)).astype(np.int64)
    width = np.maximum(1, np.rint(full_width * request.zoom)).astype(np.int64)
    # Every whole-pixel place within the largest crop is equally likely; 1/2 is the middle one.
    top = np.minimum((request.top * (full_height - height + 1)).astype(np.int64), full_height - height)
    left = np.minimum((request.left * (full_width - width + 1)).astype(np.int64), full_width - width)
    return np.stack(((heights - full_height) // 2 + top, (widths - full_width) // 2 + left, height, width), axis=1)


def cut(pixels_HWC: NDArray[np.uint8], request: Request, crop: Crop, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One decoded image cropped, resized and mirrored as a request asks: the reference of every decoder.

    Args:
        pixels_HWC: uint8 RGB.
        request: of this one image.
        crop: the largest crop, see `crop_regions`.
        size: height and width of the result in pixels; an antialiased triangle filter resizes.

    Returns:
        uint8 [height, width, 3], which may be a view of the pixels.
    """
    height, width, _ = pixels_HWC.shape
    top, left, crop_height, crop_width = _crop_region(request, height, width, crop)
    pixels_HWC = pixels_HWC[top : top + crop_height, left : left + crop_width]
    resize, mirror = (crop_height, crop_width) != tuple(size), bool(request.flip[0])
    if not (resize or mirror):
        return pixels_HWC
    # torch does both in vector instructions; of a mirrored view numpy copies three bytes at a time: 0.2 ms an image.
    image_BCHW = torch.from_numpy(np.array(pixels_HWC))[None].permute(0, 3, 1, 2)
    if resize:
        image_BCHW = F.interpolate(image_BCHW, size=size, mode="bilinear", antialias=True)
    if mirror:
        image_BCHW = image_BCHW.flip(3)
    cut_HWC: NDArray[np.uint8] = image_BCHW[0].permute(1, 2, 0).numpy()
    return cut_HWC


def _crop_region(request: Request, height: int, width: int, crop: Crop) -> tuple[int, int, int, int]:
    """`crop_regions` of one image, by the same operations on plain numbers, which takes a tenth of the time."""
    side = max(1, round(min(height, width) * _share(crop)))
    full_height, full_width = (height, width) if crop == "full" else (side, side)
    zoom = request.zoom.item()
    crop_height, crop_width = max(1, round(full_height * zoom)), max(1, round(full_width * zoom))
    top = min(int(request.top.item() * (full_height - crop_height + 1)), full_height - crop_height)
    left = min(int(request.left.item() * (full_width - crop_width + 1)), full_width - crop_width)
    return (height - full_height) // 2 + top, (width - full_width) // 2 + left, crop_height, crop_width


def _share(crop: Crop) -> float:
    """Of the largest square's side."""
    return 1.0 if isinstance(crop, str) else crop


@dataclass(frozen=True, slots=True)
class Replacement:
    """An image that was trained on in place of a broken one.

    Attributes:
        epoch: counted from 0.
        row: of the broken image.
        by: the row of the other.
        reason: what is wrong with the broken image.
    """

    epoch: int
    row: int
    by: int
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What every decoder delivers.

    Attributes:
        images_BHWC: uint8 RGB, already cropped, resized and mirrored.
        targets_BA: float32 in {0, 1}, or between them where images were mixed (`augmentation.mix`).
        ids_B: int64 rows of the table, on the CPU (they name images; the model never sees them).
        replaced: those of the images that stand in for broken ones, by their place in the batch.
    """

    images_BHWC: torch.Tensor
    targets_BA: torch.Tensor
    ids_B: torch.Tensor
    replaced: Mapping[int, Replacement] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids_B)

    @property
    def requested(self) -> NDArray[np.int64]:
        """The rows int64 [B] that the plan asked for, whatever stands in for those that are broken."""
        rows: NDArray[np.int64] = self.ids_B.numpy().copy()
        for place, instead in self.replaced.items():
            rows[place] = instead.row
        return rows
