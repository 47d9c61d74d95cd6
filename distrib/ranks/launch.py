"""Starting the ranks: what a configuration of accelerate's asks for, and accelerate's launcher in this process."""

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from distrib.base.errors import OutOfMemory, UserError, first_line
from distrib.base.streams import standard_streams
from distrib.base.words import nearest
from distrib.config import Config, load_config
from distrib.config.yaml_files import read_mapping
from distrib.ranks.stopping import SIGNALS, STOPPED, StopRequests

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# Parts of a configuration of accelerate's for what is not done here, and how they say that they ask for nothing.
FOREIGN = (
    "deepspeed_config", "fsdp_config", "megatron_lm_config", "parallelism_config", "fp8_config", "mpirun_config",
    "dynamo_config", "dynamo_backend",
)  # fmt: skip
NOTHING: tuple[object, ...] = (None, False, "NO", {}, {"dynamo_backend": "NO"})
# What older versions of accelerate wrote, and newer ones still read.
FORMER = ("fp16", "dynamo_backend")
COUNT = range(1, sys.maxsize)
READ = (
    "compute_environment", "distributed_type", "num_processes", "num_machines", "use_cpu", "gpu_ids", "mixed_precision",
    "enable_cpu_affinity", "rdzv_backend", "machine_rank", "main_process_ip", "main_process_port",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """How many ranks there are to be, and where.

    Attributes:
        ranks: of all machines together, the same number on each.
        machines: that take part.
        machine: the number of this one, from 0 on.
        address: of machine 0, where the ranks of several machines meet.
        port: there; 0: a free one, for several trainings on one machine.
        rendezvous: how several machines meet: static or c10d.
        gpus: that the ranks may see, as CUDA_VISIBLE_DEVICES has them; None: those that this process sees.
        affinity: whether each rank stays on the cores that are near its GPU.
        precision: that the launcher is to prescribe.
        source: what a sentence calls all this by; None: it is not from a file.
        on_gpus: whether the ranks have a GPU each.
    """

    ranks: int
    machines: int = 1
    machine: int = 0
    address: str | None = None
    port: int = 0
    rendezvous: str = "static"
    gpus: str | None = None
    affinity: bool = False
    precision: str = "no"
    source: str | None = None
    on_gpus: bool = False

    @property
    def ranks_here(self) -> int:
        """The ranks of this machine."""
        return self.ranks // self.machines

    @property
    def gpu_ids(self) -> list[str]:
        """The GPUs that are named; -1 hides them."""
        return [each for each in (self.gpus or "").split(",") if each not in ("", "-1")]


def read_launch(file: Path) -> Launch:
    """What a configuration of accelerate's asks for.

    Raises:
        UserError: if it cannot be read, has what accelerate does not know, or asks for other than DDP on this machine's
            GPUs or CPUs, or on those of several machines.
    """
    from accelerate.commands.config.config_args import ClusterConfig

    asked = _Asked(f"--launch {file}", read_mapping(file, "--launch ", "keys such as num_processes:"))
    asked.one_of("compute_environment", ("LOCAL_MACHINE",), "LOCAL_MACHINE")
    asked.refuse_unknown([*(field.name for field in fields(ClusterConfig)), *FORMER])
    kind = asked.one_of("distributed_type", ("NO", "MULTI_GPU", "MULTI_CPU"), None)
    for key in FOREIGN:
        if asked.values.get(key) not in NOTHING:
            raise asked.wrong(f"has {key}, which is not supported here: remove it")

    ranks = asked.whole("num_processes", COUNT, 1 if kind == "NO" else None)
    machines = asked.whole("num_machines", COUNT, 1)
    if kind == "NO" and (ranks, machines) != (1, 1):
        said = f"num_processes: {ranks} and num_machines: {machines}"
        raise asked.wrong(f"says {said} beside distributed_type: 'NO', which is one process: say MULTI_GPU there")
    if ranks % machines:
        raise asked.wrong(
            f"says num_processes: {ranks} and num_machines: {machines}: expected a multiple of {machines}, as "
            "num_processes counts the ranks of all machines"
        )
    launch = Launch(
        ranks=ranks,
        machines=machines,
        gpus="-1" if asked.switch("use_cpu") or kind == "MULTI_CPU" else asked.gpus(),
        affinity=asked.switch("enable_cpu_affinity"),
        precision=asked.one_of("mixed_precision", ("no", "fp16", "bf16"), "fp16" if asked.switch("fp16") else "no"),
        source=asked.source,
    )
    if machines == 1:
        return launch
    rendezvous = asked.one_of("rdzv_backend", ("static", "c10d"), "static")
    address = asked.values.get("main_process_ip")
    if not address:
        raise asked.wrong(f"says num_machines: {machines} and no main_process_ip: expected the address of machine 0")
    launch = replace(
        launch,
        machine=asked.whole("machine_rank", range(machines), None if rendezvous == "static" else 0),
        address=str(address),
        port=asked.whole("main_process_port", range(1, 2**16), None),
        rendezvous=rendezvous,
    )
    try:
        socket.getaddrinfo(str(address), None)
    except OSError as error:
        raise asked.wrong(
            f"says main_process_ip: {address}, which this machine does not know ({error.strerror})"
        ) from None
    return launch


@dataclass(frozen=True)
class _Asked:
    """The values of a configuration of accelerate's, read with what may be wrong with them in mind.

    Attributes:
        source: what a sentence begins with.
        values: as YAML has them.
    """

    source: str
    values: Mapping[Any, Any]

    def wrong(self, sentence: str) -> UserError:
        """The error that says this of the file."""
        return UserError(f"{self.source} {sentence}")

    def refuse_unknown(self, known: Sequence[str]) -> None:
        """Raises UserError for the first key that is not among these."""
        for key in map(str, self.values):
            if key not in known:
                there = f"which accelerate {version('accelerate')} does not know"
                raise self.wrong(f"has the key {key}{nearest(key, READ)}, {there}: correct it, or remove it")

    def one_of(self, key: str, words: Sequence[str], default: str | None) -> str:
        """A word, in whatever case; a bare `no` is a word too, which YAML takes for false."""
        value = self.values.get(key)
        said = default if value is None else "no" if value is False else str(value)
        expected = f"expected {' or '.join(words)}, as in launch/*.yaml"
        if said is None:
            raise self.wrong(f"says no {key}: {expected}")
        found = next((word for word in words if word.lower() == said.lower()), None)
        if found is None:
            raise self.wrong(f"says {key}: {said}: {expected}")
        return found

    def whole(self, key: str, allowed: range, default: int | None) -> int:
        """A whole number."""
        value = self.values.get(key)
        number = default if value is None else value
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
            number = int(value)
        limits = f"expected a whole number from {allowed.start} {'on' if allowed == COUNT else f'to {allowed[-1]}'}"
        if number is None:
            raise self.wrong(f"says no {key}: {limits}")
        if not isinstance(number, int) or isinstance(number, bool) or number not in allowed:
            raise self.wrong(f"says {key}: {value}: {limits}")
        return number

    def switch(self, key: str) -> bool:
        """True or false; false where nothing is said."""
        value = self.values.get(key)
        if value not in (None, True, False):
            raise self.wrong(f"says {key}: {value}: expected true or false")
        return bool(value)

    def gpus(self) -> str | None:
        """`gpu_ids` as CUDA_VISIBLE_DEVICES has them; None for all."""
        value = self.values.get("gpu_ids")
        if value in (None, "all"):
            return None
        said = str(value).replace(" ", "")
        if isinstance(value, bool) or not re.fullmatch(r"(-1|\d+|(GPU|MIG)-[^,]+)(,(-1|\d+|(GPU|MIG)-[^,]+))*", said):
            raise self.wrong(f"says gpu_ids: {value}: expected all, or numbers such as '0,1' ('-1' hides the GPUs)")
        return said


def plan_launch(arguments: Sequence[str], file: Path | None, check: Callable[[Config, int], object]) -> Launch:
    """The ranks that a training is to have, after all that can be checked before there are any.

    From here on this process, and what it starts, sees the GPUs that the ranks may see.

    Args:
        arguments: of the training.
        file: a configuration of accelerate's; None: the GPUs of this machine decide, or its cores.
        check: refuses a training with so many ranks; one rank alone has nobody around it, and checks by itself.

    Raises:
        UserError: for whatever is wrong before the first step: it is said here once, without a launcher around it.
    """
    from distrib.base.cores import cores
    from distrib.ranks.machine import fallbacks, resolve
    from distrib.ranks.printing import warn

    config, _ = load_config(arguments)
    import torch  # for which --help does not wait

    launch = None if file is None else read_launch(file)
    if launch is not None:
        _refuse_conflicts(launch, config)
        if launch.gpus is not None:  # before anything asks CUDA for them
            os.environ["CUDA_VISIBLE_DEVICES"] = launch.gpus
        if launch.affinity:
            os.environ["ACCELERATE_CPU_AFFINITY"] = "1"
        if launch.gpu_ids and config.run.device != "cpu" and torch.cuda.device_count() != len(launch.gpu_ids):
            raise UserError(
                f"{launch.source} says gpu_ids: {launch.gpus}, and torch finds {torch.cuda.device_count()} of these "
                "GPUs: correct it, or choose run.device cpu"
            )
    asked_for, config = config, resolve(config)
    gpus = torch.cuda.device_count() if config.run.device == "cuda" else 0
    launch = replace(launch or Launch(config.run.ranks or gpus or min(2, cores())), on_gpus=gpus > 0)
    if launch.on_gpus and launch.ranks_here > gpus:
        asked = f"run.ranks is {launch.ranks}"
        if launch.source is not None:
            asked = f"{launch.source} says num_processes: {launch.ranks} and num_machines: {launch.machines}"
        raise UserError(f"{asked}, and this machine has {gpus} GPUs: ask for at most {gpus * launch.machines} ranks")
    if launch.ranks > 1:
        check(config, launch.ranks)
    if launch.ranks > 1 and not launch.on_gpus:  # from the ranks the GPUs are hidden, so that they cannot say it
        for note in fallbacks(asked_for, config):
            warn(note)
    if launch.precision not in ("no", config.train.precision) and config.train.precision != "auto":
        what = f"{launch.source}: mixed_precision {launch.precision}"
        warn(f"{what} has no effect: train.precision is {config.train.precision}")
    return launch


def _refuse_conflicts(launch: Launch, config: Config) -> None:
    if config.run.ranks not in (None, launch.ranks):
        raise UserError(
            f"run.ranks is {config.run.ranks}, and {launch.source} says num_processes: {launch.ranks}: make them equal"
        )
    if config.run.device == "cuda" and launch.gpus is not None and not launch.gpu_ids:
        raise UserError(
            f"run.device is cuda, and {launch.source} hides the GPUs (use_cpu, MULTI_CPU or gpu_ids): choose another "
            "file, such as launch/one_node.yaml, or run.device cpu"
        )


@standard_streams(goes_on=True)
def start(launch: Launch, arguments: Sequence[str], requests: StopRequests) -> int:
    """Start this machine's ranks by accelerate's launcher in this process, and wait for them.

    Args:
        launch: as planned.
        arguments: of the training.
        requests: to stop, which go to the ranks.

    Returns:
        0; the status of the rank that failed first; 3 where the kernel has killed it for want of memory; 75 where this
        process was asked to stop and the ranks did; or 128 + N where signal N ended the launcher.

    Raises:
        UserError: if there is something in the way of starting them.
    """
    import logging

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    from distrib.ranks.memory import kernel_kills

    command = launch_command_parser().parse_args([*_options(launch), *arguments])
    # Else the launcher would give the ranks 30 seconds from a signal on, and kill what is still saving.
    command.signals_to_handle = "SIGQUIT"
    kills = kernel_kills()
    logging.disable(logging.ERROR)  # what the ranks say about their own end is enough
    try:
        with requests.handed_on(ranks_of_this_process):
            launch_command(command)
    except ChildFailedError as error:
        return _status(error, requests, kernel_kills() > kills)
    except SignalException as error:
        return 128 + int(error.sigval)
    except (OSError, ValueError, RuntimeError, RendezvousError) as error:  # ports, addresses, machines that stay away
        said = first_line(error).partition(". ")[0]
        where = "this machine" if launch.machines == 1 else f"machine {launch.machine} of {launch.machines}"
        remedy = "see that a port of localhost can be opened"
        if launch.machines > 1:
            remedy = f"see that all machines start, and that {launch.address}:{launch.port} is machine 0's and free"
        raise UserError(f"no ranks could be started on {where} ({type(error).__name__}: {said}): {remedy}") from None
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _options(launch: Launch) -> list[str]:
    """Options of `accelerate launch`, and the program."""
    here = Path(__file__).resolve().parents[1]
    folder = next(folder for folder in (here / "launch", here.parent / "launch") if folder.is_dir())
    # A file of ours, because without one accelerate takes the one in the home folder of whoever starts it.
    file = folder / ("one_node.yaml" if launch.on_gpus else "cpu.yaml")
    options = ["--config_file", str(file), "--num_processes", str(launch.ranks)]
    options += ["--main_process_port", str(launch.port)]
    if launch.machines > 1:
        options += ["--num_machines", str(launch.machines), "--machine_rank", str(launch.machine)]
        options += ["--main_process_ip", str(launch.address), "--rdzv_backend", launch.rendezvous]
    return [*options, str(here / "train.py")]


def ranks_of_this_process() -> list[int]:
    """The process ids of the ranks that this process has started; one that is only just being made is none yet."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "TORCHELASTIC_RUN_ID" in child.environ():
                found.append(child.pid)
    return found


def _status(error: "ChildFailedError", requests: StopRequests, short_of_memory: bool) -> int:
    """The exit status after ranks that have failed.

    Args:
        error: the launcher's.
        requests: to stop.
        short_of_memory: whether the kernel has killed processes for want of memory.
    """
    number, failure = error.get_first_failure()
    statuses = {rank: each.exitcode for rank, each in error.failures.items()}
    killed = [rank for rank, status in statuses.items() if status == -signal.SIGKILL]
    if killed and short_of_memory:
        print(
            f"distrib: error: rank {killed[0]} was killed by the kernel, for want of memory on the machine or in "
            "the job: ask for more, start fewer ranks, or lower train.batch_size or data.prefetch",
            file=sys.stderr,
        )
        return OutOfMemory.exit_status
    # Ranks that have stopped leave together; before they listen, a signal ends them.
    if requests.reason is not None and (
        STOPPED in statuses.values() or all(-status in SIGNALS for status in statuses.values())
    ):
        return STOPPED
    if failure.exitcode < 0:
        print(f"distrib: rank {number} was ended by signal {-failure.exitcode}", file=sys.stderr)
        return 1
    return int(failure.exitcode)
