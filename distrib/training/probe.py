"""A step tried out before the first: whether it compiles, and whether there is room for it.

Each rank tries alone, without a word to the others, and then all hear what each has found, so that they do the same and
none waits for one that has failed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from distrib.base.errors import OutOfMemory, UserError, first_line, out_of_memory
from distrib.model.network import AttributeClassifier
from distrib.ranks.environment import trials_on_gpu
from distrib.ranks.meeting import from_rank_0
from distrib.ranks.printing import say
from distrib.ranks.watch import Watch
from distrib.scoring.evaluation import AUTOCAST
from distrib.training.checkpoint import Checkpoint
from distrib.training.compilation import choose_mode, compile_network, mode_of
from distrib.training.grouping import Grouping, halve, what_to_lower
from distrib.training.losses import attribute_loss
from distrib.training.optimizer import make_optimizer
from distrib.training.training_run import TrainingRun

# Devices that refuse what they have no room for. A CPU's kernel promises more than there is, and ends processes later.
REFUSING = ("cuda",)
# Of a GPU's memory, for what lies in it beside torch's tensors: decoder, cuDNN, NCCL. An estimate, not measured.
SPARE = 0.05


@dataclass(frozen=True)
class Compilation:
    """How the network of a run is computed.

    Attributes:
        mode: of torch.compile; "no": operation by operation.
        seconds: that compiling took on the slowest rank, loading what is kept of an earlier time included; 0: it was
            not compiled.
        notes: warnings, a sentence each.
    """

    mode: str
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What is done, for a person."""
        return f"compile {self.mode}" + (f" ({self.seconds:.0f} s)" if self.seconds else "")


@dataclass(frozen=True)
class _Finding:
    """What a rank found when it tried: nothing in the way, or that there is `no_room`, or that it `fails` to compile,
    in the words of the library."""

    no_room: str | None = None
    fails: str | None = None
    seconds: float = 0.0


def try_step(
    run: TrainingRun, net: AttributeClassifier, checkpoint: Checkpoint | None, grouping: Grouping
) -> tuple[TrainingRun, Grouping, Compilation]:
    """Find out how the network is computed, and on how many images at a time; all ranks call this.

    A new run that leaves both `train.norm_size` and `train.accumulation` to the machine takes smaller micro-batches
    where a rank has no room for its share; any other keeps what it computes.

    Args:
        run: whose configuration may say `auto`; its images are where they stay.
        net: of this rank, as it begins; it is left so, but on the device.
        checkpoint: that the run resumes from; None: it is new.
        grouping: of its batches, as asked for.

    Returns:
        The run with what was decided about compiling in its configuration, the grouping, and the decision.

    Raises:
        UserError: on every rank, if the network does not compile on one, and that was asked for.
        OutOfMemory: on every rank, if one has no room for the smallest micro-batch that the run may have.
        RankLost: if another rank has died or hangs meanwhile.
    """
    accelerator, asked = run.accelerator, run.config.train.compile
    config = from_rank_0(accelerator, choose_mode, run.config, checkpoint, grouping)
    mode = config.train.compile
    may_change = checkpoint is None and config.train.norm_size == config.train.accumulation == "auto"
    # Several trials on a GPU would find the room that their neighbours leave at that moment.
    looks_for_room = may_change and accelerator.device.type in REFUSING and trials_on_gpu() == 1
    limit, began_with = config.run.start_timeout, grouping.norm_size
    seconds, refused_by, notes = 0.0, 0, list[str]()
    run = replace(run, config=config)
    compile_network(net, mode, config.train.deterministic)
    while mode != "no" or looks_for_room:
        if mode != "no":
            say(f"compile: compiling the network (train.compile {mode}), which may take a minute")
        with Watch(accelerator, limit, limit, lambda _: None):
            mine = _try(run, net, checkpoint, grouping, looks_for_room)
            findings = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
        if failing := [(number, each.fails) for number, each in enumerate(findings) if each.fails is not None]:
            number, why = failing[0]
            where = f"on rank {number}" if len(findings) > 1 else "here"
            reason = f"the network does not compile {where} ({why})"
            if asked != "auto":
                raise UserError(f"train.compile is {mode}, and {reason}: choose train.compile no", on_all_ranks=True)
            notes.append(f"train.compile auto: {reason}; the run continues without compiling (train.compile no)")
            mode = "no"
            run = replace(run, config=config.replace("train", compile=mode))
            compile_network(net, mode, config.train.deterministic)
        elif looks_for_room and (refusing := [each for each in enumerate(findings) if each[1].no_room is not None]):
            number, why = refusing[0][0], refusing[0][1].no_room
            smaller = halve(grouping)
            if smaller is None:
                lower = what_to_lower(config, grouping, accelerator.num_processes)
                raise OutOfMemory(f"a step does not fit on rank {number}: {why}", lower, on_all_ranks=True)
            refused_by, grouping = number, smaller
            compile_network(net, mode, config.train.deterministic)
        else:
            seconds = max(each.seconds for each in findings) if mode != "no" else 0.0
            break
    if grouping.norm_size < began_with:
        sentence = (
            f"rank {refused_by} has no room for {began_with} images at a time: a rank's share of a batch is cut into "
            f"{grouping.accumulation} (train.accumulation), and BatchNorm normalises over {grouping.norm_size} images "
            "(train.norm_size) in this run"
        )
        if run.images is not None and run.images.pixels_NHWC.device.type != "cpu":
            sentence += "; with data.resident host or never, in a new run, there would be more room"
        grouping = replace(grouping, notes=(*grouping.notes, sentence))
    if checkpoint is not None and (before := mode_of(checkpoint)) != mode:
        notes.append(
            f"train.compile was {before}, and is {mode} from here on: results agree with the earlier mode's only to "
            "rounding"
        )
    return run, grouping, Compilation(mode, seconds, tuple(notes))


def _try(
    run: TrainingRun,
    net: AttributeClassifier,
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    looks_for_room: bool,
) -> _Finding:
    """What this rank finds when it makes steps of its own; the network is as before."""
    began = time.monotonic()
    try:
        with _left_as_it_is(net.to(run.accelerator.device), run.accelerator.device):
            _make_steps(run, net, checkpoint, grouping, looks_for_room)
    except Exception as error:  # a compiler's come from anywhere
        if out_of_memory(error):
            return _Finding(no_room=first_line(error))
        # A device that has failed stays so.
        if net.compiled is None or isinstance(error, torch.AcceleratorError):
            raise
        return _Finding(fails=first_line(error))
    finally:
        clear_device_cache(garbage_collection=True)  # for the next try, or DALI
    return _Finding(seconds=time.monotonic() - began)


@contextmanager
def _left_as_it_is(net: AttributeClassifier, device: torch.device) -> Iterator[None]:
    """Put BatchNorm's statistics, the gradients and torch's random numbers back afterwards."""
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        net.zero_grad(set_to_none=True)
        for name, buffer in net.named_buffers():
            buffer.copy_(before[name])


def _make_steps(
    run: TrainingRun,
    net: AttributeClassifier,
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    looks_for_room: bool,
) -> None:
    """Compile all that is to be compiled; hold what a step holds at most, on this rank; no weight moves."""
    config, accelerator, device = run.config, run.accelerator, run.accelerator.device
    to_come = parts_to_come(run, checkpoint)
    # Most is held at the end, when most is trained, on the largest images. A graph that a later step compiled would
    # have run.timeout for it, and could fail on one rank alone.
    parts = to_come if net.compiled is not None else to_come[-1:]
    net.freeze(config.model.freeze_in(config.train.epochs))
    held: list[object] = [make_optimizer(net, config.optim)]  # with its state
    if accelerator.num_processes > 1:  # DDP's buckets, as large as the gradients
        held += [torch.empty_like(parameter) for parameter in net.parameters() if parameter.requires_grad]
    if looks_for_room and device.type == "cuda":
        held.append(torch.empty(int(SPARE * torch.cuda.mem_get_info(device)[1]), dtype=torch.uint8, device=device))
    targets_BA = torch.zeros(grouping.micro_batch, len(run.table.attributes), device=device)
    precision = AUTOCAST[config.train.precision]
    # The CUDA graphs of these modes are warmed up in the first step, recorded in the second, and replayed in the third.
    rounds = 3 if config.train.compile in ("reduce-overhead", "max-autotune") else 1
    for policy, size in parts:
        net.freeze(policy)
        images_BHWC = torch.zeros(grouping.micro_batch, *size, 3, dtype=torch.uint8, device=device)
        for _ in range(rounds):
            for _ in range(min(2, grouping.accumulation)):  # the second has the first one's gradients beside it
                with torch.autocast(device.type, precision) if precision else nullcontext():
                    logits_BA = net(images_BHWC)
                loss = attribute_loss(logits_BA, targets_BA, config.train.label_smoothing, None)
                loss.backward()  # type: ignore[no-untyped-call]
            logits_BA.sum().item()  # waits for the device
            net.zero_grad(set_to_none=True)


def parts_to_come(run: TrainingRun, checkpoint: Checkpoint | None) -> list[tuple[str, tuple[int, int]]]:
    """What is trained, by the policies of `model.freeze`, on images of which height and width, in the steps that are
    left of a run: each once, in their order."""
    config, plan = run.config, run.plan
    per_epoch = plan.steps_per_epoch
    now = 0 if checkpoint is None else checkpoint.progress.epoch * per_epoch + checkpoint.progress.step
    changes = {(epoch - 1) * per_epoch for epoch, _ in config.model.stages} | set(plan.sizes)
    steps = sorted({now, *(step for step in changes if step > now)})
    return list(
        dict.fromkeys(
            (config.model.freeze_in(step // per_epoch + 1), plan.size(step) or config.data.image_size)
            for step in steps
            if step < per_epoch * config.train.epochs
        )
    )
