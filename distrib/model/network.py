"""ResNet18 that takes images: normalisation is its first operation, so nothing outside it knows a mean.

Legend: B images, H height, W width, A attributes.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import nn
from torchvision.models import resnet18

from distrib.config import LAYERS, POLICIES

# ImageNet's channel means and deviations on the scale 0 … 255, as torchvision's ResNet18 weights expect them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class AttributeClassifier(nn.Module):
    """torchvision's ResNet18 with a logit for each attribute.

    `net` is torchvision's own module, so its `state_dict` is what torchvision loads. With the small stem it has another
    `conv1` and no max-pooling, as the ResNets for CIFAR of He et al. (CVPR 2016, section 4.2).

    Args:
        attributes: A.
        channels_last: whether activations and weights are kept in NHWC memory.
        frozen_statistics: as `model.frozen_statistics` in the configuration.
        stem: as `model.stem`.

    Attributes:
        compiled: what torch has compiled of `logits`, which takes its place in training mode alone, since batches of
            evaluation may be of any size; None: nothing. It is no module, so that parameters keep their names.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        attributes: int,
        channels_last: bool = True,
        frozen_statistics: Literal["kept", "updated"] = "kept",
        stem: Literal["imagenet", "small"] = "imagenet",
    ) -> None:
        super().__init__()
        self.net = resnet18(num_classes=attributes)
        if stem == "small":
            self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
            self.net.maxpool = nn.Identity()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self._format)
        self._keeps_statistics = frozen_statistics == "kept"
        self._frozen: list[nn.Module] = []
        self.compiled: Callable[[AttributeClassifier, torch.Tensor], torch.Tensor] | None = None
        self.train()

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Logits float [B, A] of uint8 RGB images [B, H, W, 3]."""
        if self.compiled is not None and self.training:
            return self.compiled(self, images_BHWC)
        return self.logits(images_BHWC)

    def logits(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """The same, operation by operation."""
        logits_BA: torch.Tensor = self.net(self.normalise(images_BHWC))
        return logits_BA

    def normalise(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """What `net` takes, float [B, 3, H, W] of its own precision, of uint8 RGB images [B, H, W, 3]."""
        # HWC memory seen as NCHW is channels_last memory already.
        x_BCHW = images_BHWC.permute(0, 3, 1, 2).to(self.mean.dtype).contiguous(memory_format=self._format)
        return x_BCHW.sub(self.mean).div_(self.std)

    def synchronise_norms(self) -> None:
        """Let BatchNorm normalise over the images of all ranks; before the optimiser is made, and on GPUs."""
        self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]

    def freeze(self, policy: str) -> bool:
        """Freeze what a policy of `model.freeze` covers, and nothing else; whether that is another part than before."""
        before, self._frozen = self._frozen, frozen_modules(self.net, policy)
        for module in self.net.children():
            module.requires_grad_(module not in self._frozen)
        self.train(self.training)
        return self._frozen != before

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which frozen layers stay in evaluation mode where their BatchNorm keeps its statistics."""
        super().train(mode)
        if self._keeps_statistics:
            for module in self._frozen:
                module.eval()
        return self


def frozen_modules(net: nn.Module, policy: str) -> list[nn.Module]:
    """The children of a ResNet18 that a freeze policy covers: from the input up to the layer it names."""
    names = LAYERS[: POLICIES[policy]]
    return [module for name, module in net.named_children() if name in names or (names and name == "bn1")]
