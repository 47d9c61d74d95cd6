"""Where a run is: between which two of its steps."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Position:
    """A moment between two steps of a run.

    Attributes:
        epoch: epochs finished.
        step: steps finished of the epoch under way; all of them while it is being validated.
        steps_per_epoch: of the run's plan.
    """

    epoch: int
    step: int
    steps_per_epoch: int

    @property
    def run_step(self) -> int:
        """Steps finished of the run, which is also the number of the next one, counted from 0."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the epoch has had all its steps, and validation is next."""
        return self.step == self.steps_per_epoch

    def after_step(self) -> "Position":
        """The position when one more step of this epoch is finished."""
        assert not self.at_end_of_epoch
        return replace(self, step=self.step + 1)

    def after_epoch(self) -> "Position":
        """The position when the epoch has been validated: the beginning of the next one."""
        assert self.at_end_of_epoch
        return replace(self, epoch=self.epoch + 1, step=0)
