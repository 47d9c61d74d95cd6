"""The cluster, and folders that are to it what the repository is to a cluster of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real Slurm of two nodes, where this machine can have one."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _nothing_left_over(cluster: Cluster) -> Iterator[None]:
    """A test that fails leaves no job and no dead node to the next one."""
    yield
    cluster.run("scancel", "--user=root")
    for node, state in cluster.states().items():
        if state.startswith("down"):
            cluster.heal(node)


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A repository whose programs do nothing but write down how they were called.

    `distrib` writes `called`, and says what `distrib check` says; `accelerate` writes a line into `launched-NODE` at
    each call, and does then what the file `does` says.
    """
    place = tmp_path / "my repository"
    for folder in ("distrib", "data set", ".venv/bin", "runs/a run"):
        (place / folder).mkdir(parents=True)
    (place / "distrib/train.py").touch()
    (place / "data set/faces.csv").write_text("faces\n")
    (place / "does").touch()
    _program(
        place / ".venv/bin/distrib",
        """
        printf '%s\\n' "$PWD" "${OMP_NUM_THREADS:-}" "$@" >>called
        echo 'data:    data set'
        echo 'folder:  runs/a run'
        """,
    )
    _program(
        place / ".venv/bin/accelerate",
        """
        printf '%s\\t' "$OMP_NUM_THREADS" "${CUDA_VISIBLE_DEVICES:-}" "$@" >>"launched-$(hostname)"
        echo >>"launched-$(hostname)"
        . ./does
        """,
    )
    return place


def _program(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/bash\n{script}")
    file.chmod(0o755)
