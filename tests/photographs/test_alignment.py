"""Faces are found in photographs and come out as CelebA's images are."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distrib.photographs.alignment import EYES, align, compose, find_faces, inverse, moved

MOUTH = np.array([[88.0, 152.0]])  # its middle in CelebA's aligned images, in the mean


def photograph(
    picture_HWC: NDArray[np.uint8], turn: float, scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """An aligned image as part of a larger photograph, and the transform to the photograph."""
    side = round(600 * scale)
    angle = np.deg2rad(turn)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    transform = np.column_stack((linear, np.array([0.45, 0.55]) * side - linear @ (89, 109)))
    around = cv2.resize(cv2.GaussianBlur(picture_HWC, (0, 0), 20), (side, side))
    inside = cv2.warpAffine(np.full(picture_HWC.shape, 255, np.uint8), transform, (side, side)) > 0
    return np.where(inside, cv2.warpAffine(picture_HWC, transform, (side, side)), around), transform


@pytest.fixture(scope="module")
def pictures(celeba_mini: Path) -> list[NDArray[np.uint8]]:
    """Every 1200th image."""
    files = sorted((celeba_mini / "img_align_celeba").iterdir())[::1200]
    return [np.array(Image.open(file)) for file in files]


@pytest.mark.parametrize(("turn", "scale"), [(0, 1.0), (-25, 4.0), (90, 2.0)])
def test_real_faces_come_back_to_their_places(pictures: list[NDArray[np.uint8]], turn: float, scale: float) -> None:
    errors = []
    for picture in pictures:
        larger, transform = photograph(picture, turn, scale)
        for face in find_faces(larger):
            if face.left_eye is not None:
                points = np.concatenate((EYES, MOUTH))
                there = moved(compose(face.transform, transform), points)
                errors.append(np.linalg.norm(there - points, axis=1).mean())
    assert len(errors) >= 0.7 * len(pictures)
    assert np.median(errors) < 4  # pixels of the aligned image; CelebA's own eyes lie 3 pixels around their mean


def test_the_eyes_lie_in_the_photograph_and_the_pixels_follow(pictures: list[NDArray[np.uint8]]) -> None:
    larger, transform = photograph(pictures[1], 12, 2.0)
    (found,) = align(larger)
    assert found.by == "eyes"
    assert found.face is not None
    assert found.pixels.shape == (218, 178, 3)
    eyes = np.array([found.face.left_eye, found.face.right_eye])
    assert np.linalg.norm(eyes - moved(transform, EYES), axis=1).max() < 2 * 6
    left, top, width, height = found.face.box
    assert (eyes > (left, top)).all()
    assert (eyes < (left + width, top + height)).all()
    middle = slice(70, 170), slice(50, 130)
    off = np.abs(found.pixels[middle].astype(int) - pictures[1][middle]).mean()
    assert off < 15  # the same face in the same place; another face, or one moved by 10 pixels, is off by more


def test_faces_count_from_left_to_right(pictures: list[NDArray[np.uint8]]) -> None:
    first, second = (photograph(picture, 0, 1.0)[0] for picture in pictures[1:3])
    both = find_faces(np.concatenate((first, second), axis=1))
    assert len(both) == 2
    assert both[0].box[0] < 600 <= both[1].box[0]


def test_an_aligned_picture_passes_as_it_is(pictures: list[NDArray[np.uint8]]) -> None:
    (found,) = align(pictures[0])
    assert found.by == "size"
    assert found.face is None
    np.testing.assert_array_equal(found.pixels, pictures[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (300, 2), (200, 300)])
def test_there_are_photographs_without_a_face(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert align(noise) == []


def test_transforms_undo_and_follow_each_other() -> None:
    transform = np.array([[0.5, -0.2, 7.0], [0.2, 0.5, -3.0]])
    points = np.array([[1.0, 2.0], [-5.0, 40.0]])
    np.testing.assert_allclose(moved(inverse(transform), moved(transform, points)), points)
    np.testing.assert_allclose(moved(compose(transform, transform), points), moved(transform, moved(transform, points)))
