"""Data that several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from accelerate.state import AcceleratorState
from launching import launch
from made_once import made_once
from small_run import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from distrib.faces import write_faces

# A change is judged by the same examples each time; a person at a keyboard gets new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

CELEBA_MINI = Path(__file__).resolve().parents[2] / "shared/celeba-mini"


# What takes longest comes first, so that no worker is left alone with it at the end; and beside the demo, which
# computes on all cores, what waits for Slurm.
DEAR = (
    "test_truth", "test_command", "/cluster/", "test_sweep", "test_stopping", "test_train.", "test_explain",
    "test_chaos", "test_gpu_benchmarks", "test_tracking_online", "test_trainers", "test_recipe", "test_scale",
    "test_closed_doors", "test_transfer", "test_growing", "/training/",
)  # fmt: skip


class ByFile(LoadScopeScheduling):
    """A worker of pytest-xdist takes a whole file, for its fixtures, or all that use the one Slurm, or the demo."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "/cluster/" in file:
            return "cluster"
        return "demo" if file.endswith(("/test_truth.py", "/test_command.py")) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    config.option.loadscopereorder = False  # which would begin with the files of most tests
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((place for place, part in enumerate(DEAR) if part in item.nodeid), len(DEAR)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of synthetic faces."""
    return made_once(
        tmp_path_factory, "faces", lambda folder: write_faces(folder / "faces", count=200, seed=5, workers=2)
    ) / "faces"  # fmt: skip


@pytest.fixture(scope="session")
def finished(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A finished run on two ranks: its folder, what it printed, and where its observers wrote."""

    def train(folder: Path) -> None:
        (folder / "seen").mkdir()
        done = launch(
            *settings(faces, folder / "run"), script="tests/support/observer.py", OBSERVE=str(folder / "seen")
        )
        assert done.returncode == 0, done.stderr
        (folder / "printed").write_text(done.stdout)

    folder = made_once(tmp_path_factory, "finished", train)
    return folder / "run", (folder / "printed").read_text(), folder / "seen"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `make demo` makes, in another folder; it takes minutes."""

    def train(folder: Path) -> None:
        write_faces(folder / "faces", count=3000, seed=0, workers=2)
        done = launch("--config", "configs/demo.yaml", "--data.root", folder / "faces", "--run.folder", folder / "run",
                      "--run.device", "cpu", timeout=2000)  # fmt: skip
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "demo", train) / "run"


@pytest.fixture(scope="session")
def celeba_mini() -> Path:
    """5,580 real CelebA images, where this machine has them; they are not part of the project."""
    if not CELEBA_MINI.is_dir():
        pytest.skip(f"needs real CelebA images in {CELEBA_MINI}, which are not part of the project")
    return CELEBA_MINI


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state a process; every run started inside a test, or for several, begins without it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
