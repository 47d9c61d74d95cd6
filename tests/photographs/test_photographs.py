"""Photographs of all kinds become upright RGB pixels, and what is none is refused in one sentence."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sentences import refusal

from distrib.data.images import MAX_PIXELS
from distrib.photographs.files import expand


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """A smooth image [30, 40, 3] whose corners differ, so that turning it shows."""
    y, x = np.mgrid[0:30, 0:40]
    return np.stack((6 * x, 8 * y, 250 - 3 * x - 3 * y), axis=2).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that promises very many pixels and holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    (photograph,) = expand(str(tmp_path / "bomb.png"))
    refusal(photograph.read, "bomb.png", f"{MAX_PIXELS:,}")


def test_damaged_files_are_refused_by_name(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    whole = encoded(Image.fromarray(pixels).resize((400, 300)), "JPEG")
    damaged = {
        "half.jpg": whole[: len(whole) // 2],
        "text.jpg": b"no image",
        "empty.png": b"",
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(40),
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        (photograph,) = expand(str(tmp_path / name))
        sentence = refusal(photograph.read, name)
        if name.endswith(".heic"):
            assert "pillow-heif" in sentence or "HEIF" in sentence


def test_folders_patterns_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "below/c.jpg", "[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def names(argument: str) -> list[str]:
        return [photograph.name for photograph in expand(argument)]

    assert names(".") == ["[1].jpg", "a.PNG", "b.jpg"]
    assert names("*.jpg") == ["[1].jpg", "b.jpg"]
    assert names("**/c.*") == ["below/c.jpg"]
    assert names("[1].jpg") == ["[1].jpg"]  # a file that looks like a pattern
    assert names("notes.txt") == ["notes.txt"]  # named, so it is tried
    assert names("-") == ["stdin"]


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refusal(lambda: expand(str(tmp_path / "empty")), "empty", "no photographs")
    refusal(lambda: expand(str(tmp_path / "*.jpg")), "*.jpg", "matches no photograph")
    refusal(lambda: expand(str(tmp_path / "none.jpg")), "none.jpg", "does not exist")
    refusal(lambda: expand(str(tmp_path / "none\nof\x1b[31m.jpg")), "none\\nof\\x1b[31m.jpg")
