"""What this machine has: device, cores, and every `auto` that depends on them.

torch is imported by what asks it, so that whoever asks for the cores alone does not wait for it.
"""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrib.base.cores import cores
from distrib.base.errors import UserError
from distrib.config import Config
from distrib.ranks.environment import ranks_here

if TYPE_CHECKING:
    from accelerate import Accelerator

_DEVICES = Path("/dev")
_DRIVER = Path("/proc/driver/nvidia/version")
# With these cuBLAS computes the same bits again; other values and none leave it to choose.
_CUBLAS_WORKSPACES = (":4096:8", ":16:8")


def resolve(config: Config, like: str | None = None) -> Config:
    """The configuration with every `auto` about this machine decided; of the precision on a CPU see `like`.

    Args:
        config: as asked for.
        like: on a CPU `auto` is this precision, that of a model's training, if the CPU computes in it, and else
            float32. None: where a CPU has a choice it stays `auto`, for a training to measure.

    Raises:
        UserError: if the machine lacks what the configuration asks for.
    """
    import torch

    from distrib.data.decoders import choose_decoder

    device: str = config.run.device
    if device != "cpu" and not torch.cuda.is_available():
        if (unusable := unusable_gpu()) is not None:
            raise UserError(f"{unusable}, or set run.device to cpu")
        if device == "cuda":
            raise UserError("run.device is cuda, but torch finds no GPU: check the driver, or choose run.device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    local_ranks = ranks_here()
    if device == "cuda" and local_ranks > torch.cuda.device_count():
        raise UserError(
            f"the launcher started {local_ranks} ranks on this machine, which has {torch.cuda.device_count()} GPUs: "
            f"say --num_processes {torch.cuda.device_count()}, or run.device cpu"
        )
    precision: str = config.train.precision
    if precision == "fp16" and device == "cpu":
        raise UserError("train.precision fp16 needs a GPU, and this run is on the CPU: choose bf16, no or auto")
    if precision == "auto" and device == "cuda":
        precision = _precision_of_gpu()
    elif precision == "auto":
        if not cpu_computes_in_bf16():
            precision = "no"
        elif like is not None:
            precision = "bf16" if like == "bf16" else "no"
    decoder = choose_decoder(config.data.decoder, torch.device(device))
    return config.replace("run", device=device).replace("train", precision=precision).replace("data", decoder=decoder)


def driver_of_gpus() -> str | None:
    """The version of the NVIDIA driver where there are GPUs that are not hidden from this process; else None."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)
    if hidden or not any(map(_may_be_used, _DEVICES.glob("nvidia[0-9]*"))):
        return None
    try:
        found = re.search(r"\s(\d{3,}\.[\d.]+)\s", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return "unknown" if found is None else found[1]


def unusable_gpu() -> str | None:
    """What to do about a GPU that torch cannot use, in a sentence; None: there is none, or torch can."""
    import torch

    if torch.cuda.is_available() or (driver := driver_of_gpus()) is None:
        return None
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
    return (
        f"this machine has an NVIDIA GPU (driver {driver}), and torch {torch.__version__}, built for {built}, cannot "
        'use it: update the driver or install torch for an older CUDA (README, "On a GPU")'
    )


def _may_be_used(device: Path) -> bool:
    """Whether this process may open a device: a job that was given none sees those of its node."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True


def fallbacks(asked: Config, resolved: Config) -> list[str]:
    """What `auto` had to do without on this machine, a sentence each; GPUs that launch/cpu.yaml hides are no loss."""
    notes = []
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "-1,-1")
    if asked.run.device == "auto" and resolved.run.device == "cpu" and not hidden:
        notes.append("run.device auto found no GPU: the CPU does the work")
    if asked.data.decoder == "auto" and resolved.data.decoder == "torch" and resolved.run.device == "cuda":
        notes.append("data.decoder auto found no NVIDIA DALI: decoding on the CPU; `pip install -e '.[cuda13]'` has it")
    return notes


def describe_machine(accelerator: "Accelerator") -> dict[str, Any]:
    """What a run stands on, for people: ranks, device and versions."""
    import torch

    on_gpu = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"CPU (threads a rank: {torch.get_num_threads()})"
    versions = {package: version(package) for package in ("torch", "torchvision", "accelerate", "numpy")}
    return {
        "ranks": accelerator.num_processes,
        "device": device,
        "versions": {"python": platform.python_version(), **versions},
    }


def computes_in(precision: str, device: str) -> bool:
    """Whether this machine's `cpu` or `cuda` computes in a precision."""
    import torch

    if precision == "bf16":
        return cpu_computes_in_bf16() if device == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "no" or device == "cuda"


def cpu_computes_in_bf16() -> bool:
    """Whether this CPU has instructions for it, which says nothing about their speed."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _precision_of_gpu() -> str:
    """bf16 where the GPU computes in it; fp16 where that is several times as fast as float32, on Volta and Turing."""
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability() in ((7, 0), (7, 5)) else "no"


def make_deterministic() -> None:
    """Have this process compute the same bits again on the same GPUs; torch refuses operations that cannot.

    To be called before the ranks meet: NCCL then goes without its one algorithm whose sums differ from call to call
    (NVLS). DALI goes without JPEG hardware (`distrib.data.jpeg_hardware`). On a CPU nothing that is computed changes.

    Raises:
        UserError: if CUBLAS_WORKSPACE_CONFIG is set to something that makes cuBLAS's sums differ.
    """
    import torch

    # cuBLAS reads it with its first product.
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACES[0])
    if workspace not in _CUBLAS_WORKSPACES:
        raise UserError(
            f"train.deterministic needs the variable CUBLAS_WORKSPACE_CONFIG to be {' or '.join(_CUBLAS_WORKSPACES)}, "
            f"and it is {workspace[:40]}: unset it"
        )
    torch.use_deterministic_algorithms(True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def use_all_cores(local_ranks: int) -> None:
    """Give each of this machine's ranks an equal share of its cores, as torch's threads.

    A number of threads that a person has set stays; the one thread that launchers set where nobody has does not.
    """
    launched = not {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}.isdisjoint(os.environ)
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None or (launched and threads == "1"):
        import torch

        torch.set_num_threads(max(1, cores() // local_ranks))
