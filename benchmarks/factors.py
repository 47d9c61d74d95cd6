"""What each setting of a study gains over the one called "as it is", as docs/recipe.md shows it.

    distrib sweep configs/recipe/screening.yaml --data.root data/celeba --folder studies/screening
    python benchmarks/factors.py studies/screening/study.csv --json benchmarks/results/recipe/screening.json

A gain is a difference of means over the study's seeds; its spread is the standard deviation that the difference of two
such trainings has. It is told from chance where Welch's t-test at 5 %, by which `distrib reproduce` judges, says so. Of
many settings one in twenty passes that test by chance, which is why the survivors are trained again on other images.
Time is that of the trainings, beside each other as the study ran them.
"""

import argparse
import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

from measure import machine, write

from distrib.reproduction.evidence import SIGNIFICANT

BASE = "as it is"
SCORES = {"val_roc_auc": "ROC AUC", "val_accuracy": "accuracy", "val_balanced_accuracy": "balanced accuracy"}


class Found(NamedTuple):
    """Of one setting, over its seeds: mean and standard deviation of each score, how many seeds, seconds of all."""

    scores: dict[str, tuple[float, float]]
    seeds: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="study.csv of a study with one name in its space")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        found, states = read(options.study)
        gains = {name: gain(found[name], found[BASE]) for name in found if name != BASE}
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"{options.study} is no study.csv with a setting called {BASE} that has finished: {error!r}")
    base = {score: found[BASE].scores[score] for score in SCORES}
    print(in_markdown(base, gains))
    for name, state in states.items():
        print(f"\n{name}: {state}")
    if options.json is not None:
        told = {"seeds": found[BASE].seeds, "base": base, "gains": gains, "unfinished": states}
        write({"machine": machine("torch"), **told}, options.json)


def read(file: Path) -> tuple[dict[str, Found], dict[str, str]]:
    """The settings of a study that have finished, by their names; and the state of those that have not.

    Raises:
        OSError: if the file cannot be read.
        KeyError: if it has not the columns that such a study has.
        ValueError: if its numbers are none.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    finished = {
        row["factor"]: Found(
            {score: (float(row[score]), float(row[f"{score}_sd"] or "nan")) for score in SCORES},
            len(row["runs"].split()),
            float(row["seconds"]),
        )
        for row in rows
        if row["state"] == "finished"
    }
    return finished, {row["factor"]: row["state"] for row in rows if row["factor"] not in finished}


def gain(setting: Found, base: Found) -> dict[str, Any]:
    """What a setting gains over the base: of each score the gain, its spread and p; and its time by the base's."""
    from scipy.stats import ttest_ind_from_stats

    result: dict[str, Any] = {"time": (setting.seconds / setting.seeds) / (base.seconds / base.seeds)}
    for score in SCORES:
        (mean, sd), (base_mean, base_sd) = setting.scores[score], base.scores[score]
        test = ttest_ind_from_stats(mean, sd, setting.seeds, base_mean, base_sd, base.seeds, equal_var=False)
        result[score] = {"gain": mean - base_mean, "spread": math.hypot(sd, base_sd), "p": float(test.pvalue)}
    return result


def in_markdown(base: dict[str, tuple[float, float]], gains: dict[str, dict[str, Any]]) -> str:
    """A table of the gains, the largest of the first score at its top; bold is what is told from chance."""
    first = next(iter(SCORES))
    lines = [
        f"| setting | {' | '.join(f'{title}, gain' for title in SCORES.values())} | time |",
        f"|---|{'---|' * len(SCORES)}---|",
        f"| {BASE} | {' | '.join(f'{mean:.4f} ± {sd:.4f}' for mean, sd in base.values())} | 1 |",
    ]
    for name, each in sorted(gains.items(), key=lambda item: -item[1][first]["gain"]):
        cells = []
        for score in SCORES:
            told = "**" if each[score]["p"] < SIGNIFICANT else ""
            cells.append(f"{told}{each[score]['gain']:+.4f}{told} ± {each[score]['spread']:.4f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {each['time']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
