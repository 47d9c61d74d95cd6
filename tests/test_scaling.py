"""benchmarks/scaling_model.py: docs/scaling.md has the tables that it computes, and it keeps to the formula there."""

import subprocess
import sys

import pytest
from launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from scaling_model import BACKWARD, GRADIENTS, Link, Machine, ring_seconds, step_seconds

SLOW = Link("slow", bandwidth=1e9, latency=1e-3)


def test_the_page_has_the_tables_of_the_model():
    program = [sys.executable, "benchmarks/scaling_model.py"]
    printed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/scaling.md").read_text()
    for table in printed.strip().split("\n\n"):
        assert table in page


def test_a_ring_moves_the_same_for_many_ranks_but_takes_more_hops():
    assert ring_seconds(1, SLOW) == 0
    assert ring_seconds(2, SLOW) == pytest.approx(GRADIENTS / 1e9 + 2e-3)
    assert ring_seconds(1000, SLOW) == pytest.approx(2 * GRADIENTS / 1e9 + 2.0, rel=2e-3)


@pytest.mark.parametrize(
    ("machine", "seconds"),
    [
        (Machine(images_per_second=1000, launch=0.01), 0.1),
        (Machine(images_per_second=1000, launch=0.2), 0.2),
        (Machine(images_per_second=1000, decoded_per_second=500), 0.2),
        (Machine(images_per_second=1000, storage=7.5e5), 1.0),
    ],
)
def test_a_step_of_one_rank_takes_what_is_slowest(machine, seconds):
    assert step_seconds(1, 100, machine, SLOW) == pytest.approx(seconds)


def test_the_backward_pass_hides_what_it_can():
    fast = Link("fast", bandwidth=1e9, latency=0.0)
    alone, two = (step_seconds(ranks, 1500, Machine(hidden=BACKWARD), fast) for ranks in (1, 2))
    # Of 44.8 MB in a step of 0.1 s only the last bucket is left, and the statistics.
    assert two - alone == pytest.approx(8.8e-3 + 4e-5)


def test_a_compiled_backward_pass_hides_nothing():
    """As by default on a GPU: the gradients of one graph are there together, when it is over."""
    fast = Link("fast", bandwidth=1e9, latency=0.0)
    alone, two = (step_seconds(ranks, 1500, Machine(), fast) for ranks in (1, 2))
    assert two - alone == pytest.approx(44.8e-3 + 4e-5)
