"""The model card: what a person should know before using a model, in the form that model hubs show.

Mitchell et al., Model Cards for Model Reporting, FAT* 2019; the front matter is Hugging Face's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml

from distrib.config import SCORES
from distrib.model.trained import Description
from distrib.scoring.scorecard import TITLES

DataKind = Literal["celeba", "synthetic", "own"]

CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LICENCES: dict[DataKind, dict[str, str]] = {
    "celeba": {"license": "other", "license_name": "celeba-non-commercial-research", "license_link": CELEBA},
    "synthetic": {"license": "mit"},
    "own": {"license": "unknown"},
}
DATA_NAMES: dict[DataKind, str] = {
    "celeba": "CelebA", "synthetic": "synthetic faces of distrib", "own": "a data set of its own",
}  # fmt: skip
DATA: dict[DataKind, str] = {
    "celeba": f"""\
Trained on pictures in the folder layout of [CelebA]({CELEBA}) (Liu, Luo, Wang & Tang, Deep Learning Face Attributes in
the Wild, ICCV 2015).

**Licence of the data: non-commercial research only.** CelebA's agreement forbids commercial use of the pictures and of
what is derived from them, and their redistribution. Treat these weights as bound by it: no commercial use.""",
    "synthetic": """\
Trained on faces drawn by `distrib prepare faces`: no picture of a person is among them, and no licence binds them.
The model has learnt to read these drawings and knows nothing of photographs.""",
    "own": """\
Trained on a data set that distrib does not know. **Its licence binds these weights too:** find it out before you use
them or pass them on.""",
}
LIMITS: dict[DataKind, tuple[str, ...]] = {
    "celeba": (
        "**The labels are disputable.** Two annotators who labelled anew agreed on at least 95 % of the pictures for "
        "only 12 of the 40 attributes, and no better than by chance for some (high cheekbones, pointed nose, oval "
        "face); a person photographed twice is often labelled differently (Wu et al., Consistency and Accuracy of "
        "CelebA Attribute Values, CVPR Workshops 2023). The scores measure agreement with these labels, not truth.",
        "**Groups differ.** The pictures are of celebrities: young, light-skinned and made-up faces prevail, and many "
        "attributes go along with gender and age in the labels, which a model picks up. Look at the scores within "
        "groups (`distrib explain` makes them) before relying on any of them.",
        "**Male, Young, Attractive and their like are an annotator's impression**, not what a person is.",
    ),
    "synthetic": (
        "**Drawings only.** On a photograph the probabilities mean nothing.",
        "**The scores are too good to compare.** A drawing's attributes are easier to tell than a person's.",
    ),
    "own": (
        "**The labels' agreement is not known here.** The scores measure agreement with the labels, not truth.",
        "**Groups may differ.** Look at the scores within groups (`distrib explain` makes them) before relying on any.",
    ),
}

# Runs in the model's folder, beside a picture face.jpg.
WITH_DISTRIB = """\
import distrib
import numpy as np
from PIL import Image

model = distrib.load(".")  # this folder
picture = np.array(Image.open("face.jpg").convert("RGB"))
logits = model.logits(model.fit(picture)[None])
probabilities, present = model.probabilities(logits)[0], model.decisions(logits)[0]
for row in zip(model.attributes, probabilities, present):
    print(*row)
"""
WITH_TORCHVISION = """\
import json

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import resnet18
from torchvision.transforms.v2 import functional as F

about = json.load(open("model.json"))
net = resnet18(num_classes=len(about["attributes"]))
net.load_state_dict(load_file("model.safetensors"))
net.eval()

picture = F.pil_to_tensor(Image.open("face.jpg").convert("RGB"))
{crop}picture = F.resize(picture, about["image_size"], antialias=True)
mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
with torch.inference_mode():
    logits = net(((picture - mean) / std)[None])[0]
probabilities = torch.sigmoid(logits / torch.tensor(about["temperature"]))
present = probabilities >= torch.tensor(about["thresholds"])
for row in zip(about["attributes"], probabilities.tolist(), present.tolist()):
    print(*row)
"""
CROP = """\
height, width = picture.shape[1:]
side = min(height, width)
top, left = (height - side) // 2, (width - side) // 2
picture = picture[:, top : top + side, left : left + side]
"""


def data_kind(root: Path) -> DataKind:
    """What lies in the folder of a data set.

    Returns:
        "own": a table.csv; "synthetic": drawn by `distrib prepare faces`, which writes boxes.csv; else "celeba".
    """
    if (root / "table.csv").exists():
        return "own"
    return "synthetic" if (root / "boxes.csv").exists() else "celeba"


def model_card(description: Description) -> str:
    """The README.md of a model folder: scores, data and their licence, intended use, limits, how to load it.

    Args:
        description: of the model; `training["data_kind"]` is what `data_kind` says of its data ("own" where absent).

    Returns:
        Markdown with YAML front matter. What comes from the data (attribute names, paths, versions) shows as it is,
        whatever characters it has.
    """
    kind: DataKind = description.training.get("data_kind", "own")
    names = description.attributes
    what = f"{len(names)} face attributes" if len(names) > 1 else f"the face attribute {_code(names[0])}"
    height, width = description.image_size
    part = "the largest centred square of a picture" if description.crop == "square" else "the whole picture"
    snippet = WITH_TORCHVISION.format(crop=CROP if description.crop == "square" else "")
    limits = "\n".join(f"- {each}" for each in LIMITS[kind])
    return f"""\
---
{yaml.safe_dump(_front_matter(description, kind), sort_keys=False, allow_unicode=True)}---

# {_text(description.architecture)} for {what}

torchvision's {_text(description.architecture)} with a logit for each attribute, trained by distrib. It takes RGB
pictures of {height} x {width} pixels (height x width): {part}, resized.

| file | what it is |
|---|---|
| `model.safetensors` | the weights, by torchvision's names |
| `model.json` | attributes, input size, normalisation, temperature, thresholds, scores, provenance |

## Scores

Of the validation split ({_number(description.validation.get("images"), 0)} images, epoch {description.epoch}),
deciding at sigmoid(logit) >= 1/2. The epoch, the thresholds and the temperatures were chosen on this same split, so
expect a little less elsewhere: `distrib evaluate . --data.root … --split test` scores the test split.

{_scores(description)}

Temperature and threshold give the calibrated decision: an attribute is present if
sigmoid(logit / temperature) >= threshold.

## Data

{DATA[kind]}

## Training

{_training(description)}

## Intended use

Research and teaching on face attributes: comparing training methods, explanations and calibration.

**Not for decisions about people.** Do not use it to identify, rank, hire, admit, insure, watch or diagnose anyone, or
to infer anyone's gender, age, origin or health.

## Limits

{limits}
- **Aligned faces only.** The model expects one face, upright, eyes level and of CelebA's size and place in the picture;
  `distrib predict` aligns a photograph so, and elsewhere the probabilities mean little.
- **An answer for every picture.** It was never shown a picture without a face, and gives probabilities for one as well.

## How to load it

With distrib:

```python
{WITH_DISTRIB}```

With plain torchvision:

```python
{snippet}```
"""


def _front_matter(description: Description, kind: DataKind) -> dict[str, Any]:
    scores = {name: value for name, value in description.validation.items() if name in SCORES and _defined(value)}
    result = {
        "task": {"type": "image-classification", "name": "face attributes"},
        "dataset": {"type": kind, "name": DATA_NAMES[kind], "split": "validation"},
        "metrics": [
            {"type": name, "name": f"{TITLES[name]}, mean over attributes", "value": round(value, 6)}
            for name, value in scores.items()
        ],
    }
    return {
        **LICENCES[kind],
        "library_name": "distrib",
        "pipeline_tag": "image-classification",
        "tags": ["face-attributes", description.architecture, "multi-label"],
        "model-index": [{"name": f"{description.architecture}-face-attributes", "results": [result]}],
    }


def _scores(description: Description) -> str:
    columns = [name for name in SCORES if name in description.validation]
    header = ["attribute", *(TITLES[name] for name in columns), "temperature", "threshold"]
    means = ["**mean**", *(_number(description.validation[name]) for name in columns), "", ""]
    rows = []
    for i, name in enumerate(description.attributes):
        values = description.validation_by_attribute.get(name, {})
        settings = (description.temperature[i], description.thresholds[i])
        rows.append([_code(name), *(_number(values.get(column)) for column in columns), *map(_number, settings)])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], means, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _training(description: Description) -> str:
    known = description.training
    images, versions = known.get("images"), known.get("versions")
    facts = {
        "data": _at(known, "config", "data", "root"),
        "images": images and ", ".join(f"{count:,} {split}" for split, count in images.items()),
        "split": _at(known, "config", "data", "split"),
        "first weights": _at(known, "config", "model", "weights"),
        "optimiser": _at(known, "config", "optim", "name"),
        "learning rate": _at(known, "config", "optim", "lr"),
        "schedule": _at(known, "config", "optim", "schedule"),
        "weight decay": _at(known, "config", "optim", "weight_decay"),
        "global batch": _at(known, "config", "train", "batch_size"),
        "epochs": _at(known, "config", "train", "epochs"),
        "seed": _at(known, "config", "train", "seed"),
        "precision": _at(known, "config", "train", "precision"),
        "ranks": known.get("ranks"),
        "device": known.get("device"),
        "date": known.get("date"),
        "versions": versions and ", ".join(f"{package} {version}" for package, version in versions.items()),
    }
    rows = [f"| {name} | {_text(value)} |" for name, value in facts.items() if value is not None]
    if not rows:
        return "Nothing is recorded of it."
    return "\n".join(["| | |", "|---|---|", *rows, "", "`model.json` has the whole configuration."])


def _at(tree: Any, *path: str) -> Any:
    """The value at a path through nested mappings; None where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _defined(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def _number(value: float | None, digits: int = 4) -> str:
    return f"{value:,.{digits}f}" if _defined(value) else "-"


def _text(value: object) -> str:
    """Markdown that shows this on one line as it is: CommonMark takes a backslash before any ASCII punctuation."""
    shown = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", " ".join(shown.split()))


def _code(name: str) -> str:
    """A code span that shows this name, also within a table."""
    name = " ".join(name.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", name)), default=0))
    space = " " if "`" in name else ""
    return f"{fence}{space}{name}{space}{fence}".replace("|", "\\|")
