"""Faces in a photograph, found and aligned as CelebA's are.

CelebA's 178 x 218 images come from photographs by a similarity transform (turn, scale, shift) that brings the marks
of a face to fixed places. Here OpenCV's cascades (Viola and Jones 2001) find the box of a face, the box gives a first
alignment, and the eyes are looked for in the image aligned so far, where each can be in one small place only; twice,
since the second look is at a better image. The cascades are part of OpenCV's package: nothing is downloaded.

Positions are (x, y) in pixels, x to the right, y down, the middle of the first pixel at (0, 0). Left and right are the
viewer's, as in CelebA's own files. A transform is float64 [2, 3] and takes (x, y, 1) of one image to (x, y) of
another. H height, W width, C channels (RGB), N points.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError

Array = NDArray[np.float64]

WIDTH, HEIGHT = 178, 218
EYES = np.array([[69.0, 111.0], [108.0, 111.0]])  # the means in CelebA's list_landmarks_align_celeba.txt

# Where the cascades see the parts of an aligned image, as medians over real CelebA images: the middle and the width
# of the face's box, and how far below the eye the middle of an eye's box lies.
FACE_CASCADE = "frontalface_alt2"
BOX_MIDDLE, BOX_WIDTH = np.array([88.8, 123.3]), 102.0
EYE_CASCADES = (  # for the left and the right eye; the two "splits" know one eye each, named as the person has them
    ("eye", "eye", 1.0),
    ("eye_tree_eyeglasses", "eye_tree_eyeglasses", 1.0),
    ("righteye_2splits", "lefteye_2splits", -3.0),
)

LONG_SIDE = 1024  # of the image in which faces are looked for, in pixels
SMALLEST_FACE = 32  # in that image, in pixels
TILTS = (0, -25, 25)  # degrees; the face cascade knows upright faces, and those up to about 15 degrees off
LYING = (90, -90, 180)  # where upright there is none: a photograph whose camera did not note how it was held
SURE = 10  # boxes on top of each other that make a face even of what shows no eyes
REACHES = (32.0, 22.0)  # of the first and the second look around the place of an eye, in pixels of the aligned image
ZOOM = 2  # that the eyes are looked at with


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photograph.

    Attributes:
        box: left, top, width and height of the upright square around it, brows to chin; it may reach over the edge.
        left_eye: (x, y) of the eye that is left in the aligned image; None: the eyes were not found.
        right_eye: the same of the other eye; either both are known or none.
        transform: from the photograph to the aligned image; by the eyes, or without them by the box alone.
    """

    box: tuple[int, int, int, int]
    left_eye: tuple[float, float] | None
    right_eye: tuple[float, float] | None
    transform: Array


@dataclass(frozen=True)
class AlignedFace:
    """An image such as CelebA's.

    Attributes:
        pixels: uint8 [218, 178, 3], RGB; what lies outside of the photograph continues its edge.
        transform: from the photograph to these pixels.
        by: "eyes", "face" where the eyes were not found, or "size" for a photograph that is taken to be aligned.
        face: what was found; None for by "size".
    """

    pixels: NDArray[np.uint8]
    transform: Array
    by: Literal["eyes", "face", "size"]
    face: DetectedFace | None


def align(pixels_HWC: NDArray[np.uint8]) -> list[AlignedFace]:
    """The faces of a photograph, aligned, from left to right.

    A photograph of exactly 178 x 218 pixels is taken to be aligned already, and passes as it is.

    Args:
        pixels_HWC: uint8 RGB.
    """
    if pixels_HWC.shape[:2] == (HEIGHT, WIDTH):
        return [AlignedFace(pixels_HWC, np.eye(2, 3), "size", None)]
    return [
        AlignedFace(
            _warp(pixels_HWC, face.transform, (WIDTH, HEIGHT)),
            face.transform,
            "eyes" if face.left_eye else "face",
            face,
        )
        for face in find_faces(pixels_HWC)
    ]


def find_faces(pixels_HWC: NDArray[np.uint8]) -> list[DetectedFace]:
    """The faces of a photograph, from left to right.

    A face is what shows two eyes, or, where it is upright, what the face cascade is sure of. Faces of less than about a
    thirtieth of the photograph's longer side are not seen.

    Args:
        pixels_HWC: uint8 RGB, of any size.

    Raises:
        UserError: if OpenCV comes without its cascades.
    """
    grey_HW = np.asarray(cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    small_HW, to_small = _shrink(grey_HW, max(grey_HW.shape) / LONG_SIDE)
    found: list[_Candidate] = []
    for turns in (TILTS, LYING):
        if any(each.eyes is not None for each in found):
            break
        for candidate in (each for turn in turns for each in _boxes(small_HW, to_small, turn)):
            if not any(each.eyes is not None and each.overlaps(candidate) for each in found):
                _add(found, _settle(grey_HW, candidate))
    return sorted((each.face() for each in found), key=lambda face: face.box[0])


class _Candidate(NamedTuple):
    """What may be a face.

    Attributes:
        transform: from the photograph to the aligned image.
        score: how many boxes of the face cascade lay on top of each other.
        upright: whether it was found in the photograph as it stands.
        eyes: [2, 2], left and right in the photograph; None: not found.
        certain: whether for each eye more than one cascade saw it.
    """

    transform: Array
    score: int
    upright: bool
    eyes: Array | None = None
    certain: bool = False

    @property
    def middle(self) -> Array:
        """Of the face, (x, y) in the photograph."""
        return moved(inverse(self.transform), BOX_MIDDLE)

    @property
    def width(self) -> float:
        """Of the face, in pixels of the photograph."""
        return BOX_WIDTH / _scale(self.transform)

    def overlaps(self, other: "_Candidate") -> bool:
        return math.dist(self.middle, other.middle) < max(self.width, other.width) / 2

    def face(self) -> DetectedFace:
        left, top = (self.middle - self.width / 2).round().astype(int).tolist()
        left_eye, right_eye = (None, None) if self.eyes is None else ((x, y) for x, y in self.eyes.round(1).tolist())
        box = (left, top, round(self.width), round(self.width))
        return DetectedFace(box, left_eye, right_eye, self.transform)


def _add(found: list[_Candidate], candidate: _Candidate) -> None:
    """Add what is a face; where one was found before, the one with eyes stays, else the first."""
    if not (candidate.certain or (candidate.upright and candidate.score >= SURE)):
        return
    rivals = [each for each in found if each.overlaps(candidate)]
    if rivals and (candidate.eyes is None or any(each.eyes is not None for each in rivals)):
        return
    found[:] = [each for each in found if not each.overlaps(candidate)] + [candidate]


def _boxes(small_HW: NDArray[np.uint8], to_small: Array, turn: int) -> Iterator[_Candidate]:
    """What the face cascade finds in the photograph turned by so many degrees, the surest first."""
    turned_HW, rotation = _turn(small_HW, turn)
    boxes, scores = _cascade(FACE_CASCADE).detectMultiScale2(
        turned_HW, scaleFactor=1.1, minNeighbors=2, minSize=(SMALLEST_FACE, SMALLEST_FACE)
    )
    for (left, top, width, height), score in sorted(zip(boxes, scores, strict=True), key=lambda each: -each[1]):
        middle = np.array([left + (width - 1) / 2, top + (height - 1) / 2])
        scale = BOX_WIDTH / width
        from_turned = np.column_stack((scale * np.eye(2), BOX_MIDDLE - scale * middle))
        yield _Candidate(compose(from_turned, compose(rotation, to_small)), int(score), upright=turn == 0)


def _settle(grey_HW: NDArray[np.uint8], candidate: _Candidate) -> _Candidate:
    """The same face aligned by its eyes, where they are found."""
    transform, eyes, certain = candidate.transform, None, False
    for reach in REACHES:
        zoomed = ZOOM * transform  # the middle of the first pixel stays where it is
        seen = _eyes(_warp(grey_HW, zoomed, (ZOOM * WIDTH, ZOOM * HEIGHT)), reach)
        if seen is None:
            continue
        positions, sure = seen
        change = _from_eyes(positions)
        angle = math.degrees(math.atan2(change[1, 0], change[0, 0]))
        if not 0.7 < _scale(change) < 1.4 or abs(angle) > 30:  # these are no two eyes of this box
            continue
        eyes, certain = moved(inverse(transform), positions), sure
        transform = compose(change, transform)
    if eyes is not None:
        transform = compose(_from_box(_warp(grey_HW, transform, (WIDTH, HEIGHT))), transform)
    return candidate._replace(transform=transform, eyes=eyes, certain=certain)


def _eyes(zoomed_HW: NDArray[np.uint8], reach: float) -> tuple[Array, bool] | None:
    """The eyes in an image aligned so far, looked for `reach` around their places; None: one or both are not there.

    Returns:
        [2, 2], left and right in the aligned image; and whether for each eye more than one cascade saw it.
    """
    positions, certain = [], True
    nose = EYES[:, 0].mean() * ZOOM
    for side, place in enumerate(EYES):
        left, top = np.maximum(0, (place - reach) * ZOOM).astype(int)
        right, bottom = ((place + reach) * ZOOM).astype(int)
        # A little over the nose, so that the box of an eye that is off its place still fits in.
        left, right = (left, min(right, int(nose) + 7)) if side == 0 else (max(left, int(nose) - 7), right)
        seen = []
        for *names, below in EYE_CASCADES:
            boxes, scores = _cascade(str(names[side])).detectMultiScale2(
                zoomed_HW[top:bottom, left:right], scaleFactor=1.05, minNeighbors=2, minSize=(28, 28), maxSize=(80, 80)
            )
            if len(boxes):
                x, y, width, height = boxes[int(np.argmax(scores))]
                middle = np.array([left + x + width / 2, top + y + height / 2]) / ZOOM
                seen.append(middle - [0, below])
        if not seen:
            return None
        # What two of three see is not moved by the third.
        agreeing = [each for each in seen if math.dist(each, np.median(seen, axis=0)) < 4]
        if not agreeing:
            return None
        certain = certain and len(agreeing) > 1
        positions.append(np.mean(agreeing, axis=0))
    return np.array(positions), certain


def _from_eyes(eyes: Array) -> Array:
    """The similarity transform that takes two points [2, 2] to the places of the eyes."""
    here, there = eyes @ [1, 1j], EYES @ [1, 1j]
    factor = (there[1] - there[0]) / (here[1] - here[0])
    shift = there[0] - factor * here[0]
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _from_box(aligned_HW: NDArray[np.uint8]) -> Array:
    """Correct the scale: half by the eyes' distance, half by the face's box.

    CelebA's own alignment knew the mouth as well; of a face that is turned aside the eyes' distance alone makes too
    large an image.
    """
    boxes, scores = _cascade(FACE_CASCADE).detectMultiScale2(
        aligned_HW, scaleFactor=1.04, minNeighbors=2, minSize=(70, 70)
    )
    scale = math.sqrt(BOX_WIDTH / boxes[int(np.argmax(scores))][2]) if len(boxes) else 1.0
    return np.column_stack((scale * np.eye(2), (1 - scale) * EYES.mean(axis=0)))


@cache
def _cascade(name: str) -> cv2.CascadeClassifier:
    # Other builds of OpenCV than the wheels on PyPI, and OpenCV 5, lack the folder.
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    file = Path(folder, f"haarcascade_{name}.xml")
    if not file.is_file():
        raise UserError(
            f"OpenCV {cv2.__version__} has no {file.name}, which finds faces: install opencv-python-headless>=4.11,<5, "
            "or take whole photographs with --no-align"
        )
    return cv2.CascadeClassifier(str(file))


def _shrink(pixels: NDArray[np.uint8], factor: float) -> tuple[NDArray[np.uint8], Array]:
    """An image smaller by this factor, averaged, and the transform to it; the same image for factors up to 1."""
    if factor <= 1:
        return pixels, np.eye(2, 3)
    height, width = pixels.shape[:2]
    new_width, new_height = max(1, round(width / factor)), max(1, round(height / factor))
    across, down = new_width / width, new_height / height
    transform = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
    shrunk = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.uint8), transform


def _turn(pixels_HW: NDArray[np.uint8], degrees: int) -> tuple[NDArray[np.uint8], Array]:
    """An image turned counterclockwise about its middle, on a canvas that holds all of it, and the transform to it."""
    if degrees == 0:
        return pixels_HW, np.eye(2, 3)
    height, width = pixels_HW.shape
    transform: Array = np.array(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0))
    cosine, sine = np.abs(transform[0, :2])
    new_width, new_height = round(width * cosine + height * sine), round(width * sine + height * cosine)
    transform[:, 2] += (new_width - width) / 2, (new_height - height) / 2
    turned = cv2.warpAffine(pixels_HW, transform, (new_width, new_height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, dtype=np.uint8), transform


def _warp(pixels: NDArray[np.uint8], transform: Array, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image under a transform, of this width and height; averaged before where it gets smaller.

    The part that is needed is cut out first: warpAffine takes no side above 32,767 pixels.
    """
    height, width = pixels.shape[:2]
    corners = moved(
        inverse(transform), np.array([(x, y) for x in (0, size[0]) for y in (0, size[1])], dtype=np.float64)
    )
    margin = 2 + 2 / _scale(transform)
    left, top = np.clip(np.floor(corners.min(axis=0) - margin), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0) + margin), (left + 1, top + 1), (width, height)).astype(int)
    part, to_part = _shrink(pixels[top:bottom, left:right], math.floor(1 / _scale(transform)))
    to_part = compose(to_part, np.array([[1.0, 0, -left], [0, 1, -top]]))
    warped = cv2.warpAffine(part, compose(transform, inverse(to_part)), size, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, dtype=np.uint8)


def compose(second: Array, first: Array) -> Array:
    """The transform that does the first, then the second."""
    return np.column_stack((second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]))


def inverse(transform: Array) -> Array:
    """The transform that undoes this one."""
    back = np.linalg.inv(transform[:, :2])
    return np.column_stack((back, -back @ transform[:, 2]))


def moved(transform: Array, points: Array) -> Array:
    """Points [N, 2], or one [2], under a transform."""
    where: Array = points @ transform[:, :2].T + transform[:, 2]
    return where


def _scale(transform: Array) -> float:
    return math.sqrt(abs(np.linalg.det(transform[:, :2])))
