"""Images a second from the disk to batches on the device, against what else people load images with, in one run.

    python benchmarks/loader.py --root data/celeba --json benchmarks/results/loader.json

Two jobs: `centre`, the centred 178x178 of each image, where nothing is resized; and `crops`, random 85 to 100 % of each
side of the whole image, resized to 218x178, half of them mirrored. Every loader delivers uint8 batches of the same
images. The peers are measured at their best known use; those that are not installed are left out, and said.

On a GPU DALI decodes there ("mixed"), as does its own reader; everything else decodes on the CPU.
"""

import argparse
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import torchvision.transforms.v2.functional as TF
from measure import alternate, machine, report, spread
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from distrib.config import Config
from distrib.data.decoders import dali_installed, make_decoder
from distrib.data.packing import pack
from distrib.data.plan import Plan
from distrib.data.table import Table, read_table
from distrib.data.verification import examine

JOBS = {"centre": ((178, 178), "square", 1.0), "crops": ((218, 178), "full", 0.85)}
Run = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CelebA, or a part of it, in a folder")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--batches", type=int, default=16, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        forms = other_forms(options.root, Path(scratch), options.batches * options.batch_size)
        results: dict[str, Any] = {}
        for job in JOBS:
            for threads in options.threads:
                peers = contenders(forms, job, threads, options.batch_size)
                seconds = alternate(peers, options.rounds, warmup=1)
                count = options.batches * options.batch_size
                rates = {name: spread([count / each for each in found]) for name, found in seconds.items()}
                results[f"{job}, {threads} thread{'s' * (threads > 1)}"] = rates
    packages = ["torch", "torchvision", "pillow", "simplejpeg", "webdataset"]
    report(
        {
            "machine": machine(*packages, *(["nvidia-dali-cuda130"] if dali_installed() else [])),
            "setting": {"batch_size": options.batch_size, "images": options.batches * options.batch_size},
            "images_per_second": results,
        },
        options.json,
    )


def other_forms(root: Path, scratch: Path, count: int) -> dict[str, Path]:
    """So many of the training images as a folder, as a zip archive beside the same table, and packed."""
    table = read_table(root)
    rows = np.flatnonzero(table.split == 0)[:count]
    folder = scratch / "folder"
    (folder / "images").mkdir(parents=True)
    lines = [",".join(["image", *table.attributes, "split"])]
    for row in rows:
        (folder / "images" / table.names[row]).write_bytes(table.store.read(row))
        lines.append(",".join([table.names[row], *map(str, table.targets[row]), "train"]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    archived = scratch / "zip"
    archived.mkdir()
    shutil.copy(folder / "table.csv", archived)
    with zipfile.ZipFile(archived / "images.zip", "w") as archive:
        for file in sorted((folder / "images").iterdir()):
            archive.write(file, f"images/{file.name}")
    pack(folder, scratch / "shards", "stop", 2, lambda *_: None)
    return {"folder": folder, "zip": archived, "shards": scratch / "shards"}


def contenders(forms: dict[str, Path], job: str, threads: int, batch_size: int) -> dict[str, Run]:
    """What is measured, by name; each goes through all images once."""
    size, _, zoom = JOBS[job]
    table = read_table(forms["folder"])
    data = [table.store.read(row) for row in range(len(table))]
    count = len(data)
    bare = in_threads(lambda row: simplejpeg.decode_jpeg(data[row]), count, threads)
    verify = in_threads(lambda row: examine(table.store.read(row), "x.jpg"), count, threads)
    peers: dict[str, Run] = {"bare strict decode of bytes in memory": bare, "verification, as pack does it": verify}
    for form, root in forms.items():
        for decoder in ("torch", "dali") if dali_installed() else ("torch",):
            peers[f"distrib, {form}, {decoder}"] = ours(read_table(root), job, decoder, threads, batch_size)
    for name, kind in (("Pillow", PillowImages), ("torchvision's decoder", TorchvisionImages)):
        dataset = kind(table, size, zoom)
        loader = DataLoader(dataset, batch_size, num_workers=threads, persistent_workers=True, prefetch_factor=4)
        peers[f"DataLoader with {name}"] = through(loader)
    if find_spec("webdataset"):
        peers["webdataset, Pillow"] = through_webdataset(forms["shards"], size, zoom, threads, batch_size)
    if dali_installed():
        peers["DALI's own readers.webdataset"] = through_dali(forms["shards"], count, size, zoom, threads, batch_size)
    return peers


def in_threads(work: Callable[[int], object], count: int, threads: int) -> Run:
    def chunk(rows: range) -> None:
        for row in rows:
            work(row)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(chunk, [range(start, min(start + 32, count)) for start in range(0, count, 32)]))

    return run


def ours(table: Table, job: str, decoder: str, threads: int, batch_size: int) -> Run:
    (height, width), crop, zoom = JOBS[job]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = Config().data.model_copy(
        update={"image_size": (height, width), "crop": crop, "threads": threads, "decoder": decoder}
    )
    plan = Plan(np.arange(len(table)), 0, batch_size, min_zoom=zoom, flip=zoom < 1)
    requests = [plan.batch(0, step) for step in range(plan.steps_per_epoch)]
    made = make_decoder(config, table, device, batch_size)
    return through(Again(lambda: made.batches(requests)))


class Again:
    """What begins anew each time it is gone through."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return self._make()


def through(batches: Any) -> Run:
    def run() -> None:
        for batch in batches:
            last = batch
        images = getattr(last, "images_BHWC", last)
        images.sum().item()  # wait for the device

    return run


class PillowImages(Dataset[torch.Tensor]):
    def __init__(self, table: Table, size: tuple[int, int], zoom: float) -> None:
        self._table, self._size, self._zoom = table, size, zoom

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(with_pillow(self._table.store.read(row), self._size, self._zoom))


def with_pillow(data: bytes, size: tuple[int, int], zoom: float) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if zoom == 1:
        return np.array(TF.center_crop(image, list(size)))
    box = random_box(image.height, image.width, zoom)
    image = TF.resized_crop(image, *box, list(size))
    return np.array(TF.horizontal_flip(image) if torch.rand(()) < 0.5 else image)


def random_box(height: int, width: int, zoom: float) -> tuple[int, int, int, int]:
    share = np.random.uniform(zoom, 1)
    box = round(height * share), round(width * share)
    return np.random.randint(height - box[0] + 1), np.random.randint(width - box[1] + 1), *box


class TorchvisionImages(PillowImages):
    def __getitem__(self, row: int) -> torch.Tensor:
        data = torch.frombuffer(bytearray(self._table.store.read(row)), dtype=torch.uint8)
        image = decode_jpeg(data, mode=ImageReadMode.RGB)
        if self._zoom == 1:
            return TF.center_crop(image, list(self._size))
        box = random_box(image.shape[1], image.shape[2], self._zoom)
        image = TF.resized_crop(image, *box, list(self._size), antialias=True)
        return TF.horizontal_flip(image) if torch.rand(()) < 0.5 else image


def through_webdataset(shards: Path, size: tuple[int, int], zoom: float, threads: int, batch_size: int) -> Run:
    import webdataset

    def image(sample: dict[str, Any]) -> torch.Tensor:
        return torch.from_numpy(with_pillow(sample["jpg"], size, zoom))

    # Its workers share shards out; of one shard each takes every so manieth sample.
    tars = [str(file) for file in sorted(shards.glob("*.tar"))]
    source = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None, workersplitter=None)
    pipeline = source.compose(every_worker).map(image).batched(batch_size, collation_fn=torch.stack)
    loader = DataLoader(pipeline, None, num_workers=threads, persistent_workers=True, prefetch_factor=4)
    return through(loader)


def every_worker(samples: Iterator[Any]) -> Iterator[Any]:
    info = torch.utils.data.get_worker_info()
    for number, sample in enumerate(samples):
        if info is None or number % info.num_workers == info.id:
            yield sample


def through_dali(shards: Path, count: int, size: tuple[int, int], zoom: float, threads: int, batch_size: int) -> Run:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    on_gpu = torch.cuda.is_available()

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=0 if on_gpu else None, prefetch_queue_depth=2)
    def graph() -> Any:
        tars = sorted(shards.glob("*.tar"))
        jpegs = fn.readers.webdataset(
            paths=list(map(str, tars)),
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg"],
            name="reader",
        )
        device = "mixed" if on_gpu else "cpu"
        if zoom == 1:
            return fn.decoders.image_crop(jpegs, device=device, crop=size, output_type=types.RGB)
        share = size[1] / size[0]
        images = fn.decoders.image_random_crop(
            jpegs, device=device, output_type=types.RGB, random_area=[zoom**2, 1.0], random_aspect_ratio=[share, share]
        )
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = graph()
    pipeline.build()

    def batches() -> Iterator[Any]:
        for outputs in DALIGenericIterator([pipeline], ["images"], size=count, auto_reset=True):
            yield outputs[0]["images"]

    return through(Again(batches))


if __name__ == "__main__":
    main()
