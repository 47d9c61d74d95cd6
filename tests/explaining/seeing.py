"""A ResNet18 made by hand, of which a test knows what it looks at."""

import torch
from torch import nn

from distrib.model.network import AttributeClassifier


@torch.no_grad()
def red_seer() -> AttributeClassifier:
    """A network whose first logit says how much red there is, its second how much blue; wherever in the image."""
    model = AttributeClassifier(2).eval()
    for module in model.net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
    model.net.fc.bias.zero_()
    model.net.conv1.weight[0, :, 3, 3] = torch.tensor([1.0, -0.5, -0.5])
    model.net.conv1.weight[1, :, 3, 3] = torch.tensor([-0.5, -0.5, 1.0])
    for layer in (model.net.layer2, model.net.layer3, model.net.layer4):
        for channel in (0, 1):  # means of 3 x 3 cells where the size is halved; elsewhere the shortcuts pass all on
            layer[0].conv1.weight[channel, channel] = 1 / 9
            layer[0].conv2.weight[channel, channel, 1, 1] = 1
    model.net.fc.weight[0, 0] = model.net.fc.weight[1, 1] = 1.0
    return model
