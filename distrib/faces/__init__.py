"""Drawn faces in CelebA's folder format: images, 40 attributes, identities, splits and the box of every drawn part.

Every face is a pure function of (seed, index): `sample_face` says who it is and what it wears, `draw_face` draws it,
`write_faces` writes a whole folder.
"""

from distrib.faces.attributes import ATTRIBUTES, VISIBLE, Face, sample_face, settle
from distrib.faces.dataset import MINIMUM_COUNT, write_faces
from distrib.faces.drawing import Drawing, draw_face

__all__ = [
    "ATTRIBUTES",
    "MINIMUM_COUNT",
    "VISIBLE",
    "Drawing",
    "Face",
    "draw_face",
    "sample_face",
    "settle",
    "write_faces",
]
