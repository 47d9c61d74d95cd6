"""A canvas in the face's own coordinates that remembers where each part was drawn.

Face coordinates: x in image pixels from the face's midline (negative on the viewer's left), y in image pixels
from the top. The canvas turns, scales and shifts them into the image, so whoever draws never thinks about the pose.
Points are float64 [P, 2]; colours are (red, green, blue) in 0..255.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, cos, floor, sin

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 178, 218  # of the image, as in aligned CelebA
MIDLINE, EYE_LINE = 89.0, 111.0  # where CelebA's alignment puts the eyes' middle
SCALE = 3  # canvas pixels for one image pixel: the drawing is reduced at the end, which smooths its edges

Colour = tuple[float, float, float]
Points = NDArray[np.float64]
Box = tuple[int, int, int, int]  # left, top, right, bottom in image pixels; right and bottom exclusive


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first, 0 to 1."""
    return (
        first[0] + (second[0] - first[0]) * share,
        first[1] + (second[1] - first[1]) * share,
        first[2] + (second[2] - first[2]) * share,
    )


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter."""
    return (min(colour[0] * factor, 255.0), min(colour[1] * factor, 255.0), min(colour[2] * factor, 255.0))


def shades(colour: Colour, factors: Points) -> list[Colour]:
    """The colour in several tones, one for each factor; see `shade`."""
    return [shade(colour, factor) for factor in factors.tolist()]


@lru_cache(maxsize=16)
def _spline_weights(per_segment: int) -> Points:
    t = np.arange(per_segment)[:, None] / per_segment
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    catmull_rom = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], dtype=np.float64)
    return np.asarray(powers @ catmull_rom, dtype=np.float64)  # [per_segment, 4]


@lru_cache(maxsize=64)
def _neighbours(count: int, closed: bool) -> NDArray[np.int64]:
    """For each segment the control points that shape it: the one before, its two ends and the one after."""
    places = np.arange(count if closed else count - 1)[:, None] + np.arange(-1, 3)
    return places % count if closed else np.clip(places, 0, count - 1)


def closed_curve(controls: ArrayLike, per_segment: int = 8) -> Points:
    """A smooth closed curve through the control points [C, 2]: [C * per_segment, 2]."""
    points = np.asarray(controls, dtype=np.float64)
    curve: Points = _spline_weights(per_segment) @ points[_neighbours(len(points), closed=True)]
    return curve.reshape(-1, 2)


def open_curve(controls: ArrayLike, per_segment: int = 8) -> Points:
    """A smooth curve from the first control point [C, 2] to the last: [(C - 1) * per_segment + 1, 2]."""
    points = np.asarray(controls, dtype=np.float64)
    curve: Points = _spline_weights(per_segment) @ points[_neighbours(len(points), closed=False)]
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def mirrored(right_half: ArrayLike) -> Points:
    """Control points of a symmetric outline, from those at x >= 0 listed from top to bottom (the ends at x = 0)."""
    right = np.asarray(right_half, dtype=np.float64)
    return np.concatenate([right, (right * [-1, 1])[-2:0:-1]])


def shifted(points: Points, right: ArrayLike, down: ArrayLike) -> Points:
    """The points [..., 2] moved by image pixels, each by its own where `right` and `down` are arrays [...]."""
    step: Points = np.stack(np.broadcast_arrays(right, down), axis=-1)
    return points + step


@lru_cache(maxsize=16)
def _circle(count: int) -> Points:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ellipse(x: float, y: float, x_radius: float, y_radius: float, count: int = 28) -> Points:
    """An ellipse's outline [count, 2]."""
    return _circle(count) * [x_radius, y_radius] + [x, y]


@lru_cache(maxsize=64)
def _swell(count: int, taper: float) -> Points:
    """A stroke's width along its path as a share of the full width, [count, 1]."""
    return np.asarray(1 - taper * np.abs(np.linspace(-1, 1, count)[:, None]) ** 2.5, dtype=np.float64)


_GLOW_LEVELS = 50  # of opacity


@lru_cache(maxsize=_GLOW_LEVELS + 1)
def _spot(level: int) -> Image.Image:
    """A round mask, `level` of _GLOW_LEVELS opaque in the middle and gone at its edge."""
    axis = np.linspace(-1, 1, 64)
    distance = np.hypot(axis[:, None], axis[None, :])
    return Image.fromarray((255 * level / _GLOW_LEVELS * np.clip(1 - distance, 0, 1) ** 1.5).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Pose:
    """How the head is held.

    Attributes:
        roll: radians, clockwise in the image.
        zoom: size against the drawing's own.
        right, down: shift of the face in image pixels.
        yaw, pitch: how far the middle of the face moves against its outline, in image pixels, to the right and down.
    """

    roll: float
    zoom: float
    right: float
    down: float
    yaw: float
    pitch: float


class Canvas:
    """Draws in face coordinates at SCALE times the image's size and keeps a box for each part."""

    def __init__(self, background: Image.Image, pose: Pose) -> None:
        self.pose = pose
        self._open(background)
        self._turn = pose.zoom * np.array([[cos(pose.roll), sin(pose.roll)], [-sin(pose.roll), cos(pose.roll)]])
        self._parts: list[str] = []
        self._limits: list[Box] = [(0, 0, WIDTH * SCALE, HEIGHT * SCALE)]  # canvas pixels
        self._boxes: dict[str, Box] = {}  # canvas pixels

    def place(self, points: Points) -> Points:
        """Canvas coordinates [..., 2] of face coordinates [..., 2]."""
        pose = self.pose
        # The face bulges towards the viewer: its middle moves with yaw and pitch, its outline stays.
        depth = np.maximum(1 - (points[..., 0] / 52) ** 2 - ((points[..., 1] - 122) / 75) ** 2, 0)[..., None]
        moved = points - [0, EYE_LINE] + depth * [pose.yaw, pose.pitch]
        # Half of the turn is taken back, as the alignment by the eyes would.
        shift = [MIDLINE + pose.right - pose.yaw / 2, EYE_LINE + pose.down - pose.pitch / 2]
        return np.asarray((moved @ self._turn + shift) * SCALE, dtype=np.float64)

    @contextmanager
    def part(self, *names: str) -> Iterator[None]:
        """Whatever is drawn inside belongs to these parts, and to those of the blocks around this one."""
        self._parts.extend(names)
        yield
        del self._parts[-len(names) :]

    @contextmanager
    def clip(self, outline: Points) -> Iterator[None]:
        """Whatever is drawn inside shows within this outline only."""
        placed = self.place(outline)
        limit = _intersection(_enclosing(placed), self._limits[-1])
        if limit[0] >= limit[2] or limit[1] >= limit[3]:  # outside the image: nothing will show
            limit = (*limit[:2], *limit[:2])
        # Drawn on a cut-out of what is there, which is laid back through the outline.
        beneath, origin = self.image, self._limits[-1][:2]
        offset = (limit[0] - origin[0], limit[1] - origin[1])
        self._limits.append(limit)
        self._open(beneath.crop((*offset, offset[0] + limit[2] - limit[0], offset[1] + limit[3] - limit[1])))
        yield
        if self.image.width:
            stencil = Image.new("L", self.image.size)
            ImageDraw.Draw(stencil).polygon(self._local(placed).ravel().tolist(), fill=255)
            beneath.paste(self.image, offset, stencil)
        self._limits.pop()
        self._open(beneath)

    def _open(self, image: Image.Image) -> None:
        self.image, self._draw = image, ImageDraw.Draw(image)

    def _local(self, placed: Points) -> Points:
        """Pixels of the image that is being drawn on, of canvas coordinates."""
        return placed - self._limits[-1][:2]

    def region(self, name: str, points: Points) -> None:
        """Declare a part by the points [P, 2] it lies between, whether or not something is drawn there."""
        self._extend(_enclosing(self.place(points)), [name])

    def fill(self, outline: Points, colour: Colour) -> None:
        """Fill a closed outline."""
        placed = self.place(outline)
        self._extend(_enclosing(placed), self._parts)
        self._draw.polygon(self._local(placed).ravel().tolist(), fill=_rgb(colour))

    def stroke(self, path: Points, width: float, colour: Colour, taper: float = 1.0) -> None:
        """A line along a path [P, 2], `width` image pixels in its middle; see `strokes`."""
        self.strokes(path[None], width, [colour], taper)

    def strokes(self, paths: Points, widths: Points | float, colours: Sequence[Colour], taper: float = 1.0) -> None:
        """Lines along K paths [K, P, 2], of widths [K] (or one for all) and one colour each.

        Args:
            taper: 1 runs out in points at both ends, 0 keeps the width.
        """
        placed = self.place(paths)
        along = np.empty_like(placed)
        along[:, 1:-1] = placed[:, 2:] - placed[:, :-2]
        along[:, 0], along[:, -1] = placed[:, 1] - placed[:, 0], placed[:, -1] - placed[:, -2]
        length = np.hypot(along[..., 0], along[..., 1])[..., None] + 1e-9
        half = np.reshape(widths, (-1, 1, 1)) * (SCALE * self.pose.zoom / 2) * _swell(placed.shape[1], taper)
        across = along[..., ::-1] * [-1, 1] * (half / length)
        ribbons = np.concatenate([placed + across, (placed - across)[:, ::-1]], axis=1)
        self._extend(_enclosing(ribbons), self._parts)
        for ribbon, colour in zip(self._local(ribbons).reshape(len(ribbons), -1).tolist(), colours, strict=True):
            self._draw.polygon(ribbon, fill=_rgb(colour))

    def glow(self, x: float, y: float, x_radius: float, y_radius: float, colour: Colour, opacity: float) -> None:
        """A soft spot that fades out towards its radii."""
        centre = self.place(np.array([x, y]))
        reach = np.array([x_radius, y_radius]) * (SCALE * self.pose.zoom)
        left, top = np.floor(centre - reach).astype(int).tolist()
        width, height = np.ceil(2 * reach).astype(int).tolist()
        box = (left, top, left + width, top + height)
        self._extend(box, self._parts)
        spot = _spot(round(opacity * _GLOW_LEVELS)).resize((width, height), Image.Resampling.BILINEAR)
        here = self._limits[-1]
        self.image.paste(_rgb(colour), (left - here[0], top - here[1]), spot)

    def boxes(self) -> dict[str, Box]:
        """The box of each part in image pixels, cut at the image's edges; parts wholly outside have none."""
        inside = {}
        for name, (left, top, right, bottom) in self._boxes.items():
            box = (
                max(floor(left / SCALE), 0),
                max(floor(top / SCALE), 0),
                min(ceil(right / SCALE), WIDTH),
                min(ceil(bottom / SCALE), HEIGHT),
            )
            if box[0] < box[2] and box[1] < box[3]:
                inside[name] = box
        return inside

    def _extend(self, box: Box, parts: Sequence[str]) -> None:
        box = _intersection(box, self._limits[-1])
        if box[0] >= box[2] or box[1] >= box[3]:
            return
        for name in parts:
            if name in self._boxes:
                left, top, right, bottom = self._boxes[name]
                self._boxes[name] = (min(left, box[0]), min(top, box[1]), max(right, box[2]), max(bottom, box[3]))
            else:
                self._boxes[name] = box


def _rgb(colour: Colour) -> tuple[int, int, int]:
    return (int(colour[0]), int(colour[1]), int(colour[2]))


def _enclosing(placed: Points) -> Box:
    # Pillow fills every pixel that an outline touches: one pixel of margin on each side.
    points = placed.reshape(-1, 2)
    left, top = points.min(axis=0).tolist()
    right, bottom = points.max(axis=0).tolist()
    return (floor(left) - 1, floor(top) - 1, ceil(right) + 2, ceil(bottom) + 2)


def _intersection(first: Box, second: Box) -> Box:
    return (
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    )
