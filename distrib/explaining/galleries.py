"""The jobs that show images: the most confident mistakes, and the labels that are most likely wrong.

Legend: N images, A attributes, H height, W width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distrib.base.words import words
from distrib.explaining.figures import label, sheet
from distrib.explaining.finished_run import Finding, FinishedRun, data_uri_jpeg, thumbnail

# Cards on the page: mistakes of either kind of one attribute, mistakes of all attributes, suspect labels.
EACH, OVERALL, SUSPECTS = 6, 12, 24
# Rows of a table, at most.
LISTED = 1000
# Images are at most so many pixels high, and fewer where many attributes make hundreds of them.
HEIGHT, HEIGHT_OF_MANY, MANY = 128, 96, 10

METHOD = (
    "An image is taken for a class if its calibrated probability of it reaches the mean of the images labelled so "
    "(of two such classes, for the likelier); where that is not what its label says, the label is suspect. The least "
    "probable labels come first (confident learning: Northcutt, Jiang and Chuang, 2021). The images are those of "
    "validation and test, which the model was not trained on."
)

_Place = tuple[int, int]  # image and attribute


def mistakes(run: FinishedRun) -> Finding:
    """The test images on which the model is surest of the wrong thing, for each attribute and over all.

    Present means a calibrated probability of at least 1/2 here, and the surest is the farthest from it.
    """
    test = run.predictions["test"]
    gallery = _Gallery(run, ["test"])
    truth, present = test.targets_NA.astype(bool), gallery.probabilities_NA >= 0.5
    doubt = -np.abs(gallery.probabilities_NA - 0.5)
    rows = []
    for i, name in enumerate(test.attributes):
        this = np.arange(len(test.attributes)) == i
        kinds = {"false_positives": present & ~truth & this, "false_negatives": ~present & truth & this}
        rows.append({"name": name} | {kind: gallery.cards(_least(doubt, of)[:EACH]) for kind, of in kinds.items()})
    surest = _least(doubt, present != truth)
    overall = gallery.cards(surest[:OVERALL], named=True)
    return Finding(
        {"attributes": rows, "overall": overall},
        gallery.figure("mistakes", surest[:OVERALL], "The surest mistakes on the test images"),
        {"mistakes": gallery.table(surest[:LISTED])},
    )


def labels(run: FinishedRun) -> Finding:
    """The labels that are most likely wrong, among the images that the model was not trained on."""
    gallery = _Gallery(run, run.scored)
    suspect = suspects(gallery.probabilities_NA, gallery.targets_NA)
    places = _least(gallery.confidence_NA, suspect)
    data = {
        "method": METHOD,
        "suspects": gallery.cards(places[:SUSPECTS], named=True, quality=True),
        "per_attribute": dict(zip(gallery.attributes, suspect.sum(axis=0).tolist(), strict=True)),
    }
    return Finding(
        data,
        gallery.figure("labels", places[:SUSPECTS], "The labels that are most likely wrong"),
        {"labels": gallery.table(places[:LISTED])},
    )


def self_confidence(probabilities_NA: NDArray[np.float64], targets_NA: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The probability of what the label says, [N, A]: the quality of a label in confident learning."""
    return np.where(targets_NA == 1, probabilities_NA, 1 - probabilities_NA)


def suspects(probabilities_NA: NDArray[np.float64], targets_NA: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The labels that confident learning counts as wrong, bool [N, A].

    These are the cells off the diagonal of the confident joint (C. Northcutt, L. Jiang and I. Chuang, "Confident
    Learning: Estimating Uncertainty in Dataset Labels", JAIR 70, 2021, section 3.1): the threshold of a class is the
    mean probability of it over the images labelled so, and an image is counted in the likeliest of the classes whose
    thresholds it reaches. An attribute that has one class only has none.

    Args:
        probabilities_NA: of the attribute being present, of images that were not trained on.
        targets_NA: {0, 1}.
    """
    confidence = self_confidence(probabilities_NA, targets_NA)
    found = np.zeros(targets_NA.shape, dtype=bool)
    for i, labels_N in enumerate(targets_NA.T.astype(bool)):
        if labels_N.all() or not labels_N.any():
            continue
        present, absent = confidence[labels_N, i].mean(), confidence[~labels_N, i].mean()
        own, other = np.where(labels_N, present, absent), np.where(labels_N, absent, present)
        kept = confidence[:, i]
        found[:, i] = (1 - kept >= other) & ((kept < own) | (1 - kept > kept))
    return found


def _least(values_NA: NDArray[np.float64], of_NA: NDArray[np.bool_]) -> list[_Place]:
    """Those places, by rising value."""
    images, attributes = np.nonzero(of_NA)
    order = np.argsort(values_NA[images, attributes], kind="stable")
    return [(int(n), int(i)) for n, i in zip(images[order], attributes[order], strict=True)]


class _Gallery:
    """Shows places: images with what their labels and the model say of an attribute."""

    def __init__(self, run: FinishedRun, splits: Sequence[str]) -> None:
        parts = [run.predictions[split] for split in splits]
        self._run = run
        self._rows = np.concatenate([each.rows for each in parts])
        self._names = [name for each in parts for name in each.names]
        self._splits = [each.split for each in parts for _ in each.names]
        self.attributes = parts[0].attributes
        self.targets_NA = np.concatenate([each.targets_NA for each in parts])
        self.probabilities_NA = run.model.probabilities(np.concatenate([each.logits_NA for each in parts]))
        self.confidence_NA = self_confidence(self.probabilities_NA, self.targets_NA)
        self._encoded: dict[int, str] = {}

    def cards(self, places: Sequence[_Place], named: bool = False, quality: bool = False) -> list[dict[str, Any]]:
        """What the page shows of these places; with the attribute's name, and with the label's quality, on request."""
        found = []
        for n, i in places:
            card: dict[str, Any] = {
                "file": self._names[n],
                "image": self._image(n),
                "label": int(self.targets_NA[n, i]),
                "probability": float(self.probabilities_NA[n, i]),
            }
            if named:
                card["attribute"] = self.attributes[i]
            if quality:
                card["quality"] = float(self.confidence_NA[n, i])
            found.append(card)
        return found

    def figure(self, name: str, places: Sequence[_Place], title: str) -> dict[str, Figure]:
        """A sheet of these images under this name; none where there are no images."""
        if not places:
            return {}
        cards = []
        for n, i in places:
            said = label(words(self.attributes[i], present=bool(self.targets_NA[n, i])), 24)
            confidence = self.confidence_NA[n, i]
            told = "below 0.001" if confidence < 0.001 else f"{confidence:.3f}"
            cards.append((self._pixels(n), None, f"label: {said}\nprobability {told}"))
        return {name: sheet(title, cards, columns=6, card=(1.9, 2.6))}

    def table(self, places: Sequence[_Place]) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table of these places."""
        rows = [
            [
                self.attributes[i],
                self._names[n],
                self._splits[n],
                int(self.targets_NA[n, i]),
                float(self.probabilities_NA[n, i]),
                float(self.confidence_NA[n, i]),
            ]
            for n, i in places
        ]
        return ["attribute", "file", "split", "label", "probability", "probability_of_label"], rows

    def _pixels(self, n: int) -> NDArray[np.uint8]:
        """The image as the model sees it, but no higher than the cards are: uint8 [H, W, 3]."""
        height = HEIGHT if len(self.attributes) <= MANY else HEIGHT_OF_MANY
        return thumbnail(self._run.picture(int(self._rows[n])), height)

    def _image(self, n: int) -> str:
        if n not in self._encoded:  # one image can be wrong in many ways
            self._encoded[n] = data_uri_jpeg(self._pixels(n))
        return self._encoded[n]
