"""Two decoders behind one interface: requests in, batches on the device out.

Both deliver the same images; the torch one is the reference (`tests/data/test_decoders.py`). DALI decodes the plain
JPEGs, of which every decoder makes the same; whatever else a data set holds is decoded by the reference here too.
"""

import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from distrib.base.cores import cores_of_rank
from distrib.base.errors import UserError
from distrib.base.threads import begin_ahead, map_ahead, pool_for_torch
from distrib.base.words import few
from distrib.config import DataConfig
from distrib.data.batch import Batch, Replacement, Request, crop_regions, cut
from distrib.data.images import is_jpeg, is_plain_jpeg, read_jpeg_header
from distrib.data.jpeg_hardware import hardware_share
from distrib.data.reader import ImageReader
from distrib.data.table import Table

T = TypeVar("T")
# Without JPEG hardware a GPU's small images are Huffman-decoded by threads; more than these wait for each other.
_MOST_THREADS = 16
# The row in place of a broken image's: of epoch, row and attempt.
Substitute = Callable[[int, int, int], int]
# If so many others are broken too, something is wrong with the disk, or with all of the data set.
_MOST_ATTEMPTS = 20
# What DALI decodes where the reference decodes the file.
_PLACEHOLDER: bytes = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))


class Decoder(Protocol):
    """Delivers images in the order they are asked for."""

    name: str

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """A batch for each request, decoded ahead of its use.

        Raises:
            UserError: if an image cannot be read or decoded, and is not replaced; it names the file.
        """
        ...


def dali_installed() -> bool:
    """Whether NVIDIA DALI can be imported, without importing it."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def choose_decoder(decoder: str, device: torch.device) -> str:
    """What `data.decoder` means on this machine: "dali" or "torch".

    Raises:
        UserError: if DALI is asked for and not installed.
    """
    if decoder == "dali" and not dali_installed():
        raise UserError(
            "data.decoder is dali, but NVIDIA DALI is not installed: `pip install -e '.[cuda13]'` (or cuda12) on "
            "Linux, or choose data.decoder torch"
        )
    if decoder == "auto":
        return "dali" if device.type == "cuda" and dali_installed() else "torch"
    return decoder


def threads_of(config: DataConfig) -> int:
    """How many threads of this rank read and decode."""
    return min(_MOST_THREADS, cores_of_rank()) if config.threads == "auto" else config.threads


def make_decoder(
    config: DataConfig,
    table: Table,
    device: torch.device,
    max_batch: int,
    substitute: Substitute | None = None,
    reader: ImageReader | None = None,
) -> Decoder:
    """The decoder that the configuration asks for.

    Args:
        config: `decoder` is "dali" or "torch" here; "auto" is resolved by `choose_decoder`.
        table: whose targets [N, A] become those of the batches.
        device: where the batches go.
        max_batch: the most images that one request asks for.
        substitute: the row in place of a broken image's, of epoch, row and attempt; None: a broken image is an error.
        reader: of the images; None: one of their files.
    """
    if config.decoder == "dali":
        return DaliDecoder(config, table, device, max_batch, substitute, reader)
    return TorchDecoder(config, table, device, substitute, reader)


class _Image(NamedTuple):
    """One image uint8 [image height, image width, 3], and what it stands in for."""

    pixels_HWC: NDArray[np.uint8]
    replaced: Replacement | None


@dataclass(frozen=True)
class _Shares:
    """A batch that threads are decoding, each a share of its images.

    Attributes:
        request: of B images.
        images_BHWC: uint8, where the threads put them.
        shares: of each share the images that stand in for broken ones, by their place in the batch.
    """

    request: Request
    images_BHWC: torch.Tensor
    shares: list[Future[dict[int, Replacement]]]

    def result(self) -> tuple[Request, torch.Tensor, dict[int, Replacement]]:
        replaced = {place: instead for share in self.shares for place, instead in share.result().items()}
        return self.request, self.images_BHWC, replaced

    def cancel(self) -> None:
        for share in self.shares:
            share.cancel()


class TorchDecoder:
    """simplejpeg in threads that share out each batch (it releases the interpreter lock); Pillow for other formats."""

    name = "torch"

    def __init__(
        self,
        config: DataConfig,
        table: Table,
        device: torch.device,
        substitute: Substitute | None = None,
        reader: ImageReader | None = None,
    ) -> None:
        self._config = config
        self._device = device
        self.substitute = substitute
        self.reader = reader or ImageReader(table)
        self._targets = torch.from_numpy(table.targets)
        self._threads = threads_of(config)
        self._pool = pool_for_torch(self._threads, "decode")
        self._to_device = ToDevice(device)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        with closing(begin_ahead(self._begin_batch, requests, self._config.prefetch)) as decoded:
            for request, images_BHWC, replaced in decoded:
                ids = rows_of(request, replaced)
                images_BHWC, targets_BA = self._to_device.copy(images_BHWC, self._targets[ids].float())
                yield Batch(images_BHWC, targets_BA, ids, replaced)

    def _begin_batch(self, request: Request) -> _Shares:
        shape = (len(request), *(request.size or self._config.image_size), 3)
        pinned = self._device.type == "cuda"
        images_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        step = max(1, -(-len(request) // self._threads))
        places = [range(first, min(first + step, len(request))) for first in range(0, len(request), step)]
        decode = partial(self._decode, request, images_BHWC.numpy())
        return _Shares(request, images_BHWC, [self._pool.submit(decode, share) for share in places])

    def _decode(self, request: Request, pixels_BHWC: NDArray[np.uint8], places: range) -> dict[int, Replacement]:
        replaced = {}
        for place in places:
            pixels_BHWC[place], instead = self._image(request[place : place + 1])
            if instead is not None:
                replaced[place] = instead
        return replaced

    def begin(self, request: Request, data: bytes | None = None) -> Future[_Image]:
        """The one image of a request, decoded in another thread; its file, if it has been read already."""
        return self._pool.submit(self._image, request, data)

    def _image(self, request: Request, data: bytes | None = None) -> _Image:
        """The one image of a request, or the one in its place."""
        row = request.ids.item()

        def pixels_of(each: int) -> NDArray[np.uint8]:
            return self._cut(each, request, data if each == row else None)

        return _Image(*use_or_replace(row, request.epoch, self.substitute, pixels_of))

    def _cut(self, row: int, request: Request, data: bytes | None = None) -> NDArray[np.uint8]:
        pixels = self.reader.decode(row, self.reader.read(row) if data is None else data)
        return cut(pixels, request, self._config.crop, request.size or self._config.image_size)


def use_or_replace(
    row: int, epoch: int | None, substitute: Substitute | None, use: Callable[[int], T]
) -> tuple[T, Replacement | None]:
    """What `use` makes of a row's image, or, where it is broken, of the one in its place.

    Raises:
        UserError: if it is broken and none is to take its place, or so many others are broken too.
    """
    try:
        return use(row), None
    except UserError as error:
        if substitute is None or epoch is None:
            raise
        for attempt in range(_MOST_ATTEMPTS):
            other = substitute(epoch, row, attempt)
            with suppress(UserError):
                return use(other), Replacement(epoch, row, other, str(error))
        raise UserError(
            f"{error}; nor could {_MOST_ATTEMPTS} other training images that were tried in its place (data.on_error "
            "skip): check the data set and the disk"
        ) from None


def rows_of(request: Request, replaced: Mapping[int, Replacement]) -> torch.Tensor:
    """The rows int64 [B] of the images that are delivered, some of them in place of others."""
    ids = request.ids.copy()
    for place, instead in replaced.items():
        ids[place] = instead.by
    return torch.from_numpy(ids)


class DaliDecoder:
    """NVIDIA DALI, told by the plan what to decode; it decodes only the region that is asked for.

    On a GPU the JPEG hardware and the CUDA decoder do the work ("mixed"), elsewhere DALI's CPU operators. What is no
    plain JPEG is decoded by the reference, in threads beside it.
    """

    name = "dali"

    def __init__(
        self,
        config: DataConfig,
        table: Table,
        device: torch.device,
        max_batch: int,
        substitute: Substitute | None = None,
        reader: ImageReader | None = None,
    ) -> None:
        self._config = config
        self._device = device
        self._max_batch = max_batch
        self._reference = TorchDecoder(config, table, torch.device("cpu"), substitute, reader)
        self._targets = torch.from_numpy(table.targets)
        self._idle: _Pipeline | None = None

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        # A pipeline left in the middle holds images decoded ahead, so only one that came to its end is used again.
        pipeline, self._idle = (
            self._idle or _Pipeline(self._config, self._reference, self._device, self._max_batch),
            None,
        )
        for request, images_BHWC, replaced in pipeline.run(requests):
            ids = rows_of(request, replaced)
            targets = self._targets[ids].float()
            if self._device.type == "cuda":
                targets = targets.pin_memory().to(self._device, non_blocking=True)
            yield Batch(images_BHWC, targets, ids, replaced)
        self._idle = pipeline


@dataclass(frozen=True)
class _Asked:
    """A request as DALI takes it.

    Attributes:
        request: of B images.
        files: uint8 arrays, the file of each image that DALI decodes, and a placeholder for others.
        start: int32 [B, 2], top and left of each region.
        shape: int32 [B, 2], its height and width.
        beside: the images that the reference decodes, by their place.
    """

    request: Request
    files: list[NDArray[np.uint8]]
    start: NDArray[np.int32]
    shape: NDArray[np.int32]
    beside: dict[int, Future[_Image]]


class _Pipeline:
    """A DALI pipeline and what it has been asked for.

    Files are read, and their headers looked at, in threads ahead of the one that trains: reading 256 files there, one
    after another, would take 5 ms of it where they are cached, and up to 100 on a network's disk.
    """

    def __init__(self, config: DataConfig, reference: TorchDecoder, device: torch.device, max_batch: int) -> None:
        self._config = config
        self._reference = reference
        self._reader = reference.reader
        self._device = device
        self._max_batch = max_batch
        self._threads = threads_of(config)
        self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        self._source: Iterator[_Asked] = iter(())
        self._asked: deque[_Asked] = deque()  # what DALI has taken and not yet delivered
        self._dali = self._build()

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, torch.Tensor, dict[int, Replacement]]]:
        """Each request with its images, uint8 [B, H, W, 3], and those of them that replace others, by their place."""
        ahead = max(self._config.prefetch, self._threads)
        iterator = self._iterator()
        try:
            with (
                closing(map_ahead(self._readers, self._read, requests, ahead)) as self._source,
                _InUse(self._device) as in_use,
            ):
                while True:
                    try:
                        outputs = next(iterator)
                    except StopIteration:
                        break
                    except RuntimeError as error:
                        asked = self._by_reference(error)
                        # That batch alone is lost. An iterator asks for one more at its start, in place of it.
                        self._asked.popleft()
                        iterator = self._iterator()
                        yield self._with_those_beside(asked, self._empty(asked))
                        continue
                    yield self._with_those_beside(self._asked.popleft(), in_use.copy(outputs[0]["images"]))
        finally:
            for asked in self._asked:
                for image in asked.beside.values():
                    image.cancel()
        self._dali.reset()

    def _with_those_beside(
        self, asked: _Asked, images_BHWC: torch.Tensor
    ) -> tuple[Request, torch.Tensor, dict[int, Replacement]]:
        """The request and its images with those that the reference decodes, and what they replace."""
        replaced = {}
        for place, future in asked.beside.items():
            image = future.result()
            images_BHWC[place] = torch.from_numpy(image.pixels_HWC.copy()).to(self._device)
            if image.replaced is not None:
                replaced[place] = image.replaced
        return asked.request, images_BHWC, replaced

    def _empty(self, asked: _Asked) -> torch.Tensor:
        shape = (len(asked.request), *(asked.request.size or self._config.image_size), 3)
        return torch.empty(shape, dtype=torch.uint8, device=self._device)

    def _iterator(self) -> Any:
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        return DALIGenericIterator([self._dali], ["images"], prepare_first_batch=False)

    def _by_reference(self, error: RuntimeError) -> _Asked:
        """The batch that DALI has failed on, with all of its images beside.

        DALI names a bad image by its place in the batch alone; the reference finds which file it is.

        Raises:
            UserError: if an image is what DALI failed on, and is not replaced.
            RuntimeError: the same, if it is not.
        """
        if not self._asked:
            raise error
        asked, begin = self._asked[0], self._reference.begin
        request = asked.request
        again = {i: begin(request[i : i + 1]) for i in range(len(request)) if i not in asked.beside}
        replaced = [image for image in again.values() if image.result().replaced is not None]
        # DALI words damage in more than one way, and meets some that the reference does not.
        if not replaced and not _is_damage(error):
            raise error
        if self._reference.substitute is None:
            said = " ".join(str(error).split())
            names = few([self._reader.name(row) for row in request.ids.tolist()])
            raise UserError(f"DALI cannot decode one of {names} ({said[:200]}): try data.decoder torch") from None
        return replace(asked, beside={**asked.beside, **again})

    def _next_request(self) -> tuple[Any, ...]:
        asked = next(self._source)
        self._asked.append(asked)
        request = asked.request
        size = np.tile(np.array(request.size or self._config.image_size, np.float32), (len(request), 1))
        return asked.files, asked.start, asked.shape, size, request.flip.astype(np.int32)

    def _read(self, request: Request) -> _Asked:
        files, sizes, beside = [], [], {}
        for place, row in enumerate(request.ids.tolist()):
            data = header = None
            with suppress(UserError, ValueError):  # the reference says what is wrong, or replaces it
                data = self._reader.read(row)
                header = read_jpeg_header(data) if is_jpeg(data) else None
            if data is None or header is None or not is_plain_jpeg(data, header):
                beside[place] = self._reference.begin(request[place : place + 1], data)
                data, header = _PLACEHOLDER, read_jpeg_header(_PLACEHOLDER)
            sizes.append((header.height, header.width))
            files.append(np.frombuffer(data, dtype=np.uint8))
        heights, widths = np.array(sizes, dtype=np.int64).T
        regions = crop_regions(request, heights, widths, self._config.crop).astype(np.int32)
        return _Asked(request, files, regions[:, :2].copy(), regions[:, 2:].copy(), beside)

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        on_gpu, dali = self._device.type == "cuda", self._config.dali
        of_gpu: dict[str, Any] = {  # on a CPU they change nothing
            "hw_decoder_load": hardware_share(self._config),
            "preallocate_height_hint": dali.preallocate_height,
            "preallocate_width_hint": dali.preallocate_width,
            "jpeg_fancy_upsampling": True,  # as the CPU decoders do
        }

        @pipeline_def(  # type: ignore[untyped-decorator]
            batch_size=self._max_batch,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=self._config.prefetch,
        )
        def graph() -> Any:
            jpegs, start, shape, size, flip = fn.external_source(source=self._next_request, num_outputs=5, batch=True)
            images = fn.decoders.image_slice(
                jpegs,
                start,
                shape,
                axis_names="HW",
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,  # the region is of the pixels as stored; what is turned never comes here
                **of_gpu,
            )
            # Linear with antialias is what the reference's bilinear antialias is; same sizes pass through unchanged.
            images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
            return fn.flip(images, horizontal=flip)

        pipeline = graph()
        pipeline.build()
        return pipeline


def _is_damage(error: RuntimeError) -> bool:
    """Whether DALI says that it cannot decode an image, and not that something else has failed."""
    return "Failed to decode" in str(error)


class ToDevice:
    """Copies batches to the GPU on a stream of its own, where they do not wait for the steps before them.

    The host is ahead of the GPU, so that a copy runs beside a step that was launched earlier, and the stream that
    trains waits for copies alone. On a CPU there is nothing to copy, and the tensors pass as they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def copy(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        """The same on the device."""
        if self._stream is None:
            return tensors
        with torch.cuda.stream(self._stream):
            # torch keeps pinned memory until the copy out of it is made.
            copies = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._stream)
        for copy in copies:
            # Its memory is the copying stream's, which could write a later batch there while this one is in use.
            copy.record_stream(training)
        return copies


class _InUse:
    """Copies DALI's images for torch, and keeps the originals until the GPU has made the copies.

    DALI's memory knows nothing of torch's stream: let go as soon as Python is done with it, it could be written anew
    while the GPU, some steps behind, has yet to read it. On a CPU nothing is behind, and the images pass as they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._held: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for copied, _images in self._held:
            copied.synchronize()

    def copy(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """The same images in torch's own memory."""
        if not self._on_gpu:
            return images_BHWC
        own = images_BHWC.clone()
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record()
        self._held.append((copied, images_BHWC))
        while self._held and self._held[0][0].query():  # type: ignore[no-untyped-call]
            self._held.popleft()
        return own
