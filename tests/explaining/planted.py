"""A finished run whose logits are made up, so that a test knows what the jobs have to find."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distrib.config import Config
from distrib.data.splits import make_splits
from distrib.data.table import Table, read_table
from distrib.explaining.finished_run import FinishedRun
from distrib.model.network import AttributeClassifier
from distrib.model.trained import Description, TrainedModel
from distrib.scoring.predictions import Predictions

ATTRIBUTES = ("Smiling", "Bangs", "Young")
CONFIG = Config.model_validate(
    {
        "data": {"split": "image", "split_fractions": (0.2, 0.3, 0.5)},
        "explain": {"bootstrap": 40, "group": "Male"},
        "run": {"folder": "runs/planted"},
    }
)


def faces_table(faces: Path, attributes: Sequence[str] = ATTRIBUTES) -> Table:
    """The table of the synthetic faces with some attributes."""
    return read_table(faces).select(attributes)


def planted_study(
    table: Table,
    config: Config = CONFIG,
    logits_NA: NDArray[np.float32] | None = None,
    thresholds: Sequence[float] | None = None,
    temperature: float = 2.0,
) -> FinishedRun:
    """A study of a model that gives these logits for the rows of the table; None: a fair model's."""
    if logits_NA is None:
        generator = np.random.default_rng(0)
        logits_NA = (generator.normal(0, 1, table.targets.shape) + 3.0 * table.targets - 1.5).astype(np.float32)
    count = len(table.attributes)
    description = Description(
        architecture="resnet18",
        attributes=table.attributes,
        image_size=(109, 89),
        crop="full",
        temperature=(temperature,) * count,
        thresholds=tuple(thresholds or (0.4,) * count),
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": table.store.folder.parent})})
    splits = make_splits(table, config.data)
    return FinishedRun(
        folder=table.store.folder,
        config=config,
        whole=read_table(table.store.folder.parent),
        table=table,
        splits=splits,
        model=TrainedModel(AttributeClassifier(count).eval(), description, table.store.folder),
        images="planted planted",
        predictions={
            split: Predictions.of(split, table, rows, logits_NA[rows])
            for split, rows in (("valid", splits.valid), ("test", splits.test))
        },
    )
