"""Images that are decoded once give the batches that decoding them each time gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, exif, rgb_png, rotten, smooth
from test_decoders import CPU, KINDS, centred, folder_of

from distrib.base.errors import UserError
from distrib.config import DataConfig
from distrib.data.decoders import Decoder, make_decoder
from distrib.data.plan import Plan
from distrib.data.resident import (
    Found,
    ResidentDecoder,
    ResidentImages,
    decode_once,
    make_resident_decoder,
    size_of_first,
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


def test_the_size_is_that_of_the_first_image_that_is_whole(tmp_path: Path) -> None:
    table = folder_of(tmp_path, {"a.jpg": b"text", "b.jpg": encoded(smooth(36, 40), exif=exif(6))})
    assert size_of_first(table, np.arange(2)) == (1, SIZE)
    with pytest.raises(UserError, match="none of 1 images can be decoded"):
        size_of_first(table, np.array([0]))


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


@pytest.mark.parametrize("options", [{}, {"crop": "full", "image_size": SIZE}])
def test_batches_are_the_same_and_broken_images_are_replaced_alike(tmp_path: Path, options: dict[str, Any]) -> None:
    table = images_of(tmp_path, text=b"text", cut=encoded(smooth(*SIZE))[:-40])
    plan = Plan(np.arange(12), 5, 4, min_zoom=0.6)
    requests = [plan.batch(epoch, step) for epoch in range(2) for step in range(3)]
    reference, residents = decoders_of(table, config(**options), plan)
    for resident in residents:
        replaced = 0
        for expected, batch in zip(reference.batches(requests), resident.batches(requests), strict=True):
            assert torch.equal(batch.images_BHWC, expected.images_BHWC)
            assert torch.equal(batch.targets_BA, expected.targets_BA)
            assert torch.equal(batch.ids_B, expected.ids_B)
            assert batch.replaced == expected.replaced
            replaced += len(batch.replaced)
        assert replaced > 0


def test_evaluation_stops_at_a_broken_image(tmp_path: Path) -> None:
    table = images_of(tmp_path, rotten=rotten(encoded(smooth(*SIZE))))
    _, residents = decoders_of(table, config(), Plan(np.arange(10), 0, 2))
    for resident in residents:
        with pytest.raises(UserError, match=r"rotten\.jpg cannot be decoded"):
            list(resident.batches([centred(3, 10)]))
