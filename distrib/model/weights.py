"""What a network starts from: nothing, torchvision's ImageNet weights, a file, or an earlier run."""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.models import ResNet18_Weights

from distrib.base.errors import UserError, first_line
from distrib.base.words import listed, nearest
from distrib.config import POLICIES, RANDOM, ModelConfig
from distrib.model.network import AttributeClassifier
from distrib.model.trained import model_folder, read_description
from distrib.model.weight_files import CONV1, COUNTER, Candidate, find_network, read_tensors

HEAD = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class Origin:
    """Where a network's weights come from, for people.

    Attributes:
        summary: in some words.
        loaded: names of the tensors that were read, as torchvision has them.
        new: names of the tensors that were not.
        reason: why the head is among the new ones, where others are not.
        stem: why the first convolution is among the new ones, where others are not.
        found: where in a file they are that has more in it, and why these; empty where there was nothing else.
    """

    summary: str
    loaded: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    reason: str = ""
    found: str = ""
    stem: str = ""

    def lines(self) -> list[str]:
        """What was loaded and what was not, for the terminal; none where the summary says it all."""
        if not self.loaded:
            return []
        modules = dict.fromkeys(name.partition(".")[0] for name in self.loaded)
        lines = [f"found: {self.found}"] if self.found else []
        lines.append(f"loaded: {', '.join(modules)} ({len(self.loaded)} tensors)")
        if self.stem:
            lines.append(f"new: {CONV1} ({self.stem})")
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
        network: a ResNet18.
        attributes: of the head; None where nothing says so.
    """

    name: str
    network: Candidate
    attributes: tuple[str, ...] | None = None


def make_model(
    config: ModelConfig, attributes: Sequence[str], channels_last: bool, seed: int
) -> tuple[AttributeClassifier, Origin]:
    """The network with its first weights, on the CPU, nothing frozen; and where they come from.

    The head is new, unless it was found to be of these attributes in this order, and so is the first convolution of
    another stem.

    Args:
        config: which weights.
        attributes: A names.
        channels_last: as in `AttributeClassifier`.
        seed: of what is random.

    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    torch.manual_seed(seed)  # the only use of torch's generator: the same first weights on every rank and machine
    model = AttributeClassifier(len(attributes), channels_last, config.frozen_statistics, config.stem)
    wanted = model.net.state_dict()
    if config.weights in RANDOM:
        return model, Origin("random weights", new=tuple(wanted))
    source = read_weights(config.weights)
    kept = source.attributes == tuple(attributes)
    reason = "" if kept else _why_new(source, attributes)
    weights = {name: tensor for name, tensor in source.network.weights.items() if kept or name not in HEAD}
    stem = _why_new_stem(source, config, wanted[CONV1])
    if stem:
        del weights[CONV1]
    new = tuple(name for name in wanted if name not in weights)
    if kept:
        _check_head(source, wanted)
    model.net.load_state_dict(weights, strict=False)
    head = "its head too" if kept else "a new head"
    loaded = tuple(name for name in wanted if name in weights)
    return model, Origin(f"weights from {source.name}, {head}", loaded, new, reason, source.network.where, stem)


def read_weights(weights: str) -> Source:
    """What `model.weights` names, if it is neither none nor patches.

    Raises:
        UserError: if it cannot be had, or is no ResNet18.
    """
    if weights == "imagenet":
        return _imagenet()
    try:
        path = Path(weights)
        folder = model_folder(path)
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # such as a folder without rights, or ~ and no such user
        raise UserError(f"model.weights {weights} cannot be read ({first_line(error)}): check the name") from None
    if folder is not None:
        try:
            attributes = read_description(folder / "model.json").attributes
        except UserError as error:
            raise UserError(f"model.weights {error}") from None
        return Source(str(folder), _read(folder / "model.safetensors"), attributes)
    if is_folder:
        raise UserError(
            f"model.weights {path} holds no model: expected a run with best/, a folder with model.json and "
            "model.safetensors, or the path of a file"
        )
    if not is_file:
        address = re.match(r"([a-z][a-z0-9+]+):/{1,2}(?=[^/])", weights, re.IGNORECASE)
        if address is not None:  # as a path it has lost one of its slashes
            raise UserError(
                f"model.weights {address[1]}://{weights[address.end() :]} is an address, and nothing is downloaded "
                "from there: download the file, and name that"
            )
        hint = nearest(weights, (*RANDOM, "imagenet"))
        raise UserError(
            f"model.weights {path} is not a file or folder{hint}: say none, patches, imagenet, or the path of a "
            "ResNet18's weights"
        )
    return Source(str(path), _read(path))


def _read(file: Path) -> Candidate:
    return find_network(str(file), read_tensors(file))


def _imagenet() -> Source:
    source = ResNet18_Weights.IMAGENET1K_V1
    try:
        weights = source.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # Of an unpickling error torch's own advice is to read the file all the same.
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "it has more in it than tensors, or is damaged" if pickled else first_line(error)
        file = Path(torch.hub.get_dir()) / "checkpoints" / source.url.rpartition("/")[2]
        raise UserError(
            f"model.weights imagenet could not be downloaded or read ({reason}): put {source.url} at "
            f"{file}, in place of what may be there, or name such a file in model.weights"
        ) from None
    name = f"torchvision {source}"
    return Source(name, find_network(name, weights))


def _check_head(source: Source, wanted: Mapping[str, torch.Tensor]) -> None:
    """Refuse a head that is not for the attributes that its model.json names.

    Raises:
        UserError: naming the tensor.
    """
    weights = source.network.weights
    for name in HEAD:
        found, expected = (list(each[name].shape) if name in each else None for each in (weights, wanted))
        if found != expected:
            has = f"lacks {name}" if found is None else f"has {name} of shape {found}, not {expected}"
            raise UserError(
                f"model.weights {source.name} {has}, and its model.json names {len(source.attributes or ())} "
                "attributes: keep the two files of one model together"
            )


def _why_new_stem(source: Source, config: ModelConfig, wanted: torch.Tensor) -> str:
    """Why a source's first convolution is not that of the stem; empty if it is.

    Raises:
        UserError: if it would be random for the whole run.
    """
    found = source.network.weights[CONV1].shape
    if found == wanted.shape:
        return ""
    sizes = [f"{shape[2]}x{shape[3]}" for shape in (found, wanted.shape)]
    frozen = POLICIES[config.stages[-1][1]]
    if frozen:
        raise UserError(
            f"model.weights {source.name} has a first convolution of {sizes[0]}, and that of model.stem {config.stem} "
            f"is {sizes[1]}, so it is new, and model.freeze {config.freeze} would leave it random: set model.freeze to "
            "none, or choose the other model.stem"
        )
    return f"the one there is {sizes[0]}, and that of model.stem {config.stem} is {sizes[1]}"


def _why_new(source: Source, attributes: Sequence[str]) -> str:
    """Why a source's head is not the head for these attributes."""
    network = source.network
    head = network.weights.get("fc.weight")
    if head is None:
        return f"the head there is of other layers, {listed(network.head)}" if network.head else "the file has none"
    if source.attributes is not None:
        if sorted(source.attributes) == sorted(attributes):
            return "the head there has the same attributes in another order"
        return f"the head there is for {listed(source.attributes)}, and this run is for {listed(attributes)}"
    outputs = head.shape[0] if head.ndim else 0
    if outputs != len(attributes):
        return f"the file's head has {outputs} outputs, this run has {len(attributes)}"
    return "the file does not say of which attributes its head is"
