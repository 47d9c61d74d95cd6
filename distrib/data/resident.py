"""Images that are decoded once, and stay in memory for the whole training.

Legend: N images, B images of a batch, H and W their height and width in pixels.
"""

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
from distrib.data.decoders import Decoder, Substitute, TorchDecoder, make_decoder, rows_of, threads_of, use_or_replace
from distrib.data.images import is_jpeg, is_plain_jpeg, read_jpeg_header
from distrib.data.reader import ImageReader
from distrib.data.table import Table
from distrib.data.views import views

_AT_ONCE = 256  # images that are decoded before it is looked for what is wrong


@dataclass
class Found:
    """What has turned up while images were decoded.

    Attributes:
        broken: row -> what is wrong with its image.
        others: row -> height and width of an image that has not those of the first one.
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
        return np.searchsorted(self.rows, rows)

    def check(self, row: int) -> None:
        """Raises UserError if a row's image could not be decoded."""
        if row in self.broken:
            raise UserError(self.broken[row])


def size_of_first(table: Table, rows: NDArray[np.int64]) -> tuple[int, tuple[int, int]]:
    """The first row whose image can be decoded, and its height and width.

    Raises:
        UserError: if there is none.
    """
    reader = ImageReader(table)
    for row in rows.tolist():
        with suppress(UserError):
            height, width, _ = reader.decode(row, reader.read(row)).shape
            return row, (height, width)
    raise UserError(f"none of {len(rows):,} images can be decoded: check the data set and the disk")


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
    """
    size = (into_NHWC.shape[1], into_NHWC.shape[2])
    reader = _OneSize(table, size)
    on = device if config.decoder == "dali" else into_NHWC.device
    decoder = make_decoder(
        config.model_copy(update={"image_size": size, "crop": "full"}), table, on, _AT_ONCE, lambda *_: whole, reader
    )
    requests = (
        replace(Request.centred(rows[start : start + _AT_ONCE]), epoch=0) for start in range(0, len(rows), _AT_ONCE)
    )
    broken, done = {}, 0
    for batch in decoder.batches(requests):
        into_NHWC[done : done + len(batch)] = batch.images_BHWC
        broken.update({each.row: each.reason for each in batch.replaced if each.row not in reader.others})
        done += len(batch)
        decoded(len(batch))
        if reader.others:
            break
    return Found(broken, reader.others)


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

    def read(self, row: int) -> bytes:
        return b""

    def decode(self, row: int, data: bytes) -> NDArray[np.uint8]:
        self._images.check(row)
        pixels_HWC: NDArray[np.uint8] = self._pixels_NHWC[np.searchsorted(self._images.rows, row)]
        return pixels_HWC


def make_resident_decoder(
    images: ResidentImages,
    config: DataConfig,
    table: Table,
    device: torch.device,
    substitute: Substitute | None = None,
) -> Decoder:
    """Delivers batches of images in memory; for its arguments see `make_decoder`.

    A CPU resizes an image after the other, which is faster there.
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

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        with closing(map_ahead(self._pool, self._gather, requests, self._config.prefetch)) as gathered:
            for each in gathered:
                images_NHWC = each.images_NHWC.to(self._device, non_blocking=True)
                size = self._config.image_size
                images_BHWC = views(images_NHWC, each.places_B, each.regions_B4, each.flip_B, size)
                targets_BA = each.targets_BA.to(self._device, non_blocking=True)
                yield Batch(images_BHWC, targets_BA, each.ids_B, each.replaced)

    def _gather(self, request: Request) -> "_Gathered":
        on_gpu = self._device.type == "cuda"
        replaced = {}
        for place, row in enumerate(request.ids.tolist()):
            _, instead = use_or_replace(row, request.epoch, self._substitute, self._images.check)
            if instead is not None:
                replaced[place] = instead
        ids = rows_of(request, replaced)
        pixels_NHWC, places = self._images.pixels_NHWC, self._images.places(ids.numpy())
        _, height, width, _ = pixels_NHWC.shape
        if on_gpu and pixels_NHWC.device.type == "cpu":
            batch = torch.empty(len(request), height, width, 3, dtype=torch.uint8, pin_memory=True)
            pixels_NHWC = torch.index_select(pixels_NHWC, 0, torch.from_numpy(places), out=batch)
            places = np.arange(len(request))
        heights, widths = np.full(len(request), height), np.full(len(request), width)
        regions = crop_regions(request, heights, widths, self._config.crop)
        targets = self._targets[ids].float()
        targets = targets.pin_memory() if on_gpu else targets
        return _Gathered(pixels_NHWC, places, regions, request.flip, targets, ids, tuple(replaced.values()))


class _Gathered(NamedTuple):
    """A batch whose images are still whole; for its fields see `views` and `Batch`."""

    images_NHWC: torch.Tensor
    places_B: NDArray[np.int64]
    regions_B4: NDArray[np.int64]
    flip_B: NDArray[np.bool_]
    targets_BA: torch.Tensor
    ids_B: torch.Tensor
    replaced: tuple[Replacement, ...]
