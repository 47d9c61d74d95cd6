"""Distributed training of face-attribute classifiers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from distrib.model.trained import TrainedModel

__version__ = "0.1.0"


def load(path: "Path | str", device: "str | torch.device" = "cpu") -> "TrainedModel":
    """A trained model: see `distrib.model.trained.load`."""
    from distrib.model.trained import load as load_model  # torch is imported by those who need it

    return load_model(path, device)
