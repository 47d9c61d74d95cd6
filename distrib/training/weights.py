"""What a network starts from: nothing, torchvision's ImageNet weights, a file, or an earlier run."""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torchvision.models import ResNet18_Weights

from distrib.config import ModelConfig
from distrib.errors import UserError
from distrib.prediction.model import read_description
from distrib.training.model import AttributeClassifier

HEAD = ("fc.weight", "fc.bias")
# How often BatchNorm has averaged: nothing reads it, and old files lack it.
COUNTER = "num_batches_tracked"
# Under these names a training's own file may keep the state dict, and with these prefixes a wrapper its tensors.
WRAPPINGS = ("state_dict", "model")
PREFIXES = re.compile(r"^(?:(?:module|net|model)\.)+")


@dataclass(frozen=True)
class Origin:
    """Where a network's weights come from, for people.

    Attributes:
        summary: in some words.
        loaded: names of the tensors that were read, as torchvision has them.
        new: names of the tensors that were not.
        reason: why the head is among the new ones, where others are not.
    """

    summary: str
    loaded: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    reason: str = ""

    def lines(self) -> list[str]:
        """What was loaded and what was not, for the terminal; none where the summary says it all."""
        if not self.loaded:
            return []
        modules = dict.fromkeys(name.partition(".")[0] for name in self.loaded)
        lines = [f"loaded: {', '.join(modules)} ({len(self.loaded)} tensors)"]
        if self.reason:
            lines.append(f"new: {', '.join(HEAD)} ({self.reason})")
        counters = sum(name.endswith(COUNTER) for name in self.new)
        if counters:
            lines.append(f"new: {counters} {COUNTER}, which begin at 0")
        return lines


@dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Attributes:
        name: of where they were.
        weights: by torchvision's names.
        attributes: of the head; None where nothing says so.
    """

    name: str
    weights: Mapping[str, torch.Tensor]
    attributes: tuple[str, ...] | None = None


def make_model(
    config: ModelConfig, attributes: Sequence[str], channels_last: bool, seed: int
) -> tuple[AttributeClassifier, Origin]:
    """The network with its first weights, on the CPU, nothing frozen; and where they come from.

    The head is new, unless it was found to be of these attributes in this order.

    Args:
        config: which weights.
        attributes: A names.
        channels_last: as in `AttributeClassifier`.
        seed: of what is random.

    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    torch.manual_seed(seed)  # the only use of torch's generator: the same first weights on every rank and machine
    model = AttributeClassifier(len(attributes), channels_last, config.frozen_statistics)
    wanted = model.net.state_dict()
    if config.weights == "none":
        return model, Origin("random weights", new=tuple(wanted))
    source = read_weights(config.weights)
    kept = source.attributes == tuple(attributes)
    reason = "" if kept else _why_new(source, attributes)
    weights = {name: tensor for name, tensor in source.weights.items() if kept or name not in HEAD}
    wrong = [name for name in weights if name not in wanted or weights[name].shape != wanted[name].shape]
    new = tuple(name for name in wanted if name not in weights)
    missing = [name for name in new if not name.endswith(COUNTER) and (kept or name not in HEAD)]
    if wrong or missing:
        problem = _misfit(wrong[0], weights, wanted) if wrong else f"lacks {missing[0]}"
        raise UserError(
            f"model.weights {source.name} {problem}: expected the weights of torchvision's ResNet18, which timm's "
            "resnet18 has too (resnet18d and its like have not)"
        )
    model.net.load_state_dict(weights, strict=False)
    head = "its head too" if kept else "a new head"
    loaded = tuple(name for name in wanted if name in weights)
    return model, Origin(f"weights from {source.name}, {head}", loaded, new, reason)


def read_weights(weights: str) -> Source:
    """What `model.weights` names, if it is not none.

    Raises:
        UserError: if it cannot be had.
    """
    if weights == "imagenet":
        return _imagenet()
    try:
        path = Path(weights).expanduser()
        folder = next((each for each in (path, path / "best") if (each / "model.json").is_file()), None)
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # such as a folder without rights, or ~ and no such user
        raise UserError(f"model.weights {weights} cannot be read ({_reason(error)}): check the name") from None
    if folder is not None:
        try:
            attributes = read_description(folder / "model.json").attributes
        except UserError as error:
            raise UserError(f"model.weights {error}") from None
        return Source(str(folder), _read_file(folder / "model.safetensors"), attributes)
    if is_folder:
        raise UserError(
            f"model.weights {path} holds no model: expected a run with best/, a folder with model.json and "
            "model.safetensors, or the path of a file"
        )
    if not is_file:
        raise UserError(
            f"model.weights {path} is not a file or folder: say none, imagenet, or the path of a ResNet18's weights"
        )
    return Source(str(path), _read_file(path))


def _imagenet() -> Source:
    source = ResNet18_Weights.IMAGENET1K_V1
    try:
        weights = source.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / source.url.rpartition("/")[2]
        raise UserError(
            f"model.weights imagenet could not be downloaded or read ({_reason(error)}): put {source.url} at "
            f"{file}, in place of what may be there, or name such a file in model.weights"
        ) from None
    return Source(f"torchvision {source}", weights)


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file, by torchvision's names."""
    try:
        if file.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle, zip and torch each have their own for a damaged file
        raise UserError(
            f"model.weights {file} cannot be read as .safetensors or as torch weights ({_reason(error)}): name a file "
            "of tensors alone"
        ) from None
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in WRAPPINGS if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict) or not all(isinstance(name, str) and _dense(loaded[name]) for name in loaded):
        raise UserError(f"model.weights {file} is not a plain state dict: expected names with their tensors")
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in loaded.items():
        plain = PREFIXES.sub("", name)
        if plain in weights:
            raise UserError(f"model.weights {file} has {plain[:80]} under two prefixes: keep one network in the file")
        weights[plain] = tensor
    return weights


def _dense(value: Any) -> bool:
    """Whether it is a tensor of the kind that weights are: torch's files may hold others."""
    if not isinstance(value, torch.Tensor) or value.is_nested or value.is_meta or value.is_quantized:
        return False
    return value.layout is torch.strided


def _why_new(source: Source, attributes: Sequence[str]) -> str:
    """Why a source's head is not the head for these attributes."""
    head = source.weights.get("fc.weight")
    if head is None:
        return "the file has none"
    if source.attributes is not None:
        if sorted(source.attributes) == sorted(attributes):
            return "the head there has the same attributes in another order"
        return f"the head there is for {_listed(source.attributes)}, and this run is for {_listed(attributes)}"
    outputs = head.shape[0] if head.ndim else 0
    if outputs != len(attributes):
        return f"the file's head has {outputs} outputs, this run has {len(attributes)}"
    return "the file does not say of which attributes its head is"


def _misfit(name: str, weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    if name not in wanted:
        return f"has {name[:80]}, which does not fit"
    return f"has {name} of shape {list(weights[name].shape)}, not {list(wanted[name].shape)}, which does not fit"


def _listed(names: Sequence[str]) -> str:
    """Some of these names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to read the file all the same
        return "it has more in it than tensors, or is damaged"
    return str(error).partition("\n")[0][:120] or type(error).__name__
