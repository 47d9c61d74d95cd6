r"""What each setting of a study costs in time against the one called "as it is", as docs/recipe.md shows it.

    distrib sweep configs/recipe/costs.yaml --data.root data/celeba --train.precision bf16 --folder studies/costs
    python benchmarks/costs.py studies/costs/study.csv --json benchmarks/results/recipe/costs.json

Counted are a training's steps with the waits for their data, all of its epochs, by `speed.csv` in the run folders:
neither start and preparation, nor validation, checkpoints and report. Nothing else may run while the study does; the
trainings of one seed are a round, and a setting's time is compared with that of the base in the same round.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from factors import BASE, Found, read
from measure import machine, spread, write

from distrib.base.errors import UserError
from distrib.runs.metrics import read_speed, seconds_by_part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="study.csv of a study with a factor in its space, beside its trials")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        found, unfinished = read([options.study])
        seconds = {name: seconds_of_steps(each) for name, each in found.items()}
        ratios = against_base(seconds)
    except (OSError, KeyError, ValueError, UserError) as error:
        parser.error(f"{options.study}: not study.csv of a study with {BASE} and its run folders: {error!r}")
    print(in_markdown(seconds, ratios))
    for each in unfinished:
        print(f"\n{each}")
    if options.json is not None:
        times = {name: spread(each) for name, each in ratios.items()}
        told = {"base": BASE, "seconds": seconds, "times": times, "unfinished": unfinished}
        write({"machine": machine("torch"), **told}, options.json)


def seconds_of_steps(found: Found) -> dict[int, float]:
    """Seed -> seconds of a training's steps and of the waits for their data.

    Raises:
        UserError: if a `speed.csv` is not whole.
        ValueError: if one is missing.
    """
    seconds = {}
    for seed, run in found.runs.items():
        rows = read_speed(run)
        if not rows:
            raise ValueError(f"{run} has no speed.csv")
        parts = seconds_by_part(rows)
        seconds[seed] = parts["data"] + parts["steps"]
    return seconds


def against_base(seconds: Mapping[str, Mapping[int, float]]) -> dict[str, list[float]]:
    """Each setting's time by that of the base, seed by seed.

    Raises:
        KeyError: if the base was not trained, or not with one of the seeds.
    """
    base = seconds[BASE]
    return {name: [each / base[seed] for seed, each in mine.items()] for name, mine in seconds.items() if name != BASE}


def in_markdown(seconds: Mapping[str, Mapping[int, float]], ratios: Mapping[str, list[float]]) -> str:
    """A table of the times, medians and ranges over the seeds, the dearest at its top."""
    base = spread(list(seconds[BASE].values()))
    lines = [
        "| setting | time, median (range) | seeds |",
        "|---|---|--:|",
        f"| {BASE} | 1: {base['median']:.1f} s ({base['min']:.1f}-{base['max']:.1f}) | {base['n']} |",
    ]
    times = {name: spread(values) for name, values in ratios.items()}
    for name, each in sorted(times.items(), key=lambda item: -item[1]["median"]):
        lines.append(f"| {name} | {each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f}) | {each['n']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
