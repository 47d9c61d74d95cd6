"""The checks one after another, said on the terminal and written as JSON."""

import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from distrib.base.files import check_output, written_whole
from distrib.base.json import to_json
from distrib.checking import decoding, ranks, speed, stepping
from distrib.checking.check import Bench, Check, Failed, LeftOut, Passed
from distrib.checking.devices import devices
from distrib.checking.machine import describe
from distrib.ranks.printing import warn

# Within which checks are begun, and after which one that still runs is given up: five minutes with imports and all.
BEGUN_WITHIN, ENDED_WITHIN = 255.0, 280.0
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
    "compiled step": stepping.compiled,
    "memory over steps": stepping.memory,
    "checkpoint beside steps": stepping.checkpoint,
    "the same bits again": stepping.repetition,
    "several ranks": ranks.agreement,
    "a rank that stands still": ranks.lost_rank,
    "speed by precision": speed.precisions,
    "speed by part": speed.bottleneck,
}


def check_machine(
    device: torch.device, keep: Callable[[dict[str, Any]], None], checks: Mapping[str, Check] = CHECKS
) -> dict[str, Any]:
    """Run checks on a device, and print a line for each.

    Args:
        device: to check.
        keep: is given what has been found so far before each check, and at the end. A check that has not ended after
            `ENDED_WITHIN` seconds of all of them has failed, which `keep` is told, and the process ends with status 1:
            what hangs in a driver cannot be interrupted.
        checks: by their names.

    Returns:
        The machine, and for each check its `outcome` (passed, failed, left out; running), `sentence`, `figures` and
        `seconds`; of one that failed in another way than it looks for, the `traceback`.
    """
    deadline = time.monotonic() + BEGUN_WITHIN
    found: dict[str, Any] = {"machine": {}, "checks": {}}
    lost = None  # the check after which the device computes nothing any more
    with (
        tempfile.TemporaryDirectory(prefix="distrib-check-") as scratch,
        ended_in_time(found, keep, Path(scratch)) as telling,
    ):
        found["machine"] = describe(device)
        bench = Bench.make(device, Path(scratch))
        for name, check in checks.items():
            with telling:
                found["checks"][name] = {"outcome": "running", "sentence": "", "figures": {}, "seconds": 0.0}
                keep(found)
            if sys.stdout.isatty():
                print(f"running   {name}", end="\r", flush=True)
            if lost is not None:
                check = partial(leave_out, f'the GPU was lost in "{lost}"')
            elif time.monotonic() > deadline:
                check = partial(leave_out, f"no time was left after {BEGUN_WITHIN:g} s")
            result = _outcome(check, bench)
            if lost is None and not _cleared(bench):
                lost = name
            with telling:
                found["checks"][name] = result
                print(f"{result['outcome']:9} {name}: {result['sentence']} ({result['seconds']:.1f} s)", flush=True)
    keep(found)
    return found


@contextmanager
def ended_in_time(
    found: dict[str, Any], keep: Callable[[dict[str, Any]], None], scratch: Path
) -> Iterator[threading.Lock]:
    """Where the checks still run after `ENDED_WITHIN` seconds, end this process and those that it has started.

    The lock is for telling what was found: whoever ends the process keeps it, as a check that waits for another process
    goes on when that is killed.
    """
    telling = threading.Lock()

    def give_up() -> None:
        telling.acquire(timeout=5)
        try:
            name, last = next(reversed(found["checks"].items()), ("description of the machine", {}))
            seconds = ENDED_WITHIN - sum(each["seconds"] for each in found["checks"].values())
            sentence = f"it had not ended {ENDED_WITHIN:g} s after the checks began"
            found["checks"][name] = {**last, "outcome": "failed", "sentence": sentence, "seconds": seconds}
            keep(found)
            print(f"failed    {name}: {sentence} ({seconds:.1f} s)", flush=True)
            shutil.rmtree(scratch, ignore_errors=True)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
        finally:
            os._exit(1)

    alarm = threading.Timer(ENDED_WITHIN, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        yield telling
    finally:
        alarm.cancel()


def run_checks(json: Path | None) -> int:
    """The body of `distrib check --gpu`.

    Args:
        json: file to write all findings to, for a bug report.

    Returns:
        The exit status: 0, or 1 where a check has failed.

    Raises:
        UserError: if the file cannot be written, before anything is checked if that can be known.
    """

    def keep(found: dict[str, Any]) -> None:
        if json is not None:
            with written_whole(json, "--json") as staged:
                staged.write_text(to_json(found) + "\n", encoding="utf-8")

    if json is not None:
        check_output(json, "--json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        warn("torch finds no GPU: what has a meaning on the CPU is checked there")
    found = check_machine(device, keep)
    outcomes = [each["outcome"] for each in found["checks"].values()]
    failed = outcomes.count("failed")
    print(f"{outcomes.count('passed')} passed, {failed} failed, {outcomes.count('left out')} left out")
    return 1 if failed else 0


def leave_out(reason: str, _: Bench) -> Passed:
    """A check that is not made."""
    raise LeftOut(reason)


def _cleared(bench: Bench) -> bool:
    """Free what a check has left; False: the device is lost, as every call of a process is after an illegal access."""
    try:
        bench.synchronise()
        bench.collect()
    except torch.AcceleratorError:
        return False
    return True


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
