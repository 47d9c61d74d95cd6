"""The one reader of image files: what training, evaluation, explanations, `prepare` and `predict` see of a file.

- **Orientation**: as the camera noted it (EXIF), the image is turned upright.
- **Transparency**: what is transparent is laid over white.
- **Colour**: grey, palettes, CMYK and YCCK become RGB; of 16 bits a channel the upper eight stay; colour profiles (ICC)
  are left alone. Of an animation, or several images in one file, the first is taken.
- **Damage**: what changes no pixel is accepted: wrong fields in a JPEG's header, its end marker missing, zeros before
  that, a PNG's damaged comments. EXIF that cannot be read is accepted with a warning. Bit rot and truncation are
  refused wherever the format shows them.
- **Size**: a header is believed up to `MAX_PIXELS`; beyond that, up to `MAX_PIXELS_AT_HALF`, the JPEGs that can be read
  at half their height and width without memory for the whole are read so.

HWC: height, width, channels (RGB).
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

# A 65,000 x 65,000 header in a file of 1 kB would allocate 12 GB. Pillow's own limit.
MAX_PIXELS = 89_478_485
MAX_PIXELS_AT_HALF = 250_000_000
# Pillow knows more, of which some start other programs (EPS) or are no photographs. HEIF, with a plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF")

# Pillow's own about sizes, which are refused here, and about EXIF and palettes. For good, since threads share filters.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Image.init()  # Pillow learns its formats, before threads ask for them

# What the names of such files end in, in lower case and without the dot.
ENDINGS = frozenset({ending[1:] for ending, kind in Image.registered_extensions().items() if kind in FORMATS}) | {
    "heic", "heif", "hif", "mpo",
}  # fmt: skip

Warn = Callable[[str], None]

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# What files begin with whose format Pillow knows, even where the rest is too damaged to open.
_BEGINNINGS = re.compile(
    rb"(?P<PNG>\x89PNG)|(?P<GIF>GIF8[79]a)|(?P<WEBP>RIFF.{4}WEBP)|(?P<TIFF>II\*\0|MM\0\*)|(?P<BMP>BM.{4}\0\0\0\0)"
    rb"|(?P<JPEG2000>\0\0\0\x0cjP  |\xff\x4f\xff\x51)|(?P<AVIF>.{4}ftypavi[fs])",
    re.DOTALL,
)
_END_OF_IMAGE = b"\xff\xd9"
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers of a JPEG without a length
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that open a frame; three in that range do not
_SEQUENTIAL = (0xC0, 0xC1)  # frames, Huffman-coded
_USUAL = (0xC0, 0xC1, 0xC2)  # frames that every decoder knows; the last is progressive
# Markers that have no place in the one scan of a sequential JPEG, but at its end: of bit rot, if not of other scans.
# Of several scans, the end alone is known.
_STRAY_BESIDE_SCANS = re.compile(_END_OF_IMAGE)
_STRAY, _STRAY_BESIDE_RESTARTS = re.compile(rb"\xff[^\0\xff]"), re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
_LOST = bytes(32)  # what a disk or a copy leaves where it has lost the rest
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
# The fewest bits for 8 x 8 values are two, a code of one bit for the mean and one for "no more".
_PIXELS_A_BYTE = 64 * 8 // 2
_ORIENTATION = 0x0112
_TEXTS = frozenset((0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298))  # EXIF's description, make, model …
_TEXT_TYPES = (1, 2, 7, 129)
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_HEVC_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"))


def decode(data: bytes, warn: Warn = lambda sentence: None) -> NDArray[np.uint8]:
    """An image file as uint8 [H, W, 3], RGB, upright; what every decoder is held against.

    Args:
        data: the file.
        warn: called with what is to be said of a file that is read all the same, such as "has damaged EXIF: …".

    Raises:
        ValueError: if it is no image, is damaged, or has more pixels than are read.
    """
    _refuse_no_image(data)
    if is_jpeg(data):
        header = read_jpeg_header(data)
        pixels, orientation, exif_is_sound = _decode_jpeg(data, header), header.orientation, header.exif_is_sound
        if header.at_half:
            warn(f"has more than {MAX_PIXELS:,} pixels: it is read at half its height and width, positions included")
    else:
        pixels, orientation, exif_is_sound = _decode_by_pillow(data)
    if not exif_is_sound:
        how = "as it stands" if orientation == 1 else f"by the orientation that can be read from it ({orientation})"
        warn(f"has damaged EXIF: the image is taken {how}")
    return _upright(pixels, orientation)


class FileKind(NamedTuple):
    """What an image file is.

    Attributes:
        format: Pillow's name, such as "JPEG".
        mode: Pillow's, as it is stored: "RGB", "CMYK", "L" …
        orientation: EXIF's, 1 to 8; 1 is upright.
        bits: of a channel.
    """

    format: str
    mode: str
    orientation: int
    bits: int


def kind_of(data: bytes) -> FileKind:
    """What a file is that `decode` reads, by its header."""
    if is_jpeg(data):
        header = read_jpeg_header(data)
        return FileKind("JPEG", {1: "L", 4: "CMYK"}.get(header.channels, "RGB"), header.orientation, 8)
    if data.startswith(_PNG):
        data, _ = _png_without_comments(data)
    with Image.open(io.BytesIO(data)) as image:
        orientation, _ = _read_exif(image.info.get("exif") or b"")
        bits = data[24] if image.format == "PNG" else 16 if "16" in image.mode else 8
        return FileKind(image.format or "", image.mode, orientation, bits)


def from_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """An image that Pillow has opened, as `decode` gives its file: uint8 [H, W, 3], RGB, upright.

    Raises:
        ValueError: if it is damaged, or has no eight or 16 bits a channel.
    """
    try:
        if isinstance(image, PngImageFile) and "transparency" in image.info and image.tile:
            # Once Pillow has read the pixels, their depth in the file is no longer known.
            packed = re.search(r";(\d+)", str(image.tile[0][3]))
            depth = int(packed[1]) if packed else 8
            image = image.copy()
            image.info["transparency"] = _as_pillow_stores(image.info["transparency"], image.mode, depth)
        pixels = _rgb(image)
        return _upright(pixels, _read_exif(image.info.get("exif") or b"")[0])
    except Exception as error:  # Pillow's readers have no common error for damaged files
        raise ValueError(str(error) or type(error).__name__) from None


def from_array(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W], [H, W, 1], RGB or RGBA [H, W, 3 or 4], as `decode` gives their file: uint8 [H, W, 3]."""
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    return _rgb(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)))


def _refuse_no_image(data: bytes) -> None:
    """Refuse what stands in an image's place after a download, or a copy, that went wrong.

    Raises:
        ValueError: saying what it is.
    """
    if not data:
        raise ValueError("it is empty (0 bytes)")
    if not data[:512].strip(b"\0"):
        raise ValueError("it begins with zeros, as if a disk or a copy had lost its content")
    if data.startswith(_LFS_POINTER):
        raise ValueError("it is a Git LFS pointer, and not the image that it stands for: run `git lfs pull`")
    if data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise ValueError("it is an HTML or XML page, as a download that needs a login or a click leaves")


def is_jpeg(data: bytes) -> bool:
    """Whether a file begins as JPEGs do."""
    return data.startswith(_JPEG)


class JpegHeader(NamedTuple):
    """What a JPEG says before its pixels.

    Attributes:
        height: in pixels, as stored, before it is turned upright.
        width: in pixels, as stored.
        channels: 1 grey, 3 colour, 4 CMYK or YCCK.
        orientation: EXIF's, 1 to 8; 1 is upright.
        exif_is_sound: whether EXIF, if any, could be read.
        at_half: whether it is read at half its height and width.
        is_usual: whether every decoder makes the same of it: upright, grey or YCbCr, coded as is usual, its fields
            right.
        end: where the header ends.
        stray: finds what has no place behind it but at the end.
    """

    height: int
    width: int
    channels: int
    orientation: int
    exif_is_sound: bool
    at_half: bool
    is_usual: bool
    end: int
    stray: re.Pattern[bytes]


def read_jpeg_header(data: bytes) -> JpegHeader:
    """A JPEG's header, in microseconds.

    Raises:
        ValueError: if it is none, or says more pixels than are read.
    """
    is_usual = True
    orientation, exif_is_sound, has_exif = 1, True, False
    frame, height, width, channels, channels_in_scan = 0, 0, 0, 0, 0
    reached = 2
    stray = _STRAY
    try:
        for marker, start, end in _segments(data):
            is_usual &= start == reached
            reached = end
            if marker == 0xDB or marker == 0xC4:  # tables: most of the segments
                continue
            if marker in _FRAMES:
                frame, channels = marker, data[start + 9]
                height, width = data[start + 5] << 8 | data[start + 6], data[start + 7] << 8 | data[start + 8]
                is_usual &= frame in _USUAL and data[start + 4] == 8 and channels in (1, 3)
                is_usual &= data[start + 10 : start + 19 : 3] != b"RGB"
            elif marker == 0xE1 and not has_exif and data.startswith(b"Exif\0", start + 4):
                has_exif = True
                orientation, exif_is_sound = _read_exif(data[start + 4 : end])
            elif marker == 0xEE and data.startswith(b"Adobe", start + 4):
                is_usual &= data[start + 15] == 1
            elif marker == 0xDD:
                stray = _STRAY_BESIDE_RESTARTS
            elif marker == 0xDA:
                channels_in_scan = data[start + 4]
                is_usual &= frame not in _SEQUENTIAL or data[end - 3 : end] == b"\0\x3f\0"
    except (IndexError, ValueError):
        raise ValueError("it is a JPEG that ends within its header") from None
    if not frame or not height or not width:
        raise ValueError("it is a JPEG whose header gives no size")
    at_half = (count := height * width) > MAX_PIXELS
    if at_half:
        # Of several scans libjpeg keeps all coefficients in memory.
        in_one_scan = frame in _SEQUENTIAL and channels_in_scan == channels
        if count > MAX_PIXELS_AT_HALF or not in_one_scan:
            raise _too_large(width, height)
        if count > _PIXELS_A_BYTE * len(data):
            raise ValueError(f"its header says {width} x {height} pixels, which its {len(data):,} bytes cannot hold")
    is_usual &= orientation == 1 and exif_is_sound and not at_half
    if frame not in _SEQUENTIAL:
        stray = _STRAY_BESIDE_SCANS  # such as the end of the first image of several
    return JpegHeader(height, width, channels, orientation, exif_is_sound, at_half, is_usual, reached, stray)


def is_plain_jpeg(data: bytes, header: JpegHeader) -> bool:
    """Whether every decoder makes the same of a JPEG: it is usual, its end is there, and before that no damage shows.

    Damage shows as a stray marker or as a run of zeros, which pixels have too where they are all of one colour.
    """
    if not header.is_usual or not data.endswith(_END_OF_IMAGE) or data.find(_LOST, header.end) >= 0:
        return False
    return header.stray.search(data, header.end, len(data) - 2) is None


def _too_large(width: int, height: int) -> ValueError:
    return ValueError(
        f"its header says {width} x {height} pixels: save it smaller than {MAX_PIXELS:,} pixels, or as a baseline JPEG "
        f"smaller than {MAX_PIXELS_AT_HALF:,}"
    )


def _read_exif(exif: bytes) -> tuple[int, bool]:
    """The orientation, 1 to 8 (1 where it says none), and whether what surrounds it is sound."""
    while exif.startswith(b"Exif\0"):
        exif = exif[6:]
    if not exif.strip(b"\0"):
        return 1, True
    orientation, is_sound = 1, True
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number, place = struct.unpack_from(f"{order}HHII", exif, entry)
            length = number * _TYPE_BYTES.get(kind, len(exif))
            is_sound &= length <= 4 or place + length <= len(exif)
            is_sound &= tag not in _TEXTS or kind in _TEXT_TYPES
            if tag == _ORIENTATION:
                code = {1: "B", 3: "H", 4: "I"}[kind]
                (value,) = struct.unpack_from(order + code, exif, entry + 8)
                is_sound &= value <= 8 and number == 1
                orientation = value if 1 <= value <= 8 else 1  # 0 is what cameras without a sensor say
    except (KeyError, struct.error):
        return orientation, False
    return orientation, is_sound


def _upright(pixels_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == 1:
        return pixels_HWC
    if orientation > 4:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return np.ascontiguousarray(pixels_HWC)


# --- JPEG


def _decode_jpeg(data: bytes, header: JpegHeader) -> NDArray[np.uint8]:
    """Its pixels as stored; where libjpeg warns, once more with what changes no pixel set right."""
    options: dict[str, Any] = {"colorspace": "CMYK" if header.channels == 4 else "RGB", "strict": True}
    if header.at_half:
        options |= {"min_height": (header.height + 1) // 2, "min_width": (header.width + 1) // 2}
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **options)
    except ValueError:
        # Libjpeg names its first warning alone, behind which there may be bit rot: after mending, none may be left.
        refusals = []
        for mended in _mended(data, header.channels):
            try:
                pixels = simplejpeg.decode_jpeg(mended, **options)
                break
            except ValueError as error:
                refusals.append(str(error))
        else:
            raise ValueError(refusals[0]) from None
    if header.channels == 4:  # stored inverted, as Adobe does
        height, width, _ = pixels.shape
        return np.array(Image.frombytes("CMYK", (width, height), (255 - pixels).tobytes()).convert("RGB"))
    return pixels


def _mended(data: bytes, channels: int) -> Iterator[bytes]:
    """A JPEG with its header as it should be, and then with its end as well."""
    segments = [_JPEG]
    frame = 0
    for marker, start, end in _segments(data):
        segment = data[start:end]
        if marker == 0xDA:
            break
        if marker in _FRAMES:
            frame = marker
        if marker == 0xE0 and segment.startswith(b"JFIF\0", 4):
            segments.append(_JFIF)  # some name a version that there is not
        elif marker == 0xEE and segment.startswith(b"Adobe", 4) and len(segment) > 15:
            usual = {3: 1, 4: 2}.get(channels, 0)  # what libjpeg takes a transform for that there is not
            transform = segment[15] if segment[15] in (0, usual) else usual
            segments.append(segment[:15] + bytes((transform,)) + segment[16:])
        elif not 0xE0 <= marker <= 0xEF and marker != 0xFE:  # of notes and comments no pixel depends
            segments.append(segment)
    if frame not in _SEQUENTIAL:
        yield b"".join((*segments, data[start:]))
        return
    scans = bytearray(data[start:])
    for found in re.finditer(rb"\xff\xda\0[\x08\x0a\x0c\x0e]", data[start:]):  # in pixels, a 0 follows every 0xff
        # Only progressive JPEGs have a use for the three last values; Samsung's phones write others.
        fields = found.start() + found[0][3] - 1
        if fields + 3 <= len(scans):
            scans[fields : fields + 3] = b"\0\x3f\0"
    yield b"".join((*segments, scans))
    if scans[4] == channels:  # in one scan; an end marker would hide that another is missing
        stop = scans.find(_END_OF_IMAGE)
        yield b"".join((*segments, scans[: len(scans) if stop < 0 else stop].rstrip(b"\0"), _END_OF_IMAGE))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG up to its first scan, skipping what libjpeg skips between them.

    Raises:
        IndexError, ValueError: if it ends before.
    """
    at = 2
    while True:
        start = at if data[at] == 0xFF else data.index(b"\xff", at)
        while (marker := data[start + 1]) == 0xFF:
            start += 1
        if marker == 0 or marker in _ALONE:
            at = start + 2
            continue
        if marker == 0xD9:
            raise ValueError("it ends before its pixels")
        at = start + 2 + (data[start + 2] << 8 | data[start + 3])
        yield marker, start, at
        if marker == 0xDA:
            return


# --- other formats


def _decode_by_pillow(data: bytes) -> tuple[NDArray[np.uint8], int, bool]:
    """Its pixels as stored, its orientation, and whether EXIF, if any, could be read."""
    exif_is_sound = True
    if data.startswith(_PNG):
        data, exif_is_sound = _png_without_comments(data)
    _check_heif(data)
    formats = [name for name in FORMATS if name in Image.OPEN and name != "JPEG"]
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(*image.size)
            image.load()  # after which TIFF and HEIC are upright, and say so
            if image.format == "PNG" and "transparency" in image.info:
                image.info["transparency"] = _as_pillow_stores(image.info["transparency"], image.mode, depth=data[24])
            orientation, sound = _read_exif(image.info.get("exif") or b"")
            return _rgb(image), orientation, exif_is_sound and sound
    except OSError as error:
        unknown = isinstance(error, UnidentifiedImageError)
        begun = _BEGINNINGS.match(data)
        if begun is not None and begun.lastgroup in Image.OPEN:
            reason = "" if unknown else f" ({error})"
            sentence = f"it begins as {begun.lastgroup} does, and is cut off or damaged{reason}"
        elif unknown:
            readable = ", ".join(name for name in FORMATS if name in Image.OPEN and name != "PPM")
            sentence = f"it is none of {readable}"
        else:
            sentence = str(error) or type(error).__name__
        raise ValueError(sentence) from None
    except Image.DecompressionBombError:
        raise ValueError(f"its header says more than {MAX_PIXELS:,} pixels: save it smaller") from None
    except Exception as error:  # Pillow's readers have no common error for damaged files
        raise ValueError(str(error) or type(error).__name__) from None


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Its pixels as stored, uint8 [H, W, 3]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # which Pillow widens
        values = np.asarray(image).astype(np.uint16)
        upper = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            upper[values == image.info["transparency"]] = 255
        return np.repeat(upper[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"its brightness has no known range (Pillow's mode {image.mode}): save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))


def _png_without_comments(data: bytes) -> tuple[bytes, bool]:
    """A PNG with those chunks alone that its pixels depend on and EXIF, and whether EXIF, if any, is sound.

    Pillow refuses a damaged comment and looks at no checksum of pixels; here it is the other way round.

    Raises:
        ValueError: if a chunk of the pixels is damaged or cut short.
    """
    kept, exif_is_sound = [_PNG], True
    at = len(_PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        is_sound = end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if kind == b"IEND":
            break
        if kind == b"tRNS" or kind[:1].isupper():
            if not is_sound:
                raise ValueError(
                    f"its {kind.decode(errors='replace')} is {'damaged' if end <= len(data) else 'cut short'}"
                )
            kept.append(data[at:end])
        elif kind == b"eXIf":
            exif_is_sound &= is_sound
            # Before the pixels, where Pillow finds it without reading on.
            kept[2:2] = [data[at:end]] if is_sound else []
        at = end
    return b"".join((*kept, b"\0\0\0\0IEND\xaeB`\x82")), exif_is_sound


def _as_pillow_stores(colour: int | tuple[int, ...] | bytes, mode: str, depth: int) -> int | tuple[int, ...] | bytes:
    """A PNG's transparent colour, said in its own bit depth, in the eight bits that Pillow gives grey and colour."""
    if isinstance(colour, int) and mode == "L" and depth < 8:
        return colour * 255 // ((1 << depth) - 1)
    if isinstance(colour, tuple) and depth == 16:
        return tuple(value >> 8 for value in colour)
    return colour


def _check_heif(data: bytes) -> None:
    """Make Pillow read HEIC, where its plugin is installed.

    Raises:
        ValueError: if this is a HEIC or AVIF image and cannot be read; with the remedy.
    """
    if data[4:8] != b"ftyp":
        return
    box = data[8 : min(int.from_bytes(data[:4], "big"), 512)]
    brands = {box[start : start + 4] for start in range(0, len(box), 4) if start != 4}  # between them is a version
    if brands & {b"avif", b"avis"}:
        if find_spec("PIL._avif") is None:
            raise ValueError("it is an AVIF image, which Pillow reads from 11.3 on: pip install 'pillow>=11.3'")
    elif brands & _HEVC_BRANDS or brands & {b"mif1", b"msf1"}:
        if find_spec("pillow_heif") is None:
            raise ValueError("it is a HEIC image, which Pillow reads with a plugin: pip install pillow-heif")
        import_module("pillow_heif").register_heif_opener()
