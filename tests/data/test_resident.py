"""Images that are decoded once give the batches that decoding them each time gives."""

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, exif, rgb_png, rotten, smooth
from test_decoders import CPU, KINDS, centred, folder_of
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from distrib.base.errors import UserError
from distrib.config import DataConfig
from distrib.data import reader, resident
from distrib.data.decoders import Decoder, make_decoder
from distrib.data.plan import Plan
from distrib.data.resident import (
    Found,
    ResidentDecoder,
    ResidentImages,
    decode_once,
    make_resident_decoder,
    sizes_of_some,
)
from distrib.data.table import Table

SIZE = (40, 36)


def images_of(path: Path, **others: bytes) -> Table:
    """Ten images of one size, of which a decoder of plain JPEGs does not take all, and others."""
    whole = {f"{i}.jpg": encoded(smooth(*SIZE, i)) for i in range(8)}
    whole["turned.jpg"] = encoded(smooth(36, 40, 8), exif=exif(6))
    whole["png.jpg"] = rgb_png(smooth(*SIZE, 9))
    return folder_of(path, {**whole, **{f"{name}.jpg": data for name, data in others.items()}})


def config(decoder: str = "torch", **options: Any) -> DataConfig:
    return DataConfig.model_validate({"decoder": decoder, "image_size": (32, 32), "threads": 2, **options})


def decoded(table: Table, kind: str = "torch") -> tuple[ResidentImages, Found, list[int]]:
    """All images of a table in memory, what was found, and the counts that were told meanwhile."""
    rows = np.arange(len(table))
    pixels = torch.zeros(len(rows), *SIZE, 3, dtype=torch.uint8)
    told: list[int] = []
    found = decode_once(config(kind), table, CPU, rows, 0, pixels, told.append)
    return ResidentImages(pixels, rows, found.broken), found, told


def test_sizes_are_those_of_images_that_are_whole(tmp_path: Path) -> None:
    table = folder_of(tmp_path, {"a.jpg": b"text", "b.jpg": encoded(smooth(36, 40), exif=exif(6))})
    assert sizes_of_some(table, np.arange(2)) == {1: SIZE}
    with pytest.raises(UserError, match="none of the images that were tried can be decoded"):
        sizes_of_some(table, np.array([0]))


def test_what_a_disk_does_not_give_for_a_moment_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_PAUSES", ())
    table = images_of(tmp_path)
    expected, _, _ = decoded(table)
    failures = [3]
    whole = table.store.read

    def read(row: int) -> bytes:
        if row == 3 and failures:
            failures.clear()
            raise OSError(errno.EIO, "Input/output error")
        return whole(row)

    monkeypatch.setattr(table.store, "read", read)
    images, found, _ = decoded(table)
    assert not found.broken
    assert torch.equal(images.pixels_NHWC, expected.pixels_NHWC)
    monkeypatch.setattr(table.store, "read", lambda row: whole(row) if row != 3 else fail())
    with pytest.raises(UserError) as raised:
        decoded(table)
    assert raised.value.may_pass


def fail() -> bytes:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_decoded_whole_and_every_broken_one_is_named(tmp_path: Path, kind: str) -> None:
    table = images_of(tmp_path, text=b"text", cut=encoded(smooth(*SIZE))[:-40], gone=b"")
    (tmp_path / "gone.jpg").unlink()
    images, found, told = decoded(table, kind)
    assert sum(told) == len(table)
    assert sorted(found.broken) == [10, 11, 12]
    for row, reason in found.broken.items():
        assert table.names[row] in reason
    assert not found.others
    whole = config(kind, image_size=SIZE, crop="full")
    (batch,) = make_decoder(whole, table, CPU, 10).batches([centred(*range(10))])
    assert torch.equal(images.pixels_NHWC[:10], batch.images_BHWC)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [{"jpeg": (40, 35)}, {"png": (39, 36)}])
def test_an_image_of_another_size_is_found(tmp_path: Path, kind: str, odd: dict[str, tuple[int, int]]) -> None:
    ((form, size),) = odd.items()
    data = encoded(smooth(*size)) if form == "jpeg" else rgb_png(smooth(*size))
    _, found, _ = decoded(images_of(tmp_path, odd=data), kind)
    assert found.others == {10: size}
    assert not found.broken


def decoders_of(table: Table, options: DataConfig, plan: Plan | None) -> tuple[Decoder, list[Decoder]]:
    """The reference, and what takes its images from memory: as on a CPU, and as on a GPU."""
    images, _, _ = decoded(table)
    substitute = None if plan is None else plan.substitute
    return make_decoder(options, table, CPU, 4, substitute), [
        make_resident_decoder(images, options, table, CPU, substitute),
        ResidentDecoder(images, options, table, CPU, substitute),
    ]


@pytest.mark.parametrize("options", [{}, {"crop": 0.83}, {"crop": "full", "image_size": SIZE}, {"grow": "16@0 32@0.4"}])
def test_batches_are_the_same_and_broken_images_are_replaced_alike(tmp_path: Path, options: dict[str, Any]) -> None:
    table = images_of(tmp_path, text=b"text", cut=encoded(smooth(*SIZE))[:-40])
    data = config(**options)
    plan = Plan(np.arange(12), 5, 4, min_zoom=0.6, stages=data.stages, epochs=2)
    requests = [plan.batch(epoch, step) for epoch in range(2) for step in range(3)]
    reference, residents = decoders_of(table, data, plan)
    for made in residents:
        replaced = 0
        for expected, batch in zip(reference.batches(requests), made.batches(requests), strict=True):
            assert torch.equal(batch.images_BHWC, expected.images_BHWC)  # and so of the same size
            assert torch.equal(batch.targets_BA, expected.targets_BA)
            assert torch.equal(batch.ids_B, expected.ids_B)
            assert batch.replaced == expected.replaced
            replaced += len(batch.replaced)
        assert replaced > 0


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no GPUs")
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("min_zoom", [1, 0.6])
def test_on_a_gpu_batches_are_made_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, min_zoom: float
) -> None:
    """By tensors without values, which refuse operations between those of the CPU and those of a GPU."""
    empty = torch.empty
    # What a GPU that is not there cannot do, and what fake tensors cannot do in other threads.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
    monkeypatch.setattr(resident, "map_ahead", outside_of_fakes)
    monkeypatch.setattr(resident, "ToDevice", WithoutStreams)
    table = images_of(tmp_path)
    requests = [Plan(np.arange(10), 0, 5, min_zoom=min_zoom).batch(0, step) for step in range(2)]
    pixels = torch.zeros(10, *SIZE, 3, dtype=torch.uint8)
    with FakeTensorMode(allow_non_fake_inputs=True):
        if where == "cuda":
            pixels = empty(10, *SIZE, 3, dtype=torch.uint8, device="cuda")
        images = ResidentImages(pixels, np.arange(10), {})
        made = ResidentDecoder(images, config(image_size=(36, 36)), table, torch.device("cuda"))
        for batch in made.batches(requests):
            assert (batch.images_BHWC.device.type, batch.targets_BA.device.type) == ("cuda", "cuda")
            assert (tuple(batch.images_BHWC.shape), batch.images_BHWC.dtype) == ((5, 36, 36, 3), torch.uint8)


class WithoutStreams:
    """`ToDevice` where there is no GPU to have streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def copy(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.to(self._device, non_blocking=True) for tensor in tensors]


def outside_of_fakes(_pool: Any, work: Callable[..., Any], source: Iterable[Any], _ahead: int) -> Iterator[Any]:
    """As `map_ahead` does the work: in a thread of its own, where all tensors are real ones."""
    for each in source:
        with unset_fake_temporarily():
            done = work(each)
        yield done


def test_evaluation_stops_at_a_broken_image(tmp_path: Path) -> None:
    table = images_of(tmp_path, rotten=rotten(encoded(smooth(*SIZE))))
    _, residents = decoders_of(table, config(), Plan(np.arange(10), 0, 2))
    for made in residents:
        with pytest.raises(UserError, match=r"rotten\.jpg cannot be decoded"):
            list(made.batches([centred(3, 10)]))
