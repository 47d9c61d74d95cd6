"""What is wrong with the images of a data set, found by reading every one of them strictly.

Legend: N rows.
"""

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distrib.base.words import few
from distrib.data.images import decode, kind_of
from distrib.data.reader import ImageReader
from distrib.data.table import SPLITS, Table

# The findings, with what each means. The first ones are errors: such rows cannot be trained on.
ERRORS = {
    "broken": "images that cannot be decoded",
    "no image": "rows without an image",
}
WARNINGS = {
    "no row": "images without a row, which are left out",
    "mended": "images that are read in spite of a flaw",
    "other size": "images of another size than most",
    "orientation": "images that EXIF turns",
    "CMYK": "images in CMYK",
    "grey": "images without colours",
    "16 bit": "images of 16 bits a channel",
    "other format": "images of another format than their names say",
    "same bytes": "images with the same bytes as another in their split",
    "same bytes across splits": "images with the same bytes as another in another split",
    "same pixels": "images with the same pixels as another in their split",
    "same pixels across splits": "images with the same pixels as another in another split",
    "identity across splits": "identities in more than one split",
}
# Pillow's names of formats, by the ending of a file's name.
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP",
            "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF", "ppm": "PPM"}  # fmt: skip
_SAMPLED = 8  # every eighth pixel each way tells images apart nearly always; those that it does not are compared


@dataclass(frozen=True)
class Finding:
    """Something about one image, or one identity.

    Attributes:
        kind: a key of ERRORS or WARNINGS.
        row: of the table, counted from 0; None where it is not about one.
        file: where the image is; empty where it is not about one.
        what: the rest of the sentence.
    """

    kind: str
    row: int | None
    file: str
    what: str


class Facts(NamedTuple):
    """What was seen of one image.

    Attributes:
        sha256: of its file.
        pixels: a digest of its height, width and some of its pixels.
        height: in pixels, upright.
        width: in pixels, upright.
        format: Pillow's name of it.
        found: kinds of findings and what there is to say.
    """

    sha256: str
    pixels: str
    height: int
    width: int
    format: str
    found: tuple[tuple[str, str], ...]


def examine(data: bytes, file: str) -> Facts:
    """Decode an image strictly and look at what is unusual about it.

    Args:
        data: the file.
        file: its name.

    Raises:
        ValueError: if it is no whole image.
    """
    found: list[tuple[str, str]] = []
    pixels_HWC = decode(data, lambda sentence: found.append(("mended", sentence)))
    name, mode, orientation, bits = kind_of(data)
    if orientation != 1:
        found.append(("orientation", f"EXIF's orientation is {orientation}"))
    if mode == "CMYK":
        found.append(("CMYK", "its pixels are CMYK"))
    if mode in ("1", "L", "LA") or mode.startswith("I;16"):
        found.append(("grey", "its pixels are grey"))
    if bits == 16:
        found.append(("16 bit", "its channels have 16 bits"))
    ending = posixpath.basename(file).rpartition(".")[2].lower()
    if _FORMATS.get(ending, name) != name:
        found.append(("other format", f"it is a {name}"))
    height, width, _ = pixels_HWC.shape
    digest = hashlib.blake2b(pixels_HWC[::_SAMPLED, ::_SAMPLED].tobytes(), digest_size=16).hexdigest()
    return Facts(hashlib.sha256(data).hexdigest(), f"{height}x{width} {digest}", height, width, name, tuple(found))


def findings_of_set(table: Table, facts: Mapping[int, Facts]) -> list[Finding]:
    """What only all images together tell.

    Args:
        table: of N images.
        facts: of each of its rows that holds a whole image.
    """
    reader = ImageReader(table)
    found = [Finding(kind, row, reader.name(row), what) for row, fact in facts.items() for kind, what in fact.found]
    sizes = Counter((fact.height, fact.width) for fact in facts.values())
    (most, count), *_ = sizes.most_common(1) or [((0, 0), 0)]
    if 2 * count > len(facts):  # else none is usual
        found += [
            Finding("other size", row, reader.name(row), f"it is {fact.width}x{fact.height}, not {most[1]}x{most[0]}")
            for row, fact in facts.items()
            if (fact.height, fact.width) != most
        ]
    for row, other in _repeated((row, fact.sha256) for row, fact in facts.items()):
        found.append(_pair("same bytes", table, reader, row, other))
    for row, other in _repeated((row, fact.pixels) for row, fact in facts.items()):
        if facts[row].sha256 != facts[other].sha256 and _same_pixels(reader, row, other):
            found.append(_pair("same pixels", table, reader, row, other))
    return found + list(_crossing_identities(table, sorted(facts)))


def summary(findings: Sequence[Finding], whole: int) -> str:
    """How many images are whole, and how many findings there are of each kind, with the first of them."""
    lines = [f"{whole:,} images are whole"]
    for kinds, word in ((ERRORS, "error"), (WARNINGS, "warning")):
        for kind, title in kinds.items():
            files = [each.file or each.what for each in findings if each.kind == kind]
            if files:
                lines.append(f"{word}: {title}: {len(files):,} ({few(files)})")
    return "\n".join(lines)


def _repeated(keys: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Each row whose key an earlier one has, and the first that has it."""
    first: dict[str, int] = {}
    for row, key in keys:
        other = first.setdefault(key, row)
        if other != row:
            yield row, other


def _pair(kind: str, table: Table, reader: ImageReader, row: int, other: int) -> Finding:
    across = table.split is not None and table.split[row] != table.split[other]
    return Finding(f"{kind} across splits" if across else kind, row, reader.name(row), f"as {reader.name(other)}")


def _same_pixels(reader: ImageReader, row: int, other: int) -> bool:
    one, two = (decode(reader.read(each)) for each in (row, other))
    return np.array_equal(one, two)


def _crossing_identities(table: Table, rows: Sequence[int]) -> Iterator[Finding]:
    if table.identity is None or table.split is None:
        return
    splits: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for identity, split in zip(table.identity[rows].tolist(), table.split[rows].tolist(), strict=True):
        splits[identity][SPLITS[split]] += 1
    for identity, count in splits.items():
        if len(count) > 1:
            places = ", ".join(f"{number} in {split}" for split, number in count.items())
            yield Finding("identity across splits", None, "", f"identity {identity}: {places}")
