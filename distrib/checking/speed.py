"""How fast this machine decodes, cuts images out of memory and trains, and which of them the others wait for."""

import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from distrib.checking.check import Bench, Failed, Passed
from distrib.checking.decoding import decoder_config
from distrib.checking.images import whole_rows
from distrib.checking.stepping import PRECISIONS, Training, precision_name, training
from distrib.data.batch import Batch, Request
from distrib.data.decoders import dali_installed, make_decoder
from distrib.data.plan import Plan
from distrib.data.resident import ResidentImages, decode_once, make_resident_decoder, sizes_of_some
from distrib.ranks.machine import computes_in

SECONDS = 1.0  # that each measurement takes, after one turn to warm up


def precisions(bench: Bench) -> Passed:
    """Images a second of the step on a batch that lies on the device, in each precision; compiled in the fastest."""
    count, size = (256, (218, 178)) if bench.on_gpu else (16, (64, 64))
    precisions = [each for each in PRECISIONS if computes_in(each, bench.device.type)]
    held = _held(bench, count, size)
    rates = {precision_name(each): _step_rate(bench, each, "no", held) for each in precisions}
    if bench.on_gpu:  # in one alone, as compiling takes up to a minute
        precision = max(precisions, key=lambda each: rates[precision_name(each)])
        try:
            rates[f"{precision_name(precision)}, compiled"] = _step_rate(bench, precision, "default", held)
        except Exception as error:  # whatever the compiler raises
            line = " ".join(str(error).split())[:200]
            raise Failed(
                f"the network cannot be compiled ({type(error).__name__}: {line}): train with train.compile no",
                {**rates, "traceback": traceback.format_exc()},
            ) from error
    fastest = max(rates, key=lambda name: rates[name])
    seen = "; ".join(f"{name}: {rate:,.0f}" for name, rate in rates.items())
    return Passed(f"images/s of a step of {count} at {size[0]} x {size[1]}: {seen}; the fastest is {fastest}", rates)


def bottleneck(bench: Bench) -> Passed:
    """Images a second that are decoded, cut out of memory, and trained on, at several sizes of a batch.

    The step is not compiled, which would take up to a minute for each size: `precisions` says what that gains.
    """
    sizes, size = ((64, 256, 1024), (218, 178)) if bench.on_gpu else ((16,), (64, 64))
    images, figures, left_out = _in_memory(bench), dict[str, dict[str, float]](), ""
    for count in sizes:
        try:
            figures[str(count)] = _rates_of_parts(bench, images, count, size)
        except torch.OutOfMemoryError:
            if not figures:
                raise
            left_out = f"; a batch of {count} does not fit in the GPU's memory"
            break
    last = list(figures.values())[-1]
    decoding, in_memory = (min((part, "step"), key=lambda name: last[name]) for part in ("decode", "resident"))
    seen = "; ".join(
        f"batch {count}: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
        for count, rates in figures.items()
    )
    named = {"decode": "decoding", "resident": "cutting them out", "step": "the step"}
    otherwise = f", and with images in memory (data.resident) {named[in_memory]}" if in_memory != decoding else ""
    sentence = f"images/s at {size[0]} x {size[1]}: {seen}{left_out}; the bottleneck is {named[decoding]}{otherwise}"
    return Passed(sentence, {**figures, "bottleneck": {"decoded": decoding, "in memory": in_memory}})


def _rates_of_parts(bench: Bench, images: ResidentImages, count: int, size: tuple[int, int]) -> dict[str, float]:
    """Images a second of each part of a training, in batches of so many, by its name."""
    precision = "bf16" if bench.on_gpu and computes_in("bf16", "cuda") else "no"
    config = decoder_config("dali" if bench.on_gpu and dali_installed() else "torch", 0.65, size)
    decoded = make_decoder(config, bench.table, bench.device, count).batches(_endless(bench, count))
    cut = make_resident_decoder(images, config, bench.table, bench.device).batches(_endless(bench, count))
    rates = {
        "decode": _rate(bench, count, partial(next, decoded)),
        "resident": _rate(bench, count, partial(next, cut)),
    }
    with training(bench, precision=precision) as small:
        rates["end to end"] = _rate(bench, count, partial(_train_on_next, small, decoded))
    rates["step"] = _step_rate(bench, precision, "no", _held(bench, count, size))
    return rates


def _step_rate(bench: Bench, precision: str, mode: str, held: Batch) -> float:
    with training(bench, precision=precision, compile=mode) as small:
        return _rate(bench, len(held), lambda: small.step([held], 0))


def _train_on_next(small: Training, batches: Iterator[Batch]) -> None:
    small.step([next(batches)], 0)


def _rate(bench: Bench, count: int, turn: Callable[[], object]) -> float:
    """Images a second of something that takes so many at each turn."""
    turn()
    bench.synchronise()
    began, turns = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        turn()
        turns += 1
    bench.synchronise()
    return turns * count / (time.perf_counter() - began)


def _held(bench: Bench, count: int, size: tuple[int, int]) -> Batch:
    # A GPU computes faster with zeros, which take less power.
    images_BHWC = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, device=bench.device)
    targets_BA = torch.zeros(count, len(bench.table.attributes), device=bench.device)
    return Batch(images_BHWC, targets_BA, torch.arange(count))


def _endless(bench: Bench, count: int) -> Iterator[Request]:
    """Batches of the bench's images, as often as it takes, each time other regions of them."""
    rows = np.resize(whole_rows(bench.table), count)
    plan = Plan(rows, seed=0, batch_size=count, min_zoom=0.85)
    epoch = 0
    while True:
        yield plan.batch(epoch, 0)
        epoch += 1


def _in_memory(bench: Bench) -> ResidentImages:
    """The bench's images of one size, decoded once, on the device."""
    rows = whole_rows(bench.table)
    whole, size = next(iter(sizes_of_some(bench.table, rows).items()))
    pixels_NHWC = torch.empty(len(rows), *size, 3, dtype=torch.uint8, device=bench.device)
    config = decoder_config("torch", 0.0, size)
    found = decode_once(config, bench.table, bench.device, rows, whole, pixels_NHWC, lambda _: None)
    return ResidentImages(pixels_NHWC, rows, found.broken)
