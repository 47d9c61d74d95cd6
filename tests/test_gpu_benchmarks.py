"""benchmarks/gpu.sh: every part in one page, whatever becomes of the others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT, clean_environment

from distrib.data.decoders import dali_installed

PROGRAMS = {
    "distrib/__main__.py": """
found = {"outcome": "failed", "sentence": "GPU 0 is slow", "figures": {}, "seconds": 1.0}
machine = {"date": "today", "gpus": [{"name": "H200"}], "cpu": "EPYC", "cores": {"to use": 16}}
machine["versions"] = {"torch": "2.15"}
result, status = {"machine": machine, "checks": {"speed": found}}, 1
if "faces" in sys.argv:
    sys.exit(0)
""",
    "benchmarks/step.py": """
if "32" in sys.argv:
    sys.exit("CUDA error: an illegal memory access")
setting = {"batch_size": 256}
rates = {"plain": {"median": 12345.0, "min": 11, "max": 13000, "n": 3}}
result, status = {"setting": setting, "images_per_second": rates}, 0
""",
    "benchmarks/checkpoint.py": "result, status = {}, 0",
    "benchmarks/loader.py": "result, status = {}, 0",
}


def measured(folder: Path, *options: str, timeout: int = 100, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = [str(folder / "benchmarks/gpu.sh"), *options]
    changed = clean_environment(PATH=path, **environment)
    return subprocess.run(command, cwd=folder, env=changed, capture_output=True, text=True, timeout=timeout)


def test_without_a_gpu_it_says_so_and_stops(tmp_path: Path) -> None:
    done = measured(ROOT, "--out", str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("distrib: error: torch finds no GPU, and benchmarks/gpu.sh measures one")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = measured(ROOT, "--device", "cpu", "--out", str(tmp_path / "file/within"))
    assert done.returncode == 2
    assert done.stderr == f"distrib: error: --out {tmp_path}/file/within cannot be written to: name another folder\n"


@pytest.mark.slow
def test_this_machine_passes_and_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "new/folder"
    told = {"WANDB_API_KEY": "secret", "NCCL_DEBUG": "WARN"}
    done = measured(ROOT, "--device", "cpu", "--out", str(out), timeout=480, **told)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "gpu.md").read_text()
    found = json.loads((out / "gpu.json").read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("check", "faces", "step", "step-small", "loader", "checkpoint"), 0
    )
    checks = found["parts"]["check"]["result"]["checks"]
    outcomes = {name: each["outcome"] for name, each in checks.items()}
    assert set(outcomes.values()) == {"passed", "left out"}
    assert {name for name, outcome in outcomes.items() if outcome == "left out"} == {
        "driver and architecture", "JPEG hardware", "overflow in fp16", "waiting in a step", "compiled step",
    } | (set() if dali_installed() else {"decoded images", "places in a batch"})  # fmt: skip
    assert "the bottleneck is " in checks["speed by part"]["sentence"]
    machine = found["machine"]
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["environment"]["NCCL_DEBUG"] == "WARN"
    assert {"date", "commit", "cpu", "cores", "bytes of memory", "system", "python", "gpus"} <= set(machine)
    assert "secret" not in (out / "gpu.json").read_text()
    page = (out / "gpu.md").read_text()
    for row in ("images_per_second: resident", "step_seconds", "images_per_second: crops, 1 thread: distrib, folder"):
        assert f"| {row}" in page


def test_a_part_that_fails_is_told_and_ends_no_other(tmp_path: Path) -> None:
    (tmp_path / "distrib").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "distrib/__init__.py").touch()
    for name in ("gpu.sh", "gpu_page.py", "measure.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    for name, text in PROGRAMS.items():
        writing = 'open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps(result))\nsys.exit(status)\n'
        (tmp_path / name).write_text(f"import json, sys\n{text}\n{writing}")
    done = measured(tmp_path, "--device", "cpu", "--out", "found")
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "found/gpu.json").read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == {
        "check": 1, "faces": 0, "step": 0, "step-small": 1, "checkpoint": 0, "loader": 0
    }  # fmt: skip
    assert found["machine"]["gpus"] == [{"name": "H200"}]
    page = (tmp_path / "found/gpu.md").read_text()
    assert "| failed | speed | GPU 0 is slow | 1.0 |" in page
    assert "today: H200; EPYC, 16 cores; torch 2.15." in page
    assert "batch_size 256" in page
    assert "| images_per_second: plain | 12,345 | 11 | 13,000 |" in page
    assert "CUDA error: an illegal memory access" in page
    assert "these figures say that the programs run, and nothing else" in page


def test_a_part_that_came_to_its_limit_is_told(tmp_path: Path) -> None:
    lines = [
        "check\t124\t300\t300\tpython -m distrib check --gpu", "step\t137\t45\t45\tpython benchmarks/step.py",
        "checkpoint\t137\t9\t30\tpython benchmarks/checkpoint.py", "loader\t124\t0\t0\tpython benchmarks/loader.py",
    ]  # fmt: skip
    (tmp_path / "parts.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "check.log").write_text("passed    decoded images\n")
    (tmp_path / "check.json").write_text('{"machine": {')
    (tmp_path / "step.json").write_text(
        '{"machine": {"date": "today", "gpu": "H200", "cpu": "EPYC", "cores": 16, "torch": "2.15"}}'
    )
    command = [sys.executable, str(ROOT / "benchmarks/gpu_page.py"), tmp_path, "--out", tmp_path, "--device", "cuda"]
    assert subprocess.run(command, env=clean_environment(), timeout=60).returncode == 1
    page = (tmp_path / "gpu.md").read_text()
    assert "| check | 300 | **ended after 300 s, its limit** |" in page
    assert "passed    decoded images" in page
    assert "check.json is no JSON" in page
    assert "today: H200; EPYC, 16 cores; torch 2.15." in page
    assert "| step | 45 | **ended after 45 s, its limit** |" in page
    assert "| checkpoint | 9 | **failed** (exit status 137) |" in page
    assert "| loader | 0 | **not begun: no time was left** |" in page


@pytest.mark.parametrize(("line", "status"), [("124\t90\t90", 0), ("124\t0\t0", 0), ("1\t9\t90", 1)])
def test_whole_trainings_may_be_ended_by_the_time_that_is_left(line: str, status: int, tmp_path: Path) -> None:
    lines = ["check\t0\t100\t300\tpython -m distrib check --gpu", f"train\t{line}\tpython benchmarks/train.py"]
    (tmp_path / "parts.tsv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(ROOT / "benchmarks/gpu_page.py"), tmp_path, "--out", tmp_path, "--device", "cuda"]
    assert subprocess.run(command, env=clean_environment(), timeout=60).returncode == status
