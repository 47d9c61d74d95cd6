"""Checks of the step: what may not move does not, what must not wait does not, and the same is computed again."""

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState

from distrib.base.words import listed, plural
from distrib.checking.check import Bench, Passed, expect, leave_out_if_exclusive
from distrib.config import AugmentConfig, Config
from distrib.data.augmentation import Augmentation
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import computes_in
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.checkpoint import Checkpoint, CheckpointWriter, Contents, Progress, load_checkpoint
from distrib.training.compilation import compile_network
from distrib.training.ema import MovingAverage
from distrib.training.optimizer import make_optimizer
from distrib.training.state import restore
from distrib.training.step import TrainStep

OPTIMIZERS = ("adam", "adamw", "sgd")
PRECISIONS = ("no", "bf16", "fp16")
# Every augmentation there is.
AUGMENT = AugmentConfig(mixup=0.2)
# Steps of each of the two runs that are to end with the same bits.
REPEATED = 50
# Bytes by which the memory of the host may grow in 50 steps: an allocator's own.
SLACK = 32 * 2**20


@dataclass
class Training:
    """A training in small: its step, and what the step changes."""

    train_step: TrainStep
    agreement: Agreement
    net: AttributeClassifier
    optimizer: AcceleratedOptimizer
    accelerator: Accelerator
    average: MovingAverage | None

    def step(self, micro_batches: Sequence[Batch], number: int) -> None:
        """A step, and what the loop asks after each: it lets go of what the steps before have left to be read."""
        self.train_step(micro_batches, number)
        self.agreement.answer()

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the weights, BatchNorm's statistics, their average and the optimiser's state, by name."""
        found = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{name}": tensor.clone() for name, tensor in self.average.net.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": tensor.clone() for name, tensor in state.items()}
        return found

    def moments(self) -> torch.Tensor:
        """The optimiser's averages of gradients, one after another, float64 [their number]."""
        names = ("exp_avg", "momentum_buffer")
        states = self.optimizer.state_dict()["state"].values()
        return torch.cat([state[name].flatten().double() for state in states for name in names if name in state])


@contextmanager
def training(
    bench: Bench, optim: str = "adamw", precision: str = "no", clip_norm: float | None = None, **train: Any
) -> Iterator[Training]:
    """A training on one rank, of the network as a run has it, from the same first weights each time; compiled only
    where `compile` says how."""
    bench.collect()
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one a process
    config = Config().replace("run", device=bench.device.type).replace("optim", name=optim, clip_norm=clip_norm)
    config = config.replace("train", precision=precision, **train)
    accelerator = start_ranks(config)
    torch.manual_seed(0)
    net = AttributeClassifier(len(bench.table.attributes), config.train.channels_last).to(bench.device)
    compile_network(net, "no" if config.train.compile == "auto" else config.train.compile, config.train.deterministic)
    average = None if config.train.ema is None else MovingAverage(net, config.train.ema)
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    if average is not None:
        average.attach()
    agreement = Agreement(StopRequests(), accelerator)
    step = TrainStep(config, accelerator, model, optimizer, None, agreement, average=average)
    try:
        yield Training(step, agreement, net, optimizer, accelerator, average)
    finally:
        compile_network(net, "no", deterministic=False)
        AcceleratorState._reset_state(reset_partial_state=True)


def precision_name(precision: str) -> str:
    """What `train.precision` is called in sentences."""
    return "float32" if precision == "no" else precision


def batch(bench: Bench, target: float | None = None, seed: int = 0) -> Batch:
    """Noise to train on, the same on every device; with the same target for all where one is named."""
    count, side = (64, 112) if bench.on_gpu else (8, 32)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 2, (count, len(bench.table.attributes)), generator=generator).float()
    targets = targets if target is None else torch.full_like(targets, target)
    return Batch(images.to(bench.device), targets.to(bench.device), torch.arange(count))


def nonfinite(bench: Bench) -> Passed:
    """A step whose loss is NaN leaves parameters, their average, moments, statistics and counts of steps as they are,
    to the bit."""
    precisions = [each for each in PRECISIONS if computes_in(each, bench.device.type)]
    for precision, name in product(precisions, OPTIMIZERS):
        nan_moves_nothing(bench, name, precision)
    kinds = f"{', '.join(OPTIMIZERS)} in {listed([precision_name(each) for each in precisions])}"
    return Passed(f"a NaN moves nothing with {kinds}, and the next step moves everything")


def nan_moves_nothing(bench: Bench, optim: str, precision: str, mode: str = "no") -> None:
    """Raises Failed if a step whose loss is NaN moves anything, or the step after it does not; compiled in a mode."""
    with training(bench, optim, precision, on_nonfinite="skip", ema=0.9, compile=mode) as small:
        if (scaler := small.accelerator.scaler) is not None:
            # At the scale with which it begins, the gradients of the first steps may overflow, which skips a step too.
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**8})
        for number in range(2):
            small.step([batch(bench)], number)
        before = small.state()
        small.step([batch(bench, math.nan)], 2)
        after = small.state()
        moved = [key for key in before if not torch.equal(before[key], after[key])]
        how = f"{optim} in {precision_name(precision)}"
        expect(
            not moved,
            f"a step whose loss is NaN has moved {plural(len(moved), 'tensor')} of {how}: {listed(moved)}",
            {"optimizer": optim, "precision": precision, "compile": mode, "moved": moved},
        )
        small.step([batch(bench)], 3)
        still = [key for key, tensor in small.net.named_parameters() if torch.equal(before[key], tensor)]
        expect(not still, f"after a step that was skipped {how} no longer moves {listed(still)}")
        bad = small.train_step.read().bad
        expect(bad == (2,), f"step 2 was not finite, and the steps that were noted down are {bad}")


def overflow(bench: Bench) -> Passed:
    """In fp16 a gradient that overflows halves the scale, and moves no weight, moment or average.

    (BatchNorm's statistics move: the forward pass was finite.)
    """
    bench.need_gpu("fp16 needs a GPU")
    with training(bench, precision="fp16", ema=0.9) as small:
        scaler = small.accelerator.scaler
        small.step([batch(bench)], 0)
        scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
        before = small.state()
        small.step([batch(bench)], 1)
        scale, after = scaler.get_scale(), small.state()
        moved = [key for key, _ in small.net.named_parameters() if not torch.equal(before[key], after[key])]
        others = [key for key in before if key.startswith(("optimizer.", "average."))]
        moved += [key for key in others if not torch.equal(before[key], after[key])]
        expect(not moved, f"a gradient that overflows in fp16 has moved {listed(moved)}", {"moved": moved})
        expect(scale == 2.0**59, f"the scale is {scale:g} after an overflow at {2.0**60:g}; half of it was expected")
    return Passed("an overflow in fp16 halves the scale, and moves no weight, moment or average")


def memory_format(bench: Bench) -> Passed:
    """A resume with another memory layout pairs each moment with its own weight."""
    found = {}
    for name in OPTIMIZERS:
        with training(bench, name, channels_last=True) as small:
            for number in range(3):
                small.step([batch(bench, seed=number)], number)
            trainer = {"optimizer": deepcopy(small.optimizer.state_dict()), "scaler": None}
            saved = Checkpoint(Path("memory"), deepcopy(small.net.net.state_dict()), trainer)
            small.step([batch(bench, seed=3)], 3)
            expected = small.moments()
        with training(bench, name, channels_last=False) as small:
            restore(saved, small.net, small.optimizer, small.accelerator)
            small.step([batch(bench, seed=3)], 3)
            off = small.moments() - expected
        # Other kernels round otherwise; moments of other weights would be off by about their own size.
        found[name] = (off.norm() / expected.norm()).item()
        expect(
            found[name] <= 0.05,
            f"after a resume with another train.channels_last the moments of {name} are off by {found[name]:.0%} of "
            "their size; at most 5 % was expected",
            found,
        )
    return Passed(f"a resume with another train.channels_last continues the same with {', '.join(OPTIMIZERS)}", found)


def synchronisation(bench: Bench) -> Passed:
    """Augmentation, a step of one batch or of two, the average of the weights and a look at the loss ask nothing of the
    device that the host would wait for."""
    bench.need_gpu("on a CPU nothing is waited for")
    for precision in PRECISIONS:
        if computes_in(precision, "cuda"):
            nothing_waits(bench, precision)
    return Passed("augmentation, a step, the average of the weights and a look at the loss wait for nothing")


def nothing_waits(bench: Bench, precision: str, mode: str = "no") -> None:
    """Raises Failed if the host waits for the GPU anywhere in a step; compiled in a mode."""
    augment = Augmentation(AUGMENT, seed=0)
    whole: dict[str, Any] = {"clip_norm": 1.0, "on_nonfinite": "skip", "ema": 0.9, "compile": mode}
    with training(bench, precision=precision, **whole) as small:
        ready = batch(bench)
        small.step([augment(ready, 0)], 0)
        small.step([augment(ready, 1), ready], 1)
        bench.synchronise()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(2, 8):
                small.step([ready, augment(ready, number)][number % 2 :], number)
            small.train_step.look()
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:
            expect(False, f"a step in {precision_name(precision)} waits for the device: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")


def compiled(bench: Bench) -> Passed:
    """The same of the step as train.compile auto has it on a GPU."""
    bench.need_gpu("on a CPU train.compile auto is no")
    precision = "bf16" if computes_in("bf16", "cuda") else "fp16"
    nan_moves_nothing(bench, "adamw", precision, "default")
    nothing_waits(bench, precision, "default")
    return Passed(f"compiled, in {precision}, a NaN moves nothing, and a step waits for nothing")


def memory(bench: Bench) -> Passed:
    """The memory of device and host does not grow from step 50 on."""
    with training(bench, ema=0.9) as small:
        ready, sizes = batch(bench), []
        for number in range(100):
            small.step([ready], number)
            if number in (49, 99):
                small.train_step.read()
                bench.collect()
                device = torch.cuda.memory_allocated(bench.device) if bench.on_gpu else 0
                sizes.append((device, psutil.Process().memory_info().rss))
    grown = sizes[1][0] - sizes[0][0], sizes[1][1] - sizes[0][1]
    figures = {"device": grown[0], "host": grown[1]}
    expect(grown[0] <= 0, f"the device's memory grew by {grown[0]:,} bytes from step 50 to 100", figures)
    expect(grown[1] <= SLACK, f"the host's memory grew by {grown[1]:,} bytes from step 50 to 100", figures)
    return Passed(
        f"from step 50 to 100 memory grew by {grown[0]:,} bytes on the device, {grown[1]:,} on the host", figures
    )


def checkpoint(bench: Bench) -> Passed:
    """A checkpoint that is written while training continues holds the state of its own moment."""
    with training(bench) as small:
        for number in range(2):
            small.step([batch(bench, seed=number)], number)
        expected = deepcopy((small.net.net.state_dict(), small.optimizer.state_dict()["state"]))
        bench.synchronise()
        writer = CheckpointWriter(bench.folder / "checkpoints", "data", "{}\n", keep=1, failed=None)
        contents = Contents(small.net.net.state_dict(), small.optimizer.state_dict(), None, Progress(), "{}\n", 2)
        writer.save(contents)
        for number in range(2, 12):
            small.step([batch(bench, seed=number)], number)
        writer.wait()
    found = load_checkpoint(bench.folder / "checkpoints" / "step-00000002")
    wrong = [name for name, tensor in expected[0].items() if not torch.equal(tensor.cpu(), found.weights[name])]
    for number, state in expected[1].items():
        read = found.trainer["optimizer"]["state"][number]
        wrong += [f"{number}.{name}" for name, tensor in state.items() if not torch.equal(tensor.cpu(), read[name])]
    expect(
        not wrong,
        f"a checkpoint holds {plural(len(wrong), 'tensor')} of a later step than its own: {listed(wrong)}",
        {"wrong": wrong},
    )
    return Passed("a checkpoint written beside ten more steps holds the state of its own step, to the bit")


def repetition(bench: Bench) -> Passed:
    """With train.deterministic the same steps give the same bits again.

    In a process of its own: what it is told about determinism stays.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        try:
            wrong = alone.submit(differences, bench, deterministic=True).result()
        except RuntimeError as error:
            leave_out_if_exclusive(str(error))
            raise
    which = f"{plural(len(wrong), 'tensor')}: {listed(wrong)}"
    expect(not wrong, f"two runs of the same {REPEATED} steps differ in {which}")
    return Passed(f"two runs of {REPEATED} steps end with the same bits (train.deterministic)")


def differences(bench: Bench, deterministic: bool) -> list[str]:
    """The tensors in which two runs of the same steps differ at their end."""
    ends = []
    for _ in range(2):
        with training(bench, deterministic=deterministic) as small:
            for number in range(REPEATED):
                small.step([batch(bench, seed=number % 4)], number)
            ends.append(small.state())
    return [name for name, tensor in ends[0].items() if not torch.equal(tensor, ends[1][name])]
