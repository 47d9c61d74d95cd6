"""The GPUs that are there, and whether this torch was built for them."""

import re

import torch

from distrib.checking.check import Bench, Failed, Passed, expect
from distrib.ranks.machine import driver_of_gpus, unusable_gpu


def devices(bench: Bench) -> Passed:
    """Every visible GPU: its name, memory and architecture, that torch's kernels are for it, and the driver."""
    if (unusable := unusable_gpu()) is not None:
        raise Failed(unusable)
    bench.need_gpu("there is no GPU")
    built = torch.cuda.get_arch_list()
    found, names = [], []
    for number in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(number)
        arch = f"sm_{one.major}{one.minor}"
        expect(
            any(_runs_on(each, (one.major, one.minor)) for each in built),
            f"GPU {number} ({one.name}) is {arch}, and torch {torch.__version__} was built for {', '.join(built)}: "
            "install a torch that was built for it",
        )
        found.append(
            {"name": one.name, "arch": arch, "bytes": one.total_memory, "processors": one.multi_processor_count}
        )
        names.append(f"{one.name} ({arch}, {one.total_memory / 2**30:.0f} GiB)")
    driver = driver_of_gpus() or "unknown"
    figures = {"driver": driver, "cuda": torch.version.cuda, "built_for": built, "devices": found}
    return Passed(f"driver {driver}, torch for CUDA {torch.version.cuda}: {', '.join(names)}", figures)


def _runs_on(arch: str, device: tuple[int, int]) -> bool:
    """Whether what was built for `sm_90` or `compute_90`, say, runs on a device of a compute capability.

    Source: NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities": kernels run on later devices of the same major
    version, PTX (compute) on all later ones; what has an `a` behind its number on that one alone, an `f` on its family.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if found is None:
        return False
    kind, major, minor, only = found.groups()
    built = int(major), int(minor)
    if only == "a":
        return built == device
    return built <= device and (built[0] == device[0] or (kind == "compute" and not only))
