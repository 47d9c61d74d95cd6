"""Explanations with a truth: does a map point where the attribute is drawn?

The synthetic faces know where each of their parts lies (`boxes.csv`), so a map of them can be wrong. Two measures:

pointing  the pointing game of Zhang et al. (ECCV 2016): whether the map's maximum lies in the part's box. The box is
          enlarged by one window of the occlusion map to each side, because a pixel of that map is the mean over the
          windows that cover it, and these reach as far.
mass      share of the map's positive values that lies in the box itself, held against the box's share of the image.

Legend: N images, H height, W width; boxes are left, top, right, bottom in pixels, right and bottom exclusive.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError

Boxes = dict[str, dict[str, tuple[float, float, float, float]]]  # file name -> part -> box

COLUMNS = ("image", "part", "left", "top", "right", "bottom")


def read_boxes(file: Path) -> Boxes:
    """The boxes of a `boxes.csv`, in pixels of the image files.

    Raises:
        UserError: if it cannot be read or is not such a file.
    """
    boxes: Boxes = {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream)
            if not set(COLUMNS) <= set(table.fieldnames or ()):
                raise ValueError("columns")
            for row in table:
                left, top, right, bottom = (float(row[column]) for column in COLUMNS[2:])
                boxes.setdefault(row["image"], {})[row["part"]] = (left, top, right, bottom)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from None
    except (TypeError, ValueError, csv.Error):
        raise UserError(
            f"{file} is not a table of boxes: expected the columns {', '.join(COLUMNS)}, numbers in the last four; "
            "make the set again with `distrib prepare faces`"
        ) from None
    return boxes


def in_input(
    boxes: NDArray[np.float64], region: tuple[int, int, int, int], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Boxes [n, 4] of an image file in pixels of the network's input.

    Args:
        boxes: left, top, right, bottom in pixels of the image file.
        region: of the file that the network is given, see `Description.region`.
        size: height and width of the network's input.
    """
    top, left, height, width = region
    moved = (boxes.reshape(-1, 2, 2) - (left, top)) * (size[1] / width, size[0] / height)
    clipped: NDArray[np.float64] = np.clip(moved, 0, (size[1], size[0])).reshape(-1, 4)
    return clipped


def inside(
    boxes: NDArray[np.float64], size: tuple[int, int], margin: tuple[float, float] = (0, 0)
) -> NDArray[np.bool_]:
    """Which pixels, bool [H, W], have their centre in the union of these boxes [n, 4].

    Args:
        boxes: left, top, right, bottom in pixels; one without an area holds nothing, whatever the margin.
        size: H and W.
        margin: what is added at the top and at the bottom, and at the left and at the right, in pixels.
    """
    y, x = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    mask = np.zeros(size, bool)
    for left, top, right, bottom in boxes:
        if left < right and top < bottom:
            tall = (top - margin[0] <= y) & (y < bottom + margin[0])
            wide = (left - margin[1] <= x) & (x < right + margin[1])
            mask |= tall[:, None] & wide
    return mask


def points_into(map_HW: NDArray[np.float32], mask_HW: NDArray[np.bool_]) -> bool:
    """Whether the map's maximum lies within the mask; of several equal pixels, most of them. A map without a positive
    value points nowhere."""
    highest = map_HW.max()
    return bool(highest > 0 and mask_HW[map_HW == highest].mean() > 0.5)


def mass_within(map_HW: NDArray[np.float32], mask_HW: NDArray[np.bool_]) -> float:
    """Share of the map's positive values within the mask; 0 of a map that has none."""
    positive = np.maximum(map_HW, 0)
    total = float(positive.sum())
    return float(positive[mask_HW].sum()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Measures:
    """How well maps agree with the boxes, means over images; NaN without any.

    Attributes:
        pictures: how many.
        pointing: share of the maps whose maximum lies in the enlarged boxes.
        chance: share of the image that the enlarged boxes take: what a maximum at random would reach.
        mass: share of a map's positive values in the boxes.
        area: share of the image that the boxes take: what an even map would reach.
    """

    pictures: int
    pointing: float
    chance: float
    mass: float
    area: float

    @property
    def ratio(self) -> float:
        """How many times more of the map lies in the boxes than of an even map."""
        return self.mass / self.area

    def numbers(self) -> dict[str, float]:
        """What the report shows."""
        return {"pointing": self.pointing, "chance": self.chance, "mass": self.mass, "ratio": self.ratio}


def measure(
    maps: Sequence[NDArray[np.float32]], boxes: Sequence[NDArray[np.float64]], margin: tuple[float, float]
) -> Measures:
    """Hold maps against where the part is.

    Args:
        maps: float [H, W] each, positive where they see evidence.
        boxes: of each map's image [n, 4], in pixels of the map; at least one of them has an area.
        margin: what enlarges each box above and below, and left and right, for the pointing game, in pixels.
    """
    rows = []
    for map_HW, of_picture in zip(maps, boxes, strict=True):
        near_HW, within_HW = inside(of_picture, map_HW.shape, margin), inside(of_picture, map_HW.shape)
        rows.append((points_into(map_HW, near_HW), near_HW.mean(), mass_within(map_HW, within_HW), within_HW.mean()))
    means = np.mean(rows, axis=0).tolist() if rows else [float("nan")] * 4
    return Measures(len(rows), *means)


def judge(
    maps_NHW: NDArray[np.float32],
    boxes: Sequence[NDArray[np.float64]],
    present_N: NDArray[np.bool_],
    right_N: NDArray[np.bool_],
    margin: tuple[float, float],
) -> tuple[Measures, dict[str, Any]]:
    """Hold the maps of one attribute against its boxes, over the images that the model is right about.

    A map counts as the evidence for the decision: where the attribute is absent, its sign is turned. The two kinds of
    image are also given apart, because what speaks against an attribute can lie beside the part: the skin where an
    arched brow would be.

    Args:
        maps_NHW: positive where they see evidence for the attribute.
        boxes: of each image [n, 4], in pixels of the maps; images without a pixel inside are left out.
        present_N: whether the model says that the attribute is present.
        right_N: whether it is right.
        margin: see `measure`.

    Returns:
        The measures, and as the report shows them: {pointing, chance, mass, ratio, present: {correct, …}, absent: …}.
    """
    shown_N = np.array([inside(each, maps_NHW.shape[1:]).any() for each in boxes])

    def of(group_N: NDArray[np.bool_]) -> Measures:
        judged = np.flatnonzero(group_N & right_N & shown_N).tolist()
        evidence = [maps_NHW[n] if present_N[n] else -maps_NHW[n] for n in judged]
        return measure(evidence, [boxes[n] for n in judged], margin)

    both, apart = of(np.ones_like(present_N)), {"present": of(present_N), "absent": of(~present_N)}
    found = {group: {"correct": each.pictures, **each.numbers()} for group, each in apart.items()}
    return both, both.numbers() | found
