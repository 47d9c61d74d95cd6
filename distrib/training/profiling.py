"""What the operations of some steps take, by torch's profiler: `train.profile`."""

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Self, TypeVar

from torch.profiler import ProfilerActivity, profile, schedule

from distrib.base.errors import first_line
from distrib.base.files import write_whole
from distrib.ranks.printing import say, warn
from distrib.training.position import Position
from distrib.training.training_run import TrainingRun

# Steps of a process that are not profiled: they build what the others use again.
WARM_UP = 10
ROWS = 60  # of the table, the longest operators

Step = TypeVar("Step")


class StepProfile:
    """Has the profiler at work while the steps that `train.profile` asks for are trained, on rank 0.

    Once in every process, so that a resumed run is profiled again and what it finds takes the place of the former; the
    profiler looks on, and what is computed is the same. The time that it takes is counted as that of steps.

    Args:
        run: to be trained.
        position: where this process begins.
    """

    def __init__(self, run: TrainingRun, position: Position) -> None:
        self._run = run
        self._profiler: profile | None = None
        self._steps = range(0)
        if (steps := run.config.train.profile) is not None and run.accelerator.is_main_process:
            self._steps = steps_to_profile(position, run.config.train.epochs, steps)
            if not self._steps:
                warn(
                    f"train.profile {steps} has no effect: after a warm-up of {WARM_UP} steps no epoch has {steps + 1} "
                    f"steps left (an epoch has {position.steps_per_epoch}): profile fewer, or train for longer"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profiler is not None:  # the run ends amid them, and those that it has had are written
            with nullcontext() if kind is None else suppress(RuntimeError):  # which is not the news
                self._profiler.stop()

    def steps(self, batches: Iterable[Step], position: Position) -> Iterator[Step]:
        """The same batches; each step is what is done from the wait for its batch to that for the next one.

        Args:
            batches: of an epoch, from a step on.
            position: before that step.
        """
        for step, batch in enumerate(batches, start=position.run_step):
            if self._steps and step == self._steps[0] - 1:  # the profiler's own warm-up
                self._profiler = self._start()
            yield batch
            if self._profiler is not None:
                self._profiler.step()
                if step == self._steps[-1]:
                    self._profiler.stop()
                    self._profiler = None

    def _start(self) -> profile:
        # Else torch's library prints an error where there is no GPU; read when it is first used.
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        activities = [ProfilerActivity.CPU]
        if self._run.accelerator.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        profiler = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=len(self._steps), repeat=1),
            on_trace_ready=self._save,
        )
        profiler.start()
        return profiler

    def _save(self, profiler: profile) -> None:
        """Write the trace and the table; a training whose profile cannot be written continues."""
        folder = self._run.folder.profile
        by = "self_cpu_time_total" if self._run.accelerator.device.type == "cpu" else "self_device_time_total"
        try:
            folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(folder / "trace.json.gz"))
            table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=80)
            write_whole(folder / "operators.txt", table)
        except (OSError, RuntimeError) as problem:  # the latter is the profiler's own
            warn(
                f"the profile cannot be written to {folder} ({first_line(problem)}): check the disk; training "
                "continues without it"
            )
            return
        self._run.tracker.profile(folder)
        say(f"profile: {folder} (operators.txt; trace.json.gz is for https://ui.perfetto.dev)")


def steps_to_profile(position: Position, epochs: int, count: int) -> range:
    """The steps to profile, counted from 0 over the run; none where there are not so many.

    They are of one epoch, as is the step before them, in which the profiler warms up.

    Args:
        position: where this process begins.
        epochs: of the run.
        count: how many.
    """
    per_epoch = position.steps_per_epoch
    epoch, step = divmod(position.run_step + WARM_UP, per_epoch)
    if step + count > per_epoch:
        epoch, step = epoch + 1, 0
    step = max(1, step)
    if epoch >= epochs or step + count > per_epoch:
        return range(0)
    first = epoch * per_epoch + step
    return range(first, first + count)
