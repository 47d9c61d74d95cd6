"""Data that several test files share."""

import os
from pathlib import Path

import hypothesis
import pytest
from accelerate.state import AcceleratorState
from launching import launch
from small_run import settings

from distrib.faces import write_faces

# A change is judged by the same examples each time; a person at a keyboard gets new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

CELEBA_MINI = Path(__file__).resolve().parents[2] / "shared/celeba-mini"


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of synthetic faces."""
    folder = tmp_path_factory.mktemp("faces") / "faces"
    write_faces(folder, count=200, seed=5, workers=2)
    return folder


@pytest.fixture(scope="session")
def finished(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A finished run on two ranks: its folder, what it printed, and where its observers wrote."""
    folder, seen = tmp_path_factory.mktemp("finished") / "run", tmp_path_factory.mktemp("seen")
    done = launch(*settings(faces, folder), script="tests/support/observer.py", OBSERVE=str(seen))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, seen


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `make demo` makes, in another folder; it takes minutes."""
    folder = tmp_path_factory.mktemp("demo")
    write_faces(folder / "faces", count=3000, seed=0, workers=2)
    done = launch("--config", "configs/demo.yaml", "--data.root", folder / "faces", "--run.folder", folder / "run",
                  "--run.device", "cpu", timeout=2000)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def celeba_mini() -> Path:
    """5,580 real CelebA images, where this machine has them; they are not part of the project."""
    if not CELEBA_MINI.is_dir():
        pytest.skip(f"needs real CelebA images in {CELEBA_MINI}, which are not part of the project")
    return CELEBA_MINI


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """Accelerate keeps one state a process; every run started inside a test begins without it."""
    AcceleratorState._reset_state(reset_partial_state=True)
