"""Reads back what W&B wrote to a run folder: `.wandb` files, which are LevelDB logs of W&B's own protobuf records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
FILE_HEADER = 7  # ":W&B", a magic number and a version
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def wandb_files(run_folder: Path) -> list[Path]:
    """The logs of all parts of a run, oldest first; a resumed run has one for each part."""
    return sorted((run_folder / "wandb").glob("*run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)


def read_records(file: Path) -> Iterator[Record]:
    """The records of one log; one that was cut off in writing (a killed process) ends it."""
    data = file.read_bytes()
    assert data[:4] == b":W&B", f"{file} is not a W&B log"
    position, parts = FILE_HEADER, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # no room for another header: the rest of the block is padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind not in (FULL, FIRST, MIDDLE, LAST) or position + 7 + length > len(data):
            return
        chunk = data[position + 7 : position + 7 + length]
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        position += 7 + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)


def read_history(run_folder: Path) -> list[dict[str, Any]]:
    """Every row that was logged to W&B, in the order of logging and over all parts of the run.

    A row is what `run.log` was given, without W&B's own `_step`, `_timestamp` and `_runtime`; read only after
    `Tracker.finish`.
    """
    rows = []
    for file in wandb_files(run_folder):
        for record in read_records(file):
            if record.HasField("history"):
                row: dict[str, Any] = {}
                for item in record.history.item:
                    name, *inner = item.nested_key or [item.key]
                    if inner:  # an image or a table
                        row.setdefault(name, {})[".".join(inner)] = json.loads(item.value_json)
                    elif not name.startswith("_"):
                        row[name] = float(json.loads(item.value_json))  # NaN and Infinity come as such or as strings
                rows.append(row)
    return rows


def read_summary(run_folder: Path) -> dict[str, Any]:
    """The summary values that were set by hand, the latest of each."""
    summary: dict[str, Any] = {}
    for file in wandb_files(run_folder):
        for record in read_records(file):
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return summary


def run_ids(run_folder: Path) -> list[str]:
    """The W&B id in each part of the run."""
    return [
        next(record.run.run_id for record in read_records(file) if record.HasField("run"))
        for file in wandb_files(run_folder)
    ]
