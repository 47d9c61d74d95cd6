"""One optimiser step, without a word to the host.

Legend: B images, A attributes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.ranks.host_copy import HostCopy
from distrib.ranks.stopping import Agreement
from distrib.training.ema import MovingAverage
from distrib.training.losses import attribute_loss


class _Statistics:
    """BatchNorm's running statistics within one step, of the layers that are not frozen.

    Each micro-batch starts from those that the step began with, and their mean over all micro-batches replaces them, so
    that they do not depend on how the micro-batches are shared out over ranks. A step counts once in
    `num_batches_tracked`.

    Attributes:
        running: the means and variances, as the network has them.
    """

    def __init__(self, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        active = [module for module in norms if module.training]
        tensors = [tensor for module in active for tensor in (module.running_mean, module.running_var)]
        self.running = [tensor for tensor in tensors if tensor is not None]
        counters = [module.num_batches_tracked for module in active if module.num_batches_tracked is not None]
        # Apart, as they are of another type: torch copies a list of one type by one kernel.
        self._kept = [(each, [tensor.clone() for tensor in each]) for each in (self.running, counters) if each]
        self._sum: list[torch.Tensor] = []
        self._added = 0

    def remember(self) -> None:
        """Take these for those that the step began with."""
        for tensors, before in self._kept:
            torch._foreach_copy_(before, tensors)

    def restore(self) -> None:
        """Go back to those that the step began with."""
        for tensors, before in self._kept:
            torch._foreach_copy_(tensors, before)

    def restore_where(self, bad: torch.Tensor) -> None:
        """The same where a bool [] on the device says so."""
        for tensors, before in self._kept:
            # One kernel for all: there is none that chooses within a list.
            old, new = (torch.cat([tensor.view(-1) for tensor in each]) for each in (before, tensors))
            chosen = torch.split(torch.where(bad, old, new), [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(chosen, tensors, strict=True)])

    def add(self) -> None:
        """Count what a micro-batch has made of them."""
        if self._added == 0:
            self._sum = [tensor.clone() for tensor in self.running]
        elif self._sum:
            torch._foreach_add_(self._sum, self.running)
        self._added += 1

    def average(self) -> None:
        """Replace them by the mean of what was counted; nothing was: leave them."""
        if self._sum:
            torch._foreach_copy_(self.running, torch._foreach_div(self._sum, self._added))
        self._sum, self._added = [], 0


@dataclass(frozen=True)
class StepStats:
    """What the host learns when it looks.

    Attributes:
        loss_sum: sum of the global batches' losses since the epoch began, without those that were not finite.
        gradient_norm: of the last step.
        bad: the steps, counted over the run, whose loss or gradient was not finite; the first `allowed` + 1 of them.
        allowed: how many there may be; after one more no weight moves.
    """

    loss_sum: float
    gradient_norm: float
    bad: tuple[int, ...]
    allowed: int

    @property
    def fatal(self) -> int | None:
        """The step after which no weight has moved; None: they all have."""
        return self.bad[self.allowed] if len(self.bad) > self.allowed else None


@dataclass(frozen=True)
class StepLook:
    """A look at the steps that the device has yet to come to.

    Attributes:
        numbers: float64 [3 + steps]: sum of the losses, norm of the gradient, how many bad steps, and which.
        allowed: bad steps.
    """

    numbers: HostCopy
    allowed: int

    def stats(self) -> StepStats:
        """What it shows, once the device is there."""
        loss_sum, gradient_norm, count, *steps = self.numbers.get().tolist()
        return StepStats(loss_sum, gradient_norm, tuple(int(step) for step in steps[: int(count)]), self.allowed)


class TrainStep:
    """Forward, backward, agreement of the ranks, update.

    A step whose loss or gradient is not finite on any rank moves no weight on any rank, and where it may be skipped no
    statistic of BatchNorm's either: the optimiser is told on the device, and the host finds out at its next `read`.
    After one more than `train.on_nonfinite` allows no weight moves again, and nothing is saved any more. (In fp16
    gradients overflow in ordinary life and the scaler skips such steps; there the loss alone counts.)

    Args:
        config: resolved.
        accelerator: which prepared the model and the optimiser.
        model: gives logits [B, A] of uint8 images.
        optimizer: a fused one.
        positive_weight_A: float [A], or None.
        agreement: by which the ranks learn, in the same all-reduce, what any of them wishes.
        skipped: the bad steps of this run's earlier parts.
        average: of the weights, updated by every step that moves them; None: there is none.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        positive_weight_A: torch.Tensor | None,
        agreement: Agreement,
        skipped: Sequence[int] = (),
        average: MovingAverage | None = None,
    ) -> None:
        self._agreement, self._average = agreement, average
        self._train, self._clip_norm = config.train, config.optim.clip_norm
        self._accelerator = accelerator
        self._model, self._optimizer = model, optimizer
        self._positive_weight = positive_weight_A
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # SyncBatchNorm too, which is no BatchNorm2d.
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._statistics = _Statistics(norms)
        device = accelerator.device
        # float64 and one addition a step: the sum is the same wherever a run was interrupted.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._gradient_norm = torch.zeros((), device=device)
        self._skips = config.train.on_nonfinite == "skip"
        # What has been skipped cannot be taken back by a smaller limit.
        self._allowed = max(config.train.nonfinite_limit if self._skips else 0, len(skipped))
        places = max(self._allowed + 1, len(skipped))
        self._bad_count = torch.tensor(len(skipped), device=device)
        self._bad_steps = torch.tensor([*skipped, *[-1] * (places - len(skipped))], dtype=torch.int64, device=device)
        self._places = torch.arange(places, device=device)

    def begin_epoch(self, loss_sum: float) -> None:
        """Start the sum of the losses at what a resumed epoch has already seen, or at 0."""
        self._loss_sum.fill_(loss_sum)

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> None:
        """Train on this rank's share of a global batch; `step` counts from 0 over the run."""
        norms = self._statistics
        if self._skips or len(micro_batches) > 1:
            norms.remember()  # a forward pass that is not finite leaves them so
        parts = []
        for number, batch in enumerate(micro_batches):
            if number > 0:
                norms.restore()
            with nullcontext() if batch is micro_batches[-1] else self._accelerator.no_sync(self._model):
                logits_BA = self._model(batch.images_BHWC)
                part = self._loss(logits_BA, batch.targets_BA) / len(micro_batches)
                self._accelerator.backward(part)
            parts.append(part.detach())
            if len(micro_batches) > 1:
                norms.add()
        norms.average()
        loss = self._agree(reduce(torch.add, parts), norms.running)
        bad = self._update(loss, step)
        self._loss_sum += torch.where(bad, 0.0, loss)
        if self._skips:
            norms.restore_where(bad)

    def look(self) -> StepLook:
        """Begin to look at what the steps have come to, without waiting for the device."""
        values = [self._loss_sum.view(1), self._gradient_norm.double().view(1), self._bad_count.double().view(1)]
        return StepLook(HostCopy(torch.cat([*values, self._bad_steps.double()])), self._allowed)

    def read(self) -> StepStats:
        """Wait for the device and look."""
        return self.look().stats()

    def _loss(self, logits_BA: torch.Tensor, targets_BA: torch.Tensor) -> torch.Tensor:
        return attribute_loss(logits_BA, targets_BA, self._train.label_smoothing, self._positive_weight)

    def _update(self, loss: torch.Tensor, step: int) -> torch.Tensor:
        """Move the weights unless something is not finite; whether it is, as bool [] on the device."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        scaled = self._accelerator.scaler is not None  # fp16
        if scaled:
            bad = ~loss.isfinite()
            halt = self._note(bad, step)
            # The scaler skips a step for an infinite gradient, and for nothing else.
            torch._foreach_mul_(gradients, torch.where(halt, torch.inf, 1.0))
            self._accelerator.unscale_gradients(self._optimizer)
        norm = get_total_norm(gradients)
        if self._clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        if not scaled:
            bad = ~(loss.isfinite() & norm.isfinite())
            # torch's fused optimisers leave everything as it is where this says 1.
            halt = self._note(bad, step)
            self._optimizer.optimizer.found_inf = halt.float()
        self._gradient_norm = norm
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            # In fp16 a norm that is not finite is a step that the scaler has skipped.
            self._average.update(step, moved=norm.isfinite() & ~halt)
        return bad

    def _note(self, bad: torch.Tensor, step: int) -> torch.Tensor:
        """Write a bad step down; whether the weights are to stay as they are, bool [] on the device."""
        self._bad_steps = torch.where(bad & (self._places == self._bad_count), step, self._bad_steps)
        self._bad_count = self._bad_count + bad
        return bad | (self._bad_count > self._allowed)

    def _agree(self, loss: torch.Tensor, statistics: list[torch.Tensor]) -> torch.Tensor:
        """The loss of the global batch; and BatchNorm's running statistics become the mean over the ranks.

        Averaging them (40 kB beside 45 MB of gradients, in the same all-reduce as the loss) uses every rank's images
        and leaves all ranks with the same state, so that a checkpoint is one model. The loss carries a NaN of any rank
        to all. What the ranks wish goes with them.
        """
        ranks, wishes = self._accelerator.num_processes, self._agreement.wishes()
        if ranks == 1:
            self._agreement.hear(wishes)
            return loss
        flat = torch.cat([loss.view(1), wishes, *statistics])
        torch.distributed.all_reduce(flat)
        flat /= ranks
        mean_loss, wishes, *means = torch.split(flat, [1, len(wishes), *(len(tensor) for tensor in statistics)])
        self._agreement.hear(wishes)
        if means:
            torch._foreach_copy_(statistics, means)
        return mean_loss[0]
