r"""`configs/celeba_mini.yaml` against what it began from: the same images, the same time, the same validation.

    python benchmarks/recipe.py --root data/celeba --folder studies/recipe --json benchmarks/results/recipe/recipe.json

Three recipes or four, each trained with every seed, in turn:

- *distrib*: the configuration, as it is but for the size of the images that all are validated on.
- *short*, where `--short` names it: another configuration, in a third of the time, for how soon plain's last score can
  be reached.
- *report*: that of the report that this project began from, for `Arched_Eyebrows` alone: `configs/arched_eyebrows.yaml`
  without mirror images (Adam at 1e-3, batches of 64, no augmentation), trained by this project.
- *plain*: all attributes by a loop of one's own, AdamW with a one-cycle schedule, as `trainers.py` has it for
  Accelerate by hand, which takes random crops and validates whole images.

What distrib has trained is judged a second time with each image's mirror image averaged in (*distrib, with flip*), as
`distrib evaluate --flip` does. The others are not: the rows without it compare like with like, and decide whether a
goal is met.

All but short have the same budget of time. Each is given as many epochs as fit into its budget, by the time of a first
one of its own: at most as many as its configuration has, and `--epochs`, the report's number, for the last two. Of
every training the epoch with the highest mean ROC AUC on the validation split counts, and decisions are made at 1/2. A
gain is the difference of two means over the seeds; its 95 % interval comes from resamples of the validation split's
identities, the same for all models, and says nothing of the spread over seeds, which is told beside. The clock is that
of `train.py`: from before the first batch is decoded to when an epoch is validated. What precedes that, such as
some 3 s for first filters from patches, is not on it.

Use seeds that no choice was made by. With three of them it takes three hours: `--folder` keeps each training, so that
what was interrupted goes on, or another seed is added, on the same machine.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import machine, write
from numpy.typing import NDArray
from train import (
    OURS,
    PROJECT,
    SHARE_OF_TIME,
    Setting,
    Training,
    in_turn,
    ours,
    part_of,
    set_up,
    shares_in_words,
    theirs,
    time_to_reach,
)

from distrib.base.cores import cores
from distrib.base.errors import UserError
from distrib.config import Config, read_yaml
from distrib.data.table import read_table
from distrib.scoring.bootstrap import paired_bootstrap
from distrib.scoring.metrics import score

FLIPPED, SHORT, REPORT, PLAIN = f"{OURS}, with flip", "short", "report", "plain"
ATTRIBUTE = "Arched_Eyebrows"
REPORT_CONFIG = PROJECT / "configs/arched_eyebrows.yaml"  # without its mirror images
BATCH_SIZE = 64  # of the report's recipe and of the plain one
RESAMPLES, SEED = 1000, 0
# What is to be gained over another recipe: over which, in which score, of the attributes that it knows, how much.
GOALS = ((PLAIN, "accuracy", 0.008), (PLAIN, "roc_auc", 0.010), (REPORT, "roc_auc", 0.03))


class Validation(NamedTuple):
    """The validation split: A names, targets {0, 1} [N, A], and who is on each image, [N], where that is known."""

    attributes: tuple[str, ...]
    targets: NDArray[np.uint8]
    identity: NDArray[np.int64] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CelebA, or a part of it, with its splits")
    parser.add_argument("--config", type=Path, default=PROJECT / "configs/celeba_mini.yaml", help="of distrib")
    parser.add_argument("--short", type=Path, help="of short, whose images have --size too")
    parser.add_argument("--seeds", type=int, nargs="+", default=(101, 102, 103))
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training, at most")
    parser.add_argument("--epochs", type=int, default=15, help="of the other recipes, at most: the report's")
    parser.add_argument("--size", type=int, default=112, help="height and width of all validated images")
    parser.add_argument("--images", type=int, help="train on so many, and validate on a quarter; all where left out")
    parser.add_argument("--folder", type=Path, help="keep trainings there, and train none again that is there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(cores())
    result: dict[str, Any] = {"machine": machine("torch", "pillow", "accelerate")}
    with tempfile.TemporaryDirectory() as scratch:
        for found in compare(options, Path(scratch), options.folder or Path(scratch) / "trainings", result):
            print(found, flush=True)
            if options.json is not None:
                write(result, options.json)


def compare(options: argparse.Namespace, scratch: Path, kept: Path, result: dict[str, Any]) -> Iterator[str]:
    """Add one training after another to the result, and after each seed how they compare, and say it."""
    folder = part_of(options.root, scratch / "images", options.images)
    attributes = read_table(folder).attributes
    if ATTRIBUTE not in attributes:
        sys.exit(f"{options.root} has no attribute {ATTRIBUTE}, which the report's recipe is for: name another folder")
    with np.load(folder / "valid.npz") as valid:
        validation = Validation(attributes, valid["targets"], valid.get("identity"))
    setting = set_up(BATCH_SIZE, folder, scratch, (options.size, options.size), 1)
    configs = {OURS: read_yaml(options.config), REPORT: read_yaml(REPORT_CONFIG).replace("data", flip=False)}
    if options.short is not None:
        configs[SHORT] = read_yaml(options.short)
    claim(kept, {
        **{f"configuration of {name}": config.model_dump(mode="json") for name, config in configs.items()},
        "data": digest(folder), "size": list(setting.size), "precision": setting.precision,
        "threads": setting.threads, "torch": torch.__version__, "cpu": result["machine"]["cpu"],
    })  # fmt: skip
    files = {name: scratch / f"{name}.yaml" for name in configs}
    for name, file in files.items():
        file.write_text(configs[name].to_yaml(), encoding="utf-8")

    most = {OURS: configs[OURS].train.epochs, REPORT: options.epochs, PLAIN: options.epochs}
    budget = dict.fromkeys(most, 60 * options.minutes)
    if SHORT in configs:  # last, as its budget is a share of what plain takes
        most[SHORT] = configs[SHORT].train.epochs
    first, epochs = {}, {}
    for name in most:
        (first[name],) = train(name, setting, options.seeds[0], files, kept / f"{name}-first.npz").seconds
        if name == SHORT:
            budget[SHORT] = SHARE_OF_TIME * epochs[PLAIN] * first[PLAIN]
        epochs[name] = max(1, min(most[name], math.floor(budget[name] / first[name])))
        yield f"a first epoch of {name} takes {first[name]:.0f} s: it is given {epochs[name]}"
    result["setting"] = {
        "config": options.config.name, "short": options.short and options.short.name, "size": list(setting.size),
        "precision": setting.precision, "minutes": options.minutes, "epochs": epochs, "first_epoch_seconds": first,
        "images": options.images, "validation_images": len(validation.targets), "seeds": list(options.seeds),
    }  # fmt: skip

    trainings: dict[str, list[Training]] = {name: [] for name in most}
    result["trainings"] = {name: [] for name in trainings}
    for turn, seed in enumerate(options.seeds):
        for name in in_turn(list(most), turn):
            file = kept / f"{name}-{epochs[name]}-{seed}.npz"
            found = train(name, setting._replace(epochs=epochs[name]), seed, files, file)
            trainings[name].append(found)
            told = summary(name, found, validation, budget[name])
            result["trainings"][name].append({"seed": seed, **told})
            if name == OURS:
                flipped = found._replace(logits=found.flipped)
                trainings.setdefault(FLIPPED, []).append(flipped)
                of_flipped = summary(name, flipped, validation, budget[name])
                result["trainings"].setdefault(FLIPPED, []).append({"seed": seed, **of_flipped})
            late = "" if told["within_budget"] else ", beyond the budget"
            yield f"seed {seed}, {name}: ROC AUC {told['mean_roc_auc']:.4f} after {told['seconds'][-1]:.0f} s{late}"
        in_time = all(each["within_budget"] for each in result["trainings"][OURS])
        result["gains"] = [gain(trainings, validation, which, *goal) for which in (OURS, FLIPPED) for goal in GOALS]
        for goal in result["gains"]:
            goal["met"] &= in_time
        result["time"] = {
            name: time_to_reach(trainings[name], trainings[PLAIN]) for name in (OURS, SHORT) if name in most
        }
        yield in_markdown(result)


def digest(folder: Path) -> str:
    """SHA-256 of the names and targets of a data set's splits, as `part_of` lays them out."""
    found = hashlib.sha256()
    for split in ("train", "valid"):
        with np.load(folder / f"{split}.npz") as rows:
            found.update("\n".join(rows["names"].tolist()).encode())
            found.update(rows["targets"].tobytes())
    return found.hexdigest()


def claim(folder: Path, setting: dict[str, Any]) -> None:
    """Make a folder for the trainings of a setting; end if it has those of another."""
    file = folder / "setting.json"
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in [each for each in there if each.startswith("configuration")]:
        # Newer settings have their defaults; those that were taken out since are not known, and end it.
        try:
            there[name] = Config.model_validate(there[name]).model_dump(mode="json")
        except UserError as error:
            sys.exit(f"--folder {folder} has trainings of another version ({error}): name another folder")
    differs = [name for name, value in setting.items() if name in there and there[name] != value]
    if differs:
        sys.exit(f"--folder {folder} has trainings of another setting ({', '.join(differs)}): name another folder")
    write(there | setting, whole := file.with_suffix(".part"))
    whole.rename(file)


def train(name: str, setting: Setting, seed: int, configs: Mapping[str, Path], kept: Path) -> Training:
    """Train by a recipe, or read what was kept in a file; the recipes of distrib itself have a configuration."""
    if kept.exists():
        with np.load(kept) as found:
            flipped = found.get("flipped")
            if name != OURS or flipped is not None:  # one of an earlier version may be without
                return Training(found["seconds"].tolist(), found["roc_auc"].tolist(), found["logits"], flipped)
    if name == PLAIN:
        training = theirs(setting, "Accelerate", True, "one-cycle", seed)
    else:
        attributes = ATTRIBUTE if name == REPORT else "all"
        training = ours(setting, seed, ["--config", str(configs[name])], attributes, flip=name == OURS)
    there = {field: value for field, value in training._asdict().items() if value is not None}
    np.savez(whole := kept.with_suffix(".part.npz"), **there)
    whole.rename(kept)
    return training


def known_to(name: str, attributes: Sequence[str]) -> list[int]:
    """The numbers of the attributes that a recipe is for."""
    return [attributes.index(ATTRIBUTE)] if name == REPORT else list(range(len(attributes)))


def summary(recipe: str, found: Training, validation: Validation, budget: float) -> dict[str, Any]:
    """What is told of a training: its epochs, the scores of its best one at 1/2, and whether it kept to its seconds."""
    known = known_to(recipe, validation.attributes)
    names = tuple(validation.attributes[i] for i in known)
    scores = score(names, found.logits, validation.targets[:, known])
    means = scores.mean()
    return {
        "seconds": found.seconds,
        "roc_auc": found.roc_auc,
        **{f"mean_{name}": means[name] for name in ("accuracy", "balanced_accuracy", "roc_auc")},
        f"{ATTRIBUTE}_roc_auc": scores.by_attribute()[ATTRIBUTE]["roc_auc"],
        "within_budget": found.seconds[-1] <= budget,
    }


def gain(
    trainings: Mapping[str, Sequence[Training]],
    validation: Validation,
    which: str,
    peer: str,
    name: str,
    wanted: float,
) -> dict[str, Any]:
    """What one recipe gains over another in a score, in the mean over the seeds and the attributes of both.

    The seeds' models stand beside each other as if each had attributes of its own, so that one bootstrap resamples the
    identities for all of them at once.
    """
    known = known_to(peer, validation.attributes)
    mine = [found.logits[:, known] for found in trainings[which]]
    others = [found.logits for found in trainings[peer]]
    targets = np.tile(validation.targets[:, known], len(mine))
    found = paired_bootstrap(np.hstack(mine), np.hstack(others), targets, validation.identity, RESAMPLES, SEED)
    mean, each = found.mean[name], [each[name].difference for each in found.by_attribute]
    by_seed = [float(np.nanmean(part)) for part in np.split(np.array(each), len(mine))]
    return {
        "of": which, "over": peer, "score": name, "attributes": len(known), "distrib": mean.first, "other": mean.second,
        "gain": mean.difference, "interval": mean.interval, "resampled": found.resampled, "by_seed": by_seed,
        "wanted": wanted, "met": bool(mean.difference >= wanted),
    }  # fmt: skip


def in_markdown(result: Mapping[str, Any]) -> str:
    columns = ("mean_accuracy", "mean_balanced_accuracy", "mean_roc_auc", f"{ATTRIBUTE}_roc_auc")
    lines = [
        "",
        f"| recipe | epochs | minutes | accuracy | balanced accuracy | ROC AUC | {ATTRIBUTE} ROC AUC |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in result["trainings"].items():
        epochs = sorted({len(each["seconds"]) for each in found})
        minutes = fmean(each["seconds"][-1] for each in found) / 60
        # The report's recipe knows one attribute, whose scores are no means over all.
        cells = [
            "—" if name == REPORT and column.startswith("mean") else _told([each[column] for each in found])
            for column in columns
        ]
        lines.append(f"| {name} | {'-'.join(map(str, epochs))} | {minutes:.1f} | {' | '.join(cells)} |")
    late = [
        name
        for name, found in result["trainings"].items()
        if name not in (SHORT, FLIPPED) and not all(each["within_budget"] for each in found)
    ]
    if late:
        lines.append(f"\n**beyond the budget of {result['setting']['minutes']:g} minutes: {', '.join(late)}**")
    lines += ["", "| gain | mean over seeds | 95 % interval | seed by seed | wanted | met |"]
    lines.append("|---|--:|--:|--:|--:|---|")
    for found in result["gains"]:
        what = ATTRIBUTE if found["attributes"] == 1 else f"{found['attributes']} attributes"
        ends = found["interval"]
        interval = "undefined" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f} ({found['resampled']})"
        seeds = f"{min(found['by_seed']):+.4f} to {max(found['by_seed']):+.4f}"
        lines.append(
            f"| {found['of']}: {found['score']} of {what} over {found['over']} | {found['gain']:+.4f} | {interval} "
            f"| {seeds} | {found['wanted']:+.3f} | {_met(found)} |"
        )
    for name, time in result["time"].items():
        shares, mean = shares_in_words(time)
        lines.append(
            f"| share of plain's time until its last ROC AUC, {name} | {mean} | | {shares} "
            f"| at most {time['wanted']:.2f} | {_met(time)} |"
        )
    return "\n".join([*lines, ""])


def _told(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def _met(goal: Mapping[str, Any]) -> str:
    return "yes" if goal["met"] else "**no**"


if __name__ == "__main__":
    main()
