"""The checkpoints of a run as it goes: when one is due, and what the ranks hear of its writing."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from distrib.base.errors import UserError
from distrib.base.json import to_json
from distrib.ranks.meeting import from_rank_0
from distrib.ranks.printing import warn
from distrib.ranks.watch import Watch
from distrib.training.checkpoint import CheckpointWriter, Contents, Progress, WriteFirst, nothing
from distrib.training.position import Position
from distrib.training.state import TrainState
from distrib.training.training_run import Outcome, TrainingRun, describe


class Checkpointer:
    """Has the checkpoints of a run written by rank 0, whose state is everyone's.

    Every rank calls `save`, `wait` and `stop` at the same point: what rank 0 waits for all wait for, and what cannot be
    written is raised on all of them. As a context it waits for the last checkpoint at the end.
    """

    def __init__(self, run: TrainingRun, state: TrainState, watch: Watch) -> None:
        self._run, self._state, self._watch = run, state, watch
        self._options = run.config.checkpoint
        self._saved_at = time.monotonic()
        continues = self._options.on_failure == "continue"
        self._writer = CheckpointWriter(
            run.folder.checkpoints,
            run.data,
            run.config.to_yaml(),
            self._options.keep,
            self._failed if continues else None,
            run.folder.forget_former_best,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last checkpoint; where this rank leaves for another reason, its failure is not the news."""
        if kind is None:
            self.wait()
            return
        with suppress(UserError):
            self._writer.wait()

    def due(self, position: Position) -> bool:
        """Whether a checkpoint is due after so many steps of the epoch."""
        every = self._options.every_steps
        return every is not None and position.step % every == 0

    def overdue(self) -> bool:
        """Whether the last checkpoint is older than it may be: rank 0's clock decides, the others say no.

        Said once, as the clock starts anew with it: on a GPU the ranks hear of it some steps later.
        """
        minutes = self._options.every_minutes
        if not self._run.accelerator.is_main_process or minutes is None:
            return False
        now = time.monotonic()
        if now - self._saved_at < 60 * minutes:
            return False
        self._saved_at = now
        return True

    def has_failed(self) -> bool:
        """Whether this rank has met an error in writing for which the run is to stop; `wait` then raises it."""
        return self._writer.has_failed()

    def save(self, progress: Progress, first: WriteFirst = nothing) -> None:
        """Have a checkpoint of this moment written, once the one before it is on the disk.

        Args:
            progress: of the run.
            first: writes what has to be on the disk before this checkpoint is.

        Raises:
            UserError: on every rank, if the one before could not be written, as `wait` says.
        """
        self._on_rank_0(lambda: self._save(progress, first))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            UserError: on every rank, if it could not be written, and checkpoint.on_failure is stop; or if what comes
                first could not be.
        """
        self._on_rank_0(self._writer.wait)

    def stop(self, progress: Progress, reason: str) -> Outcome:
        """Have everything on the disk, write down what stopped the run, and let the ranks leave together.

        Raises:
            UserError: on every rank, if the last checkpoint could not be written.
        """

        def write_down() -> None:
            self._writer.wait(at_any_rate=True)
            folder = self._run.folder
            folder.event("stop", reason=reason, epoch=progress.epoch, step=progress.step)
            folder.preempt.unlink(missing_ok=True)

        self._on_rank_0(write_down)
        return Outcome(progress, stopped_by=reason)

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Have rank 0 do something that all wait for, and raise its error on every rank."""
        accelerator = self._run.accelerator
        # A rank 0 whose disk does not answer is behind those that wait for it, and so the one that is named.
        if not accelerator.is_main_process:
            self._watch.progress()
        from_rank_0(accelerator, work)
        if accelerator.is_main_process:
            self._watch.progress()

    def _save(self, progress: Progress, first: WriteFirst) -> None:
        self._saved_at = time.monotonic()
        scaler, state = self._run.accelerator.scaler, self._state
        self._writer.save(
            Contents(
                weights=state.kept.net.state_dict(),
                optimizer=state.optimizer.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
                progress=progress,
                model_json=to_json(describe(self._run, progress.epoch).model_dump(mode="json")),
                total_steps=state.position.run_step,
                network=None if state.average is None else state.net.net.state_dict(),
            ),
            first,
        )

    def _failed(self, sentence: str) -> None:
        warn(f"{sentence} (checkpoint.on_failure is continue: training continues, and the next one is tried)")
        with suppress(UserError):  # the same disk may be full
            self._run.folder.event("checkpoint_failed", error=sentence)
