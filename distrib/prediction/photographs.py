"""Photographs as people keep them: found on the disk, read, and turned upright.

HWC: height, width, channels (RGB).
"""

import glob
import io
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from distrib.data.store import MAX_PIXELS
from distrib.errors import UserError

# Pillow knows more, of which some start other programs (EPS) or are no photographs. HEIF, with a plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF")
# By these endings pictures are picked out of a folder; a file that is named is read whatever its ending.
ENDINGS = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS} | {".heic", ".heif"}
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
# No photograph of at most MAX_PIXELS pixels needs more bytes, and a device such as /dev/zero has no end.
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Photograph:
    """A photograph that has not been read yet.

    Attributes:
        name: to show: its path, with a question mark for what no terminal can show; "stdin" for standard input.
        file: where it lies; None: standard input.
    """

    name: str
    file: Path | None

    def read(self) -> NDArray[np.uint8]:
        """Its pixels, uint8 [H, W, 3], upright if the camera noted how it was held.

        Raises:
            UserError: if it cannot be read, or is no whole picture of at most `MAX_PIXELS` pixels.
        """
        try:
            if self.file is None:
                data = sys.stdin.buffer.read(MAX_BYTES + 1)
            else:
                with self.file.open("rb") as stream:
                    data = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read ({error.strerror}): check the file and the disk") from None
        if len(data) > MAX_BYTES:
            raise UserError(f"{self.name} has more than {MAX_BYTES:,} bytes: save it as a JPEG")
        try:
            return decode_photograph(data)
        except ValueError as error:
            raise UserError(f"{self.name} is no photograph to read: {error}") from None


def expand(argument: str) -> list[Photograph]:
    """The photographs that an argument of the command line means.

    Args:
        argument: a file; a folder, for the pictures directly inside, by their endings; a pattern such as `*.jpg`
            that no shell has expanded, for the pictures among its matches; or `-`, for one on standard input.

    Raises:
        UserError: if there are none.
    """
    if argument == "-":
        return [Photograph("stdin", None)]
    path = Path(argument)
    try:
        return [Photograph(shown(file), file) for file in _files(argument, path)]
    except OSError as error:  # such as a name too long for the file system
        raise UserError(f"{shown(path)} cannot be read ({error.strerror}): check the name and the rights") from None


def _files(argument: str, path: Path) -> list[Path]:
    """Those that an argument means, which is this path where it is no pattern."""
    if path.is_dir():
        files = _pictures(list(path.iterdir()))
        if not files:
            raise UserError(f"the folder {shown(path)} has no pictures directly inside: name one that has, or files")
        return files
    if glob.has_magic(argument) and not path.exists():
        # Path.glob takes no absolute pattern.
        files = _pictures([Path(match) for match in glob.glob(argument, recursive=True)])  # noqa: PTH207
        if not files:
            raise UserError(f"the pattern {shown(path)} matches no picture: check it, or name files")
        return files
    if not os.path.lexists(path):
        raise UserError(f"{shown(path)} does not exist: check the name")
    return [path]


def decode_photograph(data: bytes) -> NDArray[np.uint8]:
    """A photograph's pixels, uint8 [H, W, 3], RGB.

    The camera's note of how it was held (EXIF) is applied, what is transparent is laid over white, of an animation the
    first picture is taken, grey and CMYK become RGB, and of 16 bits a channel the upper eight stay.

    Raises:
        ValueError: if it is no picture, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    is_heif = data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS
    if is_heif and not _heif_can_be_read():
        raise ValueError("it is a HEIC picture, which Pillow reads with a plugin: pip install pillow-heif")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own about size and EXIF; the limit below is the same
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                _check_size(*picture.size)
                return _as_rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        readable = ", ".join(name for name in formats if name != "PPM")
        raise ValueError(f"it is none of {readable}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"its header says more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's readers have no common error for damaged files
        raise ValueError(str(error) or type(error).__name__) from None


def shown(path: Path) -> str:
    """A path that any terminal can show, on one line."""
    return "".join(character if character.isprintable() else "?" for character in str(path))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"its header says {width} x {height} pixels, more than {MAX_PIXELS:,}")


def _as_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith("I;16"):
        upper = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(upper[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise ValueError(f"its brightness has no known range (Pillow's mode {picture.mode}): save it with 8 or 16 bits")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(picture.convert("RGB"))


def _pictures(paths: list[Path]) -> list[Path]:
    """The picture files among these paths, by their endings, without hidden ones, sorted by name."""
    return sorted(
        path for path in paths if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    )


def _heif_can_be_read() -> bool:
    if find_spec("pillow_heif") is None:
        return False
    import_module("pillow_heif").register_heif_opener()
    return True
