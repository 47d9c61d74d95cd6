"""A model that nobody has trained, for what does not depend on what it has learnt."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from distrib.model.card import model_card
from distrib.model.network import AttributeClassifier
from distrib.model.trained import Description


def write_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model folder, as training leaves it in best/; `changes` are fields of its description."""
    values = {"attributes": ("Smiling", "Eyeglasses", "Male"), "image_size": (40, 32), "crop": "full", **changes}
    count = len(values["attributes"])
    about = Description(
        architecture="resnet18",
        temperature=values.pop("temperature", (0.5, 1.0, 2.0)[:count]),
        thresholds=values.pop("thresholds", (0.4, 0.5, 0.6)[:count]),
        **values,
    )
    torch.manual_seed(seed)
    net = AttributeClassifier(count, stem=about.stem)
    with torch.no_grad():
        net(torch.randint(0, 256, (16, *about.image_size, 3), dtype=torch.uint8))  # BatchNorm's statistics
    folder.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in net.net.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "model.json").write_text(about.model_dump_json())
    (folder / "README.md").write_text(model_card(about), encoding="utf-8")
    return folder
