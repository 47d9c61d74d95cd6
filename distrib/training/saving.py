"""The state of a training: into checkpoints as it goes, and back out of one when it goes on."""

import time
from contextlib import nullcontext, suppress
from typing import Self

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from distrib.base.errors import UserError
from distrib.base.json import to_json
from distrib.model.network import AttributeClassifier
from distrib.ranks.meeting import from_rank_0
from distrib.ranks.printing import warn
from distrib.training.checkpoint import Checkpoint, CheckpointWriter, Contents, Progress
from distrib.training.job import Job, Outcome, describe


class Saver:
    """Writes the checkpoints of a run, on rank 0; does nothing on the others.

    Its model is everyone's, as BatchNorm's statistics are the same on all ranks. As a context it waits for the last
    checkpoint at the end.
    """

    def __init__(self, job: Job, net: AttributeClassifier, optimizer: AcceleratedOptimizer) -> None:
        self._job, self._net, self._optimizer = job, net, optimizer
        self._options = job.config.checkpoint
        self._saved_at = time.monotonic()
        goes_on = self._options.on_failure == "continue"
        self._writer = CheckpointWriter(
            job.folder.checkpoints,
            job.data,
            job.config.to_yaml(),
            self._options.keep,
            self._failed if goes_on else None,
            job.folder.forget_former_best,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last checkpoint; where something else has gone wrong, its failure is not the news."""
        with nullcontext() if kind is None else suppress(UserError):
            self._writer.wait()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step, counted from 1 in its epoch; alike on all ranks."""
        every = self._options.every_steps
        return every is not None and step % every == 0 and step < self._job.plan.steps_per_epoch  # whose end saves

    def old(self) -> bool:
        """Whether the last checkpoint is older than it may be; by the clock of rank 0 alone.

        Raises:
            UserError: if the last one could not be written, and checkpoint.on_failure is stop.
        """
        if not self._job.accelerator.is_main_process:
            return False
        self._writer.check()
        minutes = self._options.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, progress: Progress, done: int) -> None:
        """Have a checkpoint of this moment written.

        Args:
            progress: of the run.
            done: steps of the run so far.

        Raises:
            UserError: if an earlier one could not be written, and checkpoint.on_failure is stop.
        """
        if not self._job.accelerator.is_main_process:
            return
        self._saved_at = time.monotonic()
        scaler = self._job.accelerator.scaler
        self._writer.save(
            Contents(
                weights=self._net.net.state_dict(),
                optimizer=self._optimizer.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
                progress=progress,
                model_json=to_json(describe(self._job, progress.epoch).model_dump(mode="json")),
                total_steps=done,
            )
        )

    def wait(self) -> None:
        """Wait for the checkpoint under way, before results are written that it does not know of; on rank 0.

        Raises:
            UserError: if it could not be written, and checkpoint.on_failure is stop.
        """
        self._writer.wait()

    def stop(self, progress: Progress, reason: str) -> Outcome:
        """Have everything on the disk, write down what stopped the run, and let the ranks leave together.

        Raises:
            UserError: if the last checkpoint could not be written.
        """

        def last_words() -> None:
            self._writer.wait(at_any_rate=True)
            folder = self._job.folder
            folder.event("stop", reason=reason, epoch=progress.epoch, step=progress.step)
            folder.preempt.unlink(missing_ok=True)

        from_rank_0(self._job.accelerator, last_words)
        return Outcome(progress, stopped_by=reason)

    def _failed(self, sentence: str) -> None:
        warn(f"{sentence} (checkpoint.on_failure is continue: training goes on, and the next one is tried)")
        with suppress(UserError):  # the same disk may be full
            self._job.folder.event("checkpoint_failed", error=sentence)


def restore(
    checkpoint: Checkpoint, net: AttributeClassifier, optimizer: AcceleratedOptimizer, accelerator: Accelerator
) -> Progress:
    """Put a checkpoint's state into the model, the optimiser and the scaler; returns how far it had come.

    Raises:
        UserError: if it is not the state of this network and this optimiser.
    """
    try:
        net.net.load_state_dict(checkpoint.weights)
        # The state and the last step's learning rate are the checkpoint's, but the settings (weight decay, momentum)
        # are those of today's configuration.
        settings = [{k: group[k] for k in group if k not in ("params", "lr")} for group in optimizer.param_groups]
        optimizer.load_state_dict(checkpoint.trainer["optimizer"])
        for group, today in zip(optimizer.param_groups, settings, strict=True):
            group.update(today)
        refuse_misfit(optimizer)
        lay_out(optimizer)
        if accelerator.scaler is not None and checkpoint.trainer["scaler"] is not None:
            accelerator.scaler.load_state_dict(checkpoint.trainer["scaler"])
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch has another for each kind of state that does not fit
        problem = " ".join(str(error).split())[:160]
        raise UserError(
            f"{checkpoint.folder} does not fit this training ({problem}): name another checkpoint, or start anew in "
            "another run.folder"
        ) from None
    return checkpoint.progress


def refuse_misfit(optimizer: AcceleratedOptimizer) -> None:
    """Refuse a state that is not of the optimiser's own parameters: its fused kernels would write where it is not.

    Raises:
        ValueError: naming what does not fit.
    """
    for group in optimizer.param_groups:
        names = {"momentum_buffer"} if "momentum" in group else {"step", "exp_avg", "exp_avg_sq"}
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if set(state) != names:
                raise ValueError(f"the optimiser's state has {sorted(state)}, expected {sorted(names)}")
            for name, value in state.items():
                wanted = torch.Size() if name == "step" else parameter.shape
                if not torch.is_tensor(value) or value.shape != wanted or not value.is_floating_point():
                    raise ValueError(f"the optimiser's {name} does not have the shape {list(wanted)}")


def lay_out(optimizer: AcceleratedOptimizer) -> None:
    """Give each restored tensor its parameter's own memory layout.

    `load_state_dict` keeps the strides that were saved, and the fused kernels walk through parameter and state alike in
    the order of memory: where `train.channels_last` has changed they would pair values that do not belong together.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
