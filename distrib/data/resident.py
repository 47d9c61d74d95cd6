"""Images that are decoded once, and stay in memory for the whole training.

Legend: N images, B images of a batch, H and W their height and width in pixels.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.threads import map_ahead
from distrib.config import DataConfig
from distrib.data.batch import Batch, Replacement, Request, crop_regions
from distrib.data.decoders import (
    Decoder,
    Substitute,
    ToDevice,
    TorchDecoder,
    make_decoder,
    rows_of,
    threads_of,
    use_or_replace,
)
from distrib.data.images import is_jpeg, is_plain_jpeg, read_jpeg_header
from distrib.data.reader import ImageReader
from distrib.data.table import Table
from distrib.data.views import views, views_of

_AT_ONCE = 256  # images that are decoded before errors are looked at
_SAMPLED = 32  # images whose size is looked at before all are decoded


@dataclass
class Found:
    """What has turned up while images were decoded.

    Attributes:
        broken: row -> what is wrong with its image.
        others: row -> height and width of an image that differs in them from the first one.
    """

    broken: dict[int, str] = field(default_factory=dict)
    others: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ResidentImages:
    """Decoded images of one size.

    Attributes:
        pixels_NHWC: uint8, in the memory of this machine or of a GPU.
        rows: int64 [N], the row of the table that each belongs to, ascending.
        broken: row -> what is wrong with an image that could not be decoded, and has no pixels.
    """

    pixels_NHWC: torch.Tensor
    rows: NDArray[np.int64]
    broken: dict[int, str]

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the images of these rows are."""
        places = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows[places], rows), "not all of these images are in memory"
        return places

    def check(self, row: int) -> None:
        """Raises UserError if a row's image could not be decoded."""
        if row in self.broken:
            raise UserError(self.broken[row])


def sizes_of_some(table: Table, rows: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """Row -> height and width of some images from all over these rows that can be decoded.

    Raises:
        UserError: if none of them can be, or the disk fails.
    """
    reader, sizes = ImageReader(table), {}
    for row in rows[:: max(1, len(rows) // _SAMPLED)].tolist():
        try:
            height, width, _ = reader.decode(row, reader.read(row)).shape
            sizes[row] = height, width
        except UserError as error:
            if error.may_pass:
                raise
    if not sizes:
        raise UserError("none of the images that were tried can be decoded: check the data set and the disk")
    return sizes


def decode_once(
    config: DataConfig,
    table: Table,
    device: torch.device,
    rows: NDArray[np.int64],
    whole: int,
    into_NHWC: torch.Tensor,
    decoded: Callable[[int], None],
) -> Found:
    """Decode the images of these rows, by the decoder of the run.

    It ends early where an image has another size than the others, which makes it useless.

    Args:
        config: of the run.
        table: of the images.
        device: of this rank.
        rows: int64 [N], ascending: in the order in which Parquet files and shards have them.
        whole: a row whose image is whole.
        into_NHWC: uint8, where the pixels go.
        decoded: is called with the number of images that have been decoded since the last call.

    Returns:
        What is wrong with any of them.

    Raises:
        UserError: if the disk fails.
    """
    size = (into_NHWC.shape[1], into_NHWC.shape[2])
    reader = _OneSize(table, size)
    on = device if config.decoder == "dali" else into_NHWC.device
    # JPEG hardware takes a share of each batch, and its pixels differ slightly: here they depend on the image alone.
    dali = config.dali.model_copy(update={"hw_decoder_load": 0.0})
    whole_images = config.model_copy(update={"image_size": size, "crop": "full", "dali": dali})
    decoder = make_decoder(whole_images, table, on, _AT_ONCE, lambda *_: whole, reader)
    requests = (
        replace(Request.centred(rows[start : start + _AT_ONCE]), epoch=0) for start in range(0, len(rows), _AT_ONCE)
    )
    suspects: set[int] = set()
    done = 0
    for batch in decoder.batches(requests):
        into_NHWC[done : done + len(batch)] = batch.images_BHWC
        suspects.update(each.row for each in batch.replaced.values())
        done += len(batch)
        decoded(len(batch))
        if reader.others:
            break
    del decoder
    if config.decoder == "dali":
        _give_back()
    broken = {}
    for row in sorted(suspects.difference(reader.others)):  # once more: a disk may have failed for a moment
        try:
            pixels_HWC = reader.decode(row, reader.read(row))
            into_NHWC[np.searchsorted(rows, row)] = torch.from_numpy(pixels_HWC.copy())
        except UserError as error:
            if error.may_pass:
                raise
            broken[row] = str(error)
    return Found(broken, reader.others)


def _give_back() -> None:
    """Free what DALI holds: its pipeline and what asks it for images hold each other, and its memory is a pool."""
    from nvidia.dali import backend

    gc.collect()
    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


class _OneSize(ImageReader):
    """Takes images of one size alone.

    Attributes:
        others: row -> height and width of those that have another.
    """

    def __init__(self, table: Table, size: tuple[int, int]) -> None:
        super().__init__(table)
        self._size = size
        self.others: dict[int, tuple[int, int]] = {}

    def read(self, row: int) -> bytes:
        data = super().read(row)
        # A plain JPEG is decoded by DALI, which would resize it, and others by `decode`.
        with suppress(ValueError):
            if is_jpeg(data) and is_plain_jpeg(data, header := read_jpeg_header(data)):
                self._check(row, header.height, header.width)
        return data

    def decode(self, row: int, data: bytes) -> NDArray[np.uint8]:
        pixels_HWC = super().decode(row, data)
        self._check(row, *pixels_HWC.shape[:2])
        return pixels_HWC

    def _check(self, row: int, height: int, width: int) -> None:
        if (height, width) != self._size:
            self.others[row] = height, width
            raise UserError(f"{self.name(row)} is {height} pixels high and {width} wide, unlike others")


class _FromMemory(ImageReader):
    """Images that have been decoded already."""

    def __init__(self, table: Table, images: ResidentImages) -> None:
        super().__init__(table)
        self._images = images
        self._pixels_NHWC = images.pixels_NHWC.numpy()
        self._places = np.full(len(table), -1)
        self._places[images.rows] = np.arange(len(images.rows))

    def read(self, row: int) -> bytes:
        return b""

    def decode(self, row: int, data: bytes) -> NDArray[np.uint8]:
        self._images.check(row)
        place = self._places[row]
        assert place >= 0, "this image is not in memory"
        pixels_HWC: NDArray[np.uint8] = self._pixels_NHWC[place]
        return pixels_HWC


def make_resident_decoder(
    images: ResidentImages,
    config: DataConfig,
    table: Table,
    device: torch.device,
    substitute: Substitute | None = None,
) -> Decoder:
    """Delivers batches of images in memory; for its arguments see `make_decoder`.

    A CPU resizes one image after another, which is faster there.
    """
    if device.type == "cpu":
        return TorchDecoder(config, table, device, substitute, _FromMemory(table, images))
    return ResidentDecoder(images, config, table, device, substitute)


class ResidentDecoder:
    """Cuts batches out of images in memory, all of a batch at once, on the device where they are wanted.

    Images in a GPU's own memory are gathered there; of those in the machine's, threads gather the batches ahead.
    """

    name = "resident"

    def __init__(
        self,
        images: ResidentImages,
        config: DataConfig,
        table: Table,
        device: torch.device,
        substitute: Substitute | None = None,
    ) -> None:
        self._images, self._config, self._device, self._substitute = images, config, device, substitute
        self._targets = torch.from_numpy(table.targets)
        self._pool = ThreadPoolExecutor(threads_of(config), thread_name_prefix="gather")
        self._to_device = ToDevice(device)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        with closing(map_ahead(self._pool, self._gather, requests, self._config.prefetch)) as gathered:
            for each in gathered:
                images_NHWC, targets_BA = each.images_NHWC, each.targets_BA
                if images_NHWC.device.type == "cpu":
                    images_NHWC, targets_BA = self._to_device.copy(images_NHWC, targets_BA)
                else:
                    (targets_BA,) = self._to_device.copy(targets_BA)
                images_BHWC = views(images_NHWC, each.asked_B6, each.size)
                yield Batch(images_BHWC, targets_BA, each.ids_B, each.replaced)

    def _gather(self, request: Request) -> "_Gathered":
        on_gpu = self._device.type == "cuda"
        replaced = {}
        for place in np.flatnonzero(np.isin(request.ids, list(self._images.broken))).tolist():
            row = int(request.ids[place])
            _, instead = use_or_replace(row, request.epoch, self._substitute, self._images.check)
            assert instead is not None
            replaced[place] = instead
        ids = rows_of(request, replaced)
        pixels_NHWC, places = self._images.pixels_NHWC, self._images.places(ids.numpy())
        _, height, width, _ = pixels_NHWC.shape
        if on_gpu and pixels_NHWC.device.type == "cpu":
            batch = torch.empty(len(request), height, width, 3, dtype=torch.uint8, pin_memory=True)
            # Without "clip" numpy would make another copy first.
            np.take(pixels_NHWC.numpy(), places, axis=0, out=batch.numpy(), mode="clip")
            pixels_NHWC, places = batch, np.arange(len(request))
        heights, widths = np.full(len(request), height), np.full(len(request), width)
        regions = crop_regions(request, heights, widths, self._config.crop)
        asked, targets = views_of(places, regions, request.flip), self._targets[ids].float()
        if on_gpu:
            asked, targets = asked.pin_memory(), targets.pin_memory()
        size = request.size or self._config.image_size
        return _Gathered(pixels_NHWC, asked, size, targets, ids, replaced)


class _Gathered(NamedTuple):
    """A batch whose images are still whole; for its fields see `views` and `Batch`."""

    images_NHWC: torch.Tensor
    asked_B6: torch.Tensor
    size: tuple[int, int]
    targets_BA: torch.Tensor
    ids_B: torch.Tensor
    replaced: dict[int, Replacement]
