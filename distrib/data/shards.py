"""A packed data set: tar shards that other programs read as WebDatasets, and an index of what lies where in them.

Legend: N rows, A attributes.
"""

import io
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.data.annotations import Annotations, check_names
from distrib.data.store import PerProcess

MANIFEST, INDEX = "manifest.json", "index.parquet"
VERSION = 1
_MOST_OPEN = 500  # files; a process may have 1,024 as a rule


# Whose images they are: `distrib.data.kind.data_kind` tells.
DataKind = Literal["celeba", "synthetic", "own"]


class Shard(pydantic.BaseModel):
    """One tar file.

    Attributes:
        file: its name.
        images: number of images in it.
        bytes: its size.
        sha256: of it.
    """

    file: str
    images: int
    bytes: int
    sha256: str


class Manifest(pydantic.BaseModel):
    """What a packed data set says of itself.

    Attributes:
        format: that it is one.
        version: of the format.
        images: number of images in each split, or in "all" where the data set has none.
        identities: number of people or groups; None where unknown.
        attributes: A names.
        data_kind: whose images they are; one of an earlier version does not say.
        index_sha256: of the index.
        shards: its tar files.
    """

    format: Literal["distrib shards"] = "distrib shards"
    version: int = VERSION
    images: dict[str, int]
    identities: int | None
    attributes: list[str]
    data_kind: DataKind = "own"
    index_sha256: str
    shards: list[Shard]


def is_packed(root: Path) -> bool:
    """Whether a folder is a packed data set, of whatever version."""
    try:
        found = json.loads((root / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == "distrib shards"


def read_manifest(root: Path) -> Manifest:
    """The manifest of a packed data set.

    Raises:
        UserError: if it is damaged, or of a later version.
    """
    text = (root / MANIFEST).read_bytes()
    version = json.loads(text).get("version")
    if version != VERSION:
        raise UserError(
            f"{root / MANIFEST} is of version {version} of packed data sets, and this distrib reads {VERSION}: pack "
            f"the data set again, or use the distrib that packed it"
        )
    try:
        return Manifest.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise UserError(
            f"{root / MANIFEST} is damaged ({error.errors()[0]['msg']}): get it again, or pack again"
        ) from None


def read_packed(root: Path) -> tuple[Annotations, "ShardStore"]:
    """The table of a packed data set, in the order of the one that it was packed from, and where its images are read.

    Raises:
        UserError: if a file is missing or is not the one that the manifest tells of.
    """
    import pyarrow
    import pyarrow.parquet

    manifest = read_manifest(root)
    for shard in manifest.shards:
        path = root / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes and not {shard.bytes:,}"
            raise UserError(f"{path} {found}: get the file again, or pack the data set again")
    try:
        index = pyarrow.parquet.read_table(root / INDEX)
        labels = index.column("attributes").combine_chunks().flatten()
        if len(labels) != len(manifest.attributes) or len(index) != sum(manifest.images.values()):
            raise ValueError("it does not fit the manifest")
        columns = {name: index.column(name).to_numpy() for name in ("shard", "offset", "size", "split", "identity")}
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{root / INDEX} cannot be read ({error}): get it again, or pack the data set again") from None
    names = index.column("name").to_pylist()
    check_names(root / INDEX, names)
    found_in = Annotations(
        root / INDEX,
        names,
        tuple(manifest.attributes),
        np.stack([each.to_numpy() for each in labels], axis=1),
        None if "all" in manifest.images else columns["split"].astype(np.int8),
        None if manifest.identities is None else columns["identity"].astype(np.int64),
    )
    paths = [root / shard.file for shard in manifest.shards]
    return found_in, ShardStore(paths, names, columns["shard"], columns["offset"], columns["size"])


class ShardStore:
    """Images in tar files, packed or made by another program.

    They are read and not mapped into memory: a page that a slow disk has yet to bring would stop the whole interpreter,
    the thread that trains included, and one that it cannot bring would end the process without a sentence.

    Args:
        paths: of the tar files.
        files: N names of the images.
        shard: int [N], which of the tar files an image lies in.
        offset: int [N], where it begins there, in bytes.
        size: int [N], its length in bytes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        files: Sequence[str],
        shard: NDArray[np.int64],
        offset: NDArray[np.int64],
        size: NDArray[np.int64],
    ) -> None:
        self.files = files
        self._paths = paths
        self._shard, self._offset, self._size = shard, offset, size
        self._opened = PerProcess(partial(_open, paths))

    def read(self, row: int) -> bytes:
        shard, offset, size = int(self._shard[row]), int(self._offset[row]), int(self._size[row])
        if len(self._paths) > _MOST_OPEN:
            with self._paths[shard].open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, offset)
        else:
            data = os.pread(self._opened()[shard].fileno(), size, offset)
        if len(data) < size:
            raise ValueError("its tar file ends before it")
        return data

    def name(self, row: int) -> str:
        return f"{self._paths[self._shard[row]]}, {self.files[row]}"


def _open(paths: Sequence[Path]) -> list[io.FileIO]:
    return [path.open("rb", buffering=0) for path in paths]
