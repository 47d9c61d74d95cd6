"""The page and the JSON of `benchmarks/gpu.sh`, from what its parts have written.

    python benchmarks/gpu_page.py PARTS --out FOLDER --device cuda

PARTS/parts.tsv has a part a line: its name, exit status, seconds, limit in seconds, and command; beside it are the
output of each, NAME.log, and what it found, NAME.json. Leaves with 1 where a part has failed, or was ended at its
limit; but for whole trainings, which come last and get what time is left.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import write

TIMED_OUT, KILLED = 124, 137  # as timeout says it; 137 also where somebody else has killed a part
SAID = 12  # lines of what a part said at last
LAST = "train"
TOLD = re.compile("driver|torch|accelerate|dali")  # whose versions the page has; the JSON has more


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    options = parser.parse_args()
    parts = read_parts(options.parts)
    machines = [part["result"]["machine"] for part in parts.values() if "machine" in (part["result"] or {})]
    found = {"device": options.device, "machine": machines[0] if machines else None, "parts": parts}
    write(found, options.out / "gpu.json")
    (options.out / "gpu.md").write_text(in_markdown(found), encoding="utf-8")
    return int(any(part["status"] != 0 and not (name == LAST and at_limit(part)) for name, part in parts.items()))


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """How each part went, by its name; `result` is what it found, and None where it has written nothing."""
    parts = {}
    for line in (folder / "parts.tsv").read_text(encoding="utf-8").splitlines():
        name, status, seconds, limit, command = line.split("\t")
        log, file = folder / f"{name}.log", folder / f"{name}.json"
        said = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() and int(status) else []
        try:
            result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except ValueError as error:
            result = None
            said.append(f"{file.name} is no JSON ({error}): it was not written to its end")
        parts[name] = {
            "command": command.replace(f"{folder}/", ""),
            "status": int(status),
            "seconds": int(seconds),
            "limit": int(limit),
            "said": said[-SAID:],
            "result": result,
        }
    return parts


def in_markdown(found: dict[str, Any]) -> str:
    lines = ["# Measured by benchmarks/gpu.sh", ""]
    if found["device"] == "cpu":
        lines += [
            "On a CPU and in small (`--device cpu`): these figures say that the programs run, and nothing else.",
            "",
        ]
    if found["machine"] is not None:
        lines += [machine_line(found["machine"]), ""]
    lines += ["| part | seconds | |", "|---|---:|---|"]
    lines += [f"| {name} | {part['seconds']} | {outcome(part)} |" for name, part in found["parts"].items()]
    for name, part in found["parts"].items():
        lines += ["", f"## {name}", "", f"`{part['command']}`"]
        if part["said"]:
            lines += ["", "```text", *part["said"], "```"]
        if part["result"] is not None:
            lines += ["", *(checks(part["result"]) if name == "check" else measured(part["result"]))]
    return "\n".join(lines) + "\n"


def machine_line(machine: dict[str, Any]) -> str:
    """A machine as `distrib check --gpu` describes it, or as `measure.machine` does."""
    if "gpus" in machine:
        gpus = ", ".join(str(gpu["name"]) for gpu in machine["gpus"])
        cores, versions = machine["cores"]["to use"], machine["versions"]
    else:
        gpus, cores, versions = machine["gpu"], machine["cores"], machine
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version and TOLD.search(name))
    return f"{machine['date']}: {gpus or 'no GPU'}; {machine['cpu']}, {cores} cores; {told}."


def outcome(part: dict[str, Any]) -> str:
    if part["status"] == 0:
        return "done"
    if at_limit(part):
        return f"**ended after {part['limit']} s, its limit**" if part["limit"] else "**not begun: no time was left**"
    return f"**failed** (exit status {part['status']})"


def at_limit(part: dict[str, Any]) -> bool:
    """Whether a part was ended because its time was over, or not begun."""
    return part["status"] == TIMED_OUT or (part["status"] == KILLED and part["seconds"] >= part["limit"])


def checks(result: dict[str, Any]) -> list[str]:
    """A row a check."""
    rows = [
        f"| {each['outcome']} | {name} | {each['sentence'].replace('|', '/')} | {each['seconds']:.1f} |"
        for name, each in result["checks"].items()
    ]
    return ["| | check | what was seen | seconds |", "|---|---|---|---:|", *rows]


def measured(result: dict[str, Any]) -> list[str]:
    """The setting, and a row for everything that was measured in rounds, wherever in a result it is."""
    setting = ", ".join(f"{name} {value}" for name, value in result.get("setting", {}).items())
    rows = [
        f"| {': '.join(path)} | {figure(each['median'])} | {figure(each['min'])} | {figure(each['max'])} |"
        for path, each in spreads(result, ())
    ]
    return [*([setting, ""] if setting else []), "| | median | least | most |", "|---|---:|---:|---:|", *rows]


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spreads(found: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """What `measure.spread` has made, with the keys that lead there."""
    if not isinstance(found, dict):
        return
    if {"median", "min", "max"} <= set(found):
        yield path, found
        return
    for key, each in found.items():
        yield from spreads(each, (*path, key))


if __name__ == "__main__":
    sys.exit(main())
