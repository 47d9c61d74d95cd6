"""The GPUs that are there, and whether this torch was built for them."""

import re

import torch

from distrib.checking.check import Bench, Passed, expect
from distrib.ranks.machine import driver_of_gpus


def devices(bench: Bench) -> Passed:
    """Every visible GPU: its name, memory and architecture, that torch's kernels are for it, and the driver."""
    bench.need_gpu("a driver")
    built = torch.cuda.get_arch_list()
    found, names = [], []
    for number in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(number)
        arch = f"sm_{one.major}{one.minor}"
        # Kernels run on later devices of the same major version, and PTX (compute_*) on everything later.
        majors = [re.sub(r"^sm_(\d+)\d[a-z]?$", r"\1", each) for each in built]
        expect(
            str(one.major) in majors or any(each.startswith("compute_") for each in built),
            f"GPU {number} ({one.name}) is {arch}, and torch {torch.__version__} was built for {', '.join(built)}",
        )
        found.append(
            {"name": one.name, "arch": arch, "bytes": one.total_memory, "processors": one.multi_processor_count}
        )
        names.append(f"{one.name} ({arch}, {one.total_memory / 2**30:.0f} GiB)")
    driver = driver_of_gpus() or "unknown"
    figures = {"driver": driver, "cuda": torch.version.cuda, "built_for": built, "devices": found}
    return Passed(f"driver {driver}, torch for CUDA {torch.version.cuda}: {', '.join(names)}", figures)
