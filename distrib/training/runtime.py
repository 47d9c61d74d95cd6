"""The ranks, the device and the precision that a run stands on."""

import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)

from distrib.config import Config
from distrib.data.decoders import choose_decoder
from distrib.errors import UserError, printable
from distrib.training.preemption import STOPPED

P = ParamSpec("P")
T = TypeVar("T")

# A rank that has run out of memory leaves with this, so that a study can tell it from other ends.
OUT_OF_MEMORY = 3
# Seconds that other ranks leave rank 0 to print an error that all of them have.
SPEAK_WITHIN = 60
# The collective operations give up this much later than the watch over the ranks, which can say more.
LATER_THAN_WATCH = 1.5


class RankLost(Exception):  # noqa: N818 - nothing that this rank did wrong
    """Another rank has died or hangs; says which."""


def rank() -> int:
    """This process's rank as its launcher says, before the ranks have met."""
    return int(os.environ.get("RANK", "0"))


def several_ranks() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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


def resolve(config: Config) -> Config:
    """The configuration with every `auto` about this machine decided.

    Raises:
        UserError: if the machine lacks what the configuration asks for.
    """
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is cuda, but torch finds no GPU: check the driver, or choose run.device cpu")
    device = _device_type(config)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and local_ranks > torch.cuda.device_count():
        raise UserError(
            f"the launcher started {local_ranks} ranks on this machine, which has {torch.cuda.device_count()} GPUs: "
            f"say --num_processes {torch.cuda.device_count()}, or run.device cpu"
        )
    precision = config.train.precision
    if precision == "fp16" and device == "cpu":
        raise UserError("train.precision fp16 needs a GPU, and this run is on the CPU: choose bf16, no or auto")
    if precision == "auto":
        precision = "bf16" if _computes_in_bf16(device) else "no"
    decoder = choose_decoder(config.data.decoder, torch.device(device))
    return config.replace("run", device=device).replace("train", precision=precision).replace("data", decoder=decoder)


def fallbacks(asked: Config, resolved: Config) -> list[str]:
    """What `auto` had to do without on this machine, a sentence each; GPUs that launch/cpu.yaml hides are no loss."""
    notes = []
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "-1,-1")
    if asked.run.device == "auto" and resolved.run.device == "cpu" and not hidden:
        notes.append("run.device auto found no GPU: the CPU does the work")
    if asked.data.decoder == "auto" and resolved.data.decoder == "torch" and resolved.run.device == "cuda":
        notes.append("data.decoder auto found no NVIDIA DALI: decoding on the CPU; `pip install -e '.[cuda13]'` has it")
    return notes


def start_ranks(config: Config) -> Accelerator:
    """Let the ranks meet.

    Args:
        config: resolved.

    Raises:
        UserError: if the launcher's configuration asks for something else than the run's.
    """
    train = config.train
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = config.run.device == "cpu"
    if on_cpu:
        use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    ddp = DistributedDataParallelKwargs(
        # TrainStep averages BatchNorm's statistics over all ranks, which broadcasting rank 0's would undo.
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    # torch 2.15 has a new name for broadcast_buffers, which accelerate and older torch do not know yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    timeout = timedelta(seconds=config.run.start_timeout * LATER_THAN_WATCH)
    if restarts() > 0 and ranks > 1:
        _meet_again(on_cpu, timeout)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=train.precision,
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=timeout)],
    )
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
    if accelerator.num_processes != ranks:
        raise UserError(f"the launcher started {ranks} ranks, but only {accelerator.num_processes} met: check its log")
    return accelerator


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


def from_rank_0(accelerator: Accelerator, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
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
            reason = f"{file} cannot be read or written ({error.strerror}): see to the disk and its rights"
            shared[0] = UserError(reason, on_all_ranks=True)
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    if isinstance(shared[0], UserError):
        raise shared[0]
    result: T = shared[0]
    return result


def on_every_rank(accelerator: Accelerator, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `make(…)` returns on this rank, once it has succeeded on all.

    Raises:
        UserError: on every rank, where it raises one on any; it names the rank unless it is rank 0.
    """
    result, sentence = None, None
    try:
        result = make(*args, **kwargs)
    except UserError as error:
        sentence = str(error)
    sentences = gather_object([sentence]) if accelerator.num_processes > 1 else [sentence]
    for number, each in enumerate(sentences):
        if each is not None:
            raise UserError(each if number == 0 else f"rank {number}: {each}", on_all_ranks=True)
    assert result is not None
    return result


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device, or the host, has no room for what was asked of it."""
    # torch has no type of its own for it on the CPU, nor have DALI and CUDA's libraries.
    said = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def lost_a_rank(error: Exception) -> bool:
    """Whether an error is the network's way of saying that another rank has gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return several_ranks() and any(name in str(error) for name in ("gloo", "Connection closed by peer"))


def set_timeout(seconds: float) -> None:
    """Another timeout of the watch over the ranks: that of their collective operations follows."""
    # torch 2.15 has a public name for it.
    change = getattr(torch.distributed, "set_timeout", None) or torch.distributed.distributed_c10d._set_pg_timeout
    change(timedelta(seconds=seconds * LATER_THAN_WATCH), None)


def restarts() -> int:
    """How often the launcher has started the ranks again after one of them failed (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launcher() -> psutil.Process | None:
    """The process that has started this rank and starts it again after a failure; None where there is none."""
    return psutil.Process(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else None


def launch_id() -> str | None:
    """What tells one start of a launcher from all others; the same when it starts its ranks again."""
    by = launcher()
    return None if by is None else f"process {by.pid} of {by.create_time():.2f} on {socket.gethostname()}"


def stopped_status() -> int:
    """The exit status of a rank that was asked to stop and did: `STOPPED`.

    A launcher that restarts failed ranks would take that for a failure and start them again: there it is 0.
    """
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 else STOPPED


def describe_machine(accelerator: Accelerator) -> dict[str, Any]:
    """What a run stands on, for people: ranks, device and versions."""
    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"CPU (threads a rank: {torch.get_num_threads()})"
    versions = {package: version(package) for package in ("torch", "torchvision", "accelerate", "numpy")}
    return {
        "ranks": accelerator.num_processes,
        "device": device,
        "versions": {"python": platform.python_version(), **versions},
    }


def run_program(prepare: Callable[[], T], work: Callable[[T], int | None], interrupted: str) -> int:
    """Run a program on this rank, and print whatever ends it early as one sentence.

    Args:
        prepare: everything until the ranks have met; what is wrong here is wrong on every rank.
        work: the rest; it gets what `prepare` returns, and may return an exit status.
        interrupted: what to say after Ctrl-C.

    Returns:
        The exit status: that of `work`, 1 if another rank was lost, 2 for what the user can mend, 3 if there was not
        enough memory, 130 after Ctrl-C.
    """
    try:
        try:
            ready = prepare()
        except UserError as error:
            raise UserError(str(error), on_all_ranks=True) from None
        return work(ready) or 0
    except UserError as error:
        if error.on_all_ranks and rank() != 0:
            # The launcher ends every rank once one has left: rank 0 is to speak first, and that ends this one too.
            time.sleep(SPEAK_WITHIN)
        who = "" if error.on_all_ranks or not several_ranks() else f"rank {rank()}: "
        print(f"distrib: error: {who}{error}", file=sys.stderr, flush=True)
        return error.exit_status
    except RankLost as error:
        print(f"distrib: rank {rank()} leaves: {error}", file=sys.stderr, flush=True)
        return 1
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            who = f"rank {rank()}: " if several_ranks() else ""
            print(
                f"distrib: error: {who}out of memory ({printable(str(error)).partition('. ')[0][:200]}): lower "
                "train.norm_size, the images that a rank holds at a time, or, in a new run, train.batch_size or "
                "data.image_size",
                file=sys.stderr,
                flush=True,
            )
            return OUT_OF_MEMORY
        if not lost_a_rank(error):
            raise
        print(f"distrib: rank {rank()} leaves, because another rank has left: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        say(interrupted)
        return 130


def say(line: str) -> None:
    """A line on the terminal, from rank 0 alone; one that is gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(line, flush=True)


def warn(line: str) -> None:
    """A warning on the terminal, from rank 0 alone; one that is gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(f"distrib: warning: {line}", file=sys.stderr, flush=True)


def _device_type(config: Config) -> str:
    if config.run.device != "auto":
        return config.run.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _computes_in_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def use_all_cores(local_ranks: int) -> None:
    """Share this machine's cores out over its ranks; launchers give each rank one thread unless told otherwise."""
    launched = not {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}.isdisjoint(os.environ)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None or (launched and threads == "1"):
        torch.set_num_threads(max(1, cores() // local_ranks))


def cores() -> int:
    """CPU cores that this process may use; a Slurm that binds no process to its job's cores only says how many."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(mine, int(job)) if job.isdecimal() and int(job) > 0 else mine
