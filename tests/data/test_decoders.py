import dataclasses
import io
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import as_held, encoded, exif, rotten, samsung, with_exif, zeroed
from image_files import smooth as picture
from numpy.typing import NDArray
from PIL import Image

from distrib.base.errors import UserError
from distrib.config import DataConfig
from distrib.data import decoders
from distrib.data.batch import Batch, Crop, Request
from distrib.data.decoders import Decoder, choose_decoder, dali_installed, make_decoder
from distrib.data.images import decode
from distrib.data.plan import Plan, evaluation_batches
from distrib.data.store import FolderStore
from distrib.data.table import Table, read_table

CELEBA_MINI = Path(__file__).resolve().parents[3] / "shared/celeba-mini"
needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
needs_celeba = pytest.mark.skipif(not CELEBA_MINI.is_dir(), reason=f"no real images in {CELEBA_MINI}")
KINDS = ["torch", pytest.param("dali", marks=needs_dali)]
WHOLE: dict[str, Any] = {"image_size": (218, 178), "crop": "full"}
CPU = torch.device("cpu")


def folder_of(path: Path, files: dict[str, bytes], absent: tuple[str, ...] = ()) -> Table:
    for name, content in files.items():
        (path / name).write_bytes(content)
    names = [*files, *absent]
    targets = np.stack([np.arange(len(names)) % 2, np.arange(len(names)) // 2 % 2], axis=1).astype(np.uint8)
    return Table(FolderStore(path, names), names, ("Bald", "Smiling"), targets, None, None, ())


def jpegs(path: Path, count: int, height: int = 218, width: int = 178) -> Table:
    return folder_of(path, {f"{i:03}.jpg": encoded(picture(height, width, i), quality=90) for i in range(count)})


def decoder(kind: str, table: Table, max_batch: int = 8, **options: Any) -> Decoder:
    config = DataConfig.model_validate({"decoder": kind, "image_size": (32, 32), "threads": 2, **options})
    return make_decoder(config, table, CPU, max_batch)


def centred(*rows: int) -> Request:
    return Request.centred(np.array(rows, dtype=np.int64))


def views(*rows: int, zoom: float = 1.0, top: float = 0.3, left: float = 0.8, flip: bool = False) -> Request:
    count = len(rows)
    return Request(
        np.array(rows, dtype=np.int64), np.full(count, zoom), np.full(count, top), np.full(count, left),
        np.full(count, flip),
    )  # fmt: skip


def images(batches: list[Batch]) -> NDArray[np.int64]:
    return torch.cat([batch.images_BHWC for batch in batches]).numpy().astype(np.int64)


def image(kind: str, table: Table, row: int = 0, **options: Any) -> NDArray[np.int64]:
    return images(list(decoder(kind, table, **options).batches([centred(row)])))[0]


def difference(table: Table, requests: list[Request], **options: Any) -> NDArray[np.float64]:
    """Mean absolute difference of each image between the two decoders, in grey levels."""
    largest = max(len(request) for request in requests)
    reference, other = (
        images(list(decoder(kind, table, largest, **options).batches(requests))) for kind in ("torch", "dali")
    )
    assert reference.shape == other.shape
    assert reference.std() > 20, "the images are not blank"
    return np.abs(reference - other).mean(axis=(1, 2, 3))


def refusal(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


# --- the contract of every decoder


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_as_the_contract_says(tmp_path: Path, kind: str) -> None:
    table = jpegs(tmp_path, 6)
    made = decoder(kind, table, image_size=(40, 48))
    assert made.name == kind
    batches = list(made.batches([centred(4, 1, 3), centred(0, 5), centred(2)]))
    assert [batch.ids_B.tolist() for batch in batches] == [[4, 1, 3], [0, 5], [2]]
    for batch in batches:
        count = len(batch)
        assert batch.images_BHWC.shape == (count, 40, 48, 3)
        assert batch.images_BHWC.dtype == torch.uint8
        assert batch.targets_BA.shape == (count, 2)
        assert batch.targets_BA.dtype == torch.float32
        assert batch.ids_B.dtype == torch.int64
        assert batch.ids_B.device.type == "cpu"
        assert batch.targets_BA.tolist() == table.targets[batch.ids_B.numpy()].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_lie_under_their_own_id(tmp_path: Path, kind: str) -> None:
    files = {f"{i}.png": encoded(np.full((32, 32, 3), 7 * i, dtype=np.uint8), "PNG") for i in range(30)}
    made = decoder(kind, folder_of(tmp_path, files), threads=3, prefetch=3)
    order = np.random.default_rng(0).permutation(30)
    for batch in made.batches([Request.centred(order[start : start + 4]) for start in range(0, 30, 4)]):
        assert (batch.images_BHWC == (7 * batch.ids_B).to(torch.uint8)[:, None, None, None]).all()


def test_results_come_in_order_when_later_ones_are_ready_first(tmp_path: Path) -> None:
    files = {"big.jpg": encoded(picture(1200, 1200)), "small.jpg": encoded(picture(16, 16))}
    made = decoder("torch", folder_of(tmp_path, files), threads=4, prefetch=8)
    asked = [0, 1, 1, 0, 1, 1, 1, 0]
    got = [batch.ids_B.item() for batch in made.batches([centred(row) for row in asked])]
    assert got == asked


def test_more_threads_than_images_decode_a_batch(tmp_path: Path) -> None:
    made = decoder("torch", jpegs(tmp_path, 8), threads=5)
    wanted = images(list(decoder("torch", jpegs(tmp_path, 8), threads=1).batches([centred(*range(8))])))
    for count in range(1, 9):
        (batch,) = made.batches([centred(*range(count))])
        assert batch.ids_B.tolist() == list(range(count))
        assert (images([batch]) == wanted[:count]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_requests_no_batches(tmp_path: Path, kind: str) -> None:
    made = decoder(kind, jpegs(tmp_path, 2))
    assert list(made.batches([])) == []
    assert len(list(made.batches([centred(0, 1)]))) == 1
    assert list(made.batches([])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_batch_may_be_short_and_the_next_epoch_whole(tmp_path: Path, kind: str) -> None:
    made = decoder(kind, jpegs(tmp_path, 7), 4)
    for _ in range(3):
        batches = list(made.batches(evaluation_batches(np.arange(7), 4, 0, 1, 1)))
        assert [batch.ids_B.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6]]
        assert [len(batch.images_BHWC) for batch in batches] == [4, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_delivered_batches_do_not_change_afterwards(tmp_path: Path, kind: str) -> None:
    made = decoder(kind, jpegs(tmp_path, 8), 2)
    kept, copies = [], []
    for batch in made.batches([centred(i, (i + 1) % 8) for i in range(8)]):
        kept.append(batch.images_BHWC)
        copies.append(batch.images_BHWC.clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prefetch", "threads"), [(1, 1), (3, 1), (1, 3)])
def test_a_decoder_reads_no_further_ahead_than_it_was_told(
    tmp_path: Path, kind: str, prefetch: int, threads: int
) -> None:
    made = decoder(kind, jpegs(tmp_path, 2, 20, 20), 2, prefetch=prefetch, threads=threads)
    asked = 0

    def requests() -> Iterator[Request]:
        nonlocal asked
        for _ in range(12):
            asked += 1
            yield centred(0, 1)

    ahead = []
    for delivered, _ in enumerate(made.batches(requests()), start=1):
        time.sleep(0.01)  # long enough to run ahead, if it did
        ahead.append(asked - delivered)
    assert len(ahead) == 12
    # DALI decodes so many ahead, and as many again are read by then as there are threads to read, or as it will decode.
    most = prefetch + (max(prefetch, threads) if kind == "dali" else 0)
    assert 1 <= max(ahead) <= most


@pytest.mark.parametrize("kind", KINDS)
def test_the_thread_that_trains_reads_no_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, readers = FolderStore.read, set()

    def watched(store: FolderStore, row: int) -> bytes:
        readers.add(threading.current_thread())
        return read(store, row)

    monkeypatch.setattr(FolderStore, "read", watched)
    made = decoder(kind, jpegs(tmp_path, 8), 2)
    assert len(list(made.batches([centred(i, (i + 1) % 8) for i in range(8)]))) == 8
    assert readers
    assert threading.main_thread() not in readers


@pytest.mark.parametrize("kind", KINDS)
def test_an_endless_source_is_not_read_to_its_end(tmp_path: Path, kind: str) -> None:
    made = decoder(kind, jpegs(tmp_path, 2, 20, 20), 2)
    batches = made.batches(iter(lambda: centred(0, 1), None))
    assert [next(batches).ids_B.tolist() for _ in range(5)] == [[0, 1]] * 5
    batches.close()  # type: ignore[attr-defined]


# --- which part of an image


@pytest.mark.parametrize("kind", KINDS)
def test_whole_pictures_pass_unchanged(tmp_path: Path, kind: str) -> None:
    pixels = picture(218, 178)
    table = folder_of(tmp_path, {"a.png": encoded(pixels, "PNG")})
    assert (image(kind, table, **WHOLE) == pixels).all()
    assert (image(kind, table, image_size=(178, 178), crop="square") == pixels[20:198]).all()
    assert (image(kind, table, image_size=(148, 148), crop=0.83) == pixels[35:183, 15:163]).all()
    (mirrored,) = decoder(kind, table, **WHOLE).batches([views(0, flip=True)])
    assert (mirrored.images_BHWC[0].numpy() == pixels[:, ::-1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_is_the_region_that_the_request_means(tmp_path: Path, kind: str) -> None:
    pixels = picture(218, 178)
    table = folder_of(tmp_path, {"a.png": encoded(pixels, "PNG")})
    made = decoder(kind, table, image_size=(89, 89), crop="square")
    (plain, flipped) = made.batches(
        [views(0, zoom=0.5, top=0.0, left=1.0), views(0, zoom=0.5, top=0.0, left=1.0, flip=True)]
    )
    assert (plain.images_BHWC[0].numpy() == pixels[20:109, 89:178]).all()
    assert (flipped.images_BHWC[0].numpy() == pixels[20:109, 89:178][:, ::-1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_resizing_keeps_colours_and_places(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((200, 100, 3), dtype=np.uint8)
    pixels[:100, :, 0], pixels[100:, :, 2], pixels[:, 50:, 1] = 200, 100, 50
    found = image(kind, folder_of(tmp_path, {"a.png": encoded(pixels, "PNG")}), image_size=(40, 20), crop="full")
    assert found[5, 2].tolist() == [200, 0, 0]
    assert found[5, 17].tolist() == [200, 50, 0]
    assert found[35, 2].tolist() == [0, 0, 100]
    assert found[35, 17].tolist() == [0, 50, 100]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_pattern_is_averaged_not_aliased(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((256, 256, 3), dtype=np.uint8)
    pixels[::2] = 255
    found = image(kind, folder_of(tmp_path, {"a.png": encoded(pixels, "PNG")}), image_size=(32, 32))
    assert abs(found[1:-1] - 127.5).max() < 5  # the decoders differ in what they think lies beyond the edge


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_camera_s_note_turns_a_picture_before_it_is_cropped(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = picture(218, 178)
    turned = as_held(pixels, orientation)
    table = folder_of(
        tmp_path,
        {
            "plain.png": encoded(pixels, "PNG"),
            "turned.png": encoded(turned, "PNG", exif=exif(orientation)),
            "as_stored.jpg": encoded(turned, quality=95),
            "turned.jpg": encoded(turned, quality=95, exif=exif(orientation)),
        },
    )
    request = views(0, 1, zoom=0.4, top=0.9, left=0.2)
    (batch,) = decoder(kind, table, image_size=(87, 71), crop="full").batches([request])
    assert (batch.images_BHWC[0] == batch.images_BHWC[1]).all()
    found = image(kind, table, 3, **WHOLE)
    (as_stored,) = decoder(kind, table, image_size=turned.shape[:2], crop="full").batches([centred(2)])
    assert (as_held(found, orientation) == as_stored.images_BHWC[0].numpy()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_batch_has_the_size_that_it_is_asked_for(tmp_path: Path, kind: str) -> None:
    """Those of the reference with that size alone, while batches of two sizes are decoded ahead at once."""
    files = {f"{i}.png": encoded(picture(100, 90, i), "PNG") for i in range(4)}
    table = folder_of(tmp_path, {**files, **{f"{i}.jpg": encoded(picture(100, 90, i)) for i in range(4)}})
    sizes = [(32, 16), (32, 16), (48, 40), None, (64, 64)]
    request = views(0, 4, 1, 7, zoom=0.8, flip=True)
    made = decoder(kind, table, 4, prefetch=4, image_size=(40, 30))
    for _ in range(2):
        batches = list(made.batches([dataclasses.replace(request, size=size) for size in sizes]))
        for size, batch in zip(sizes, batches, strict=True):
            reference = decoder("torch", table, 4, image_size=size or (40, 30))
            (wanted,) = reference.batches([request])
            assert batch.images_BHWC.shape == (4, *(size or (40, 30)), 3)
            apart = np.abs(images([batch]) - images([wanted]))
            assert (apart[[0, 2]] == 0).all()  # of no JPEG, which the reference decodes in both
            assert apart.mean() <= (0 if kind == "torch" else 1)


# --- one decoder is the other's reference


@needs_dali
def test_jpegs_without_resize_are_equal_to_the_bit(tmp_path: Path) -> None:
    table = jpegs(tmp_path, 6)
    requests = [views(0, 1, 2), views(3, 4, 5, flip=True)]
    assert difference(table, requests, **WHOLE).max() == 0
    assert difference(table, requests, image_size=(178, 178), crop="square").max() == 0
    # The crop of half a side is as large as the input: no resize, but an offset within the JPEG's blocks.
    assert difference(table, [views(0, 1, 2, zoom=0.5), views(3, zoom=0.5, flip=True)], image_size=(89, 89)).max() == 0


@needs_dali
@pytest.mark.parametrize("size", [(64, 64), (178, 178), (224, 224), (100, 60)])
@pytest.mark.parametrize("crop", ["square", "full", 0.83])
def test_resized_jpegs_differ_by_a_hair(tmp_path: Path, size: tuple[int, int], crop: Crop) -> None:
    table = jpegs(tmp_path, 16)
    requests = list(Plan(np.arange(16), 1, 8, min_zoom=0.5).rank_batches(0, 0, 0, 1))
    assert {bool(flip) for request in requests for flip in request.flip} == {True, False}
    assert difference(table, requests, image_size=size, crop=crop).max() <= 2


@needs_dali
@needs_celeba
def test_real_pictures_without_resize_are_equal_to_the_bit() -> None:
    table = read_table(CELEBA_MINI)
    rows = np.arange(0, len(table), len(table) // 60)[:60]
    assert difference(table, list(Plan(rows, 3, 20).rank_batches(0, 0, 0, 1)), **WHOLE).max() == 0
    assert difference(table, list(Plan(rows, 3, 20).rank_batches(0, 0, 0, 1)), image_size=(178, 178)).max() == 0


@needs_dali
@needs_celeba
@pytest.mark.parametrize("crop", ["square", "full", 0.83])
def test_resized_real_pictures_differ_by_a_hair(crop: Crop) -> None:
    table = read_table(CELEBA_MINI)
    rows = np.arange(1, len(table), len(table) // 60)[:60]
    requests = list(Plan(rows, 3, 20, min_zoom=0.6).rank_batches(1, 0, 0, 1))
    assert difference(table, requests, image_size=(96, 80), crop=crop).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_different_sizes_share_a_batch(tmp_path: Path, kind: str) -> None:
    sizes = [(218, 178), (100, 120), (33, 500), (1, 1), (64, 64)]
    table = folder_of(tmp_path, {f"{i}.jpg": encoded(picture(*size, i)) for i, size in enumerate(sizes)})
    together = images(list(decoder(kind, table).batches([centred(0, 1, 2, 3, 4)])))
    apart = np.stack([image(kind, table, row) for row in range(5)])
    assert (together == apart).all()


@needs_dali
def test_pictures_of_different_sizes_are_the_same_in_both(tmp_path: Path) -> None:
    sizes = [(218, 178), (100, 120), (33, 500), (64, 64), (20, 20)]
    table = folder_of(tmp_path, {f"{i}.jpg": encoded(picture(*size, i)) for i, size in enumerate(sizes)})
    for crop in ("square", "full"):
        assert difference(table, [views(0, 1, 2, 3, 4, zoom=0.7)], image_size=(48, 40), crop=crop).max() <= 2


def unusual() -> dict[str, bytes]:
    base = Image.fromarray(picture(218, 178))
    clear = base.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    jpeg = encoded(base)
    return {
        "grey.jpg": encoded(base.convert("L")),
        "cmyk.jpg": encoded(base.convert("CMYK")),
        "progressive.jpg": encoded(base, progressive=True),
        "444.jpg": encoded(base, subsampling=0),
        "png_named.jpg": encoded(base, "PNG"),
        "grey.png": encoded(base.convert("L"), "PNG"),
        "palette.png": encoded(base.convert("P"), "PNG"),
        "opaque.png": encoded(base.convert("RGBA"), "PNG"),
        "transparent.png": encoded(clear, "PNG"),
        "transparent.webp": encoded(clear, "WEBP", lossless=True),
        "transparent_palette.png": encoded(clear.quantize(32), "PNG"),
        "turned.jpg": encoded(base.transpose(Image.Transpose.ROTATE_90), exif=exif(6)),
        "adobe_rgb.jpg": encoded(base, keep_rgb=True),
        "two.mpo": encoded(base, "MPO", save_all=True, append_images=[clear.convert("RGB")], exif=exif(1)),
        "two_progressive.mpo": encoded(
            base, "MPO", save_all=True, append_images=[clear.convert("RGB")], exif=exif(1), progressive=True
        ),
        "of_one_colour.jpg": encoded(Image.new("RGB", (178, 218), (9, 90, 200)), optimize=True),
        "samsung.jpg": samsung(jpeg),
        "no_end.jpg": jpeg[:-2],
        "zeros_behind.jpg": jpeg + bytes(300),
        "damaged_exif.jpg": with_exif(jpeg, b"Exif\0\0no such thing"),
        "interlaced.webp": encoded(base, "WEBP"),
        "a.bmp": encoded(base, "BMP"),
        "a.tiff": encoded(base, "TIFF"),
        "gif_named.jpg": encoded(base, "GIF"),
        "avif_named.jpg": encoded(base, "AVIF"),
        "16bit.png": encoded(Image.fromarray(picture(218, 178)[..., 0].astype(np.uint16) * 257), "PNG"),
    }


@pytest.mark.parametrize("name", ["grey.jpg", "cmyk.jpg", "progressive.jpg", "444.jpg", "png_named.jpg"])
def test_the_reference_reads_what_data_sets_hold(tmp_path: Path, name: str) -> None:
    content = unusual()[name]
    table = folder_of(tmp_path, {name: content})
    with Image.open(io.BytesIO(content)) as opened:
        wanted = np.asarray(opened.convert("RGB")).astype(np.int64)
    assert np.abs(image("torch", table, **WHOLE) - wanted).mean() <= 1


@needs_dali
@pytest.mark.parametrize("name", sorted(unusual()))
def test_dali_reads_what_the_reference_reads(tmp_path: Path, name: str) -> None:
    table = folder_of(tmp_path, {"plain.jpg": encoded(picture(60, 80)), name: unusual()[name]})
    for options, tolerance in ((WHOLE, 0), ({"image_size": (64, 64)}, 2)):
        (batch,) = decoder("dali", table, 3, **options).batches([centred(1, 0, 1)])
        first, plain, last = images([batch])
        assert (first == last).all()
        assert np.abs(plain - image("torch", table, 0, **options)).mean() <= 2
        assert np.abs(first - image("torch", table, 1, **options)).mean() <= tolerance


@needs_dali
@pytest.mark.parametrize("name", ["samsung.jpg", "cmyk.jpg", "a.png"])
def test_dali_refuses_damage_in_what_the_reference_decodes(tmp_path: Path, name: str) -> None:
    whole = {"samsung.jpg": samsung(GOOD), "cmyk.jpg": unusual()["cmyk.jpg"], "a.png": encoded(picture(9, 9), "PNG")}
    table = folder_of(tmp_path, {"good.jpg": GOOD, name: rotten(whole[name])})
    made = decoder("dali", table, 2)
    refusal(lambda: list(made.batches([centred(0, 1), centred(0)])), str(tmp_path / name), "cannot be decoded")
    assert len(list(made.batches([centred(0)]))) == 1


def with_bad_tables(data: bytes) -> bytes:
    """A JPEG whose header looks right, and which no decoder decodes: its Huffman tables are none."""
    damaged, place = bytearray(data), data.find(b"\xff\xc4")
    damaged[place + 5 : place + 21] = bytes([255] * 16)
    return bytes(damaged)


# As the decoders meet them: in reading, in the header, in the reference beside DALI, and in DALI itself.
ONE = encoded(picture(40, 36, 9))
DAMAGED = {"absent.jpg": None, "text.jpg": b"text", "cut.jpg": ONE[:-40], "tables.jpg": with_bad_tables(ONE)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_replaced_by_what_the_plan_says(tmp_path: Path, kind: str) -> None:
    files = {f"{i}.jpg": encoded(picture(40, 36, i)) for i in range(8)}
    table = folder_of(tmp_path, {**files, **{name: data or b"" for name, data in DAMAGED.items()}})
    (tmp_path / "absent.jpg").unlink()
    plan = Plan(np.arange(12), 5, 4, min_zoom=0.6)
    config = DataConfig.model_validate({"decoder": kind, "image_size": (32, 32), "threads": 2})
    made = make_decoder(config, table, CPU, 4, plan.substitute)
    requests = [plan.batch(epoch, step) for epoch in range(2) for step in range(3)]
    for request, batch in zip(requests, made.batches(requests), strict=True):
        expected = []
        for row in request.ids.tolist():
            attempts = (plan.substitute(request.epoch, row, attempt) for attempt in range(20))
            expected.append(row if row < 8 else next(other for other in attempts if other < 8))
        assert batch.ids_B.tolist() == expected
        assert torch.equal(batch.targets_BA, torch.from_numpy(table.targets[expected]).float())
        instead = {each.row: each for each in batch.replaced.values()}
        assert sorted(instead) == sorted(row for row in request.ids.tolist() if row >= 8)
        for each in instead.values():
            assert table.names[each.row] in each.reason
            assert each.by == expected[request.ids.tolist().index(each.row)]
        # Each is cut as the broken one would have been.
        (again,) = decoder("torch", table).batches([dataclasses.replace(request, ids=np.array(expected))])
        assert (again.images_BHWC.int() - batch.images_BHWC.int()).abs().max() <= (2 if kind == "dali" else 0)
    # In evaluation, no epoch is said, and a broken image always stops.
    for row, name in enumerate(DAMAGED, start=8):
        refusal(lambda row=row: list(made.batches([centred(0, row)])), name)
    assert len(list(made.batches([centred(0, 1)]))) == 1


@needs_dali
@pytest.mark.parametrize("broken", [{0}, {1, 2, 3, 4, 5, 8}, {9}, set(range(10))], ids=str)
def test_dali_loses_only_the_batches_that_it_fails_on(tmp_path: Path, broken: set[int]) -> None:
    # More of them in a row than DALI decodes ahead, and again in the next epoch.
    files = {f"{i}.jpg": encoded(picture(40, 36, i)) for i in range(20)}
    table = folder_of(tmp_path, {**files, "tables.jpg": DAMAGED["tables.jpg"] or b""})
    config = DataConfig.model_validate({"decoder": "dali", "image_size": (32, 32), "threads": 2})
    made = make_decoder(config, table, CPU, 2, lambda _epoch, _row, _attempt: 19)
    rows = [[i, 20 if i in broken else i + 1] for i in range(10)]
    requests = [dataclasses.replace(centred(*pair), epoch=0) for pair in rows]
    instead = [[19 if row == 20 else row for row in pair] for pair in rows]
    wanted = images(list(decoder("torch", table).batches([centred(*pair) for pair in instead])))
    for _ in range(2):
        batches = list(made.batches(requests))
        assert [batch.ids_B.tolist() for batch in batches] == instead
        assert [len(batch.replaced) for batch in batches] == [int(i in broken) for i in range(10)]
        assert abs(images(batches) - wanted).max() <= 2


@needs_dali
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_what_dali_fails_on_is_damage_where_the_reference_finds_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    monkeypatch.setattr(decoders, "_is_damage", lambda _: False)  # as where DALI has other words for it
    table = folder_of(tmp_path, {"good.jpg": ONE, "tables.jpg": DAMAGED["tables.jpg"] or b""})
    config = DataConfig.model_validate({"decoder": "dali", "image_size": (32, 32), "threads": 2})
    substitute = None if on_error == "stop" else lambda _epoch, _row, _attempt: 0
    made = make_decoder(config, table, CPU, 2, substitute)
    damaged, too_many = (dataclasses.replace(centred(*rows), epoch=0) for rows in ((0, 1), (0, 0, 0)))
    if on_error == "stop":
        refusal(lambda: list(made.batches([damaged])), "tables.jpg", "cannot be decoded")
    else:
        (batch,) = made.batches([damaged])
        assert batch.ids_B.tolist() == [0, 0]
    # What is wrong with no image is not taken for damage: more images than the decoder was made for.
    with pytest.raises(RuntimeError, match="batch size"):
        list(made.batches([too_many]))


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_are_broken_it_stops(tmp_path: Path, kind: str) -> None:
    table = folder_of(tmp_path, {f"{i}.jpg": b"text" for i in range(30)})
    plan = Plan(np.arange(30), 5, 4)
    config = DataConfig.model_validate({"decoder": kind, "image_size": (32, 32), "threads": 2})
    made = make_decoder(config, table, CPU, 4, plan.substitute)
    refusal(lambda: list(made.batches([plan.batch(0, 0)])), "nor could 20 other training images")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_exif_is_said_once(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = with_exif(GOOD, b"Exif\0\0no such thing")
    table = folder_of(tmp_path, {"good.jpg": GOOD, "a.jpg": damaged, "b.jpg": damaged})
    assert len(list(decoder(kind, table).batches([centred(0, 1), centred(2, 1)]))) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("distrib:"))
    assert line.startswith("distrib: warning: ")
    assert "damaged EXIF" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize("name", ["png_named.jpg", "a.bmp", "grey.jpg"])
def test_decoding_is_silent(tmp_path: Path, name: str) -> None:
    table = folder_of(tmp_path, {name: unusual()[name]})
    torch.set_warn_always(True)  # or torch warns once per process, perhaps in an earlier test
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image("torch", table, **WHOLE)
            image("torch", table)
    finally:
        torch.set_warn_always(False)


# --- what is no image


def jpeg_bomb() -> bytes:
    data = bytearray(encoded(picture(218, 178)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def png_bomb(side: int) -> bytes:
    data = bytearray(encoded(picture(32, 32), "PNG"))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


GOOD = encoded(picture(218, 178))
BROKEN = {
    "truncated.jpg": GOOD[: len(GOOD) // 2],
    "almost_whole.jpg": GOOD[:-40],
    "zeros_inside.jpg": zeroed(GOOD),
    "header_alone.jpg": GOOD[:200],
    "two_bytes.jpg": GOOD[:2],
    "text.jpg": b"<html>404 Not Found</html>\n" * 20,
    "empty.jpg": b"",
    "zeros.jpg": bytes(5000),
    "bomb.jpg": jpeg_bomb(),
    "bomb.png": png_bomb(65000),
    "truncated.png": encoded(picture(218, 178), "PNG")[:2000],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    good = {f"good{i}.jpg": GOOD for i in range(3)}
    table = folder_of(tmp_path, {**good, name: BROKEN[name]})
    requests = [centred(0, 1), centred(2, 3), centred(0, 1)]
    for options in (WHOLE, {"image_size": (32, 32), "crop": "square"}):
        made = decoder(kind, table, 2, **options)
        refusal(lambda made=made: list(made.batches(requests)), str(tmp_path / name), "cannot be decoded", "replace")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    table = folder_of(tmp_path, {"good.jpg": GOOD}, absent=("gone.jpg",))
    refusal(lambda: list(decoder(kind, table).batches([centred(0, 1)])), str(tmp_path / "gone.jpg"), "cannot be read")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_place_of_a_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder.jpg").mkdir()
    table = folder_of(tmp_path, {"good.jpg": GOOD}, absent=("folder.jpg",))
    refusal(lambda: list(decoder(kind, table).batches([centred(0, 1)])), str(tmp_path / "folder.jpg"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["rotten", "truncated"])
def test_damage_below_the_region_is_refused_as_well(tmp_path: Path, kind: str, damage: str) -> None:
    bad = rotten(GOOD) if damage == "rotten" else GOOD[:-300]
    table = folder_of(tmp_path, {"good.jpg": GOOD, "bad.jpg": bad})
    request = views(0, 1, zoom=0.3, top=0)
    refusal(lambda: list(decoder(kind, table).batches([request])), str(tmp_path / "bad.jpg"), "cannot be decoded")


def test_a_bomb_takes_no_memory_before_it_is_refused() -> None:
    began = time.monotonic()
    for content in (jpeg_bomb(), png_bomb(65000), png_bomb(2**31 - 1)):
        with pytest.raises(ValueError, match="pixels"):
            decode(content)
    assert time.monotonic() - began < 1


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([encoded(picture(24, 20)), encoded(picture(24, 20), "PNG"), encoded(picture(24, 20), "WEBP")]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3)), max_size=4),
    st.floats(0.2, 1),
)
def test_damaged_bytes_are_a_picture_or_a_value_error(
    content: bytes, damages: list[tuple[float, bytes]], length: float
) -> None:
    data = bytearray(content)
    for place, new in damages:
        start = int(place * len(data))
        data[start : start + len(new)] = new
    try:
        pixels = decode(bytes(data[: round(length * len(data))]))
    except ValueError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


# --- after an interruption


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["truncated.jpg", "text.jpg", "gone.jpg"])
def test_after_an_error_the_same_decoder_delivers_again(tmp_path: Path, kind: str, bad: str) -> None:
    files = {f"{i}.jpg": encoded(picture(218, 178, i)) for i in range(4)}
    table = folder_of(tmp_path, files | ({bad: BROKEN[bad]} if bad in BROKEN else {}), absent=("gone.jpg",))
    table = Table(FolderStore(tmp_path, [*files, bad]), [*files, bad], table.attributes, table.targets, None, None, ())
    made = decoder(kind, table, 2)
    wanted = images(list(decoder(kind, table, 2).batches([centred(3, 1), centred(2)])))
    for place in range(4):
        requests = [centred(0, 1), centred(1, 2), centred(2, 3), centred(0, 3)]
        requests[place] = centred(place, 4)
        refusal(lambda requests=requests: list(made.batches(requests)), bad)
        batches = list(made.batches([centred(3, 1), centred(2)]))
        assert [batch.ids_B.tolist() for batch in batches] == [[3, 1], [2]]
        assert (images(batches) == wanted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_before_a_bad_picture_is_delivered(tmp_path: Path, kind: str) -> None:
    files = {f"{i}.jpg": encoded(picture(30, 30, i)) for i in range(6)}
    table = folder_of(tmp_path, {**files, "text.jpg": b"text"})
    made = decoder(kind, table, 1, prefetch=1, threads=1)
    batches = made.batches([centred(row) for row in (0, 1, 2, 3, 4, 6)])
    assert [next(batches).ids_B.item() for _ in range(4)] == [0, 1, 2, 3]
    refusal(lambda: list(batches), "text.jpg")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_iteration_may_be_closed_midway(tmp_path: Path, kind: str, taken: int) -> None:
    table = jpegs(tmp_path, 8)
    made = decoder(kind, table, 2)
    wanted = images(list(decoder(kind, table, 2).batches([centred(6, 7), centred(5)])))
    for _ in range(2):
        batches = made.batches([centred(i, i + 1) for i in range(6)])
        assert [next(batches).ids_B.tolist() for _ in range(taken)] == [[i, i + 1] for i in range(taken)]
        batches.close()  # type: ignore[attr-defined]
        after = list(made.batches([centred(6, 7), centred(5)]))
        assert [batch.ids_B.tolist() for batch in after] == [[6, 7], [5]]
        assert (images(after) == wanted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_iteration_that_is_still_referred_to_does_no_harm(tmp_path: Path, kind: str) -> None:
    # As where an exception's traceback keeps the loop's variables alive.
    table = jpegs(tmp_path, 8)
    made = decoder(kind, table, 2)
    wanted = images(list(decoder(kind, table, 2).batches([centred(6, 7), centred(5)])))
    abandoned = made.batches([centred(i, i + 1) for i in range(6)])
    next(abandoned)
    after = list(made.batches([centred(6, 7), centred(5)]))
    assert [batch.ids_B.tolist() for batch in after] == [[6, 7], [5]]
    assert (images(after) == wanted).all()
    del abandoned
    assert (images(list(made.batches([centred(6, 7), centred(5)]))) == wanted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_validation_decoders_work_side_by_side(tmp_path: Path, kind: str) -> None:
    table = jpegs(tmp_path, 8)
    training, validation = decoder(kind, table, 2), decoder(kind, table, 2)
    batches = training.batches([centred(i, i + 1) for i in range(6)])
    first = next(batches)
    assert [batch.ids_B.tolist() for batch in validation.batches([centred(6), centred(7)])] == [[6], [7]]
    rest = list(batches)
    assert [batch.ids_B.tolist() for batch in [first, *rest]] == [[i, i + 1] for i in range(6)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_source_comes_through(tmp_path: Path, kind: str) -> None:
    made = decoder(kind, jpegs(tmp_path, 2), 2)

    def requests() -> Iterator[Request]:
        yield centred(0, 1)
        raise UserError("the plan has a hole")

    refusal(lambda: list(made.batches(requests())), "the plan has a hole")
    assert len(list(made.batches([centred(0, 1)]))) == 1


# --- the choice


def test_the_cpu_has_the_torch_decoder_by_default() -> None:
    assert choose_decoder("auto", CPU) == "torch"
    assert choose_decoder("torch", CPU) == "torch"


@needs_dali
def test_dali_is_chosen_where_it_is_asked_for_or_a_gpu_is_there() -> None:
    assert choose_decoder("dali", CPU) == "dali"
    assert choose_decoder("auto", torch.device("cuda", 0)) == "dali"
    assert choose_decoder("torch", torch.device("cuda", 0)) == "torch"


@pytest.mark.skipif(dali_installed(), reason="NVIDIA DALI is installed")
def test_without_dali_it_is_refused_with_the_remedy() -> None:
    assert choose_decoder("auto", torch.device("cuda", 0)) == "torch"
    refusal(lambda: choose_decoder("dali", CPU), "data.decoder", "pip install")
