"""Labels in typed columns, as Parquet has them, and JSON.

Legend: N rows.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.data.annotations import EXPECTED_VALUE, Flaw

if TYPE_CHECKING:
    import pyarrow

# Columns that say whose image it is.
IDENTITY = ("celeb_id", "identity", "group")


def read_labels(
    root: Path, columns: Iterable[tuple[str, str, "pyarrow.ChunkedArray"]], place: Callable[[int], str]
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Flaw], list[str]]:
    """The labels uint8 [N] of each attribute; what is wrong with other columns of numbers; columns of other kinds.

    A column of bool, of 0 and 1, or of -1 and 1 is an attribute.

    Args:
        root: of the data set.
        columns: for each its name, that of the attribute it may be, and N values.
        place: names a row.
    """
    from pyarrow import types

    found: dict[str, NDArray[np.uint8]] = {}
    flaws: dict[str, Flaw] = {}
    others: list[str] = []
    for column, name, values in columns:
        if not (types.is_boolean(values.type) or types.is_integer(values.type)):
            others.append(column)
        elif name in found or name in flaws:
            flaws[name] = Flaw(f"{root} has two columns {name}", "give every column a name of its own")
        elif values.null_count:
            row = int(values.is_null().to_numpy().argmax())
            flaws[name] = Flaw(f"{place(row)} has no value for {name}: {EXPECTED_VALUE}", "fill it in")
        elif not (kinds := set(values.unique().to_pylist())) <= {-1, 0, 1}:
            row = int((~np.isin(values.to_numpy(), (-1, 0, 1))).argmax())
            flaws[name] = Flaw(f"{place(row)} has {values[row]} for {name}: {EXPECTED_VALUE}")
        elif {-1, 0} <= kinds:
            flaws[name] = Flaw(
                f"{root} has -1 and 0 for {name}: {EXPECTED_VALUE}, but not both", "write absent as one of the two"
            )
        else:
            found[name] = (values.to_numpy() > 0).astype(np.uint8)
    for name in flaws:
        found.pop(name, None)
    return found, flaws, others


def stacked(labels: dict[str, NDArray[np.uint8]], rows: int) -> NDArray[np.uint8]:
    """The labels of N rows, uint8 [N, number of attributes]."""
    return np.stack(list(labels.values()), axis=1) if labels else np.empty((rows, 0), np.uint8)


def read_identity(column: str, values: "pyarrow.ChunkedArray", place: Callable[[int], str]) -> NDArray[np.int64]:
    """Whose image each is: int64 [N], in the order of the values.

    Raises:
        UserError: if a row has none.
    """
    if values.null_count:
        row = int(values.is_null().to_numpy().argmax())
        raise UserError(f"{place(row)} has no {column}: fill it in, or leave out the column")
    _, number = np.unique(values.to_numpy(), return_inverse=True)
    return number.astype(np.int64)
