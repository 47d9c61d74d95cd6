"""Image files of the kinds that people have, sound and damaged, made from pixels."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def smooth(height: int, width: int, number: int = 0) -> NDArray[np.uint8]:
    """Smooth colours [H, W, 3], unlike in every corner and for every number."""
    y, x = np.mgrid[:height, :width] + 17.0 * number
    channels = (128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7 + x / 31), 128 + 80 * np.sin((x + y) / 11))
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | NDArray[Any], kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def as_held(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """What the sensor saw of an upright scene, for each of EXIF's orientations."""
    return np.ascontiguousarray(
        {
            1: pixels,
            2: pixels[:, ::-1],
            3: pixels[::-1, ::-1],
            4: pixels[::-1],
            5: pixels.transpose(1, 0, 2),
            6: np.rot90(pixels, 1),
            7: pixels[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(pixels, -1),
        }[orientation]
    )


def exif(orientation: int) -> Image.Exif:
    noted = Image.Exif()
    noted[0x0112] = orientation
    return noted


def exif_with_a_fraction_for_a_name(orientation: int) -> bytes:
    """Whole but for one entry: where the maker's name should be stands a fraction, which Pillow cannot write again."""
    noted = exif(orientation)
    noted[0x010F] = "1234567"
    data = bytearray(noted.tobytes())
    entry = data.index(struct.pack(">HHI", 0x010F, 2, 8))
    data[entry + 2 : entry + 8] = struct.pack(">HI", 5, 1)
    return bytes(data)


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    """A JPEG of Pillow's with this block behind its first segment."""
    return jpeg[:20] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[20:]


def samsung(jpeg: bytes) -> bytes:
    """A JPEG whose scan says that it ends with coefficient 0 of 0 to 63, as Samsung's phones write it."""
    data = bytearray(jpeg)
    scan = jpeg.index(b"\xff\xda")
    data[scan + struct.unpack_from(">H", data, scan + 2)[0]] = 0
    return bytes(data)


def rotten(jpeg: bytes) -> bytes:
    """A JPEG with stray markers in the middle of its pixels; its header and its length are right."""
    data = bytearray(jpeg)
    middle = len(data) * 4 // 5
    data[middle : middle + 8] = b"\xff\xd3\x12\xff\xd6\x34\x56\x78"
    return bytes(data)


def zeroed(jpeg: bytes) -> bytes:
    """A JPEG with zeros in the middle of its pixels, as a disk leaves a sector that it has lost."""
    data = bytearray(jpeg)
    middle = len(data) * 3 // 5
    data[middle : middle + 512] = bytes(512)
    return bytes(data)


def with_size(jpeg: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header says another size."""
    data = bytearray(jpeg)
    frame = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    struct.pack_into(">HH", data, frame + 5, height, width)
    return bytes(data)


def chunk(kind: bytes, content: bytes, is_sound: bool = True) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content) ^ (not is_sound))
    )


def png(
    rows: NDArray[Any], depth: int, colour: int, *before: bytes, after: tuple[bytes, ...] = (), end: bool = True
) -> bytes:
    """A PNG of packed rows [H, bytes] with these chunks before and after its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = rows.shape[1] * 8 // (depth * channels)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    parts = (b"\x89PNG\r\n\x1a\n", header, *before, chunk(b"IDAT", pixels), *after)
    return b"".join((*parts, chunk(b"IEND", b"") if end else b""))


def rgb_png(pixels: NDArray[np.uint8], *before: bytes, **options: Any) -> bytes:
    return png(pixels.reshape(len(pixels), -1), 8, 2, *before, **options)
