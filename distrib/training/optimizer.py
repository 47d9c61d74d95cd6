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

    Its groups are the backbone's tensors with and without weight decay, then the head's (`net.fc`); weight decay spares
    biases and norms, the tensors of one dimension. A parameter without a gradient stays as it is.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    of_backbone = 1.0 if config.backbone_lr is None else config.backbone_lr / config.lr
    groups = [
        {
            "params": [p for name, p in trained if name.startswith("net.fc.") == head and (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.lr * scale,
            "lr_scale": scale,
        }
        for head, scale in ((False, of_backbone), (True, 1.0))
        for decays in (True, False)
    ]
    optimizer: Optimizer
    if config.name == "sgd":
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    else:
        optimizer = (Adam if config.name == "adam" else AdamW)(groups, lr=config.lr, fused=True)
    # What they begin with, said aloud: SGD would leave its buffer unset if its very first step is skipped, and what is
    # trained in a later epoch has its memory and its place in a checkpoint from the start.
    for _, parameter in trained:
        if config.name == "sgd":
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        else:
            averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **averages}
    return optimizer


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The head's learning rate in a step, counted from 0 over the run.

    A pure function, so a resumed run needs no state.
    """
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
    """Give the head this learning rate, and the backbone its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
