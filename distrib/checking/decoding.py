"""Checks of what decodes: the same images as the reference, wherever in a batch, and for as long as they are used.

Legend: B images, H and W their height and width in pixels.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from distrib.base.errors import UserError
from distrib.base.words import plural
from distrib.checking.check import Bench, LeftOut, Passed, expect
from distrib.checking.images import kind_of
from distrib.config import DataConfig
from distrib.data.batch import Batch, Request
from distrib.data.decoders import Decoder, TorchDecoder, dali_installed, make_decoder
from distrib.data.jpeg_hardware import has_jpeg_hardware
from distrib.data.plan import Plan
from distrib.data.store import FolderStore
from distrib.data.table import Table

# Grey levels by which DALI may differ from the reference, in the mean over an image and in any pixel.
MOST_MEAN, MOST = 1.0, 8
# Grey levels between the copies of one image in a batch, where JPEG hardware decodes some of them.
MOST_SPREAD = 2
CLEARLY_SLOWER = 0.9  # of two rates
NAMED_WITHIN = 30.0  # seconds
BAD, END_OF_IMAGE = 5, b"\xff\xd9"
BATCHES = 50
CYCLES = 20_000_000  # of a GPU's clock: some 10 ms, longer than a batch takes to decode


def jpeg_hardware(bench: Bench) -> Passed:
    """Whether the GPU's JPEG hardware decodes, by nvJPEG's word and by the rate with it and without it."""
    bench.need_gpu("JPEG hardware needs a GPU")
    _need_dali()
    found = has_jpeg_hardware()
    rates = {}
    for load in (1.0, 0.0):
        decoder, requests = _dali(bench, load), _requests(bench, epochs=20)
        for turn in range(2):  # the first builds and warms
            began = time.perf_counter()
            count = sum(len(batch) for batch in decoder.batches(requests))
            bench.synchronise()
            if turn == 1:
                rates[load] = count / (time.perf_counter() - began)
    figures = {"found": found, "images_per_second": {"load 1": rates[1.0], "load 0": rates[0.0]}}
    seen = f"{rates[1.0]:,.0f} images/s with all of each batch sent to it, {rates[0.0]:,.0f} with none"
    if found and rates[1.0] < CLEARLY_SLOWER * rates[0.0]:
        seen += ": set data.dali.hw_decoder_load 0, which is faster here"
    return Passed(f"{ {True: 'found', False: 'none', None: 'unknown, as there is no nvJPEG'}[found] }; {seen}", figures)


def parity(bench: Bench) -> Passed:
    """DALI's images are the reference's: 4:2:0, 4:4:4, progressive, grey, of odd sizes, in odd regions, mirrored."""
    _need_dali()
    found: dict[str, dict[str, Any]] = {}
    for load in (1.0, 0.0) if bench.on_gpu else (0.0,):
        for size in ((112, 112), (218, 178)):
            config = decoder_config("dali", load, size)
            requests = _requests(bench, epochs=2)
            theirs = make_decoder(config, bench.table, bench.device, len(bench.table)).batches(requests)
            ours = TorchDecoder(config, bench.table, torch.device("cpu")).batches(requests)
            for batch, reference in zip(theirs, ours, strict=True):
                off_BHWC = (batch.images_BHWC.cpu().int() - reference.images_BHWC.int()).abs()
                for row, each in zip(reference.ids_B.tolist(), off_BHWC, strict=True):
                    key = f"{kind_of(row)} at {size[0]} x {size[1]} (data.dali.hw_decoder_load {load:g})"
                    levels = {"mean": each.float().mean().item(), "most": each.max().item()}
                    worst = found.setdefault(key, {**levels, "image": bench.table.names[row]})
                    if levels["mean"] > worst["mean"]:
                        worst["image"] = bench.table.names[row]
                    worst |= {name: max(worst[name], value) for name, value in levels.items()}
    off = {key: each for key, each in found.items() if each["mean"] > MOST_MEAN or each["most"] > MOST}
    key, worst = max((off or found).items(), key=lambda pair: pair[1]["mean"])
    seen = f"{worst['mean']:.2f} grey levels in the mean and {worst['most']} at most, {worst['image']} being {key}"
    expect(
        not off,
        f"DALI differs from the reference in {len(off)} of {len(found)} ways to encode and to cut, the most by {seen}; "
        f"at most {MOST_MEAN:g} and {MOST} were expected",
        found,
    )
    return Passed(f"the reference differs the most by {seen}", found)


def places(bench: Bench) -> Passed:
    """One image is the same at all places of a batch; JPEG hardware may differ a little from the GPU's cores."""
    _need_dali()
    size, spreads = 64, {}
    for load in (0.65, 0.0) if bench.on_gpu else (0.0,):
        request = Request.centred(np.zeros(size, np.int64))
        decoder = make_decoder(decoder_config("dali", load), bench.table, bench.device, size)
        (batch,) = decoder.batches([request])
        images_BHWC = batch.images_BHWC.int()
        spread = int((images_BHWC.amax(0) - images_BHWC.amin(0)).max())
        most = MOST_SPREAD if load else 0
        expect(
            spread <= most,
            f"the copies of one image in a batch of {size} differ by {plural(spread, 'grey level')} "
            f"(data.dali.hw_decoder_load {load:g}); at most {most} were expected",
            {"spread": spread, "hw_decoder_load": load},
        )
        spreads[f"load {load:g}"] = spread
    seen = ", ".join(f"{plural(spread, 'grey level')} at {name}" for name, spread in spreads.items())
    return Passed(f"between the copies of one image in a batch of {size}: {seen}", spreads)


def lifetime(bench: Bench) -> Passed:
    """Images are still themselves when a device that is behind comes to use them, and as long as they are held."""
    kinds = ("dali", "torch") if dali_installed() else ("torch",)
    for kind in kinds:
        decoder = make_decoder(decoder_config(kind, 0.0), bench.table, bench.device, len(bench.table))
        requests = _requests(bench, BATCHES)
        at_once = [_digest(batch).item() for batch in decoder.batches(requests)]
        # Let go before the device, which is behind, has come to use them; and kept until the last one is there.
        late = [digest.item() for digest in [_late_digest(bench, batch) for batch in decoder.batches(requests)]]
        held = [_digest(batch).item() for batch in list(decoder.batches(requests))]
        wrong = [number for number, each in enumerate(zip(at_once, late, held, strict=True)) if len(set(each)) > 1]
        expect(
            not wrong,
            f"{len(wrong)} of {BATCHES} batches of data.decoder {kind} changed before the device had used them, the "
            f"first one batch {(wrong or [0])[0]}",
            {"decoder": kind, "batches": wrong},
        )
    return Passed(f"{BATCHES} batches of {' and '.join(kinds)} are the same late as at once")


def damage(bench: Bench) -> Passed:
    """A truncated JPEG ends the decoding with its name, and soon.

    One that has an end of image behind the cut reaches DALI's own decoder, which may fill in what is missing: the
    product promises a name for what both decoders see. That of the reference is expected.
    """
    took: dict[str, float] = {}
    silent = []
    for what, end in (("a truncated JPEG", b""), ("a truncated JPEG with an end", END_OF_IMAGE)):
        table = damaged(bench, end)
        for kind in ("dali", "torch") if dali_installed() else ("torch",):
            began = time.perf_counter()
            decoder = make_decoder(decoder_config(kind, 0.65), table, bench.device, len(table))
            try:
                for batch in decoder.batches([Request.centred(np.arange(len(table)))]):
                    batch.images_BHWC.cpu()
            except UserError as error:
                said = str(error)
                expect(table.names[BAD] in said, f"data.decoder {kind} says of {what}: {said}; its name is missing")
            else:
                expect(kind == "dali" and bool(end), f"data.decoder {kind} decodes {what} without a word")
                silent.append(f"; DALI decodes {what} without a word")
            seconds = took[f"{kind}, {what}"] = time.perf_counter() - began
            expect(
                seconds <= NAMED_WITHIN,
                f"data.decoder {kind} took {seconds:.0f} s over {what}; {NAMED_WITHIN:g} were expected",
                took,
            )
    return Passed(f"a truncated JPEG is named within {max(took.values()):.1f} s{''.join(silent)}", took)


def damaged(bench: Bench, end: bytes) -> Table:
    """Eight of the bench's images, the one in row `BAD` cut in half, with this behind the cut."""
    folder = bench.folder / f"damaged-{len(end)}"
    folder.mkdir()
    names = [f"{number}.jpg" for number in range(8)]
    for number, name in enumerate(names):
        content = bench.table.store.read(number)
        (folder / name).write_bytes(content[: len(content) // 2] + end if number == BAD else content)
    return replace(bench.table, store=FolderStore(folder, names), names=names, targets=bench.table.targets[:8])


def _need_dali() -> None:
    if not dali_installed():
        raise LeftOut("NVIDIA DALI is not installed")


def decoder_config(kind: str, load: float, size: tuple[int, int] = (112, 112)) -> DataConfig:
    return DataConfig.model_validate(
        {"decoder": kind, "image_size": size, "crop": "full", "min_zoom": 0.6, "dali": {"hw_decoder_load": load}}
    )


def _dali(bench: Bench, load: float) -> Decoder:
    return make_decoder(decoder_config("dali", load), bench.table, bench.device, len(bench.table))


def _requests(bench: Bench, epochs: int) -> list[Request]:
    """Every image so many times, each time another region of it, half of them mirrored."""
    count = len(bench.table)
    plan = Plan(np.arange(count), seed=0, batch_size=count, min_zoom=0.6)
    return [plan.batch(epoch, 0) for epoch in range(epochs)]


def _digest(batch: Batch) -> torch.Tensor:
    """A number of all pixels and of where they are, int64 [] on the device; adding whole numbers knows no order."""
    flat = batch.images_BHWC.reshape(-1).long()
    return (flat * (torch.arange(len(flat), device=flat.device) % 65521 + 1)).sum()


def _late_digest(bench: Bench, batch: Batch) -> torch.Tensor:
    """The same once the device has slept, which the host does not wait for; on a CPU nothing is behind."""
    if bench.on_gpu:
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
    return _digest(batch)
