"""One optimiser step, without a word to the host.

Legend: B pictures, A attributes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from distrib.config import Config
from distrib.data.batch import Batch


def attribute_loss(
    logits_BA: torch.Tensor, targets_BA: torch.Tensor, smoothing: float, positive_weight_A: torch.Tensor | None
) -> torch.Tensor:
    """Mean binary cross-entropy with logits.

    Args:
        logits_BA: float [B, A].
        targets_BA: float32 [B, A] in {0, 1}.
        smoothing: in [0, 1), pulls the targets towards 1/2.
        positive_weight_A: float [A], weight of the positives of each attribute; None: 1.
    """
    if smoothing:
        targets_BA = targets_BA.lerp(torch.full_like(targets_BA, 0.5), smoothing)
    return F.binary_cross_entropy_with_logits(logits_BA.float(), targets_BA, pos_weight=positive_weight_A)


@dataclass(frozen=True)
class Reading:
    """What the host learns when it looks: one synchronisation.

    Attributes:
        loss_sum: sum of the global batches' losses since the epoch began.
        gradient_norm: of the last step.
        first_bad: the first step, counted over the run, whose loss or gradient was not finite; -1: none.
    """

    loss_sum: float
    gradient_norm: float
    first_bad: int


class TrainStep:
    """Forward, backward, agreement of the ranks, update.

    A step whose loss or gradient is not finite on any rank moves no weight on any rank, nor does a later one: the
    optimiser is told on the device, and the host finds out at its next `read`. (In fp16 gradients overflow in ordinary
    life and the scaler skips such steps; there the loss alone counts.)

    Args:
        config: resolved.
        accelerator: which prepared the model and the optimiser.
        model: gives logits [B, A] of uint8 pictures.
        optimizer: a fused one.
        positive_weight_A: float [A], or None.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        positive_weight_A: torch.Tensor | None,
    ) -> None:
        self._train, self._clip_norm = config.train, config.optim.clip_norm
        self._accelerator = accelerator
        self._model, self._optimizer = model, optimizer
        self._positive_weight = positive_weight_A
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        device = accelerator.device
        # float64 and one addition a step: the sum is the same wherever a run was interrupted.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._gradient_norm = torch.zeros((), device=device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def begin_epoch(self, loss_sum: float) -> None:
        """Start the sum of the losses at what a resumed epoch has already seen, or at 0."""
        self._loss_sum.fill_(loss_sum)

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> None:
        """Train on this rank's share of a global batch; `step` counts from 0 over the run."""
        loss = torch.zeros((), device=self._accelerator.device)
        for batch in micro_batches:
            with nullcontext() if batch is micro_batches[-1] else self._accelerator.no_sync(self._model):
                logits_BA = self._model(batch.images_BHWC)
                part = self._loss(logits_BA, batch.targets_BA) / len(micro_batches)
                self._accelerator.backward(part)
            loss += part.detach()
        loss = self._agree(loss)
        self._loss_sum += loss
        self._update(loss, step)

    def read(self) -> Reading:
        """Wait for the device and look."""
        values = torch.stack([self._loss_sum, self._gradient_norm.double(), self._first_bad.double()])
        loss_sum, gradient_norm, first_bad = values.tolist()
        return Reading(loss_sum, gradient_norm, int(first_bad))

    def _loss(self, logits_BA: torch.Tensor, targets_BA: torch.Tensor) -> torch.Tensor:
        return attribute_loss(logits_BA, targets_BA, self._train.label_smoothing, self._positive_weight)

    def _update(self, loss: torch.Tensor, step: int) -> None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        scaled = self._accelerator.scaler is not None  # fp16
        if scaled:
            self._note_bad(~loss.isfinite(), step)
            # The scaler skips a step for an infinite gradient, and for nothing else.
            torch._foreach_mul_(gradients, torch.where(self._first_bad >= 0, torch.inf, 1.0))
            self._accelerator.unscale_gradients(self._optimizer)
        norm = get_total_norm(gradients)
        if self._clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        if not scaled:
            self._note_bad(~(loss.isfinite() & norm.isfinite()), step)
            # torch's fused optimisers leave everything as it is where this says 1.
            self._optimizer.optimizer.found_inf = (self._first_bad >= 0).float()
        self._gradient_norm = norm
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _note_bad(self, bad: torch.Tensor, step: int) -> None:
        self._first_bad = torch.where(bad & (self._first_bad < 0), step, self._first_bad)

    def _agree(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the global batch; and BatchNorm's running statistics become the mean over the ranks.

        Averaging them (40 kB beside 45 MB of gradients, in the same all-reduce as the loss) uses every rank's pictures
        and leaves all ranks with the same state, so that a checkpoint is one model. The loss carries a NaN of any rank
        to all.
        """
        ranks = self._accelerator.num_processes
        if ranks == 1:
            return loss
        statistics = [
            tensor
            for module in self._norms
            if module.training
            for tensor in (module.running_mean, module.running_var)
            if tensor is not None
        ]
        flat = torch.cat([loss.view(1), *statistics])
        torch.distributed.all_reduce(flat)
        flat /= ranks
        mean_loss, *means = torch.split(flat, [1, *(len(tensor) for tensor in statistics)])
        if means:
            torch._foreach_copy_(statistics, means)
        return mean_loss[0]
