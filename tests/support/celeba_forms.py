"""A data set in the other forms that people have CelebA in."""

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import webdataset

from distrib.data.reader import ImageReader
from distrib.data.table import Table, read_table


def archived(faces: Path, root: Path, inside: str = "img_align_celeba", place: str = "img_align_celeba.zip") -> Path:
    """CelebA's own layout with the images in its archive."""
    (root / place).parent.mkdir(parents=True)
    for file in faces.glob("*.txt"):
        shutil.copy(file, root)
    with zipfile.ZipFile(root / place, "w", zipfile.ZIP_DEFLATED) as archive:
        if inside:
            archive.mkdir(inside)
        for file in sorted((faces / "img_align_celeba").iterdir()):
            archive.write(file, f"{inside}/{file.name}" if inside else file.name)
    return root


def columns(table: Table, rows: Sequence[int], **others: Any) -> dict[str, Any]:
    """Columns as on the Hub."""
    reader = ImageReader(table)
    return {
        "image": pyarrow.array(
            [{"bytes": reader.read(row), "path": table.names[row]} for row in rows],
            pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
        ),
        "celeb_id": table.identity[rows],
        **{name: table.targets[rows, i].astype(bool) for i, name in enumerate(table.attributes)},
        **others,
    }


def on_the_hub(
    faces: Path,
    root: Path,
    files: Sequence[str] = ("train-00000-of-00002", "train-00001-of-00002", "validation", "test"),
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda columns: columns,
    group: int = 7,
) -> Path:
    """The same data set in Parquet files, of which each split has as many as names begin with it."""
    table = read_table(faces)
    assert table.split is not None
    for number, split in enumerate(("train", "val", "test")):
        mine = [name for name in files if Path(name).name.startswith(split) or Path(name).parent.name.startswith(split)]
        for name, rows in zip(mine, np.array_split(np.flatnonzero(table.split == number), len(mine)), strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            written = pyarrow.table(change(columns(table, rows)))
            pyarrow.parquet.write_table(written, root / f"{name}.parquet", row_group_size=group)
    return root


def as_web_dataset(
    faces: Path,
    root: Path,
    files: Sequence[str] = ("train-%06d", "valid-%06d", "test-%06d"),
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda sample: sample,
    count: int = 40,
) -> Path:
    """The same data set in tar files of so many images, made by the webdataset package; a pattern for each split."""
    table = read_table(faces)
    assert table.split is not None
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with webdataset.ShardWriter(str(root / f"{name}.tar"), maxcount=count, verbose=0) as writer:
            for row in np.flatnonzero(table.split == number).tolist():
                labels = dict(zip(table.attributes, table.targets[row].tolist(), strict=True))
                sample = {"jpg": table.store.read(row), "json": {"celeb_id": int(table.identity[row]), **labels}}
                writer.write({"__key__": Path(table.names[row]).stem, **change(sample)})
    return root
