"""The optimiser and its schedule."""

import math

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distrib.config import OptimConfig

# The share of a one-cycle run in which the learning rate rises, from Smith and Topin (2018) as torch has it.
ONE_CYCLE_RISE = 0.3


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """A fused optimiser over what is trained, on the model's device.

    Weight decay spares biases and norms, the tensors of one dimension.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        sgd = SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
        for parameter in trained:
            # What SGD begins with, said aloud: it would leave the buffer unset if its very first step is skipped.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = Adam if config.name == "adam" else AdamW
    return kind(groups, lr=config.lr, fused=True)


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of a step, counted from 0 over the run; a pure function, so a resumed run needs no state."""
    total = steps_per_epoch * epochs
    warmup = config.warmup_epochs * steps_per_epoch
    if config.schedule == "one-cycle" and warmup == 0:
        warmup = ONE_CYCLE_RISE * total
    if step + 1 < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step + 1 - warmup) / max(1.0, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
