"""The modules of the network by their names in torchvision's ResNet18, such as `layer2.0.conv1`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distrib.base.errors import UserError
from distrib.base.words import nearest
from distrib.config import ExplainConfig

if TYPE_CHECKING:
    from torch import nn


def check_modules(modules: Sequence[str], filters: Sequence[str]) -> None:
    """Refuse `explain.modules` and `explain.filters` that the network does not have, before anything is trained.

    Raises:
        UserError: if a name is no module, or one of the filters no convolution; it lists those that are.
    """
    default = ExplainConfig()
    if set(modules) <= set(default.modules) and set(filters) <= set(default.filters):
        return  # they are there (`tests/explaining/test_features.py`), and need no library that takes seconds
    import torch
    from torchvision.models import resnet18

    with torch.device("meta"):  # names alone: no weight is made
        net = resnet18()
    for name in modules:
        module(net, name)
    for name in filters:
        convolution(net, name)


def module(net: "nn.Module", name: str) -> "nn.Module":
    """A module of the network.

    Raises:
        UserError: if there is none of this name; it lists those that there are.
    """
    valid: dict[str, nn.Module] = {each: found for each, found in net.named_modules() if each}
    if name not in valid:
        raise UserError(
            f"explain.modules names {name}, which is not a module of the network{nearest(name, list(valid))}: its "
            f"modules are {', '.join(valid)}"
        )
    return valid[name]


def convolution(net: "nn.Module", name: str) -> "nn.Conv2d":
    """A convolution of the network.

    Raises:
        UserError: if there is none of this name; it lists those that there are.
    """
    from torch import nn

    valid = {each: found for each, found in net.named_modules() if isinstance(found, nn.Conv2d)}
    if name not in valid:
        hint = nearest(name, [each for each in valid if each.startswith(name)] or list(valid))
        raise UserError(
            f"explain.filters names {name}, which is not a convolution of the network{hint}: its convolutions are "
            f"{', '.join(valid)}"
        )
    return valid[name]
