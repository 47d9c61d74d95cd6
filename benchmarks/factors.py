r"""What each setting of a study gains over one of them, called "as it is" or by `--base`, as docs/recipe.md shows it.

    distrib sweep configs/recipe/screening.yaml --data.root data/celeba --folder studies/screening
    python benchmarks/factors.py studies/screening/study.csv --root data/celeba \
        --json benchmarks/results/recipe/screening.json

Each trial is one training, with a seed of its own; several files are one study with more settings or seeds. A gain is a
difference of means over the seeds that a setting has in common with the base; its spread (±) is the standard deviation
that the difference of two such trainings has, and not that of the mean. It is told from chance where Welch's t-test at
5 %, by which `distrib reproduce` judges, says so; one seed has neither spread nor test. Of many settings one in twenty
passes that test by chance, which is why the survivors are trained again on other images. With `--root` resamples of the
people on the validated images give each gain in ROC AUC a 95 % interval, for the very models that were trained: it says
what other people would have said of them, and nothing of other seeds.

Time is that of the trainings, beside each other as the study ran them.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from measure import write
from numpy.typing import NDArray

from distrib.config import read_yaml
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.reproduction.evidence import SIGNIFICANT
from distrib.scoring.bootstrap import paired_bootstrap

BASE = "as it is"
RESAMPLES, SEED = 1000, 0
SCORES = {"val_roc_auc": "ROC AUC", "val_accuracy": "accuracy", "val_balanced_accuracy": "balanced accuracy"}


class Found(NamedTuple):
    """Of one setting: each score of its trainings, their seconds and their run folders, by the seed."""

    scores: dict[str, dict[int, float]]
    seconds: dict[int, float]
    runs: dict[int, Path]


class Validation(NamedTuple):
    """What was validated on: targets {0, 1} [N, A], and who is on each image, [N], where that is known."""

    targets: NDArray[np.uint8]
    identity: NDArray[np.int64] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+", help="study.csv of a study with a factor in its space")
    parser.add_argument(
        "--root", type=Path, help="the data set, for intervals by the people; the runs have to be there"
    )
    parser.add_argument("--base", default=BASE, help="the setting that the others are compared with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        found, unfinished = read(options.study)
        base = found[options.base]
        validation = None if options.root is None else validated_on(base, options.root)
        gains = {name: gain(found[name], base, validation) for name in found if name != options.base}
    except (OSError, KeyError, ValueError) as error:
        studies = ", ".join(map(str, options.study))
        parser.error(
            f"{studies}: not study.csv of trainings of which one that has finished is called {options.base}: {error!r}"
        )
    print(in_markdown(options.base, base, gains))
    for each in unfinished:
        print(f"\n{each}")
    if options.json is not None:
        settings = {name: {"scores": each.scores, "seconds": each.seconds} for name, each in found.items()}
        write({"base": options.base, "settings": settings, "gains": gains, "unfinished": unfinished}, options.json)


def read(files: Sequence[Path]) -> tuple[dict[str, Found], list[str]]:
    """The settings that have finished, by their names; and what is told of each trial that has not.

    Raises:
        OSError: if a file cannot be read.
        KeyError: if one has not the columns that such a study has.
        ValueError: if its numbers are none, or means over seeds, or a setting was trained twice with a seed.
    """
    settings: dict[str, Found] = {}
    unfinished = []
    for file in files:
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["state"] != "finished":
                    unfinished.append(f"{row['factor']}, trial {row['trial']} of {file.parent.name}: {row['state']}")
                    continue
                if len(row["runs"].split()) > 1:
                    raise ValueError(f"trial {row['trial']} is the mean of several runs: put train.seed in the space")
                found = settings.setdefault(row["factor"], Found({score: {} for score in SCORES}, {}, {}))
                seed = int(row["train.seed"])
                if seed in found.seconds:
                    raise ValueError(f"{row['factor']} was trained twice with seed {seed}: leave one of the files out")
                found.seconds[seed], found.runs[seed] = float(row["seconds"]), file.parent / row["runs"]
                for score, values in found.scores.items():
                    values[seed] = float(row[score])
    return settings, unfinished


def validated_on(base: Found, root: Path) -> Validation:
    """What the trainings of a study were validated on, by the configuration of one of the base's."""
    config = read_yaml(next(iter(base.runs.values())) / "config.yaml").replace("data", root=root)
    table = read_table(root)
    rows = make_splits(table, config.data).valid
    return Validation(table.targets[rows], None if table.identity is None else table.identity[rows])


def gain(setting: Found, base: Found, validation: Validation | None = None) -> dict[str, Any]:
    """What a setting gains over the base: its seeds, its time by that of the base, and each score's gain, spread and p.

    The spread is None, and p as well, where they have one seed in common alone; so is the interval without validation.

    Raises:
        ValueError: if they have no seed in common.
    """
    from scipy.stats import ttest_ind

    seeds = sorted(setting.seconds.keys() & base.seconds.keys())
    if not seeds:
        raise ValueError(f"no seed of {sorted(setting.seconds)} is one of the base's, {sorted(base.seconds)}")
    time = sum(setting.seconds[seed] for seed in seeds) / sum(base.seconds[seed] for seed in seeds)
    result: dict[str, Any] = {"seeds": len(seeds), "time": time}
    for score in SCORES:
        values, others = ([found.scores[score][seed] for seed in seeds] for found in (setting, base))
        result[score] = {"gain": fmean(values) - fmean(others), "spread": None, "p": None, "interval": None}
        if len(seeds) > 1:
            p = float(ttest_ind(values, others, equal_var=False).pvalue)
            result[score] |= {"spread": math.hypot(stdev(values), stdev(others)), "p": None if math.isnan(p) else p}
    if validation is not None:
        mine, others = (np.hstack([logits_of(found.runs[seed]) for seed in seeds]) for found in (setting, base))
        # The seeds' models stand beside each other as if each had attributes of its own.
        targets = np.tile(validation.targets, len(seeds))
        found = paired_bootstrap(mine, others, targets, validation.identity, RESAMPLES, SEED)
        result["val_roc_auc"]["interval"] = found.mean["roc_auc"].interval
    return result


def logits_of(run: Path) -> NDArray[np.float32]:
    """The logits float32 [N, A] of the validated images, of the epoch that a run has kept."""
    logits: NDArray[np.float32] = safetensors.numpy.load_file(run / "best/validation.safetensors")["logits"]
    return logits


def in_markdown(name: str, base: Found, gains: dict[str, dict[str, Any]]) -> str:
    """A table of the gains, the largest of the first score at its top; bold is what is told from chance."""
    first = next(iter(SCORES))
    means = [
        f"{fmean(values.values()):.4f}" + (f" ± {stdev(values.values()):.4f}" if len(values) > 1 else "")
        for values in base.scores.values()
    ]
    lines = [
        f"| setting | seeds | {' | '.join(f'{title}, gain' for title in SCORES.values())} | time |",
        f"|---|--:|{'---|' * len(SCORES)}---|",
        f"| {name} | {len(base.seconds)} | {' | '.join(means)} | 1 |",
    ]
    for setting, each in sorted(gains.items(), key=lambda item: -item[1][first]["gain"]):
        cells = []
        for score in SCORES:
            found = each[score]
            told = "**" if found["p"] is not None and found["p"] < SIGNIFICANT else ""
            spread = "" if found["spread"] is None else f" ± {found['spread']:.4f}"
            ends = "" if found["interval"] is None else " ({:+.4f} to {:+.4f})".format(*found["interval"])
            cells.append(f"{told}{found['gain']:+.4f}{told}{spread}{ends}")
        lines.append(f"| {setting} | {each['seeds']} | {' | '.join(cells)} | {each['time']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
