"""Several runs side by side, as one HTML file that needs nothing else."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

import yaml

from distrib.base.errors import UserError, first_line
from distrib.config import SCORES
from distrib.reporting.page import compose, curve_charts, render, score_name, write_page
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import read_metrics

# The score that the page opens with: it depends on no threshold.
LEADING = "roc_auc"
SPLIT_NAMES = {"test": "test", "valid": "validation"}
# Settings of which images were scored; and those that matter where splits or folds are drawn.
PICTURES = ("data.root", "data.split", "data.fold")
DRAWN = ("data.split_seed", "data.split_fractions")
# Where a run lives says nothing about what it is.
PLACES = ("run.folder", "run.resume")
SECTIONS = (
    ("scores", "What they score"),
    ("learnt", "How they learnt"),
    ("attributes", "Attribute by attribute"),
    ("differ", "What differs"),
)


@dataclass(frozen=True)
class ComparedRun:
    """What a run folder says about itself.

    Attributes:
        folder: of the run.
        label: what the page calls it.
        columns: the header of metrics.csv.
        rows: its values, an epoch a row; NaN where undefined.
        best: the place in `rows` of the best epoch.
        config: dotted key -> value, as text.
        means: split -> score -> mean over the attributes; "valid", and "test" where it was scored.
        intervals: score -> 95 % interval of the mean on test, where known.
        attributes: name -> split -> score -> value.
        test_images: digest of which images were scored on test; None where that is unknown.
    """

    folder: Path
    label: str
    columns: list[str]
    rows: list[list[float]]
    best: int
    config: dict[str, str]
    means: dict[str, dict[str, float | None]]
    intervals: dict[str, list[float | None]]
    attributes: dict[str, dict[str, dict[str, float | None]]]
    test_images: str | None = None

    @property
    def speed(self) -> float | None:
        """Images a second, the median of the epochs."""
        values = self.column("images_per_second")
        return median(values) if values else None

    def column(self, name: str) -> list[float]:
        """The values of a column of metrics.csv; nothing where it has none of that name."""
        return [row[self.columns.index(name)] for row in self.rows] if name in self.columns else []


def render_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write a page with several runs side by side.

    Args:
        runs: their folders, two or more; differences are from the first one.
        out: file to write.

    Returns:
        The page.

    Raises:
        UserError: if a folder is no run, is named twice or has no finished epoch, or the page cannot be written.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs: name another run folder")
    found = [read_run(folder, label) for folder, label in zip(runs, labels(runs), strict=True)]
    splits = [split for split in SPLIT_NAMES if any(split in run.means for run in found)]
    attributes = _attributes(found, splits)
    numbers = {
        "runs": [
            {"columns": run.columns, "rows": run.rows, "best": run.best, "epochs": run.column("epoch")} for run in found
        ],
        "attributes": attributes,
    }
    context = {
        "title": ", ".join(run.label for run in found),
        "headline": _headline(found),
        "notes": _notes(found),
        "runs": found,
        "splits": splits,
        "split_names": SPLIT_NAMES,
        "leading": LEADING,
        "charts": curve_charts(list(dict.fromkeys(column for run in found for column in run.columns))),
        "attributes": attributes,
        "means": {split: _mean_rows(found, split) for split in splits},
        "differences": _differences(found),
        "difference": difference,
    }
    parts = [
        {"id": name, "title": title, "html": render(f"compare/{name}.html.j2", context)} for name, title in SECTIONS
    ]
    write_page(out, compose("compare.html.j2", "compare.js", numbers, {**context, "parts": parts}))
    return out


def read_run(folder: Path, label: str) -> ComparedRun:
    """Read what a run folder says about itself.

    Args:
        folder: of the run.
        label: what the page calls it.

    Raises:
        UserError: if it is no run, has no finished epoch, or a file in it cannot be read.
    """
    for name in ("metrics.csv", "config.yaml"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a run: it has no {name}; name a folder that `distrib train` has written")
    columns, rows = read_metrics(folder)
    config = _read_config(folder / "config.yaml")
    kept = [event.get("best_epoch") for event in RunFolder(folder).events("epoch")][-1:]
    best = _best(columns, rows, config.get("checkpoint.best_score", LEADING), kept)
    means: dict[str, dict[str, float | None]] = {
        "valid": {name: rows[best][columns.index(f"val_{name}")] for name in SCORES if f"val_{name}" in columns}
    }
    attributes = {
        name: {"valid": values} for name, values in _read_attributes(folder, rows[best][columns.index("epoch")]).items()
    }
    scores = _read_scores(folder / "report" / "data" / "scores.json")
    if scores is not None:
        means["test"] = scores["means"]["test"]
        for each in scores["attributes"]:
            attributes.setdefault(each["name"], {})["test"] = each["test"]
    intervals = scores["means"].get("interval", {}) if scores is not None else {}
    test_images = scores.get("test_images") if scores is not None else None
    return ComparedRun(folder, label, columns, rows, best, config, means, intervals, attributes, test_images)


def labels(runs: Sequence[Path]) -> list[str]:
    """What the page calls the runs: the shortest ends of their paths that tell them apart.

    Raises:
        UserError: if a run is named twice.
    """
    paths = [run.resolve() for run in runs]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{runs[i]} is named twice: name each run once")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(found)) == len(found):
            break
    return found


def _read_config(file: Path) -> dict[str, str]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}): restore it, or leave the run out") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} is not a configuration: restore it, or leave the run out")
    return dict(_flat(tree, ""))


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def _best(columns: list[str], rows: list[list[float]], chosen: str, kept: list[Any]) -> int:
    """The row of the best epoch: the one that is kept, which with growing images need not have the highest score.

    Where the run does not say which: by a validation score, the first of equals, and the first row where none has it.
    """
    said = [i for i, row in enumerate(rows) if row[columns.index("epoch")] in kept]
    if said:
        return said[0]
    if f"val_{chosen}" not in columns:
        return 0
    sign = -1 if chosen == "loss" else 1
    values = [sign * row[columns.index(f"val_{chosen}")] for row in rows]
    return max(range(len(rows)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])


def _read_attributes(folder: Path, epoch: float) -> dict[str, dict[str, float | None]]:
    """attribute -> score -> value on validation after an epoch; nothing where the run has no such file."""
    file = folder / "metrics_by_attribute.csv"
    if not file.is_file():
        return {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return {
                row["attribute"]: {name: float(row[name]) for name in SCORES if name in row}
                for row in csv.DictReader(stream)
                if float(row["epoch"]) == epoch
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or leave the run out") from None


def _read_scores(file: Path) -> dict[str, Any] | None:
    """What the scores job found; None where it was not run, or failed."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        data: dict[str, Any] | None = content["data"]
        if data is not None and not (data["means"]["test"] and data["attributes"]):
            raise ValueError("it has no scores")
    except (OSError, ValueError, KeyError, TypeError) as error:
        command = f"distrib explain {file.parents[2]} --only scores"
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}): remake it with `{command}`"
        ) from None
    return data


def _attributes(runs: Sequence[ComparedRun], splits: Sequence[str]) -> list[dict[str, Any]]:
    """For each attribute its values: split -> score -> one for each run, None where it has none."""
    names = dict.fromkeys(name for run in runs for name in run.attributes)
    return [
        {
            "name": name,
            "values": {
                split: {
                    score: [run.attributes.get(name, {}).get(split, {}).get(score) for run in runs] for score in SCORES
                }
                for split in splits
            },
        }
        for name in names
    ]


def _mean_rows(runs: Sequence[ComparedRun], split: str) -> list[dict[str, Any]]:
    """For each score its means, which of the runs has the best one, and the differences from the first run."""
    rows = []
    for score in SCORES:
        values = [run.means.get(split, {}).get(score) for run in runs]
        found = [value for value in values if known(value)]
        best = (min if score == "loss" else max)(found, default=None)
        rows.append(
            {
                "score": score,
                "values": values,
                "best": [best is not None and value == best and len(set(found)) > 1 for value in values],
                "intervals": [run.intervals.get(score) if split == "test" else None for run in runs],
                "differences": [difference(value, values[0]) for value in values],
            }
        )
    return rows


def known(value: float | None) -> TypeGuard[float]:
    """Whether a score has a value."""
    return value is not None and math.isfinite(value)


def difference(value: float | None, first: float | None) -> float | None:
    """How much a value is above another; None where one of them is not known."""
    return value - first if known(value) and known(first) else None


def _headline(runs: Sequence[ComparedRun]) -> str:
    split = "test" if all("test" in run.means for run in runs) else "valid"
    scored = [(run.means[split].get(LEADING), run) for run in runs]
    ranked = sorted(((value, run) for value, run in scored if known(value)), key=lambda each: -each[0])
    if len(ranked) < 2:
        return f"{len(runs)} runs side by side"
    (best, winner), (second, runner_up) = ranked[:2]
    where = f"mean {score_name(LEADING)} on the {SPLIT_NAMES[split]} images"
    if best - second < 0.0005:
        return f"{winner.label} and {runner_up.label} are level: {where} {best:.3f}"
    return f"{winner.label} has the highest {where}: {best:.3f}, which is {best - second:.3f} above {runner_up.label}"


def _notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader must know before comparing."""
    notes = []
    if any(set(run.attributes) != set(runs[0].attributes) for run in runs):
        notes.append(
            "The runs do not know the same attributes, so their means are not of the same thing: go by the table of "
            "the attributes."
        )
    drawn = any(run.config.get("data.split") != "official" or run.config.get("data.fold") != "none" for run in runs)
    keys = PICTURES + DRAWN if drawn else PICTURES
    pictures = [key for key in keys if len({run.config.get(key) for run in runs}) > 1]
    if pictures:
        notes.append(f"The runs differ in {', '.join(pictures)}, so they may have been scored on different images.")
    if len({run.test_images for run in runs if run.test_images is not None}) > 1:
        notes.append("The reports of the runs are of different test images, so their test scores do not compare.")
    without = [run.label for run in runs if "test" not in run.means]
    if without and len(without) < len(runs):
        verb = "has" if len(without) == 1 else "have"
        notes.append(f"{', '.join(without)} {verb} no test scores yet: `distrib explain` makes them.")
    return notes


def _differences(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str | None]]]:
    """The settings that are not the same in all runs, each with its values."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in PLACES)
    rows = [(key, [run.config.get(key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
