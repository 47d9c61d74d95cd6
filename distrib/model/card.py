"""The model card: what a person should know before using a model, in the form that model hubs show.

Mitchell et al., Model Cards for Model Reporting, FAT* 2019; the front matter is Hugging Face's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from distrib.config import SCORES
from distrib.data.shards import DataKind
from distrib.model.trained import Description
from distrib.scoring.metrics import TITLES

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
LICENCES: dict[DataKind, dict[str, Any]] = {
    "celeba": {"license": "other", "license_name": "celeba-non-commercial-research", "license_link": CELEBA},
    "synthetic": {"license": "mit"},
    "own": {"license": "unknown"},
}
DATA_NAMES: dict[DataKind, str] = {
    "celeba": "CelebA", "synthetic": "synthetic faces of distrib", "own": "a data set of its own",
}  # fmt: skip
# Beside the words it has the snippets to load a model by, which run in its folder, beside an image face.jpg.
TEMPLATE = Path(__file__).parent / "templates/card.md.j2"


def model_card(description: Description) -> str:
    """The README.md of a model folder: scores, data and their licence, intended use, limits, how to load it.

    Args:
        description: of the model; `training["data_kind"]` is what `data_kind` says of its data ("own" where absent).

    Returns:
        Markdown with YAML front matter. What comes from the data (attribute names, paths, versions) shows as it is,
        whatever characters it has.
    """
    from huggingface_hub import ModelCard  # by rank 0 alone, when there is a model to describe

    kind: DataKind = description.training.get("data_kind", "own")
    names = description.attributes
    height, width = description.image_size
    card = ModelCard.from_template(
        _metadata(description, kind),
        str(TEMPLATE),
        architecture=_text(description.architecture),
        stem=description.stem,
        what=f"{len(names)} face attributes" if len(names) > 1 else f"the face attribute {_code(names[0])}",
        height=height,
        width=width,
        crop=description.crop,
        eval_zoom=description.eval_zoom,
        split=_validated_on(description),
        images=_number(description.validation.get("images"), 0),
        epoch=description.epoch,
        scores=_scores(description),
        kind=kind,
        tuned_for=TITLES[description.tuned_for],
        facts=_training(description),
    )
    return f"{card}\n"


def _validated_on(description: Description) -> str:
    fold = _fold(description)
    return "the validation split" if fold == "none" else f"fold {_text(fold)} of the training split"


def _fold(description: Description) -> str:
    return str(((description.training.get("config") or {}).get("data") or {}).get("fold", "none"))


def _metadata(description: Description, kind: DataKind) -> "ModelCardData":
    """What model hubs read."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            task_name="face attributes",
            dataset_type=kind,
            dataset_name=DATA_NAMES[kind],
            dataset_split="validation" if _fold(description) == "none" else "train",
            metric_type=name,
            metric_name=f"{TITLES[name]}, mean over attributes",
            metric_value=round(value, 6),
        )
        for name, value in description.validation.items()
        if name in SCORES and _defined(value)
    ]
    return ModelCardData(
        **LICENCES[kind],
        library_name="distrib",
        pipeline_tag="image-classification",
        tags=["face-attributes", description.architecture, "multi-label"],
        model_name=f"{description.architecture}-face-attributes" if results else None,
        eval_results=results or None,
    )


def _scores(description: Description) -> list[list[str]]:
    """The rows of a table, the first two of them its header."""
    columns = [name for name in SCORES if name in description.validation]
    header = ["attribute", *(TITLES[name] for name in columns), "temperature", "threshold"]
    means = ["**mean**", *(_number(description.validation[name]) for name in columns), "", ""]
    rows = []
    for i, name in enumerate(description.attributes):
        values = description.validation_by_attribute.get(name, {})
        settings = (description.temperature[i], description.thresholds[i])
        rows.append([_code(name), *(_number(values.get(column)) for column in columns), *map(_number, settings)])
    return [header, ["---", *["---:"] * (len(header) - 1)], means, *rows]


def _training(description: Description) -> dict[str, str]:
    """What is recorded of the training, as Markdown."""
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
        "augmentation": ", ".join(
            f"{name} {value}" for name, value in (_at(known, "config", "augment") or {}).items() if value
        )
        or None,
        "global batch": _at(known, "config", "train", "batch_size"),
        "epochs": _at(known, "config", "train", "epochs"),
        "seed": _at(known, "config", "train", "seed"),
        "precision": _at(known, "config", "train", "precision"),
        "ranks": known.get("ranks"),
        "device": known.get("device"),
        "date": known.get("date"),
        "versions": versions and ", ".join(f"{package} {version}" for package, version in versions.items()),
    }
    return {name: _text(value) for name, value in facts.items() if value is not None}


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
