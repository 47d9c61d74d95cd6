"""The rooms of the house: the contracts that `make lint` checks hold, and would notice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT


def lint(place: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the package in a folder."""
    program = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"]
    return subprocess.run(
        program, cwd=place, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(place)}
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package to change."""
    shutil.copytree(ROOT / "distrib", tmp_path / "distrib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("data/plan.py", "from distrib.training.loop import train", "one way only"),
        ("cli/export.py", "from distrib.cli.compare import main", "No program needs another"),
        ("ranks/environment.py", "from distrib.ranks.printing import say", "in a circle"),
    ],
)
def test_an_import_that_points_up_is_found(house: Path, file: str, planted: str, broken: str) -> None:
    kept = lint(house)
    assert kept.returncode == 0, kept.stdout
    with (house / "distrib" / file).open("a") as module:
        module.write(f"\n{planted}\n")
    found = lint(house)
    assert found.returncode == 1
    assert any(broken in line and line.endswith("BROKEN") for line in found.stdout.splitlines()), found.stdout
