"""The position of a run, walked through two epochs."""

import pytest

from distrib.training.position import Position


def test_a_run_is_walked_through_step_by_step() -> None:
    position = Position(epoch=0, step=0, steps_per_epoch=3)
    seen = []
    for _ in range(2):
        while not position.at_end_of_epoch:
            seen.append((position.epoch, position.step, position.run_step))
            position = position.after_step()
        seen.append((position.epoch, position.step, position.run_step))
        position = position.after_epoch()
    assert seen == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 0, 3), (1, 1, 4), (1, 2, 5), (1, 3, 6)]
    assert position == Position(2, 0, 3)


def test_an_epoch_ends_once_and_not_before_its_last_step() -> None:
    end = Position(epoch=4, step=3, steps_per_epoch=3)
    with pytest.raises(AssertionError):
        end.after_step()
    with pytest.raises(AssertionError):
        end.after_epoch().after_epoch()
