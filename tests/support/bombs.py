"""Images whose headers promise far more pixels than they hold, and a program that opens them every way there is.

python tests/support/bombs.py FOLDER MODEL    # writes FOLDER/outcome.json: what was said, and how far the memory grew
"""

import io
import json
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distrib.base.errors import UserError
from distrib.cli import predict
from distrib.config import DataConfig
from distrib.data.batch import Request
from distrib.data.decoders import dali_installed, make_decoder
from distrib.data.table import read_table
from distrib.photographs.files import Photograph

SIDE = 65_000
CPU = torch.device("cpu")


def small(kind: str, **options: object) -> bytearray:
    stream = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return bytearray(stream.getvalue())


def patched(kind: str, at: int, numbers: str, *values: int, **options: object) -> bytes:
    """A small image with other numbers in this place."""
    data = small(kind, **options)
    struct.pack_into(numbers, data, at, *values)
    return bytes(data)


def jpeg(frame: bytes = b"\xff\xc0", height: int = SIDE, width: int = SIDE, **options: object) -> bytes:
    data = small("JPEG", **options)
    struct.pack_into(">HH", data, data.index(frame) + 5, height, width)
    return bytes(data)


def png(side: int = SIDE) -> bytes:
    data = small("PNG")
    struct.pack_into(">II", data, 16, side, side)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def tiff() -> bytes:
    data = small("TIFF")
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from("<HH", data, entry)
        if tag in (256, 257):  # width and height
            struct.pack_into("<H" if kind == 3 else "<I", data, entry + 8, SIDE)
    return bytes(data)


def moving_webp() -> bytes:
    """An animation: a large canvas with a small first image on it."""
    second = Image.fromarray(np.zeros((48, 48, 3), np.uint8))
    data = small("WEBP", save_all=True, append_images=[second], lossless=True)
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = (SIDE - 1).to_bytes(3, "little") * 2
    return bytes(data)


def jpeg_2000() -> bytes:
    data = small("JPEG2000", no_jp2=True)
    struct.pack_into(">II", data, 8, SIDE, SIDE)
    return bytes(data)


PICTURES: dict[str, Callable[[], bytes]] = {
    "bomb.jpg": jpeg,
    "bomb.png": png,
    "bomb.bmp": lambda: patched("BMP", 18, "<ii", SIDE, SIDE),
    "bomb.tiff": tiff,
    "bomb.webp": moving_webp,
    "large.png": lambda: png(10_000),  # of which Pillow only warns
    # As many as are read at half the sides, where the file has them and where no memory for the whole is needed.
    "large.jpg": lambda: jpeg(height=15_000, width=16_000),
    "progressive.jpg": lambda: jpeg(b"\xff\xc2", 15_000, 16_000, progressive=True),
    "bomb.gif": lambda: patched("GIF", 6, "<HH", SIDE, SIDE),
    "bomb.j2k": jpeg_2000,
    "bomb.ppm": lambda: f"P6 {SIDE} {SIDE} 255\n".encode() + bytes(100),
}


def memory() -> int:
    """The most bytes of address space that this process ever had: it counts what was asked for and not yet touched."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmPeak:"))
    return int(line.split()[1]) * 1024


def told(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def main(folder: Path, model: Path) -> None:
    good = {"good.jpg": bytes(small("JPEG")), "good.png": bytes(small("PNG")), "good.webp": bytes(small("WEBP"))}
    names = [*good, *PICTURES]
    for name in names:
        (folder / name).write_bytes(good[name] if name in good else PICTURES[name]())
    rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    (folder / "table.csv").write_text(f"file,happy\n{rows}")
    table = read_table(folder)
    decoders = ["torch", *(["dali"] if dali_installed() else [])]

    def decode(kind: str, name: str) -> object:
        config = DataConfig.model_validate({"decoder": kind, "image_size": (32, 32), "root": folder})
        request = Request.centred(np.array([names.index(name)]))
        return list(make_decoder(config, table, CPU, 1).batches([request]))

    def predicted(*names: str) -> int:
        return predict.main([str(model), *(str(folder / name) for name in names), "--no-align"])

    for name in good:  # what each way takes for itself
        for kind in decoders:
            decode(kind, name)
        Photograph(name, folder / name).read()
    assert predicted(*good) == 0
    most = memory() + 2**31  # where a bomb is not refused, this program fails, and it alone
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    outcome: dict[str, dict[str, object]] = {}
    for name in PICTURES:
        ways: dict[str, Callable[[], object]] = {"photograph": Photograph(name, folder / name).read}
        ways |= {kind: (lambda kind=kind, name=name: decode(kind, name)) for kind in decoders}
        for way, call in ways.items():
            before = memory()
            outcome[f"{name} as {way}"] = {"told": told(call), "grown": memory() - before}
    before, status = memory(), predicted(*PICTURES)
    outcome["predict"] = {"told": f"exit status {status}", "grown": memory() - before}
    (folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
