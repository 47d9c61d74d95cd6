"""Encoded pictures by row of the table."""

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distrib.data.table import Table
from distrib.errors import UserError

# A 65,000 x 65,000 header in a file of 1 kB would allocate 12 GB. Pillow's own limit.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of what is refused here


class FolderStore:
    """The data set's own folder of image files."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def read(self, row: int) -> bytes:
        """The file of one row.

        Raises:
            UserError: if it cannot be read.
        """
        try:
            return self._table.path(row).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.name(row)} cannot be read ({error.strerror}): check the file and the disk"
            ) from None

    def name(self, row: int) -> str:
        """The path of a row's file, to show to a person."""
        return str(self._table.path(row))


def picture_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels from a picture's header.

    Raises:
        ValueError: if it is no picture, or larger than `MAX_PIXELS`.
    """
    if data[:2] == b"\xff\xd8":
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    else:
        with _open(data) as picture:
            width, height = picture.size
    if height * width > MAX_PIXELS:
        raise ValueError(f"its header says {width} x {height} pixels, more than {MAX_PIXELS:,}")
    return height, width


def decode(data: bytes) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 3], RGB; the reference that every decoder is held against.

    Raises:
        ValueError: if it is no picture, is damaged (a JPEG with bit rot too), or larger than `MAX_PIXELS`.
    """
    picture_size(data)
    if data[:2] == b"\xff\xd8":
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("CMYK", "YCCK"):
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            return pixels
    with _open(data) as picture:
        try:
            return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(str(error)) from None


def broken_picture(name: str, reason: Exception) -> UserError:
    """The sentence for a file that is not a whole picture."""
    return UserError(f"{name} cannot be decoded ({reason}): replace the file, or take its row out of the table")


def _open(data: bytes) -> Image.Image:
    """The formats that all decoders read alike, with eight bits a channel."""
    try:
        picture = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF"))
    except UnidentifiedImageError:
        raise ValueError("it is not a JPEG, PNG, WebP, BMP or TIFF picture") from None
    except Image.DecompressionBombError:
        raise ValueError(f"its header says more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"it has more than eight bits a channel (Pillow's mode {picture.mode})")
    return picture
