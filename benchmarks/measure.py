"""What every benchmark here shares: rounds that alternate between the peers, and a report with the machine in it."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def alternate(peers: dict[str, Callable[[], None]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each peer in each round; the peers take turns, so that noise of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(warmup + rounds):
        for name, run in peers.items():
            began = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def in_memory(config: Any, table: Any, rows: Any, where: Any) -> Any:
    """The images of some rows, decoded as `data.resident` has them, on a device."""
    import numpy as np
    import torch

    from distrib.data.resident import ResidentImages, decode_once, sizes_of_some

    rows = np.sort(rows)
    whole, size = next(iter(sizes_of_some(table, rows).items()))
    pixels_NHWC = torch.empty(len(rows), *size, 3, dtype=torch.uint8, device=where)
    found = decode_once(config, table, torch.device(where), rows, whole, pixels_NHWC, lambda _: None)
    return ResidentImages(pixels_NHWC, rows, found.broken)


def lay_out(table: Any, parts: dict[str, Any], folder: Path) -> None:
    """Write rows of a table into a folder of its own: `images/`, and `table.csv` with their splits.

    Args:
        table: to take them from, whatever its form.
        parts: split -> rows.
        folder: is made.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    lines = [",".join(["image", *table.attributes, "split"])]
    for split, rows in parts.items():
        for row in rows:
            (images / table.names[row]).write_bytes(table.store.read(row))
            lines.append(",".join([table.names[row], *map(str, table.targets[row]), split]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def machine(*packages: str) -> dict[str, Any]:
    """The hardware, the versions and the date of a measurement."""
    import torch

    from distrib.checking.machine import cpu_name

    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def report(result: dict[str, Any], file: Path | None) -> None:
    """Print a result, and write it to a file where one is named."""
    print(json.dumps(result, indent=2))
    if file is not None:
        write(result, file)


def write(result: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
