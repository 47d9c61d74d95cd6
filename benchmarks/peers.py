"""What other people load images with, each at its best known use; for `benchmarks/loader.py`.

All of them are given the same JPEG bytes and make uint8 batches of one size. Where the decoder is the user's choice it
is torchvision's in worker processes, and simplejpeg in threads. What was found to be their best use:

- `DataLoader`, webdataset, litdata, mosaicml-streaming: a worker process a thread, kept from round to round, four
  batches ahead of each; what workers decode is stacked in the memory that they share with the main process.
- webdataset: a shard a batch, so that its workers have shards to share out.
- litdata and mosaicml-streaming: the bytes as they are, in chunks of 64 MB, not compressed, read where they lie.
- spdl: its source gives lists of files, a batch each, and each list is decoded by one thread. Images that pass from
  stage to stage one by one cost 0.3 ms each, which more threads do not make less. Its own decoder is FFmpeg's, whose
  libraries (4 to 9; `apt-get install ffmpeg`) are not in its wheels; any function can take its place.
- DALI's `readers.webdataset`: the runs are scheduled here and are as many as there are batches. DALI's iterator would
  make the first two of the next round ahead, while nobody measures it.
"""

import io
import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.io import ImageReadMode, decode_jpeg


class Job(NamedTuple):
    """What is to become of each image."""

    size: tuple[int, int]  # height and width in pixels
    crop: str  # as in `data.crop`
    zoom: float  # the least share of each side that is cut out; 1: the centre, nothing resized, nothing mirrored


class Forms(NamedTuple):
    """The same images on disk: a file each, packed by distrib, and in the folder of a peer's own form."""

    files: list[Path]
    shards: Path
    own: Path


Images = torch.Tensor  # uint8 [B, H, W, 3]
Peer = Callable[[Forms, Job, int, int], Iterable[Images]]  # of forms, job, threads, images a batch
Decode = Callable[[bytes, Job], torch.Tensor]


def with_pillow(data: bytes, job: Job) -> torch.Tensor:
    """One image uint8 [H, W, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = region(image.height, image.width, job)
    box = (left, top, left + width, top + height)
    if job.zoom == 1:
        return torch.from_numpy(np.array(image.crop(box)))
    image = image.resize((job.size[1], job.size[0]), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if coin() else image))


def with_torchvision(data: bytes, job: Job) -> torch.Tensor:
    """One image uint8 [H, W, 3]."""
    image_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return cut(image_CHW.permute(1, 2, 0), job)


def cut(image_HWC: Any, job: Job) -> Any:
    """One image uint8 [H, W, 3], an array or a tensor."""
    top, left, height, width = region(image_HWC.shape[0], image_HWC.shape[1], job)
    image_HWC = image_HWC[top : top + height, left : left + width]
    if job.zoom == 1:
        return image_HWC
    image_BCHW = torch.as_tensor(image_HWC).contiguous().permute(2, 0, 1)[None]  # half the time of a view
    image_HWC = F.interpolate(image_BCHW, job.size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return image_HWC.flip(1) if coin() else image_HWC


def region(height: int, width: int, job: Job) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is cut out."""
    if job.zoom == 1:
        return (height - job.size[0]) // 2, (width - job.size[1]) // 2, *job.size
    share = random.uniform(job.zoom, 1)
    box = round(height * share), round(width * share)
    return random.randint(0, height - box[0]), random.randint(0, width - box[1]), *box


def coin() -> bool:
    return random.random() < 0.5


class Files(Dataset[bytes]):
    """The bytes of each file."""

    def __init__(self, files: list[Path]) -> None:
        self._files = list(map(str, files))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> bytes:
        return read(self._files[row])


def read(file: str) -> bytes:
    with open(file, "rb") as opened:  # noqa: PTH123  a Path costs ten microseconds
        return opened.read()


def decode_batch(decode: Decode, job: Job, key: str | None, samples: Sequence[Any]) -> Images:
    """Decode samples that are the bytes of an image, or have them under a key."""
    return default_collate([decode(sample if key is None else sample[key], job) for sample in samples])


def data_loader(decode: Decode) -> Peer:
    def batches(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
        collate = partial(decode_batch, decode, job, None)
        return DataLoader(Files(forms.files), batch_size, collate_fn=collate, **workers(threads))

    return batches


def workers(threads: int) -> dict[str, Any]:
    """What every `DataLoader` is told about its workers."""
    # Forked from this process they would inherit what is left of DALI's pipelines, and hang as soon as they tidy it up.
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["peers"])
    return {
        "num_workers": threads,
        "persistent_workers": True,
        "prefetch_factor": 4,
        "pin_memory": torch.cuda.is_available(),
        "multiprocessing_context": start,
    }


def webdataset(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
    from webdataset import ShardWriter, WebDataset

    folder = forms.own / "webdataset"
    if not folder.exists():
        folder.mkdir()
        with ShardWriter(f"{folder}/%06d.tar", maxcount=batch_size, verbose=0) as writer:
            for file in forms.files:
                writer.write({"__key__": file.stem, "jpg": read(str(file))})
    dataset = WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    collate = partial(decode_batch, with_torchvision, job, "jpg")
    return DataLoader(dataset.batched(batch_size, collation_fn=collate), None, **workers(threads))


def litdata(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    folder = forms.own / "litdata"
    if not folder.exists():
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(forms.own / "litdata-cache")
        names = list(map(str, forms.files))
        optimize(read, names, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)
    collate = partial(decode_batch, with_torchvision, job, None)
    dataset = StreamingDataset(str(folder), shuffle=False)
    return StreamingDataLoader(dataset, batch_size=batch_size, collate_fn=collate, **workers(threads))


def mosaicml_streaming(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
    from streaming import MDSWriter, StreamingDataset

    folder = forms.own / "mds"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"jpg": "bytes"}) as writer:
            for file in forms.files:
                writer.write({"jpg": read(str(file))})
    collate = partial(decode_batch, with_torchvision, job, "jpg")
    dataset = StreamingDataset(local=str(folder), batch_size=batch_size, shuffle=False)
    return DataLoader(dataset, batch_size, collate_fn=collate, **workers(threads))


def spdl_simplejpeg(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
    def decode(files: list[str]) -> Images:
        images = np.empty((len(files), *job.size, 3), np.uint8)
        for place, file in enumerate(files):
            images[place] = cut(simplejpeg.decode_jpeg(read(file)), job)
        return torch.from_numpy(images)

    return through_spdl(decode, forms, threads, batch_size)


def spdl_ffmpeg(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
    import spdl.io

    try:
        demuxing = spdl.io.demux_config(format="jpeg_pipe")  # asked to find out itself, it takes twice as long
    except RuntimeError as error:  # it looks for the libraries when they are first used
        raise ImportError("spdl.io finds no FFmpeg from 4 to 9 on this system") from error
    one_thread = spdl.io.decode_config(decoder_options={"threads": "1"})

    def frames(file: str) -> Any:
        packets = spdl.io.demux_image(file, demux_config=demuxing)
        return spdl.io.decode_packets(packets, decode_config=one_thread, filter_desc=ffmpeg_filter(job))

    def decode(files: list[str]) -> Images:
        return spdl.io.to_torch(spdl.io.convert_frames(list(map(frames, files))))

    return through_spdl(decode, forms, threads, batch_size)


def ffmpeg_filter(job: Job) -> str:
    height, width = job.size
    if job.zoom == 1:
        return f"crop={width}:{height},format=rgb24"
    share, x, y = random.uniform(job.zoom, 1), random.random(), random.random()
    crop = f"crop=iw*{share}:ih*{share}:(iw-ow)*{x}:(ih-oh)*{y}"
    return f"{crop},{'hflip,' if coin() else ''}scale={width}:{height}:flags=bilinear,format=rgb24"


def through_spdl(
    decode: Callable[[list[str]], Images], forms: Forms, threads: int, batch_size: int
) -> Iterable[Images]:
    from spdl.pipeline import PipelineBuilder

    names = list(map(str, forms.files))
    lists = [names[start : start + batch_size] for start in range(0, len(names), batch_size)]

    def batches() -> Iterator[Images]:
        builder = PipelineBuilder().add_source(lists).pipe(decode, concurrency=threads).add_sink(4)
        pipeline = builder.build(num_threads=threads, max_failures=0)
        with pipeline.auto_stop():
            yield from pipeline

    return Again(batches)


class Again:
    """What begins anew each time it is gone through."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


def dali_webdataset(forms: Forms, job: Job, threads: int, batch_size: int) -> Iterable[Images]:
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = torch.cuda.is_available()
    tars = sorted(forms.shards.glob("*.tar"))

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=0 if on_gpu else None, exec_dynamic=True)
    def graph() -> Any:
        indices = [str(tar.with_suffix(".idx")) for tar in tars]
        jpegs = fn.readers.webdataset(paths=list(map(str, tars)), index_paths=indices, ext=["jpg"])
        device = "mixed" if on_gpu else "cpu"
        if job.zoom == 1:
            return fn.decoders.image_crop(jpegs, device=device, crop=job.size, output_type=types.RGB)
        ratio = job.size[1] / job.size[0]
        area = [job.zoom**2, 1.0]
        images = fn.decoders.image_random_crop(
            jpegs, device=device, output_type=types.RGB, random_area=area, random_aspect_ratio=[ratio, ratio]
        )
        images = fn.resize(images, size=job.size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = graph()
    pipeline.build()
    count, ahead = len(forms.files) // batch_size, 2

    def batches() -> Iterator[Images]:
        for _ in range(min(ahead, count)):
            pipeline.schedule_run()
        for number in range(count):
            (images,) = pipeline.share_outputs()
            yield torch.from_dlpack(images.as_tensor())
            pipeline.release_outputs()
            if number + ahead < count:
                pipeline.schedule_run()

    return Again(batches)


PEERS: dict[str, Peer] = {  # each raises ImportError where what it needs is not installed
    "DataLoader, Pillow": data_loader(with_pillow),
    "DataLoader, torchvision's decoder": data_loader(with_torchvision),
    "webdataset, torchvision's decoder": webdataset,
    "litdata, torchvision's decoder": litdata,
    "mosaicml-streaming, torchvision's decoder": mosaicml_streaming,
    "spdl, simplejpeg": spdl_simplejpeg,
    "spdl, FFmpeg": spdl_ffmpeg,
    "DALI's own readers.webdataset": dali_webdataset,
}
