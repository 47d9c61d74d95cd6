"""How the ranks meet, and ask each other."""

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast_object_list,
    gather_object,
)

from distrib.base.errors import UserError
from distrib.config import Config
from distrib.ranks.environment import ranks_here, restarts
from distrib.ranks.machine import make_deterministic, use_all_cores
from distrib.ranks.printing import warn

P = ParamSpec("P")
T = TypeVar("T")
# The collective operations give up this much later than the watch over the ranks, which can say more.
LATER_THAN_WATCH = 1.5


def check_ranks(config: Config) -> None:
    """Refuse a launch that started fewer ranks than it was asked for.

    Raises:
        UserError: if `run.ranks` says otherwise, or `accelerate launch` was asked for several and started one.
    """
    found = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = config.run.ranks
    if wanted is not None and wanted != found:
        raise UserError(
            f"run.ranks is {wanted}, but the launcher started {found}: set num_processes in the launch configuration "
            f"to {wanted} (CPU: `accelerate launch --config_file launch/cpu.yaml` starts 2), or run.ranks to {found}"
        )
    # accelerate's one-process launcher exports the address of other ranks only when it was asked for some.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and started only this one, as it does with --cpu: for "
            "CPU ranks use `accelerate launch --config_file launch/cpu.yaml` (or unset MASTER_ADDR if one is meant)"
        )


def meet(config: Config) -> PartialState:
    """Let the ranks meet: from here on they can ask each other.

    Args:
        config: resolved; the precision may still be open.

    Raises:
        UserError: if fewer ranks meet than the launcher has started, or as `make_deterministic` does.
    """
    if config.train.deterministic:
        make_deterministic()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = config.run.device == "cpu"
    if on_cpu:
        use_all_cores(ranks_here())
    timeout = timedelta(seconds=config.run.start_timeout * LATER_THAN_WATCH)
    if restarts() > 0 and ranks > 1:
        _meet_again(on_cpu, timeout)
    state = PartialState(cpu=on_cpu, timeout=timeout)
    if state.num_processes != ranks:
        raise UserError(f"the launcher started {ranks} ranks, but only {state.num_processes} met: check its log")
    return state


def make_accelerator(config: Config) -> Accelerator:
    """The accelerator of ranks that have met.

    Args:
        config: resolved.

    Raises:
        UserError: if the launcher's configuration asks for something else than the run's.
    """
    train = config.train
    ddp = DistributedDataParallelKwargs(
        # TrainStep averages BatchNorm's statistics over all ranks, which broadcasting rank 0's would undo.
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    # torch 2.15 has a new name for broadcast_buffers, which accelerate and older torch do not know yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    accelerator = Accelerator(cpu=config.run.device == "cpu", mixed_precision=train.precision, kwargs_handlers=[ddp])
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(
            f"the launch configuration asks for {kind.value}: expected MULTI_GPU or NO, as in launch/*.yaml"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"the launcher asks for {accelerator.gradient_accumulation_steps} gradient accumulation steps: set "
            "train.accumulation instead, and leave the launcher's at 1"
        )
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher_precision not in ("no", train.precision):
        warn(f"the launcher's mixed_precision {launcher_precision} has no effect: train.precision is {train.precision}")
    return accelerator


def start_ranks(config: Config) -> Accelerator:
    """Let the ranks of a program whose precision is known meet; see `meet` and `make_accelerator`."""
    meet(config)
    return make_accelerator(config)


def _meet_again(on_cpu: bool, timeout: timedelta) -> None:
    """Let the ranks meet after a restart by the launcher, before accelerate does.

    The launcher's static rendezvous keeps its store, and in it the addresses of the ranks of the attempt before, to
    which some would try to connect: under a prefix of its own each attempt begins with an empty one.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "gloo" if on_cpu else "nccl", store=own_store("ranks", timeout), rank=rank, world_size=ranks, timeout=timeout
    )


def own_store(purpose: str, timeout: timedelta) -> Any:
    """A connection of one's own to the launcher's key-value store (a `torch.distributed.Store`), for one purpose and
    this attempt of the launcher alone; none of its calls takes longer than `timeout`."""
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timeout,
        wait_for_workers=False,
    )
    return torch.distributed.PrefixStore(  # type: ignore[attr-defined]
        f"distrib/{purpose}/{restarts()}", store
    )


def from_rank_0(accelerator: Accelerator | PartialState, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `make(…)` returns on rank 0, on every rank.

    Raises:
        UserError: on every rank, where it raises one on rank 0.
    """
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            shared[0] = make(*args, **kwargs)
        except UserError as error:
            shared[0] = UserError(str(error), on_all_ranks=True)
        except OSError as error:  # the other ranks would wait for the answer
            file = error.filename or "a file"
            reason = f"{file} cannot be read or written ({error.strerror}): check the disk and its permissions"
            shared[0] = UserError(reason, on_all_ranks=True)
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    if isinstance(shared[0], UserError):
        raise shared[0]
    result: T = shared[0]
    return result


def on_rank_0(accelerator: Accelerator, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `make(…)` returns on rank 0, which alone has it: the others wait for that, and get None.

    Raises:
        UserError: as `from_rank_0` does.
    """
    made: list[T] = []
    from_rank_0(accelerator, lambda: made.append(make(*args, **kwargs)))
    return made[0] if made else None


def on_every_rank(accelerator: Accelerator, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `make(…)` returns on this rank, once it has succeeded on all.

    Raises:
        UserError: on every rank, where it raises one on any; it names the rank unless it is rank 0.
    """
    result, failure = None, None
    try:
        result = make(*args, **kwargs)
    except UserError as error:
        failure = str(error), error.may_pass
    failures = gather_object([failure]) if accelerator.num_processes > 1 else [failure]
    for number, each in enumerate(failures):
        if each is not None:
            sentence, may_pass = each
            on_all = UserError(sentence if number == 0 else f"rank {number}: {sentence}", on_all_ranks=True)
            on_all.may_pass = may_pass
            raise on_all
    assert result is not None
    return result


def set_timeout(seconds: float) -> None:
    """Another timeout of the watch over the ranks: that of their collective operations follows."""
    # torch 2.15 has a public name for it.
    change = getattr(torch.distributed, "set_timeout", None) or torch.distributed.distributed_c10d._set_pg_timeout
    change(timedelta(seconds=seconds * LATER_THAN_WATCH), None)
