"""Whose images a data set has, as far as its folder tells: their licence goes with that."""

from pathlib import Path

from distrib.data.shards import DataKind, is_packed, read_manifest
from distrib.data.table import celeba_base


def data_kind(root: Path) -> DataKind:
    """What lies in the folder of a data set.

    Returns:
        "own": a table.csv, or what says nothing of whose it is; "synthetic": drawn by `distrib prepare faces`, which
        writes boxes.csv; "celeba": CelebA's annotations. Of a packed data set, what it was packed from.

    Raises:
        UserError: if the manifest of a packed data set is damaged.
    """
    if (root / "table.csv").exists():
        return "own"
    if is_packed(root):
        return read_manifest(root).data_kind
    if (root / "boxes.csv").exists():
        return "synthetic"
    return "own" if celeba_base(root) is None else "celeba"
