"""The head of the report: what was trained on what, and how well, beside what a guess would score."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distrib.base.words import data_size, duration, plural, words
from distrib.explaining.finished_run import Finding, FinishedRun, read_finding
from distrib.reporting.page import score_in_text
from distrib.reporting.panels import PANELS, SUMMARY
from distrib.runs.metrics import model_flops_utilisation, peak_memory, read_metrics, read_speed, seconds_by_part

PART_NAMES = {
    "preparation": "preparation",
    "data": "waiting for data",
    "steps": "steps",
    "validation": "validation",
    "checkpoints": "waiting for checkpoints",
}
# What a card shows: a score, a sentence, and what stands beside it.
CARD = ("label", "value", "text", "baseline", "baseline_label", "interval")


def overview(run: FinishedRun) -> Finding:
    """What the page says first; it sums up what the other jobs have left."""
    found = {name: read_finding(run.folder / "report", name) for name in PANELS if name != SUMMARY}
    results = {name: result for name, result in found.items() if "job" in result}
    scores = results.get("scores", {}).get("data") or {}
    data = {
        "name": run.folder.resolve().name,
        "headline": _headline(run, scores),
        "facts": [list(fact) for fact in _facts(run)],
        "notes": _start(run.folder).get("warnings", []),
        "config": (run.folder / "config.yaml").read_text(encoding="utf-8"),
        "time": _time(run.folder, results),
        "best_epoch": run.model.description.epoch,
        "cards": _cards(scores, results.get("calibration", {}).get("data") or {}),
        "jobs": [
            {"job": job, "error": result["error"], "seconds": result["seconds"]} for job, result in results.items()
        ],
    }
    return Finding(data)


def _headline(run: FinishedRun, scores: Mapping[str, Any]) -> str:
    attributes = run.model.attributes
    what = words(attributes[0]) if len(attributes) == 1 else f"{len(attributes)} attributes"
    sentence = f"A ResNet18 that tells {what} of a face"
    if auc := scores.get("means", {}).get("test", {}).get("roc_auc"):
        mean = "mean " if len(attributes) > 1 else ""
        where = f"images{_of_strangers(run)} it has never seen"
        if not run.on_data_of_training:
            where = f"the test images of {run.config.data.root.resolve().name}"
        return f"{sentence}, at a {mean}ROC AUC of {auc:.3f} on {where}"
    return sentence


def _of_strangers(run: FinishedRun) -> str:
    """ " of people", if nobody in the test split is in the training split too."""
    who = run.table.identity
    strangers = who is not None and not np.isin(who[run.splits.test], who[run.splits.train]).any()
    return " of people" if strangers else ""


def _facts(run: FinishedRun) -> list[tuple[str, str]]:
    config, start, description = run.config, _start(run.folder), run.model.description
    columns, rows = read_metrics(run.folder)
    seconds = sum(row[columns.index("seconds")] for row in rows)
    speeds = sorted(row[columns.index("images_per_second")] for row in rows)
    sizes = description.training.get("images", {})
    ranks = start.get("ranks", 1)
    trained = description.training.get("config", {})
    height, width = description.image_size
    here, elsewhere = config.data.model_dump(), trained.get("data", {})
    data, scored = here, ""
    if not run.on_data_of_training:
        data = here | elsewhere
        here_are = ", ".join(f"{len(getattr(run.splits, split)):,} {split}" for split in run.scored)
        scored = f"{here['root']}, split {here['split']}: {here_are}"
    fold = "" if data.get("fold", "none") == "none" else f", fold {data['fold']} of its training split"
    facts = [
        ("Data", f"{data['root']}, split {data['split']}{fold}: " + ", ".join(f"{n:,} {s}" for s, n in sizes.items())),
        ("Scored on", scored),
        (
            "Input",
            f"{height} x {width} pixels, crop {description.crop}"
            + ("" if description.eval_zoom == 1 else f", of which the central {description.eval_zoom:g}")
            + ("" if description.stem == "imagenet" else ", stem for small images"),
        ),
        (
            "Training",
            f"{plural(len(rows), 'epoch')} of {plural(int(rows[0][columns.index('step')]), 'step')}, "
            f"batch {config.train.batch_size}, {config.optim.name} at {config.optim.lr:g}, {config.optim.schedule}"
            + "".join(f", {name} {value:g}" for name, value in config.augment if value)
            + ("" if config.train.ema is None else f", weights averaged (EMA {config.train.ema:g})"),
        ),
        ("Kept", f"epoch {description.epoch}, the best by validation {score_in_text(config.checkpoint.best_score)}"),
        (
            "Hardware",
            f"{ranks} rank{'s' if ranks > 1 else ''} on {start.get('device', 'an unknown device')}, precision "
            f"{start.get('precision', trained.get('train', {}).get('precision'))}, decoder {start.get('decoder')}",
        ),
        ("Time", f"{duration(seconds)} of training and validation, median {speeds[len(speeds) // 2]:,.0f} images/s"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())),
        ("Date", str(description.training.get("date", "unknown"))),
    ]
    return [(label, text) for label, text in facts if text]


def _time(folder: Path, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the time of training and report went, MFU, and peak memory; None where the run, of an earlier version, has
    not written it down."""
    rows = read_speed(folder)
    if not rows:
        return None
    by_part = seconds_by_part(rows)
    # The report is counted by its jobs, including those that were run again.
    seconds = {name: by_part[part] for part, name in PART_NAMES.items()}
    seconds["the parts of the report"] = sum(result["seconds"] for result in results.values())
    total = sum(seconds.values())
    mfu, peaks = model_flops_utilisation(rows), [row["peak_flops_per_second"] for row in rows]
    peak = next((each for each in reversed(peaks) if math.isfinite(each)), math.nan)
    return {
        "parts": [{"part": part, "seconds": spent, "share": spent / total} for part, spent in seconds.items()],
        "mfu": mfu if math.isfinite(mfu) else None,
        "peak": f"{peak / 1e12:,.0f} TFLOP/s" if peak >= 1e13 else f"{peak / 1e9:,.0f} GFLOP/s",
        "measured": _start(folder).get("device", "").startswith("CPU"),
        "memory": {place: data_size(size) for place, size in peak_memory(rows).items()},
    }


def _cards(scores: Mapping[str, Any], calibration: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not scores:
        return []
    means = scores["means"]
    tuned, baseline = means["tuned"], means["baseline_accuracy"]["test"]
    shares = [a["positives"]["test"] / a["images"]["test"] for a in scores["attributes"] if a["images"]["test"]]
    tuned_for = scores.get("tuned_for", "f1")
    # Of an attribute that nobody has, neither average precision nor F1 is defined, and the means leave it out.
    shares = [share for share in shares if share > 0] or [0.0]
    prevalence = sum(shares) / len(shares)
    always = sum(2 * share / (1 + share) for share in shares) / len(shares)
    mean = "mean over attributes, " if len(scores["attributes"]) > 1 else ""
    cards: list[tuple[Any, ...]] = []
    for label, name, values, guess, guess_label in (
        ("ROC AUC", "roc_auc", means, 0.5, "a guess"),
        ("Accuracy", "accuracy", means, baseline, "always the majority"),
        ("Balanced accuracy", "balanced_accuracy", means, 0.5, "a guess"),
        ("Average precision", "average_precision", means, prevalence, "share of positives"),
        {
            "f1": ("F1, tuned thresholds", "f1", tuned, always, "always yes"),
            "accuracy": ("Accuracy, tuned thresholds", "accuracy", tuned, baseline, "always the majority"),
            "balanced_accuracy": ("Balanced accuracy, tuned thresholds", "balanced_accuracy", tuned, 0.5, "a guess"),
        }[tuned_for],
    ):
        text = f"{mean}test"
        if "valid" in means:
            seen = values["valid"][name]
            text += f"; validation {'undefined' if seen is None else format(seen, '.4f')}"
        interval = means.get("interval", {}).get(name) if values is means else None
        cards.append((label, values["test"][name], text, guess, guess_label, interval))
    if errors := calibration.get("means"):
        text = f"{mean}test; the lower the better"
        before = (errors["ece_before"], "before temperature scaling")
        cards.append(("Calibration error", errors["ece_after"], text, *before, None))
    return [dict(zip(CARD, card, strict=True)) | {"split": "test"} for card in cards]


def _start(folder: Path) -> dict[str, Any]:
    """The last start event of the run, {} where there is none."""
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    events = [json.loads(line) for line in lines if '"event": "start"' in line]
    return dict(events[-1]) if events else {}
