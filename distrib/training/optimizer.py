"""The optimiser and its schedule."""

import math

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distrib.config import LAYERS, OptimConfig

# The share of a one-cycle run in which the learning rate rises, from Smith and Topin (2018) as torch has it.
ONE_CYCLE_RISE = 0.3


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """A fused optimiser over what is trained, on the model's device.

    Its groups are the tensors of each part of the network with and without weight decay, from the input to the head
    (`net.fc`): two parts, backbone and head, or with `optim.layer_decay` one for each layer. Weight decay spares biases
    and norms, the tensors of one dimension. A parameter without a gradient stays as it is.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = _scales(config)
    groups = [
        {
            "params": [p for name, p in trained if _part(name, len(scales)) == part and (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.lr * scale,
            "lr_scale": scale,
        }
        for part, scale in enumerate(scales)
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


def _scales(config: OptimConfig) -> list[float]:
    """The share of the head's learning rate that each part of the network has, from the input to the head.

    Shares that fall from layer to layer: Clark et al., ELECTRA, ICLR 2020, and for images Bao et al., BEiT, ICLR 2022.
    """
    if config.layer_decay is not None:
        return [config.layer_decay**below for below in range(len(LAYERS), -1, -1)]
    return [1.0 if config.backbone_lr is None else config.backbone_lr / config.lr, 1.0]


def _part(name: str, parts: int) -> int:
    """Which of so many parts of the network a parameter is in; what stands before `layer1` is with `conv1`."""
    layer = name.removeprefix("net.").partition(".")[0]
    if layer == "fc":
        return parts - 1
    return LAYERS.index(layer) if parts > 2 and layer in LAYERS else 0


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
    """Give the head this learning rate, and each other part of the network its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
