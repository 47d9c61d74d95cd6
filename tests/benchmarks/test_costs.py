"""benchmarks/costs.py: what a setting costs in time, from the speed.csv of a study's trainings."""

import subprocess
import sys
from pathlib import Path

from launching import ROOT

SPEED = (
    "epoch,step,seconds,data_share,steps_share,validation_share,checkpoints_share,flops,peak_flops_per_second,mfu,"
    "device_memory,host_memory,preparation_share,report_share\n"
)


def study(folder: Path, steps: dict[tuple[str, int], list[float]]) -> Path:
    """A study.csv and the run folders: for each setting and seed the seconds of steps and data of each epoch."""
    lines = ["trial,state,val_roc_auc,val_accuracy,val_balanced_accuracy,train.seed,factor,epochs,seconds,runs,reason"]
    for number, ((factor, seed), epochs) in enumerate(steps.items()):
        run = folder / f"trials/costs-{number}"
        run.mkdir(parents=True)
        # Another hundred seconds of each epoch are preparation, which is not counted, and a tenth is waiting for data.
        rows = [
            f"{epoch},{epoch},{100 + each},{0.1 * each / (100 + each)},{0.9 * each / (100 + each)},0,0,1,1,0.1,,1,"
            f"{100 / (100 + each)},0"
            for epoch, each in enumerate(epochs, 1)
        ]
        (run / "speed.csv").write_text(SPEED + "\n".join(rows) + "\n")
        lines.append(f"{number},finished,0.9,0.8,0.7,{seed},{factor},2,999,trials/costs-{number},")
    file = folder / "study.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def costs(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks/costs.py"), str(file)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_time_is_that_of_steps_and_data_in_the_same_round(tmp_path: Path) -> None:
    got = costs(
        study(
            tmp_path,
            {
                ("as it is", 0): [10, 10], ("mixup", 0): [11, 11], ("batches of 32", 0): [13, 13],
                # A round in which the machine was half as fast.
                ("as it is", 1): [20, 20], ("mixup", 1): [20, 20], ("batches of 32", 1): [28, 28],
            },
        )
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    assert got.stdout.splitlines()[2:] == [
        "| as it is | 1: 30.0 s (20.0-40.0) | 2 |",
        "| batches of 32 | 1.35 (1.30-1.40) | 2 |",
        "| mixup | 1.05 (1.00-1.10) | 2 |",
    ]


def test_a_study_without_its_run_folders_or_a_base_is_refused(tmp_path: Path) -> None:
    file = study(tmp_path, {("as it is", 0): [10], ("mixup", 1): [10]})
    assert costs(file).returncode == 2
    assert "KeyError(1)" in costs(file).stderr
    (tmp_path / "trials/costs-0/speed.csv").unlink()
    assert "trials/costs-0 has no speed.csv" in costs(file).stderr
