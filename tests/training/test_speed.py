"""Where the time of a training goes, and how much of a device's peak it reaches."""

import math

import pytest
import torch

from distrib.ranks.devices import look_up, measure_cpu
from distrib.runs.metrics import ADDED, model_flops_utilisation, peak_memory, seconds_by_part
from distrib.training.position import Position
from distrib.training.profiling import steps_to_profile
from distrib.training.speed import Spent, flops_per_image

# Multiplications of ResNet18's convolutions for 32 x 32 pixels, as its paper has them: kernel, channels, pixels out.
STEM = 7 * 7 * 3 * 64 * 16**2
STAGES = (
    4 * 3 * 3 * 64 * 64 * 8**2,
    (3 * 3 * 64 * 128 + 3 * 3 * 3 * 128 * 128 + 64 * 128) * 4**2,
    (3 * 3 * 128 * 256 + 3 * 3 * 3 * 256 * 256 + 128 * 256) * 2**2,
    (3 * 3 * 256 * 512 + 3 * 3 * 3 * 512 * 512 + 256 * 512) * 1**2,
)
HEAD = 512 * 3
FORWARD = STEM + sum(STAGES) + HEAD


@pytest.mark.parametrize(
    ("freeze", "multiplications"),
    [
        ("none", 3 * FORWARD - STEM),  # the image needs no gradient
        ("layer3", FORWARD + 2 * (STAGES[3] + HEAD) - (3 * 3 + 1) * 256 * 512),  # nor what comes out of layer3
        ("backbone", FORWARD + HEAD),
    ],
)
def test_the_flops_of_an_image_are_those_counted_by_hand(freeze: str, multiplications: int) -> None:
    before = torch.get_rng_state()
    assert flops_per_image(3, (32, 32), freeze) == 2 * multiplications
    assert torch.equal(torch.get_rng_state(), before)


def test_behind_the_small_stem_each_layer_has_16_times_the_pixels() -> None:
    stem = 3 * 3 * 3 * 64 * 32**2
    forward = stem + 16 * sum(STAGES) + HEAD
    assert flops_per_image(3, (32, 32), "none", "small") == 2 * (3 * forward - stem)


def test_mfu_is_what_the_model_needs_by_what_the_device_can_do() -> None:
    # 6e12 FLOPs in 3 s of steps and 1 s of waiting are 1.5e12 FLOP/s; validation does not count.
    spent = Spent({"data": 1.0, "steps": 3.0, "validation": 5.0, "checkpoints": 1.0}, flops=6e12)
    assert spent.mfu(6e12) == pytest.approx(0.25)
    assert spent.share("data") == pytest.approx(0.1)
    assert spent.mfu(None) is None
    assert Spent(spent.seconds).mfu(6e12) is None  # of a resumed epoch that had its steps already


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", True, 989.5),
        ("NVIDIA H100 PCIe", "bf16", True, 756.5),
        ("NVIDIA H200", "no", True, 494.5),
        ("NVIDIA A100-SXM4-80GB", "no", False, 19.5),
        ("NVIDIA A100 80GB PCIe", "fp16", True, 312),
        ("Tesla V100-SXM2-16GB", "fp16", True, 125),
        ("Tesla T4", "no", True, 8.1),
        ("NVIDIA L4", "bf16", True, 121),
        ("NVIDIA L40S", "bf16", True, 362),
        ("NVIDIA GeForce RTX 4090", "bf16", True, 165.2),
        ("Tesla T4", "bf16", True, None),  # which it does not compute in
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", True, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", True, None),
        ("NVIDIA A1000", "bf16", True, None),
    ],
)
def test_a_gpu_is_found_by_its_whole_name(name: str, precision: str, tf32: bool, tera: float | None) -> None:
    assert look_up(name, precision, tf32) == (None if tera is None else tera * 1e12)


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < measure_cpu(torch.float32) < 1e14


@pytest.mark.parametrize(
    ("position", "epochs", "count", "steps"),
    [
        (Position(0, 0, 100), 1, 5, range(10, 15)),
        (Position(0, 0, 14), 2, 5, range(15, 20)),  # not across the end of an epoch, nor its first step
        (Position(1, 3, 20), 2, 5, range(33, 38)),
        (Position(0, 0, 14), 1, 5, range(0)),
        (Position(0, 0, 5), 9, 5, range(0)),
        (Position(0, 0, 5), 9, 4, range(11, 15)),
    ],
)
def test_steps_after_the_warm_up_and_of_one_epoch_are_profiled(
    position: Position, epochs: int, count: int, steps: range
) -> None:
    assert steps_to_profile(position, epochs, count) == steps


def test_the_seconds_of_a_run_are_those_of_its_rows() -> None:
    row = {"seconds": 10.0, "data_share": 0.1, "steps_share": 0.7, "validation_share": 0.2, "checkpoints_share": 0.0}
    row |= dict.fromkeys(ADDED, 0.0)
    report = dict.fromkeys(row, 0.0) | {"seconds": 4.0, "checkpoints_share": 0.25, "report_share": 0.75}
    seconds = seconds_by_part([row, row | {"seconds": 20.0}, report])
    expected = {"preparation": 0.0, "data": 3.0, "steps": 21.0, "validation": 6.0, "checkpoints": 1.0, "report": 3.0}
    assert seconds == pytest.approx(expected)
    assert math.fsum(seconds.values()) == pytest.approx(34)


def test_the_mfu_of_a_run_is_over_the_time_of_its_steps_on_devices_whose_peak_is_known() -> None:
    row = {"seconds": 10.0, "data_share": 0.1, "steps_share": 0.4, "flops": 100.0, "peak_flops_per_second": 50.0}
    slower = row | {"peak_flops_per_second": 40.0, "mfu": 0.5}
    unknown = row | {"peak_flops_per_second": math.nan, "mfu": math.nan}
    assert model_flops_utilisation([row | {"mfu": 0.4}, unknown, slower]) == pytest.approx(200 / (250 + 200))
    assert math.isnan(model_flops_utilisation([unknown]))
    assert math.isnan(model_flops_utilisation([]))


def test_the_memory_of_a_run_is_the_most_of_its_rows() -> None:
    rows = [{"device_memory": math.nan, "host_memory": size} for size in (3e9, 5e9, 4e9)]
    assert peak_memory(rows) == {"host": 5_000_000_000}
    assert peak_memory([*rows, {"device_memory": 2e9, "host_memory": 1e9}]) == {"device": 2 * 10**9, "host": 5 * 10**9}
