"""A run folder whose report data are made up, but agree with each other: every number comes from random logits.

Legend: N images, A attributes.
"""

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from distrib.scoring.metrics import score

CELEBA = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
# What a data set may hold to attack a page that is made of it.
EVIL_ATTRIBUTE = "<script>alert(1)</script>"
EVIL_FILE = '"><img src=x onerror=alert(1)>'
SUSPICIOUS = (EVIL_ATTRIBUTE, "</textarea>&amp;'\"", "Smiling")

SCORES = ("loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision")
DECISION_SCORES = ("accuracy", "balanced_accuracy", "precision", "recall", "f1")
METRICS = ("epoch", "step", "train_loss", *(f"val_{name}" for name in SCORES), "lr", "images_per_second", "seconds")
SIZE = (110, 90)  # height, width of the images in pixels


def write_run(
    folder: Path,
    attributes: Sequence[str] = CELEBA,
    epochs: int = 6,
    images: int = 240,
    seed: int = 0,
    skill: float = 2.5,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write config.yaml, metrics.csv, metrics_by_attribute.csv and report/data/*.json of a run.

    Args:
        folder: to write; it is made.
        attributes: A names.
        epochs: trained.
        images: in the validation and in the test split, N.
        seed: of all numbers.
        skill: how far the logits of the last epoch lie apart; more is better.
        settings: dotted keys of the configuration and their values.
    """
    (folder / "report" / "data").mkdir(parents=True)
    drawn = _Draw(folder, tuple(attributes), epochs, images, seed, skill)
    drawn.write_config(settings or {})
    drawn.write_metrics()
    for job in JOBS:
        write_job(folder, job, getattr(drawn, job)())
    return folder


def write_job(folder: Path, job: str, data: Any, error: str | None = None) -> None:
    """Write a job's file as `distrib explain` does, or that of a failed one."""
    content = {"job": job, "seconds": 1.25, "error": error, "data": data}
    text = json.dumps(_without_nan(content))
    (folder / "report" / "data" / f"{job}.json").write_text(text, encoding="utf-8")


def read_job(folder: Path, job: str) -> Any:
    """What `write_job` wrote, the data alone."""
    return json.loads((folder / "report" / "data" / f"{job}.json").read_text(encoding="utf-8"))["data"]


JOBS = (
    "overview", "curves", "scores", "roc", "precision_recall", "confusion", "operating", "calibration", "fairness",
    "correlation", "mistakes", "labels", "activations", "filters", "occlusion", "gradcam", "photograph", "truth",
)  # fmt: skip


class _Draw:
    """The random run: labels and logits of two splits, and every job's data from them."""

    def __init__(
        self, folder: Path, attributes: tuple[str, ...], epochs: int, images: int, seed: int, skill: float
    ) -> None:
        self.folder, self.attributes, self.epochs, self.images, self.seed = folder, attributes, epochs, images, seed
        self.random = np.random.default_rng(seed)
        self.ability = skill * self.random.uniform(0.4, 1.6, len(attributes))
        self.share = self.random.uniform(0.04, 0.6, len(attributes))
        self.targets = {split: self._labels() for split in ("valid", "test")}
        noise = {split: self.random.standard_normal((images, len(attributes))) for split in ("valid", "test")}
        self.by_epoch = [
            {split: self._logits(split, noise[split], (epoch + 1) / epochs) for split in ("valid", "test")}
            for epoch in range(epochs)
        ]
        self.valid_scores = [score(attributes, each["valid"], self.targets["valid"]) for each in self.by_epoch]
        aucs = [each.mean()["roc_auc"] for each in self.valid_scores]
        self.best_epoch = 1 if all(math.isnan(auc) for auc in aucs) else int(np.nanargmax(aucs)) + 1
        self.logits = self.by_epoch[self.best_epoch - 1]
        # Each is the probability of an image, as tuned thresholds often are: that image counts as a yes.
        ranked = np.sort(self.probabilities("test"), axis=0)
        self.thresholds = ranked[2 * images // 3]
        self.kinds = {
            "f1": self.thresholds,
            "accuracy": ranked[3 * images // 4],
            "balanced_accuracy": ranked[images // 2],
        }
        self.pictures = {f"{300 + i:06d}.jpg": self._face(i) for i in range(8)}
        if EVIL_ATTRIBUTE in attributes:
            self.pictures = {EVIL_FILE if i == 0 else k: v for i, (k, v) in enumerate(self.pictures.items())}

    def _labels(self) -> NDArray[np.uint8]:
        labels = self.random.random((self.images, len(self.attributes))) < self.share
        return labels.astype(np.uint8)

    def _logits(self, split: str, noise: NDArray[np.float64], progress: float) -> NDArray[np.float32]:
        apart = 2 * self.targets[split].astype(np.float64) - 1
        steps = self.ability * (0.15 + 0.85 * progress)
        return (1.6 * (apart * steps / 2 + noise) - 0.6).astype(np.float32)

    def probabilities(self, split: str) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-self.logits[split].astype(np.float64) / self.temperature())))

    def temperature(self) -> NDArray[np.float64]:
        return np.linspace(0.8, 1.9, len(self.attributes))

    def write_config(self, settings: dict[str, Any]) -> None:
        tree: dict[str, Any] = {
            "data": {"root": "data/faces", "attributes": list(self.attributes), "image_size": [*SIZE]},
            "optim": {"name": "adamw", "lr": 0.002},
            "train": {"batch_size": 64, "epochs": self.epochs, "seed": self.seed},
            "checkpoint": {"best_score": "roc_auc"},
            "run": {"folder": str(self.folder)},
        }
        for key, value in settings.items():
            group, _, name = key.partition(".")
            tree.setdefault(group, {})[name] = value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    def write_metrics(self) -> None:
        rows, by_attribute = [], []
        for epoch, scores in enumerate(self.valid_scores, 1):
            means = scores.mean()
            speed = float(self.random.normal(115, 4))
            rows.append([epoch, 37 * epoch, 1.1 * means["loss"] * 0.92**epoch, *(means[name] for name in SCORES),
                         0.002 * math.cos(math.pi / 2 * epoch / self.epochs), speed, 2400 / speed])  # fmt: skip
            for name, values in scores.by_attribute().items():
                by_attribute.append([epoch, name, *values.values()])
        self.rows = rows
        _write_csv(self.folder / "metrics.csv", METRICS, rows)
        _write_csv(self.folder / "metrics_by_attribute.csv", ("epoch", "attribute", *SCORES), by_attribute)

    def _face(self, i: int) -> Image.Image:
        height, width = SIZE
        shades = self.random.integers(60, 230, (3, 3))
        picture = Image.new("RGB", (width, height), tuple(shades[0].tolist()))
        pen = ImageDraw.Draw(picture)
        pen.ellipse((16, 12, width - 16, height - 8), fill=tuple(shades[1].tolist()))
        for x in (33, 57):
            pen.ellipse((x - 5, 44, x + 5, 50), fill="white")
            pen.ellipse((x - 2, 45, x + 2, 49), fill="black")
            pen.line((x - 8, 38, x, 34 + i % 3, x + 8, 38), fill="black", width=2)
        pen.arc((32, 68, 58, 84), 10, 170, fill=tuple(shades[2].tolist()), width=3)
        return picture

    def _card(self, index: int, probability: float, label: int) -> dict[str, Any]:
        file = list(self.pictures)[index % len(self.pictures)]
        return {"file": file, "image": _uri(self.pictures[file]), "label": label, "probability": probability}

    def _heat(self) -> tuple[str, float]:
        height, width = 22, 18
        y, x = np.mgrid[:height, :width]
        top, left = self.random.uniform(4, 16, 2)
        strength = np.exp(-((y - top) ** 2 + (x - left) ** 2) / 18)
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 3] = 230, 80 * (1 - strength), 200 * strength
        return _uri(Image.fromarray(pixels), "PNG"), float(strength.max())

    # The jobs.

    def overview(self) -> dict[str, Any]:
        means = self.scores()["means"]
        card = {"label": "ROC AUC", "value": means["test"]["roc_auc"], "text": "mean over the attributes",
                "baseline": 0.5, "baseline_label": "guessing", "interval": means["interval"]["roc_auc"],
                "split": "test"}  # fmt: skip
        accuracy = {"label": "Accuracy", "value": means["test"]["accuracy"], "text": "share of right answers",
                    "baseline": means["baseline_accuracy"]["test"], "baseline_label": "the majority's answer",
                    "interval": means["interval"]["accuracy"], "split": "test"}  # fmt: skip
        f1 = {**card, "label": "F1", "value": means["tuned"]["test"]["f1"], "baseline": None, "interval": None,
              "baseline_label": None, "text": "at the tuned thresholds"}  # fmt: skip
        return {
            "name": self.folder.name,
            "headline": f"In {self.epochs} epochs ResNet18 learnt {len(self.attributes)} attributes of faces; it puts "
            "a face that has one above a face that has not 93 times in 100.",
            "facts": [["Data", "2,407 images of data/faces"], ["Hardware", "2 ranks on a CPU"],
                      ["Took", "2 min 11 s"], ["Speed", "115 images a second"], ["Versions", "torch 2.15.0"]],
            "notes": ["2 ranks were asked for and found."],
            "config": (self.folder / "config.yaml").read_text(encoding="utf-8"),
            "best_epoch": self.best_epoch,
            "cards": [card, accuracy, f1],
            "jobs": [{"job": job, "error": None, "seconds": 1.25} for job in JOBS if job != "overview"],
        }  # fmt: skip

    def curves(self) -> dict[str, Any]:
        return {"columns": [*METRICS], "rows": self.rows, "best_epoch": self.best_epoch, "best_score": "roc_auc"}

    @cache  # noqa: B019  # the object lives as long as one call of write_run
    def scores(self) -> dict[str, Any]:
        plain = {
            "valid": self.valid_scores[self.best_epoch - 1],
            "test": score(self.attributes, self.logits["test"], self.targets["test"]),
        }
        by_attribute = {split: scores.by_attribute() for split, scores in plain.items()}
        by_thresholds = {
            split: {kind: self._tuned(split, thresholds) for kind, thresholds in self.kinds.items()} for split in plain
        }
        tuned = {split: found["f1"] for split, found in by_thresholds.items()}
        attributes = []
        for i, name in enumerate(self.attributes):
            positives = {split: int(self.targets[split][:, i].sum()) for split in plain}
            baseline = {split: max(count, self.images - count) / self.images for split, count in positives.items()}
            interval = {}
            for each in ("roc_auc", "average_precision", "f1", "accuracy", "balanced_accuracy"):
                value = by_attribute["test"][name][each]
                interval[each] = [max(0.0, value - 0.03), min(1.0, value + 0.02)]
            attributes.append({
                "name": name, "positives": positives, "images": dict.fromkeys(plain, self.images),
                "baseline_accuracy": baseline, "valid": by_attribute["valid"][name], "test": by_attribute["test"][name],
                "threshold": float(self.thresholds[i]), "interval": interval,
                "tuned": {split: {each: float(tuned[split][each][i]) for each in DECISION_SCORES} for split in tuned},
                "by_thresholds": {
                    split: {
                        kind: {"threshold": float(self.kinds[kind][i])} | {each: float(values[each][i])
                                                                           for each in DECISION_SCORES}
                        for kind, values in found.items()
                    }
                    for split, found in by_thresholds.items()
                },
            })  # fmt: skip
        means = {split: scores.mean() for split, scores in plain.items()}
        return {
            "splits": ["valid", "test"], "tuned_for": "f1", "attributes": attributes, "resampled": "identities",
            "resamples": 1000,
            "means": {
                **means,
                "tuned": {split: {each: float(np.nanmean(tuned[split][each])) for each in DECISION_SCORES}
                          for split in tuned},
                "by_thresholds": {
                    split: {kind: {each: float(np.nanmean(values[each])) for each in DECISION_SCORES}
                            for kind, values in found.items()}
                    for split, found in by_thresholds.items()
                },
                "baseline_accuracy": {split: float(np.mean([each["baseline_accuracy"][split] for each in attributes]))
                                      for split in plain},
                "interval": {each: [means["test"][each] - 0.01, means["test"][each] + 0.01]
                             for each in ("roc_auc", "average_precision", "f1", "accuracy", "balanced_accuracy")},
            },
        }  # fmt: skip

    def _tuned(self, split: str, thresholds: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The scores of the decisions at some thresholds: of logits that are moved so that these lie at 0."""
        moved = np.log(self.probabilities(split) / (1 - self.probabilities(split)))
        moved -= np.log(thresholds / (1 - thresholds))
        return score(self.attributes, moved.astype(np.float32), self.targets[split]).values

    def roc(self) -> dict[str, Any]:
        values = {each["name"]: each for each in self.scores()["attributes"]}
        return {"attributes": {name: {"auc": value["test"]["roc_auc"], "interval": value["interval"]["roc_auc"]}
                               for name, value in values.items()}}  # fmt: skip

    def precision_recall(self) -> dict[str, Any]:
        values = {each["name"]: each for each in self.scores()["attributes"]}
        return {"attributes": {name: {"average_precision": value["test"]["average_precision"],
                                      "interval": value["interval"]["average_precision"],
                                      "prevalence": value["positives"]["test"] / self.images}
                               for name, value in values.items()}}  # fmt: skip

    def confusion(self) -> dict[str, Any]:
        counts = {}
        for i, name in enumerate(self.attributes):
            threshold = float(self.thresholds[i])
            counts[name] = {"at_half": self._count(i, 0.5), "tuned": self._count(i, threshold), "threshold": threshold}
        return {"attributes": counts}

    def _count(self, i: int, threshold: float) -> dict[str, int]:
        decided, truth = self.probabilities("test")[:, i] >= threshold, self.targets["test"][:, i] == 1
        return {"tp": int((decided & truth).sum()), "fp": int((decided & ~truth).sum()),
                "fn": int((~decided & truth).sum()), "tn": int((~decided & ~truth).sum())}  # fmt: skip

    def operating(self) -> dict[str, Any]:
        attributes = []
        for i, name in enumerate(self.attributes):
            probabilities = self.probabilities("test")[:, i]
            listed = {*probabilities.tolist(), 0.5, float(self.thresholds[i]), 0.0, float(np.nextafter(1, 2))}
            thresholds = sorted(listed, reverse=True)
            counts = [self._count(i, threshold) for threshold in thresholds]
            positives = int(self.targets["test"][:, i].sum())
            attributes.append({
                "name": name, "positives": positives, "negatives": self.images - positives, "default": 0.5,
                "tuned": float(self.thresholds[i]), "thresholds": thresholds,
                "tp": [each["tp"] for each in counts], "fp": [each["fp"] for each in counts],
            })  # fmt: skip
        return {"attributes": attributes}

    def calibration(self) -> dict[str, Any]:
        attributes = []
        for i, name in enumerate(self.attributes):
            truth = self.targets["test"][:, i]
            plain = 1 / (1 + np.exp(-self.logits["test"][:, i].astype(np.float64)))
            after = self.probabilities("test")[:, i]
            before_bins, after_bins = _reliability(plain, truth), _reliability(after, truth)
            attributes.append({
                "name": name, "temperature": float(self.temperature()[i]), "nll_before": _nll(plain, truth),
                "nll_after": _nll(after, truth), "ece_before": _ece(before_bins), "ece_after": _ece(after_bins),
                "before": before_bins, "after": after_bins,
            })  # fmt: skip
        keys = ("ece_before", "ece_after", "nll_before", "nll_after")
        means = {key: float(np.mean([each[key] for each in attributes])) for key in keys}
        return {"bins": 15, "attributes": attributes, "means": means}

    def fairness(self) -> dict[str, Any]:
        scores = ["accuracy", "recall", "f1", "roc_auc"]
        attributes = []
        for name in self.attributes:
            values = {each: self.random.uniform(0.6, 1.0, 2).tolist() for each in scores}
            attributes.append({
                "name": name, "values": values, "worst": {each: int(np.argmin(pair)) for each, pair in values.items()},
                "gap": {each: abs(pair[0] - pair[1]) for each, pair in values.items()},
            })  # fmt: skip
        if len(attributes) > 1:  # a group without positives has no recall
            last = attributes[-1]
            last["values"]["recall"], last["worst"]["recall"], last["gap"]["recall"] = [0.9, math.nan], 0, math.nan
        return {"group": "Male", "groups": ["Male", "not Male"], "images": [102, self.images - 102], "scores": scores,
                "attributes": attributes}  # fmt: skip

    def correlation(self) -> dict[str, Any]:
        count = len(self.attributes)
        half = self.random.uniform(-0.6, 0.9, (count, count))
        labels = np.tril(half, -1) + np.tril(half, -1).T + np.eye(count)
        other = np.clip(labels + np.tril(self.random.normal(0, 0.1, (count, count)), -1), -1, 1)
        predictions = np.tril(other, -1) + np.tril(other, -1).T + np.eye(count)
        pairs = sorted((abs(labels[a, b] - predictions[a, b]), a, b) for a in range(count) for b in range(a))[::-1]
        largest = [[self.attributes[a], self.attributes[b], float(labels[a, b]), float(predictions[a, b])]
                   for _, a, b in pairs[:10]]  # fmt: skip
        return {"attributes": [*self.attributes], "labels": labels.tolist(), "predictions": predictions.tolist(),
                "largest_differences": largest}  # fmt: skip

    def mistakes(self) -> dict[str, Any]:
        attributes = [{"name": name,
                       "false_positives": [self._card(3 * i + j, 0.99 - 0.05 * j, 0) for j in range(6)],
                       "false_negatives": [self._card(5 * i + j, 0.02 + 0.05 * j, 1) for j in range(i % 4)]}
                      for i, name in enumerate(self.attributes)]  # fmt: skip
        overall = [{**self._card(i, 0.99 - 0.01 * i, 0), "attribute": self.attributes[i % len(self.attributes)]}
                   for i in range(12)]  # fmt: skip
        return {"attributes": attributes, "overall": overall}

    def labels(self) -> dict[str, Any]:
        suspects = [{**self._card(i, 0.97, 0), "attribute": self.attributes[i % len(self.attributes)],
                     "quality": 0.01 + 0.01 * i} for i in range(24)]  # fmt: skip
        return {"method": "A label is suspect where the model gives it a low probability.", "suspects": suspects,
                "per_attribute": {name: i for i, name in enumerate(self.attributes)}}  # fmt: skip

    def activations(self) -> dict[str, Any]:
        file = next(iter(self.pictures))
        modules = [{"name": name, "channels": 64, "size": [55, 45], "caption": "all 64 channels",
                    "image": self._mosaic()} for name in ("conv1", "layer1")]  # fmt: skip
        return {"picture": _uri(self.pictures[file]), "file": file, "modules": modules}

    def filters(self) -> dict[str, Any]:
        return {"modules": [{"name": name, "shape": [64, 3, 7, 7], "caption": "all 64 filters", "image": self._mosaic()}
                            for name in ("conv1", "layer1.0.conv1")]}  # fmt: skip

    def _mosaic(self) -> str:
        return _uri(Image.fromarray(self.random.integers(0, 255, (64, 64), np.uint8)), "PNG")

    def _maps(self) -> dict[str, Any]:
        pictures = {f"p{i}": _uri(picture) for i, picture in enumerate(self.pictures.values())}
        attributes = []
        for i, name in enumerate(self.attributes):
            maps = []
            for j, file in enumerate(list(self.pictures)[:4]):
                probability = float(self.probabilities("test")[j, i])
                heat, maximum = self._heat()
                maps.append({
                    "file": file, "image": f"p{j}", "label": int(self.targets["test"][j, i]), "heat": heat,
                    "probability": probability, "maximum": maximum,
                    "decision": ("" if probability >= self.thresholds[i] else "Not ") + name.replace("_", " "),
                })  # fmt: skip
            attributes.append({"name": name, "maps": maps})
        return {"seconds": 12.5, "precision": "bf16", "attributes": attributes, "pictures": pictures}

    def occlusion(self) -> dict[str, Any]:
        return {"window": [20, 20], "stride": [10, 10], "fill": "mean", **self._maps()}

    def gradcam(self) -> dict[str, Any]:
        return {"layer": "layer4", **self._maps()}

    def photograph(self) -> dict[str, Any]:
        file = next(iter(self.pictures))
        attributes = []
        for i, name in enumerate(self.attributes):
            probability = float(self.probabilities("test")[0, i])
            present = probability >= self.thresholds[i]
            attributes.append({
                "name": name, "label": int(self.targets["test"][0, i]), "probability": probability,
                "decision": ("" if present else "Not ") + name.replace("_", " "),
                "probability_of_decision": probability if present else 1 - probability, "heat": self._heat()[0],
            })  # fmt: skip
        return {"file": file, "image": _uri(self.pictures[file]), "aligned": False, "attributes": attributes,
                "note": "It is the first image of the test split."}  # fmt: skip

    def truth(self) -> dict[str, Any]:
        def method() -> dict[str, float]:
            mass = float(self.random.uniform(0.2, 0.6))
            return {"pointing": float(self.random.uniform(0.5, 1)), "chance": 0.2, "mass": mass, "ratio": mass / 0.06}

        attributes = [{"name": name, "parts": ["brows"], "area": 0.06, "correct": 88, "occlusion": method(),
                       "gradcam": method()} for name in self.attributes]  # fmt: skip
        keys = ("pointing", "chance", "mass", "ratio")
        means = {each: {key: float(np.mean([row[each][key] for row in attributes]))
                        for key in keys} for each in ("occlusion", "gradcam")}  # fmt: skip
        methods = ["occlusion", "gradcam"]
        return {
            "images": 100, "test_images": 240, "methods": methods, "attributes": attributes, "means": means,
        }  # fmt: skip


def _reliability(probabilities: NDArray[np.float64], truth: NDArray[np.uint8]) -> dict[str, list[float]]:
    places = np.minimum((probabilities * 15).astype(int), 14)
    count = np.bincount(places, minlength=15)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(places, probabilities, 15) / count
        frequency = np.bincount(places, truth, 15) / count
    return {"confidence": confidence.tolist(), "frequency": frequency.tolist(), "count": count.tolist()}


def _ece(bins: dict[str, list[float]]) -> float:
    gaps = np.nan_to_num(np.abs(np.array(bins["confidence"]) - np.array(bins["frequency"])))
    return float((gaps * np.array(bins["count"])).sum() / sum(bins["count"]))


def _nll(probabilities: NDArray[np.float64], truth: NDArray[np.uint8]) -> float:
    return float(-np.log(np.where(truth == 1, probabilities, 1 - probabilities)).mean())


def _uri(picture: Image.Image, kind: str = "JPEG") -> str:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _write_csv(file: Path, columns: Sequence[str], rows: list[list[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
