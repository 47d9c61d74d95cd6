"""benchmarks/chaos.py in short: a run that is disturbed in five ways ends as if nothing had happened."""

import sys
from pathlib import Path

import pytest
from launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from chaos import AIMS, KINDS, Disturbance, Setting, draw, run_chaos


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_disturbed_again_and_again_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    disturbances = [
        Disturbance("SIGTERM", "rank 1", "launch", 0.7),
        Disturbance("SIGKILL", "launcher", "first step", 0.5),
        Disturbance("SIGKILL", "rank 0", "checkpoint write", 0.3, later=0.05),
        Disturbance("SIGSTOP, SIGCONT", "rank 0", "first step", 0.2, hold=1.5),
        Disturbance("SIGSTOP", "rank 1", "first step", 0.3),
    ]
    result = run_chaos(disturbances, tmp_path, Setting(faces=250, epochs=2, every_steps=4), print)
    print(result.table())
    assert [hit.disturbance for run in result.runs for hit in run.hits] == disturbances
    assert {"start-up", "checkpoint write"} <= {hit.moment for run in result.runs for hit in run.hits}
    for run in result.runs:
        assert run.finished, run.faults
        assert run.differences == []
        assert run.leftovers == []
    assert result.passed
    summary = result.summary()
    assert summary["finished"] == summary["equal"] == summary["runs"]


def test_disturbances_are_drawn_again_from_the_same_seed_and_of_every_kind() -> None:
    drawn = draw(50, seed=0)
    assert drawn == draw(50, seed=0) != draw(50, seed=1)
    assert {(each.what, each.who) for each in drawn} == set(KINDS)
    assert {each.aim for each in drawn} == set(AIMS)
