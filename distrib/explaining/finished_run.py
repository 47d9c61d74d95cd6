"""What a job that looks at a finished run is given, and what it gives back.

Legend: N images of a split, B images of a batch, H height, W width, A attributes.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distrib.base.errors import UserError
from distrib.config import Config
from distrib.data.images import decode
from distrib.data.reader import ImageReader
from distrib.data.splits import Splits, digest
from distrib.data.table import Table
from distrib.explaining.options import unknown_group
from distrib.model.network import AttributeClassifier
from distrib.model.trained import TrainedModel
from distrib.scoring.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: of the run.
        config: resolved for this machine; `config.explain` holds the jobs' options.
        whole: the table with all of the data set's attributes.
        table: with the attributes that the model knows.
        splits: of the table; where it is not that of the training, all but test may be empty.
        model: of the best epoch, on the device.
        images: digests of the names and labels of the images of `scored`, and of the colours of some of them.
        predictions: of that model, for each of `scored`.
    """

    folder: Path
    config: Config
    whole: Table
    table: Table
    splits: Splits
    model: TrainedModel
    images: str
    predictions: dict[str, Predictions]

    @property
    def scored(self) -> tuple[str, ...]:
        """The splits that the jobs look at: "valid", where there is any of it, and "test"."""
        return ("valid", "test") if len(self.splits.valid) else ("test",)

    @property
    def on_data_of_training(self) -> bool:
        """Whether this is the data that the model was trained and validated on, and not another set or split."""
        known = self.model.description.training.get("data")
        return bool(known == digest(self.table, self.splits.train, self.splits.valid))

    @property
    def net(self) -> AttributeClassifier:
        """The network of the model."""
        assert isinstance(self.model.net, AttributeClassifier), "a run's best model is one of torch's"
        return self.model.net

    def picture(self, row: int) -> NDArray[np.uint8]:
        """The image of a row as the model sees it, uint8 [H, W, 3].

        Raises:
            UserError: if it cannot be read.
        """
        reader = ImageReader(self.table)
        try:
            return self.model.fit(decode(reader.read(row)))
        except ValueError as error:
            raise UserError(f"{reader.name(row)} is broken ({error}): restore it") from None

    def pictures(self, rows: Sequence[int] | NDArray[np.int64]) -> torch.Tensor:
        """The images of some rows as the model sees them, uint8 [B, H, W, 3] on its device."""
        return torch.from_numpy(np.stack([self.picture(int(row)) for row in rows])).to(self.model.device)

    def group_labels(self) -> NDArray[np.uint8]:
        """The attribute `explain.group` of every row of the table, uint8 [rows], whether or not the model knows it.

        Raises:
            UserError: if the data set has no such attribute.
        """
        group = self.config.explain.group
        for table in (self.table, self.whole):
            if group in table.attributes:
                return table.targets[:, table.attributes.index(group)]
        raise unknown_group(self.config, self.whole)


@dataclass
class Finding:
    """What a job returns.

    Attributes:
        data: what the page shows, as JSON has it; images are data URIs, NaN becomes null.
        figures: name -> figure, for report/figures/NAME.png and W&B.
        tables: name -> columns and rows, for report/tables/NAME.csv and W&B.
    """

    data: dict[str, Any]
    figures: "dict[str, Figure]" = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)


Analysis = Callable[[FinishedRun], Finding]


def read_finding(report: Path, job: str) -> dict[str, Any]:
    """What a job left in the report's folder, {"job", "seconds", "error", "files", "data"}; {} where there is none."""
    try:
        found = json.loads((report / "data" / f"{job}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def data_uri_jpeg(pixels_HWC: NDArray[np.uint8]) -> str:
    """An image [H, W, 3] as a JPEG in a data URI."""
    return data_uri(Image.fromarray(pixels_HWC), "JPEG", quality=85)


def data_uri_png(pixels_HWC: NDArray[np.uint8]) -> str:
    """An image [H, W, 3], or with transparency [H, W, 4], as a PNG in a data URI."""
    return data_uri(Image.fromarray(np.ascontiguousarray(pixels_HWC)), "PNG", optimize=True)


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """An image as a file of this kind in a data URI; the options are those of Pillow's writer."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def thumbnail(pixels_HWC: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """The image, or a smaller one of this height, uint8 [H, W, 3]."""
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((4 * height, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)
