"""What a bug report says of the machine: hardware, system, versions, and the variables that change what is computed."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from distrib.base.cores import cores
from distrib.base.memory import free_memory
from distrib.ranks.machine import driver_of_gpus

T = TypeVar("T")

_PACKAGES = re.compile(r"torch|torchvision|accelerate|numpy|triton|pillow|simplejpeg|safetensors|wandb|nvidia-.+", re.I)
# Of CUDA, its libraries and those on them, of OpenMP and MKL, of torch and DALI; and what is loaded in their place.
_VARIABLES = re.compile(
    r"(CUDA|CUBLAS|CUDNN|NVIDIA|NVJPEG|NVIMGCODEC|NCCL|GLOO|OMP|GOMP|KMP|MKL|DNNL|ONEDNN|PYTORCH|TORCH|TORCHINDUCTOR|"
    r"TORCHDYNAMO|TORCHELASTIC|TRITON|DALI|ACCELERATE)_.+|LD_PRELOAD|LD_LIBRARY_PATH"
)
_SECRETS = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.I)


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, for a bug report; None stands for what cannot be asked.

    Args:
        device: that is checked.
    """
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "distrib": _asked(lambda: version("distrib")),
        "commit": _asked(lambda: _commit(Path(__file__).parents[2])),
        "device": device.type,
        "gpus": [_gpu(number) for number in gpus],
        "modes of GPUs": _asked(_modes) if gpus else None,
        "cpu": cpu_name(),
        "cores": {"to use": cores(), "of the machine": os.cpu_count(), "threads of torch": torch.get_num_threads()},
        "bytes of memory": {"free": free_memory(), "of the machine": psutil.virtual_memory().total},
        "bytes of /dev/shm": _asked(_shared_memory),
        "system": platform.platform(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "versions": {**_packages(), **_libraries()},
        "environment": variables(os.environ),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those that change what is computed or how fast; none whose name says that it is a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if _VARIABLES.fullmatch(name) and not _SECRETS.search(name)
    }


def _asked(ask: Callable[[], T]) -> T | None:
    """What a system or a library answers, whatever it may raise: a report of trouble is not to end in it."""
    try:
        return ask()
    except Exception:
        return None


def _gpu(number: int) -> dict[str, Any]:
    found = _asked(lambda: torch.cuda.get_device_properties(number))
    memory = _asked(lambda: torch.cuda.mem_get_info(number))
    return {
        "name": getattr(found, "name", None),
        "uuid": str(getattr(found, "uuid", None)),
        "bytes": getattr(found, "total_memory", None),
        "free bytes": memory and memory[0],
    }


def _modes() -> list[str]:
    """Whether each GPU of the machine lets several processes share it, and is partitioned, as nvidia-smi says."""
    command = ["nvidia-smi", "--query-gpu=uuid,compute_mode,mig.mode.current", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()


def _shared_memory() -> dict[str, int]:
    """What the processes of a DataLoader hand their batches over in."""
    found = psutil.disk_usage("/dev/shm")
    return {"free": found.free, "in all": found.total}


def cpu_name() -> str:
    """The processor, as the system calls it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return None


def _libraries() -> dict[str, Any]:
    """torch with its build, what it is built with, and the driver; None: it is not there."""
    nccl = _asked(torch.cuda.nccl.version) if torch.distributed.is_nccl_available() else None
    return {
        "torch": str(torch.__version__),
        "driver": driver_of_gpus(),
        "CUDA of torch": torch.version.cuda,
        "cuDNN of torch": _asked(torch.backends.cudnn.version),  # raises where an older one is loaded in its place
        "NCCL of torch": None if nccl is None else ".".join(map(str, nccl)),
    }


def _packages() -> dict[str, str]:
    """Versions of the installed packages that decode, compute and communicate, by name."""
    names = {each.metadata["Name"]: each.version for each in distributions()}
    return {name: names[name] for name in sorted(names, key=str.lower) if name and _PACKAGES.fullmatch(name)}


def _commit(folder: Path) -> str | None:
    """Of the repository that the program lies in, with `-dirty` behind it where files differ; None: it is in none."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
