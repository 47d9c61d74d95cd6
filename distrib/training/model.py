"""ResNet18 that takes pictures: normalisation is its first operation, so nothing outside it knows a mean.

Legend: B pictures, H height, W width, A attributes.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import safetensors
import safetensors.torch
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from distrib.config import LAYERS, ModelConfig
from distrib.errors import UserError

# ImageNet's channel means and deviations on the scale 0 … 255, as torchvision's ResNet18 weights expect them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class AttributeClassifier(nn.Module):
    """torchvision's ResNet18 with a logit for each attribute.

    `net` is torchvision's own module, so its `state_dict` is what torchvision loads.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, attributes: int, freeze: str = "none", channels_last: bool = True) -> None:
        super().__init__()
        self.net = resnet18(num_classes=attributes)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self._format)
        self._frozen = frozen_modules(self.net, freeze)
        for module in self._frozen:
            module.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(f"model.freeze {freeze} leaves nothing to train: freeze fewer layers")
        self.train()

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Logits float [B, A] of uint8 RGB pictures [B, H, W, 3]."""
        logits_BA: torch.Tensor = self.net(self.normalise(images_BHWC))
        return logits_BA

    def normalise(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """What `net` takes, float32 [B, 3, H, W], of uint8 RGB pictures [B, H, W, 3]."""
        # HWC memory seen as NCHW is channels_last memory already.
        x_BCHW = images_BHWC.permute(0, 3, 1, 2).float().contiguous(memory_format=self._format)
        return x_BCHW.sub(self.mean).div_(self.std)

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which frozen layers stay in evaluation mode: their BatchNorm keeps its statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def frozen_modules(net: nn.Module, freeze: str) -> list[nn.Module]:
    """The children of a ResNet18 that a freeze policy covers: from the input up to the layer it names."""
    if freeze == "none":
        return []
    last = len(LAYERS) - 1 if freeze == "backbone" else LAYERS.index(freeze)
    names = LAYERS[: last + 1]
    return [module for name, module in net.named_children() if name in names or name == "bn1"]


def make_model(config: ModelConfig, attributes: int, channels_last: bool, seed: int) -> tuple[AttributeClassifier, str]:
    """The network with its first weights, on the CPU, and a sentence on where they come from.

    Raises:
        UserError: if the weights cannot be had or do not fit, or if nothing would be trained.
    """
    torch.manual_seed(seed)  # the only use of torch's generator: the same first weights on every rank and machine
    model = AttributeClassifier(attributes, config.freeze, channels_last)
    if config.weights == "none":
        return model, "random weights"
    weights, source = _read_weights(config.weights)
    weights = {name.removeprefix("net."): tensor for name, tensor in weights.items()}
    wanted = model.net.state_dict()
    head = [name for name in ("fc.weight", "fc.bias") if name in weights and weights[name].shape != wanted[name].shape]
    for name in head:
        del weights[name]
    wrong = [name for name in weights if name not in wanted or weights[name].shape != wanted[name].shape]
    missing = [name for name in wanted if name not in weights and not name.startswith("fc.")]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if wrong or missing:
        problem = f"has {wrong[0]}, which does not fit" if wrong else f"lacks {missing[0]}"
        raise UserError(f"model.weights {source} {problem}: expected the weights of torchvision's ResNet18")
    model.net.load_state_dict(weights, strict=False)
    kept = "a new head" if "fc.weight" not in weights else "its head too"
    return model, f"weights from {source}, {kept}"


def _read_weights(weights: str) -> tuple[Mapping[str, torch.Tensor] | dict[str, torch.Tensor], str]:
    if weights == "imagenet":
        source = ResNet18_Weights.IMAGENET1K_V1
        try:
            return source.get_state_dict(progress=False, check_hash=True, weights_only=True), f"torchvision {source}"
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            file = Path(torch.hub.get_dir()) / "checkpoints" / source.url.rpartition("/")[2]
            raise UserError(
                f"model.weights imagenet could not be downloaded or read ({_reason(error)}): put {source.url} at "
                f"{file}, in place of what may be there, or name such a file in model.weights"
            ) from None
    file = Path(weights)
    if not file.is_file():
        raise UserError(f"model.weights {file} is not a file: say none, imagenet, or the path of a ResNet18's weights")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file), str(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle, zip and torch each have their own for a damaged file
        raise UserError(
            f"model.weights {file} cannot be read as .safetensors or as torch weights ({_reason(error)}): name a file "
            "of tensors alone"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"model.weights {file} is not a plain state dict: expected names with their tensors")
    return loaded, str(file)


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to read the file all the same
        return "it has more in it than tensors, or is damaged"
    return str(error).partition("\n")[0][:120] or type(error).__name__
