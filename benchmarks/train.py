r"""Whole trainings against what else people train with, on the same images, in one run.

    python benchmarks/train.py --root data/celeba --json benchmarks/results/train.json \
        --plot benchmarks/results/train.png

Two questions, kept apart:

- *The engine*: images a second where all train the same network by the same recipe, from the JPEGs to the validated
  epoch, with checkpoints between the epochs. The peers are in `trainers.py`, each as it comes and with its best
  switches by hand.
- *The recipe*: how soon a configuration of this project (`--config`) has the mean ROC AUC on the validation split with
  which the best peer ends, and with which it ends itself. The peers' recipes (`--recipes`) are tried in the fastest of
  their loops; the one that ends best is the peer. All read images of one size (`--recipe-size`).

Each training is a process of its own; in each round all take turns, in another order. Nobody compiles the network or
keeps decoded images in memory, not even on a GPU. A recipe's clock begins before its first batch is decoded and ends
when its last epoch is validated: programs that start, and reports, are not in it. The engines' rates are those from
the end of the second epoch to the end of the last, so that neither first steps count, nor what follows the first epoch
once in a run.

`pip install -e '.[benchmarks]'`, in an environment of its own, brings the peers; those that are not there are left out,
and said.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import accumulate, product
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
import safetensors.numpy
import scipy.special
import torch
from measure import lay_out, machine, spread, write
from numpy.typing import NDArray
from plot_train import plot
from trainers import PACKAGES, RECIPES, TRAINERS, Job

from distrib.base.cores import cores
from distrib.config import Config, read_yaml
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.ranks.machine import resolve
from distrib.runs.metrics import read_metrics, read_speed
from distrib.scoring.metrics import score
from distrib.training.precision import choose_precision

PROJECT = Path(__file__).resolve().parents[1]
OURS = "distrib"
FORMS = ("as it comes", "by hand")
# The recipe of the engines' comparison, as this project's options have it.
SAME_RECIPE = [
    "--optim.name", "adamw", "--optim.lr", "1e-3", "--optim.weight-decay", "0.05", "--optim.schedule", "one-cycle",
    "--data.min-zoom", "0.85", "--data.crop", "square", "--data.flip", "true",
]  # fmt: skip
# In which share of its time the mean ROC AUC that a peer ends with is to be reached.
SHARE_OF_TIME = 1 / 3


class Training(NamedTuple):
    """What came of a training: for each epoch the seconds from the beginning until it was validated, and its score.

    The logits float32 [validation images, attributes] are of the epoch with the best score; `flipped` are
    averaged with those of the mirror images, and calibrated; only this project's own trainings are asked for them.
    """

    seconds: list[float]
    roc_auc: list[float]
    logits: NDArray[np.float32]
    flipped: NDArray[np.float32] | None = None


class Setting(NamedTuple):
    """What all trainings of a comparison share."""

    folder: Path  # with the images
    scratch: Path
    size: tuple[int, int]
    batch_size: int
    epochs: int
    threads: int
    precision: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CelebA, or a part of it, with its splits")
    parser.add_argument("--part", choices=("engine", "recipe"), nargs="+", default=("engine", "recipe"))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=(112, 178), help="height and width of the engines' images"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024, help="images that the engines train on")
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs of the engines, of which the first two are not measured"
    )
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=FORMS, help="of the peers' engines")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the engines")
    parser.add_argument("--budget", type=int, default=15, help="epochs of the peers' recipes")
    parser.add_argument("--recipe-size", type=int, default=112, help="height and width of the recipes' images")
    parser.add_argument("--recipes", choices=tuple(RECIPES), nargs="+", default=tuple(RECIPES), help="of the peers")
    parser.add_argument(
        "--config", type=Path, default=PROJECT / "configs/celeba_mini.yaml", help="the recipe of distrib"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of the recipes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error(f"--epochs is {options.epochs}, and the first two are not measured: name three or more")

    torch.set_num_threads(cores())
    there = {name: find_spec(package) is not None for name, package in PACKAGES.items()}
    left_out = [name for name in TRAINERS if not there[name]]
    packages = [PACKAGES[name] for name in TRAINERS if there[name]]
    result: dict[str, Any] = {"machine": machine("torch", "pillow", *packages), "left_out": left_out}
    for name in left_out:
        print(f"left out: {name} (pip install {PACKAGES[name]})", file=sys.stderr)
    peers = [name for name in TRAINERS if there[name]]
    with tempfile.TemporaryDirectory() as scratch:
        for found in compare(options, peers, Path(scratch), result):
            print(found, flush=True)
            if options.json is not None:
                write(result, options.json)
    if options.plot is not None:
        plot(result, options.plot)


def compare(options: argparse.Namespace, peers: list[str], scratch: Path, result: dict[str, Any]) -> Iterator[str]:
    """Add one comparison after another to the result, and say in Markdown what each has found."""
    if "engine" in options.part:
        asked = ("images", "epochs", "batch_size", "rounds")
        result["engine"] = {"setting": {name: getattr(options, name) for name in asked}, "sizes": {}}
        folder = part_of(options.root, scratch / "engine", options.images)
        for side in options.sizes:
            setting = set_up(options.batch_size, folder, scratch, (side, side), options.epochs)
            found = result["engine"]["sizes"][f"{side}x{side}"] = {}
            yield from compare_engines(options, peers, setting, found)
    if "recipe" in options.part:
        result["recipe"] = {}
        yield from compare_recipes(options, fastest(result, peers), scratch, result["recipe"])


def compare_engines(
    options: argparse.Namespace, peers: list[str], setting: Setting, result: dict[str, Any]
) -> Iterator[str]:
    """Add images a second of all, and say how they compare."""
    size = f"{setting.size[0]}x{setting.size[1]}"
    same = [*SAME_RECIPE, "--train.batch-size", str(setting.batch_size)]
    runs: dict[str, Callable[[], Training]] = {OURS: lambda: ours(setting, 0, same)}
    for peer, form in product(peers, options.forms):
        runs[f"{peer}, {form}"] = partial(theirs, setting, peer, form == "by hand", "one-cycle", 0)
    trained = (setting.epochs - 2) * (options.images // setting.batch_size) * setting.batch_size
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds):
        for name in in_turn(list(runs), turn):
            seconds = runs[name]().seconds
            rates[name].append(trained / (seconds[-1] - seconds[1]))
            measured = {each: spread(values) for each, values in rates.items() if values}
            result |= {"precision": setting.precision, "images_per_second": measured}
            yield f"{size}, round {turn + 1}: {name}: {rates[name][-1]:.1f} images/s"
    result["of_best"] = {form: of_best(rates, [f"{peer}, {form}" for peer in peers]) for form in options.forms}
    yield engines_in_markdown(size, result)


def of_best(rates: dict[str, list[float]], peers: list[str]) -> dict[str, Any]:
    """This project's rate by that of the peer with the best median, round by round."""
    best = max(peers, key=lambda name: median(rates[name]))
    return {"peer": best, **spread([a / b for a, b in zip(rates[OURS], rates[best], strict=True)])}


def compare_recipes(options: argparse.Namespace, peer: str, scratch: Path, result: dict[str, Any]) -> Iterator[str]:
    """Add each of the peers' recipes once, the best of them and this project's with all seeds, and how they compare."""
    folder = part_of(options.root, scratch / "recipe", None)
    size = (options.recipe_size, options.recipe_size)
    setting = set_up(options.batch_size, folder, scratch, size, options.budget)
    mine = setting._replace(epochs=read_yaml(options.config).train.epochs)
    result |= {
        "peer": f"{peer}, by hand", "precision": setting.precision, "epochs": options.budget,
        "size": list(setting.size), "peer_batch_size": setting.batch_size,
        "config": options.config.name, "config_epochs": mine.epochs, "trainings": {},
    }  # fmt: skip
    told: dict[str, list[dict[str, Any]]] = result["trainings"]
    trainings: dict[str, list[Training]] = {}

    def run(recipe: str, seed: int) -> str:
        if recipe == OURS:
            found = ours(mine, seed, ["--config", str(options.config)])
        else:
            found = theirs(setting, peer, True, recipe, seed)
        trainings.setdefault(recipe, []).append(found)
        told.setdefault(recipe, []).append({"seed": seed, "seconds": found.seconds, "roc_auc": found.roc_auc})
        return f"{recipe}, seed {seed}: ROC AUC {found.roc_auc[-1]:.4f} after {found.seconds[-1]:.0f} s"

    first, *others = options.seeds
    for recipe in (*options.recipes, OURS):
        yield run(recipe, first)
    best = max(options.recipes, key=lambda recipe: trainings[recipe][0].roc_auc[-1])
    for seed, recipe in product(others, (best, OURS)):
        yield run(recipe, seed)

    ends = {recipe: [each.roc_auc[-1] for each in found] for recipe, found in trainings.items()}
    seconds = {recipe: [each.seconds[-1] for each in found] for recipe, found in trainings.items()}
    result |= {
        "best_recipe": best,
        "ends": {name: {"roc_auc": spread(ends[name]), "seconds": spread(seconds[name])} for name in trainings},
        "gain": fmean(ends[OURS]) - fmean(ends[best]),
        "share_of_time": spread([mine / theirs for mine, theirs in zip(seconds[OURS], seconds[best], strict=True)]),
        "time": time_to_reach(trainings[OURS], trainings[best]),
    }
    yield recipes_in_markdown(result)


def time_to_reach(mine: Sequence[Training], others: Sequence[Training]) -> dict[str, Any]:
    """The share of another's time in which its last mean ROC AUC was reached, seed by seed; None: it was not."""
    shares = []
    for one, other in zip(mine, others, strict=True):
        reached = (at for at, value in zip(one.seconds, one.roc_auc, strict=True) if value >= other.roc_auc[-1])
        at = next(reached, None)
        shares.append(None if at is None else at / other.seconds[-1])
    known = [share for share in shares if share is not None]
    mean = fmean(known) if len(known) == len(shares) else None
    return {
        "share_by_seed": shares, "share": mean, "wanted": SHARE_OF_TIME,
        "met": mean is not None and mean <= SHARE_OF_TIME,
    }  # fmt: skip


def shares_in_words(time: dict[str, Any]) -> tuple[str, str]:
    """What `time_to_reach` found: seed by seed, and in the mean."""
    shares = ", ".join("never" if share is None else f"{share:.2f}" for share in time["share_by_seed"])
    return shares, "not by all" if time["share"] is None else f"{time['share']:.2f}"


def part_of(root: Path, folder: Path, images: int | None) -> Path:
    """So many training images of a data set, a quarter as many for validation, in a folder; None: all of both.

    Beside them lie `train.npz`, `valid.npz` and `test.npz`: the names, targets and, where known, identities.
    """
    table = read_table(root)
    splits = make_splits(table, Config().data.model_copy(update={"root": root}))
    few = None if images is None else images // 4
    parts = {"train": splits.train[:images], "valid": splits.valid[:few], "test": splits.test[:few]}
    if images is not None and len(parts["train"]) < images:
        sys.exit(f"{root} has {len(parts['train'])} training images, and --images is {images}: ask for fewer")
    lay_out(table, parts, folder)
    for split, rows in parts.items():
        known = {} if table.identity is None else {"identity": table.identity[rows]}
        names = np.array([table.names[row] for row in rows])
        np.savez(folder / f"{split}.npz", names=names, targets=table.targets[rows], **known)
    return folder


def set_up(batch_size: int, folder: Path, scratch: Path, size: tuple[int, int], epochs: int) -> Setting:
    """The setting, with the precision that a new run of this project chooses for it; all who may choose have it."""
    config = Config().replace("data", root=folder, image_size=size).replace("train", batch_size=batch_size)
    config = resolve(config.replace("run", folder=scratch / "none"))
    precision = config.train.precision
    if precision == "auto":
        precision = choose_precision(config, ranks=1).name
    if precision == "fp16":  # whose scaler not all of the loops have
        precision = "no"
    return Setting(folder, scratch, size, batch_size, epochs, torch.get_num_threads(), precision)


def ours(setting: Setting, seed: int, recipe: list[str], attributes: str = "all", flip: bool = False) -> Training:
    """Train with `distrib/train.py`; with flip, judge the best epoch by mirror images too, outside the timed part."""
    with tempfile.TemporaryDirectory(dir=setting.scratch) as folder:
        run = Path(folder) / "run"
        side = list(map(str, setting.size))
        command = [
            sys.executable, str(PROJECT / "distrib/train.py"), *recipe, "--data.root", str(setting.folder),
            "--data.attributes", attributes, "--data.image-size", *side, "--train.precision", setting.precision,
            "--train.seed", str(seed), "--run.folder", str(run), "--tracking.mode", "disabled",
            "--explain.after-training", "false", "--data.resident", "never", "--train.compile", "no",
            "--train.epochs", str(setting.epochs),
        ]  # fmt: skip
        start(command, OURS)
        columns, epochs = read_metrics(run)
        scores = [epoch[columns.index("val_roc_auc")] for epoch in epochs]
        # After the epochs' rows comes one of what follows them; what precedes the first step is preparation.
        rows = read_speed(run)[: len(scores)]
        seconds = accumulate(row["seconds"] * (1 - row["preparation_share"]) for row in rows)
        logits = safetensors.numpy.load_file(run / "best/validation.safetensors")["logits"]
        return Training(list(seconds), scores, logits, with_flip(run, setting) if flip else None)


def with_flip(run: Path, setting: Setting) -> NDArray[np.float32]:
    """What `distrib evaluate --flip` says of the validation images."""
    file = run / "flipped.parquet"
    command = [
        sys.executable, "-m", "distrib", "evaluate", str(run), "--data.root", str(setting.folder), "--split", "valid",
        "--precision", setting.precision, "--flip", "--predictions", str(file),
    ]  # fmt: skip
    start(command, OURS)
    table = pyarrow.parquet.read_table(file)
    names = [name for name in table.column_names if name.endswith("_probability")]
    probabilities = np.column_stack([table[name].to_numpy() for name in names])
    # They are calibrated by a temperature of each attribute, which changes neither the sign of a logit nor the order.
    return scipy.special.logit(probabilities.astype(np.float64)).astype(np.float32)


def theirs(setting: Setting, trainer: str, by_hand: bool, recipe: str, seed: int) -> Training:
    """Train with a peer."""
    with tempfile.TemporaryDirectory(dir=setting.scratch) as folder:
        job = Job(
            trainer, by_hand, setting.precision, recipe, str(setting.folder), setting.size, setting.batch_size,
            setting.epochs, setting.threads, seed, f"{folder}/result.npz",
        )  # fmt: skip
        asked = Path(folder) / "job.json"
        asked.write_text(json.dumps(job._asdict()), encoding="utf-8")
        start([sys.executable, str(PROJECT / "benchmarks/trainers.py"), str(asked)], trainer)
        with np.load(job.out) as found, np.load(setting.folder / "valid.npz") as valid:
            names = tuple(map(str, range(valid["targets"].shape[1])))
            scores = [score(names, logits, valid["targets"]).mean()["roc_auc"] for logits in found["logits"]]
            return Training(found["seconds"].tolist(), scores, found["logits"][np.nanargmax(scores)])


def start(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def in_turn(names: list[str], turn: int) -> list[str]:
    """All names, in another order each round."""
    return random.Random(turn).sample(names, len(names))


def fastest(result: dict[str, Any], peers: list[str]) -> str:
    """The peer whose loop by hand was the fastest at the first size; Accelerate's where none was measured."""
    sizes = list(result["engine"]["sizes"].values()) if "engine" in result else []
    if not sizes or "by hand" not in sizes[0]["of_best"]:
        return peers[-1]
    best: str = sizes[0]["of_best"]["by hand"]["peer"]
    return best.partition(", ")[0]


def engines_in_markdown(size: str, found: dict[str, Any]) -> str:
    rates = found["images_per_second"]
    lines = [
        f"| {size}: images/s ({found['precision']} where chosen) | median | range | distrib / this |",
        "|---|--:|--:|--:|",
    ]
    for name, rate in rates.items():
        ratio = rates[OURS]["median"] / rate["median"]
        lines.append(f"| {name} | {rate['median']:.1f} | {rate['min']:.1f}-{rate['max']:.1f} | {ratio:.2f} |")
    for form, best in found["of_best"].items():
        seen = f"{best['median']:.2f} ({best['min']:.2f}-{best['max']:.2f})"
        lines.append(f"\nof the best peer {form}, {best['peer']}, round by round: {seen}")
    return "\n".join([*lines, ""])


def recipes_in_markdown(found: dict[str, Any]) -> str:
    lines = ["| recipe | seeds | mean ROC AUC at its end | seconds |", "|---|--:|--:|--:|"]
    for recipe, ends in found["ends"].items():
        each, seconds = ends["roc_auc"], ends["seconds"]
        lines.append(
            f"| {recipe} | {each['n']} | {each['median']:.4f} ({each['min']:.4f}-{each['max']:.4f}) "
            f"| {seconds['median']:.0f} |"
        )
    share, gain = found["share_of_time"], found["gain"]
    lines.append(
        f"\nIn the mean over the seeds distrib ends {abs(gain):.4f} {'above' if gain >= 0 else 'below'} "
        f"{found['best_recipe']}, in {share['median']:.2f} ({share['min']:.2f}-{share['max']:.2f}) of its time"
    )
    shares, mean = shares_in_words(found["time"])
    lines.append(
        f"\nShare of {found['best_recipe']}'s time until it has what that ends with: {mean} (seed by seed {shares}; "
        f"asked for: {found['time']['wanted']:.2f})"
    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
