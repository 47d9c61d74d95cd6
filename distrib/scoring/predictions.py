"""What a model says of every image of a split, kept in a file.

Legend: N images, A attributes.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.files import staged
from distrib.data.table import Table


@dataclass(frozen=True)
class Predictions:
    """Logits and labels of a split, in the order of the table.

    Attributes:
        split: "train", "valid" or "test".
        attributes: A names.
        names: N file names relative to the folder of the images.
        rows: int64 [N], rows of the table.
        logits_NA: float32 [N, A].
        targets_NA: uint8 [N, A] in {0, 1}.
        identity_N: int64 [N], whose images they are; None where unknown.
    """

    split: str
    attributes: tuple[str, ...]
    names: list[str]
    rows: NDArray[np.int64]
    logits_NA: NDArray[np.float32]
    targets_NA: NDArray[np.uint8]
    identity_N: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, split: str, table: Table, rows: NDArray[np.int64], logits_NA: NDArray[np.float32]) -> "Predictions":
        """The predictions for these rows of a table."""
        return cls(
            split,
            table.attributes,
            [table.names[row] for row in rows],
            rows,
            logits_NA,
            table.targets[rows],
            None if table.identity is None else table.identity[rows],
        )


def save_predictions(file: Path, predictions: Sequence[Predictions], made_from: str) -> None:
    """Keep predictions of several splits in one .npz file, replaced as a whole.

    Args:
        file: to write.
        predictions: of a split each.
        made_from: names the model and the images; `load_predictions` asks for it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for each in predictions:
        arrays[f"{each.split}/rows"] = each.rows
        arrays[f"{each.split}/logits"] = each.logits_NA
        arrays[f"{each.split}/targets"] = each.targets_NA
        if each.identity_N is not None:
            arrays[f"{each.split}/identity"] = each.identity_N
    splits = {each.split: {"attributes": each.attributes, "names": each.names} for each in predictions}
    arrays["index"] = np.array(json.dumps({"made_from": made_from, "splits": splits}))
    with staged(file) as path, path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def load_predictions(file: Path, made_from: str) -> dict[str, Predictions]:
    """The predictions in a file, by split.

    Args:
        file: to read.
        made_from: as it was given to `save_predictions`.

    Raises:
        UserError: if the file is not there, holds something else, or the predictions were made from something else.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            index = json.loads(str(arrays["index"]))
            if index["made_from"] != made_from:
                raise UserError(f"{file} is of another model or other images: `distrib explain RUN` makes it anew")
            return {
                split: Predictions(
                    split,
                    tuple(about["attributes"]),
                    list(about["names"]),
                    arrays[f"{split}/rows"],
                    arrays[f"{split}/logits"],
                    arrays[f"{split}/targets"],
                    arrays.get(f"{split}/identity"),
                )
                for split, about in index["splits"].items()
            }
    except FileNotFoundError:
        raise UserError(f"{file} is not there: `distrib explain RUN` makes it") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} holds no predictions ({error}): `distrib explain RUN` makes it anew") from None
