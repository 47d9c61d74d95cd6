"""The checks one after another, said on the terminal and written as JSON."""

import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distrib.base.files import check_output, written_whole
from distrib.base.json import to_json
from distrib.checking import decoding, ranks, speed, stepping
from distrib.checking.check import Bench, Check, Failed, LeftOut
from distrib.checking.devices import devices
from distrib.checking.machine import describe
from distrib.ranks.printing import warn

# By what they are called on the terminal, from what everything else needs on.
CHECKS: Mapping[str, Check] = {
    "driver and architecture": devices,
    "JPEG hardware": decoding.jpeg_hardware,
    "decoded images": decoding.parity,
    "places in a batch": decoding.places,
    "lifetime of images": decoding.lifetime,
    "damaged images": decoding.damage,
    "NaN in a step": stepping.nonfinite,
    "overflow in fp16": stepping.overflow,
    "change of memory layout": stepping.memory_format,
    "waiting in a step": stepping.synchronisation,
    "memory over steps": stepping.memory,
    "checkpoint beside steps": stepping.checkpoint,
    "the same bits again": stepping.repetition,
    "several ranks": ranks.agreement,
    "a rank that stands still": ranks.lost_rank,
    "speed by precision": speed.precisions,
    "speed by part": speed.bottleneck,
}


def check_machine(device: torch.device, checks: Mapping[str, Check] = CHECKS) -> dict[str, Any]:
    """Run checks on a device, and print a line for each.

    Returns:
        The machine, and for each check its `outcome` (passed, failed, left out), `sentence`, `figures` and `seconds`;
        of one that failed in another way than it looks for, the `traceback`.
    """
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="distrib-check-") as scratch:
        bench = Bench.make(device, Path(scratch))
        for name, check in checks.items():
            results[name] = _outcome(check, bench)
            found = results[name]
            print(f"{found['outcome']:9} {name}: {found['sentence']} ({found['seconds']:.1f} s)", flush=True)
    return {"machine": describe(device), "checks": results}


def run_checks(json: Path | None) -> int:
    """The body of `distrib check --gpu`.

    Args:
        json: file to write all findings to, for a bug report.

    Returns:
        The exit status: 0, or 1 where a check has failed.

    Raises:
        UserError: if the file cannot be written, before anything is checked if that can be known.
    """
    if json is not None:
        check_output(json, "--json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        warn("torch finds no GPU: what has a meaning on the CPU is checked there")
    found = check_machine(device)
    if json is not None:
        with written_whole(json, "--json") as staged:
            staged.write_text(to_json(found) + "\n", encoding="utf-8")
    outcomes = [each["outcome"] for each in found["checks"].values()]
    failed = outcomes.count("failed")
    print(f"{outcomes.count('passed')} passed, {failed} failed, {outcomes.count('left out')} left out")
    return 1 if failed else 0


def _outcome(check: Check, bench: Bench) -> dict[str, Any]:
    began = time.perf_counter()
    found: dict[str, Any]
    try:
        passed = check(bench)
        found = {"outcome": "passed", "sentence": passed.sentence, "figures": dict(passed.figures)}
    except Failed as error:
        found = {"outcome": "failed", "sentence": str(error), "figures": dict(error.figures)}
    except LeftOut as reason:
        found = {"outcome": "left out", "sentence": str(reason), "figures": {}}
    except Exception as error:  # whatever a library raises is a finding, and the other checks are made all the same
        line = " ".join(str(error).split())[:300]
        found = {"outcome": "failed", "sentence": f"{type(error).__name__}: {line}", "figures": {}}
        found["traceback"] = traceback.format_exc()
    return {**found, "seconds": time.perf_counter() - began}
