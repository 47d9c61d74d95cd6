"""One reader decides what every program sees of an image file."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from image_files import (
    as_held,
    chunk,
    encoded,
    exif,
    exif_with_a_fraction_for_a_name,
    png,
    rgb_png,
    rotten,
    samsung,
    smooth,
    with_exif,
    with_size,
    zeroed,
)  # fmt: skip
from numpy.typing import NDArray
from PIL import Image

from distrib.data import images
from distrib.data.images import (
    MAX_PIXELS,
    MAX_PIXELS_AT_HALF,
    decode,
    from_pillow,
    is_plain_jpeg,
    read_jpeg_header,
)  # fmt: skip

PIXELS = smooth(60, 44)
JPEG = encoded(PIXELS, quality=90)
ROWS = PIXELS.reshape(60, -1)
GREY = PIXELS[..., 0]


def as_grey(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[..., None], 3, axis=2)


def deep(values: NDArray[Any]) -> NDArray[Any]:
    """Packed rows of 16 bits a channel."""
    return (values.astype(">u2") * 257).astype(">u2").reshape(len(values), -1).view(np.uint8)


@pytest.mark.parametrize(
    ("kind", "options", "off"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 10),
        ("GIF", {}, 60),  # 256 colours
        ("AVIF", {"quality": 95}, 20),
        ("JPEG2000", {}, 6),
    ],
)
def test_common_formats_are_read(kind: str, options: dict[str, Any], off: int) -> None:
    read = decode(encoded(PIXELS, kind, **options))
    assert read.shape == PIXELS.shape
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - PIXELS).max() <= off


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_the_cameras_note_turns_an_image_upright(kind: str, options: dict[str, Any], orientation: int) -> None:
    data = encoded(as_held(PIXELS, orientation), kind, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decode(data), PIXELS)
    np.testing.assert_array_equal(from_pillow(Image.open(io.BytesIO(data))), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_cameras_note_turns_a_jpeg_upright(orientation: int, order: str) -> None:
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    block = b"Exif\0\0" + {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)
    as_stored = decode(JPEG)
    data = with_exif(JPEG, block)
    np.testing.assert_array_equal(as_held(decode(data), orientation), as_stored)
    np.testing.assert_array_equal(from_pillow(Image.open(io.BytesIO(data))), decode(data))


def test_a_png_may_note_its_orientation_behind_its_pixels() -> None:
    turned = as_held(PIXELS, 6)
    data = rgb_png(turned, after=(chunk(b"eXIf", exif(6).tobytes()[6:]),))
    np.testing.assert_array_equal(decode(data), PIXELS)


def test_avif_is_turned_once() -> None:
    upright = decode(encoded(PIXELS, "AVIF", quality=95))
    turned = decode(encoded(as_held(PIXELS, 6), "AVIF", quality=95, exif=exif(6)))
    assert np.abs(upright.astype(int) - turned).mean() < 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_turned_once(orientation: int) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    # As bytes it becomes a property of the image, which the library applies, as phones write it.
    data = encoded(as_held(PIXELS, orientation), "HEIF", quality=95, exif=exif(orientation).tobytes())
    assert np.abs(decode(data).astype(int) - PIXELS).mean() < 5
    with pytest.raises(ValueError, match=r"."):
        decode(data[: len(data) // 2])


def test_without_its_plugin_heic_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"heix\0\0\0\0mif1heix"):
        data = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)
        with monkeypatch.context() as absent:
            absent.setattr(images, "find_spec", lambda name: None)
            with pytest.raises(ValueError, match=r"HEIC.*pip install pillow-heif"):
                decode(data)
    avif = encoded(PIXELS, "AVIF")
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"AVIF.*pip install 'pillow>="):
        decode(avif)


@pytest.mark.parametrize("orientation", [0, 1])
def test_no_orientation_is_no_damage(orientation: int) -> None:
    said: list[str] = []
    np.testing.assert_array_equal(decode(encoded(PIXELS, exif=exif(orientation)), said.append), decode(encoded(PIXELS)))
    decode(with_exif(JPEG, b"Exif\0\0"), said.append)
    assert not said


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0no such thing",
        exif(6).tobytes()[:18],
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        exif(9).tobytes(),
        exif(6).tobytes().replace(struct.pack(">HHI", 0x0112, 3, 1), struct.pack(">HHI", 0x0112, 5, 1)),
    ],
    ids=["text", "cut", "elsewhere", "of nine", "fraction"],
)
def test_an_image_with_damaged_exif_is_taken_as_it_stands(block: bytes) -> None:
    for whole, data in (
        (JPEG, with_exif(JPEG, block)),
        (rgb_png(PIXELS), rgb_png(PIXELS, chunk(b"eXIf", block[6:]))),
        (rgb_png(PIXELS), rgb_png(PIXELS, chunk(b"eXIf", exif(6).tobytes()[6:], is_sound=False))),
    ):
        said: list[str] = []
        np.testing.assert_array_equal(decode(data, said.append), decode(whole))
        assert said == ["has damaged EXIF: the image is taken as it stands"]


def test_an_orientation_in_damaged_exif_counts_if_it_can_be_read() -> None:
    said: list[str] = []
    data = with_exif(encoded(as_held(PIXELS, 6), quality=90), exif_with_a_fraction_for_a_name(6))
    assert decode(data, said.append).shape == PIXELS.shape
    assert len(said) == 1
    assert "damaged EXIF" in said[0]


# --- transparency and colour


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_is_white(kind: str) -> None:
    layer = np.dstack((PIXELS, np.full((60, 44), 255, np.uint8)))
    layer[:, :10, 3], layer[:, 10:20, 3] = 0, 128
    read = decode(encoded(layer, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (read[:, :10] == 255).all()
    half = (PIXELS[:, 10:20] * (128 / 255) + 127).round()
    assert np.abs(read[:, 10:20] - half).max() <= 1
    np.testing.assert_array_equal(read[:, 20:], PIXELS[:, 20:])


def test_a_transparent_colour_is_white_at_every_depth() -> None:
    """PNG's tRNS, which names the colour in the file's own depth."""
    where = (PIXELS[30, 20] == PIXELS).all(axis=2)
    white = np.where(where[..., None], 255, PIXELS)
    colour = PIXELS[30, 20].astype(int).tolist()
    np.testing.assert_array_equal(decode(png(ROWS, 8, 2, chunk(b"tRNS", struct.pack(">3H", *colour)))), white)
    colour = [257 * value for value in colour]
    data = png(deep(PIXELS), 16, 2, chunk(b"tRNS", struct.pack(">3H", *colour)))
    np.testing.assert_array_equal(decode(data), white)
    white = as_grey(np.where(GREY[30, 20] == GREY, 255, GREY))
    value = int(GREY[30, 20])
    np.testing.assert_array_equal(decode(png(GREY, 8, 0, chunk(b"tRNS", struct.pack(">H", value)))), white)
    data = png(deep(GREY), 16, 0, chunk(b"tRNS", struct.pack(">H", 257 * value)))
    np.testing.assert_array_equal(decode(data), white)
    packed = np.full((8, 2), 0b00011011, np.uint8)  # 0, 1, 2, 3
    for colour, wanted in ((0, [0, 255, 170, 255]), (3, [10, 255, 30, 40])):
        palette = chunk(b"PLTE", bytes(value for grey in (10, 20, 30, 40) for value in (grey, grey, grey)))
        trns = chunk(b"tRNS", b"\0\1" if colour == 0 else b"\xff\0")
        data = png(packed, 2, colour, *([palette] if colour else []), trns)
        assert decode(data)[0, :4, 0].tolist() == wanted


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_an_opened_image_has_the_transparent_grey_of_its_file(depth: int) -> None:
    """Pillow spreads the pixels of few bits over eight, and leaves the transparent value as it is."""
    packed = np.full((8, 16), 0b00011011, np.uint8)
    data = png(packed, depth, 0, chunk(b"tRNS", struct.pack(">H", 0b00011011 * 257 >> (16 - depth))))
    with Image.open(io.BytesIO(data)) as opened:
        noted = opened.info["transparency"]
        read = from_pillow(opened)
        assert opened.info["transparency"] == noted
    np.testing.assert_array_equal(read, decode(data))
    assert (read == 255).any()


def test_an_opened_image_has_the_transparent_colour_of_its_file() -> None:
    data = png(deep(PIXELS), 16, 2, chunk(b"tRNS", struct.pack(">3H", *(257 * PIXELS[30, 20].astype(int)).tolist())))
    np.testing.assert_array_equal(from_pillow(Image.open(io.BytesIO(data))), decode(data))


def test_grey_palettes_and_16_bits_become_rgb() -> None:
    for data in (
        encoded(GREY, "PNG"),
        encoded(Image.fromarray(GREY).convert("P"), "PNG"),
        encoded(np.dstack((GREY, np.full_like(GREY, 255))), "PNG"),
        png(deep(GREY), 16, 0),
        png(deep(np.dstack((GREY, np.full_like(GREY, 255)))), 16, 4),
        encoded(GREY.astype(np.uint16) * 257, "TIFF"),
        b"P5 44 60 65535\n" + (GREY.astype(">u2") * 257).astype(">u2").tobytes(),
    ):
        np.testing.assert_array_equal(decode(data), as_grey(GREY))
    np.testing.assert_array_equal(decode(png(deep(PIXELS), 16, 2)), PIXELS)
    two = np.where(GREY > 128, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(two).convert("1"), "PNG")), as_grey(two))
    with pytest.raises(ValueError, match="8 or 16 bits"):
        decode(encoded(GREY.astype(np.float32), "TIFF"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_are_what_pillow_makes_of_them(options: dict[str, Any]) -> None:
    whole = Image.fromarray(PIXELS)
    for data in (
        encoded(whole, **options),
        encoded(whole.convert("L"), **options),
        encoded(whole.convert("CMYK"), **options),
        encoded(whole, keep_rgb=True, **options),
        encoded(whole, subsampling=1, **options),
        encoded(whole, "MPO", save_all=True, append_images=[Image.new("RGB", (44, 60))], **options),
    ):
        with Image.open(io.BytesIO(data)) as opened:
            np.testing.assert_array_equal(decode(data), np.array(opened.convert("RGB")))


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {}), ("TIFF", {})])
def test_the_first_image_of_several_counts(kind: str, options: dict[str, Any]) -> None:
    later = Image.new("RGB", (44, 60), "black")
    alone = decode(encoded(PIXELS, kind, **options))
    np.testing.assert_array_equal(decode(encoded(PIXELS, kind, save_all=True, append_images=[later], **options)), alone)


# --- damage

HARMLESS_IN_JPEG = {
    "samsung": samsung(JPEG),
    "samsung, without an end": samsung(JPEG)[:-2],
    "no end": JPEG[:-2],
    "zeros before the end": JPEG[:-2] + bytes(40) + JPEG[-2:],
    "bytes behind the end": JPEG + b"more of it" * 9,
    "bytes in the header": JPEG[:20] + b"\x12\x13" + JPEG[20:],
    "no such JFIF": JPEG[:11] + b"\x09" + JPEG[12:],
    "no such transform": JPEG[:20] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07" + JPEG[20:],
    "filled markers": JPEG[:20] + b"\xff\xff\xff" + JPEG[20:],
}


@pytest.mark.parametrize("name", HARMLESS_IN_JPEG)
def test_damage_to_a_jpeg_that_changes_no_pixel_is_accepted(name: str) -> None:
    said: list[str] = []
    np.testing.assert_array_equal(decode(HARMLESS_IN_JPEG[name], said.append), decode(JPEG))
    assert not said


def test_samsungs_field_is_accepted_in_grey_and_cmyk_too() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(Image.fromarray(PIXELS).convert(mode))
        np.testing.assert_array_equal(decode(samsung(data)), decode(data))


@pytest.mark.parametrize("name", HARMLESS_IN_JPEG)
def test_bit_rot_does_not_hide_behind_what_is_accepted(name: str) -> None:
    with pytest.raises(ValueError, match="Corrupt"):
        decode(rotten(HARMLESS_IN_JPEG[name]))


def test_harmful_damage_is_refused() -> None:
    whole = Image.fromarray(PIXELS)
    cmyk, progressive = encoded(whole.convert("CMYK")), encoded(whole, progressive=True)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in ROWS))
    pixels = chunk(b"IDAT", packed)
    data = rgb_png(PIXELS)
    for bad in (
        JPEG[:-40],
        samsung(JPEG)[:-40],
        JPEG[:-40] + JPEG[-2:],
        rotten(cmyk),
        cmyk[: len(cmyk) // 2],
        progressive[:-2],  # of which no one knows how many scans are missing
        progressive[: len(progressive) // 2] + JPEG[-2:],
        data[: len(data) // 2],
        data.replace(pixels, chunk(b"IDAT", packed, is_sound=False)),
        data.replace(pixels, chunk(b"IDAT", packed[: len(packed) // 2])),
        rgb_png(PIXELS, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3), is_sound=False)),
        encoded(PIXELS, "GIF")[:300],
        encoded(PIXELS, "WEBP")[:300],
        encoded(PIXELS, "TIFF", compression="tiff_lzw")[:300],
    ):
        with pytest.raises(ValueError, match=r"."):
            decode(bad)


@pytest.mark.parametrize(
    "data",
    [
        rgb_png(PIXELS, chunk(b"tEXt", b"Comment\0hello", is_sound=False)),
        rgb_png(PIXELS, chunk(b"iCCP", b"no profile"), chunk(b"gAMA", b"1")),
        rgb_png(PIXELS, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000)))),
        rgb_png(PIXELS, after=(chunk(b"tEXt", b"Comment\0cut short")[:20],), end=False),
        rgb_png(PIXELS, end=False),
        rgb_png(PIXELS)[:-3],
        rgb_png(PIXELS) + b"more of it",
    ],
    ids=["checksum", "profile", "long text", "cut text", "no end", "cut end", "behind the end"],
)
def test_damage_to_a_png_that_changes_no_pixel_is_accepted(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data), PIXELS)


def test_every_bit_of_a_pngs_pixels_counts() -> None:
    data = rgb_png(PIXELS)
    start = data.index(b"IDAT")
    for place in range(start, len(data) - 16, 97):
        bad = bytearray(data)
        bad[place] ^= 4
        with pytest.raises(ValueError, match=r"."):
            decode(bytes(bad))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (bytes(700), "it begins with zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer.*`git lfs pull`"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "an HTML or XML page"),
        (b"GIF89a", "begins as GIF does, and is cut off or damaged"),
        (encoded(PIXELS, "GIF")[:9], "begins as GIF does, and is cut off or damaged"),
        (encoded(PIXELS, "WEBP")[:20], "begins as WEBP does, and is cut off or damaged"),
        (encoded(PIXELS, "TIFF")[:9], "begins as TIFF does, and is cut off or damaged"),
        (encoded(PIXELS, "GIF")[:-99], "begins as GIF does, and is cut off or damaged"),
        (b"hello", "it is none of JPEG, PNG"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode(data)


@pytest.mark.parametrize("bits", [b"\x0c", b"\x10"])
def test_a_jpeg_of_more_bits_is_refused_in_a_sentence(bits: bytes) -> None:
    depth = JPEG.index(b"\xff\xc0") + 4
    with pytest.raises(ValueError, match=r"."):
        decode(JPEG[:depth] + bits + JPEG[depth + 1 :])


# --- size


@pytest.fixture(scope="module")
def large() -> bytes:
    """A baseline JPEG of 108 megapixels, as phones take them, turned by EXIF; 1.7 MB."""
    whole = Image.new("RGB", (12_000, 9_000), (120, 90, 80))
    whole.paste((10, 200, 30), (0, 0, 6_000, 4_500))
    return encoded(whole, quality=50, exif=exif(6))


def test_a_large_baseline_jpeg_is_read_at_half_its_sides(large: bytes) -> None:
    said: list[str] = []
    read = decode(large, said.append)
    assert read.shape == (6_000, 4_500, 3)
    for (row, column), colour in {
        (100, 100): (120, 90, 80),
        (100, -100): (10, 200, 30),
        (-1, -1): (120, 90, 80),
    }.items():
        assert np.abs(read[row, column].astype(int) - colour).max() < 6
    assert len(said) == 1
    assert f"{MAX_PIXELS:,}" in said[0]
    assert "half" in said[0]


def test_larger_images_are_refused_with_the_remedy(large: bytes) -> None:
    progressive = with_size(encoded(PIXELS, progressive=True), 9_000, 12_000)
    for data in (progressive, with_size(large, 16_000, 16_000), with_size(JPEG, 65_000, 65_000)):
        with pytest.raises(ValueError, match=f"save it smaller than {MAX_PIXELS:,} pixels.*{MAX_PIXELS_AT_HALF:,}"):
            decode(data)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 9_000, 8, 2, 0, 0, 0))
    with pytest.raises(ValueError, match=f"12000 x 9000 pixels: save it smaller than {MAX_PIXELS:,}"):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))


def test_a_small_file_that_promises_much_costs_nothing() -> None:
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(ValueError, match="cannot hold"):
            decode(with_size(JPEG, 15_500, 16_000))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}, {"exif": exif(1)}, {"dpi": (72, 72)}],
)
def test_what_cameras_and_programs_write_is_plain(options: dict[str, Any]) -> None:
    for data in (encoded(PIXELS, **options), encoded(GREY, **options)):
        assert is_plain_jpeg(data, read_jpeg_header(data))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_several_images_in_a_jpeg_are_not_plain(options: dict[str, Any]) -> None:
    data = encoded(PIXELS, "MPO", save_all=True, append_images=[Image.new("RGB", (44, 60))], **options)
    assert not is_plain_jpeg(data, read_jpeg_header(data))
    assert not is_plain_jpeg(encoded(PIXELS, **options) * 2, read_jpeg_header(encoded(PIXELS, **options)))


def test_lost_sectors_are_not_plain() -> None:
    """Which decoder is used must not decide whether they are seen."""
    data = zeroed(encoded(smooth(218, 178), quality=90))
    assert not is_plain_jpeg(data, read_jpeg_header(data))
    with pytest.raises(ValueError, match="Corrupt"):
        decode(data)


def test_the_header_of_a_jpeg_takes_microseconds() -> None:
    count = 3000
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            is_plain_jpeg(JPEG, read_jpeg_header(JPEG))
        seconds.append((time.perf_counter() - began) / count)
    assert min(seconds) < 100e-6  # about 5e-6 where nothing else runs
