"""Images to check decoders with: drawn faces, encoded in every way in which a data set may hold JPEGs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.data.store import FolderStore
from distrib.data.table import Table
from distrib.faces.attributes import sample_face
from distrib.faces.drawing import draw_face

# Options as Pillow names them: subsampling 0 is 4:4:4, 2 is 4:2:0.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "progressive": {"subsampling": 2, "progressive": True},
    "grey": {"mode": "L"},
    "of odd sizes": {"subsampling": 2, "cut": True},
}
ATTRIBUTES = ("Smiling", "Male")


def make_images(folder: Path, count: int) -> Table:
    """Draw so many faces, and write them as JPEGs of 178 x 218 pixels, and of odd sizes, in all `KINDS` by turns.

    Args:
        folder: to write into.
        count: of images.

    Returns:
        Their table, with two attributes.
    """
    names, targets = [], np.zeros((count, len(ATTRIBUTES)), np.uint8)
    for number in range(count):
        face = sample_face(0, number)
        options = dict(KINDS[kind_of(number)])
        image = draw_face(face).image.convert(str(options.pop("mode", "RGB")))
        if options.pop("cut", False):
            image = image.crop((0, 0, image.width - 1 - number % 7, image.height - 1 - number % 11))
        names.append(f"{number:04}.jpg")
        image.save(folder / names[-1], format="JPEG", quality=90, **options)
        targets[number] = [face.attributes[name] for name in ATTRIBUTES]
    return Table(FolderStore(folder, names), names, ATTRIBUTES, targets, None, None, ())


def whole_rows(table: Table) -> NDArray[np.int64]:
    """The rows of a table made by `make_images` whose images are of its largest size."""
    return np.flatnonzero([not KINDS[kind_of(row)].get("cut", False) for row in range(len(table))])


def kind_of(row: int) -> str:
    """Which of `KINDS` a row of such a table is."""
    return list(KINDS)[row % len(KINDS)]
