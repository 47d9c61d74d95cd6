"""How many FLOP/s a device can reach, which is what a training's own are measured against.

One multiplication and one addition are two FLOPs. Of a GPU it is its maker's figure for dense matrices, with sums in
float32 as torch has them; of a CPU, whose makers give none, what a product of matrices reaches here and now.
"""

import re
import time
from dataclasses import dataclass

import torch

# Of a CPU: rows and columns of the matrices, products, and seconds after which no other is begun. A product takes a few
# milliseconds, so that on a machine where others are at work too some of them are not interrupted.
SIDE, PRODUCTS, LONGEST = 512, 40, 0.2


@dataclass(frozen=True)
class Peak:
    """What a GPU reaches at most, in TFLOP/s without sparsity; None: it does not compute in it.

    Attributes:
        fp16: by tensor cores, as are the next two.
        bf16: also.
        tf32: float32 rounded to 10 bits of mantissa, which torch gives to convolutions in float32.
        fp32: by ordinary cores.
    """

    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


# By the name that the driver gives, without its maker's. The sources are NVIDIA's: for data centres each product's
# datasheet, whose figures "with sparsity" are halved here; for GeForce, which adds up in float32 at half the headline's
# rate, the appendices of the whitepapers "NVIDIA Ampere GA102 GPU Architecture", "NVIDIA Ada GPU Architecture" and
# "NVIDIA RTX Blackwell GPU Architecture". Where the tables of torchtitan (`get_peak_flops`) and Composer
# (`GPU_AVAILABLE_FLOPS`) have the same GPU, they agree to rounding.
PEAKS = {
    r"V100-SXM[23]-.*": Peak(125, None, None, 15.7),
    r"V100-PCIE-.*": Peak(112, None, None, 14),
    r"T4": Peak(65, None, None, 8.1),
    r"A10": Peak(125, 125, 62.5, 31.2),
    r"A30": Peak(165, 165, 82, 10.3),
    r"A40": Peak(149.7, 149.7, 74.8, 37.4),
    r"A100[- ].*": Peak(312, 312, 156, 19.5),
    r"L4": Peak(121, 121, 60, 30.3),
    r"L40": Peak(181, 181, 90.5, 90.5),
    r"L40S": Peak(362, 362, 183, 91.6),
    r"H100 80GB HBM3": Peak(989.5, 989.5, 494.5, 67),
    r"H100 PCIe": Peak(756.5, 756.5, 378, 51),
    r"H100 NVL": Peak(835.5, 835.5, 417.5, 60),
    r"H200": Peak(989.5, 989.5, 494.5, 67),
    r"H200 NVL": Peak(835.5, 835.5, 417.5, 60),
    r"B200": Peak(2250, 2250, 1125, 75),
    r"RTX 3090": Peak(71, 71, 35.6, 35.6),
    r"RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    r"RTX 5090": Peak(209.5, 209.5, 104.8, 104.8),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that a device of this process reaches at most; None: it is not in the table.

    Args:
        device: CPU or GPU.
        precision: as `train.precision`, resolved.
    """
    if device.type == "cpu":
        return measure_cpu(torch.bfloat16 if precision == "bf16" else torch.float32)
    return look_up(torch.cuda.get_device_name(device), precision, torch.backends.cudnn.allow_tf32)


def look_up(name: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s that a GPU reaches at most by the table.

    Args:
        name: as the driver gives it, such as `NVIDIA H100 80GB HBM3`; part of a GPU (MIG) is in no table.
        precision: as `train.precision`, resolved.
        tf32: whether convolutions in float32 may be computed in TF32.
    """
    name = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    peak = next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)
    if peak is None or " MIG " in name:
        return None
    by_precision = {"fp16": peak.fp16, "bf16": peak.bf16, "no": peak.tf32 if tf32 and peak.tf32 else peak.fp32}
    tera = by_precision[precision]
    return None if tera is None else tera * 1e12


def measure_cpu(dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices on this process's threads, the best of many; a quarter of a second."""
    matrix = torch.ones(SIDE, SIDE, dtype=dtype)
    best, began = 0.0, time.monotonic()
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        best = max(best, 2 * SIDE**3 / (time.perf_counter() - started))
        if time.monotonic() - began > LONGEST:
            break
    return best
