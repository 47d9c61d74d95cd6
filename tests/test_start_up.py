"""A program imports what it uses, when it uses it: what a fresh process of each has imported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from launching import ROOT, clean_environment, launch
from random_model import write_model
from small_run import settings

# What takes long to import, of what distrib needs somewhere.
HEAVY = {
    "accelerate", "captum", "cv2", "matplotlib", "onnx", "onnxruntime", "onnxscript", "optuna", "plotly", "pyarrow",
    "scipy", "sklearn", "torch", "torchvision", "wandb",
}  # fmt: skip
# What only the report of a run or the page of a study needs.
OF_PAGES = {"captum", "cv2", "matplotlib", "onnx", "onnxruntime", "onnxscript", "optuna", "plotly", "pyarrow"}
# Runs one command line after another, and says after each its status and what is imported by then.
PROBE = """
import json, sys
from distrib.__main__ import main
found = []
for sys.argv[1:] in json.loads(sys.argv[1]):
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code or 0
    found.append([status, sorted(sys.modules)])
print(json.dumps(found), file=sys.stderr)
"""


def imported(*commands: Sequence[object]) -> list[tuple[int, set[str]]]:
    """Of each `distrib` command, in one process: the exit status, and the packages that are imported after it."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([[str(each) for each in command] for command in commands])],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    return [(status, set(modules)) for status, modules in json.loads(done.stderr.splitlines()[-1])]


HELP = (
    "", "--help", "explain --help", "evaluate --help", "compare --help", "predict --help", "export --help",
    "sweep --help", "reproduce --help", "prepare --help", "prepare faces --help", "prepare split --help",
    "train --help", "check --help",
)  # fmt: skip
WRONG = ("predict runs/celeba", "sweep --workers 2", "explain", "explain runs/x --only")


@pytest.mark.parametrize(("commands", "expected"), [(HELP, 0), (WRONG, 2)], ids=["help", "refused"])
def test_no_library_is_waited_for(commands: tuple[str, ...], expected: int) -> None:
    for command, (status, modules) in zip(commands, imported(*map(str.split, commands)), strict=True):
        assert status == expected, command
        assert not modules & HEAVY, command


def test_a_study_is_read_without_torch() -> None:
    probe = "import sys, distrib.studies.definition; print(*{each.partition('.')[0] for each in sys.modules})"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {*done.stdout.split()} & HEAVY


def test_a_training_is_checked_without_torch(faces: Path, tmp_path: Path) -> None:
    command = ["check", "--data.root", faces, "--run.folder", tmp_path / "run", "--model.weights", "none"]
    [(status, modules)] = imported(command)
    assert status == 0
    assert modules & HEAVY == {"wandb"}, "whose settings are checked too"


def test_predict_imports_what_it_computes_with_alone(faces: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    photograph = next((faces / "img_align_celeba").iterdir())
    [(status, modules)] = imported(["predict", model, photograph])
    assert status == 0
    assert modules & HEAVY == {"torch", "torchvision", "cv2"}


def test_a_training_imports_nothing_that_only_its_report_needs(faces: Path, tmp_path: Path) -> None:
    short = ["--train.epochs", 1, "--data.subset", 32, "--checkpoint.every-steps", 99]
    run = settings(faces, tmp_path / "run", *short, "--explain.after-training", True)
    done = launch(*run, script="tests/support/imported.py", IMPORTED=str(tmp_path))
    assert done.returncode == 0, done.stderr
    ranks = [set(json.loads((tmp_path / f"rank-{rank}.json").read_text())) for rank in (0, 1)]
    assert "torch" in ranks[0] & ranks[1]
    assert not ranks[0] & OF_PAGES
    assert not ranks[1] & (OF_PAGES | {"scipy", "sklearn"})  # with which rank 0 scores
