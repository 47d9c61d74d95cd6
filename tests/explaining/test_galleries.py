import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from planted import ATTRIBUTES, faces_table, planted_study

from distrib.base.json import finite
from distrib.data.table import Table
from distrib.explaining.finished_run import Finding, FinishedRun
from distrib.explaining.galleries import labels, mistakes, self_confidence, suspects
from distrib.scoring.calibration import sigmoid


@pytest.fixture(scope="module")
def table(faces: Path) -> Table:
    return faces_table(faces)


@pytest.fixture(scope="module")
def study(table: Table) -> FinishedRun:
    return planted_study(table)


def page_data(finding: Finding) -> Any:
    return json.loads(json.dumps(finite(finding.data), allow_nan=False))


def picture_of(card: dict[str, Any]) -> NDArray[np.uint8]:
    head, _, body = card["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def all_cards(found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each card of the mistakes with its attribute."""
    for row in found["attributes"]:
        for card in row["false_positives"] + row["false_negatives"]:
            yield row["name"], card
    for card in found["overall"]:
        yield card["attribute"], card


def test_mistakes_are_mistakes_and_the_surest_come_first(study: FinishedRun) -> None:
    found = page_data(mistakes(study))
    test = study.predictions["test"]
    probabilities = sigmoid(test.logits_NA / 2)
    for i, row in enumerate(found["attributes"]):
        assert row["name"] == ATTRIBUTES[i]
        truth, said = test.targets_NA[:, i], probabilities[:, i]
        wanted = np.sort(said[(truth == 0) & (said >= 0.5)])[::-1][:6]
        assert [card["probability"] for card in row["false_positives"]] == pytest.approx(wanted)
        wanted = np.sort(said[(truth == 1) & (said < 0.5)])[:6]
        assert [card["probability"] for card in row["false_negatives"]] == pytest.approx(wanted)
    truth = test.targets_NA.astype(bool)
    wanted = np.sort(np.abs(probabilities - 0.5)[(probabilities >= 0.5) != truth])[::-1][:12]
    assert [abs(card["probability"] - 0.5) for card in found["overall"]] == pytest.approx(wanted)
    assert len(found["overall"]) == 12


def test_a_card_is_of_the_picture_it_names(study: FinishedRun, table: Table) -> None:
    cards = list(all_cards(page_data(mistakes(study))))
    assert cards
    for attribute, card in cards:
        row = table.names.index(card["file"])
        assert card["label"] == table.targets[row, table.attributes.index(attribute)]
        assert (card["probability"] >= 0.5) != card["label"]
        shown = picture_of(card).astype(float)
        assert shown.shape == (109, 89, 3)
        assert np.abs(shown - study.picture(row)).mean() < 5, "only JPEG's losses are between them"


def test_large_pictures_are_made_small(table: Table) -> None:
    study = planted_study(table)
    description = study.model.description.model_copy(update={"image_size": (436, 356)})
    study = dataclasses.replace(study, model=dataclasses.replace(study.model, description=description))
    heights = {picture_of(card).shape[0] for _, card in all_cards(page_data(mistakes(study)))}
    assert heights == {128}


def test_many_attributes_have_smaller_pictures(faces: Path) -> None:
    study = planted_study(faces_table(faces, ["all"]))
    found = page_data(mistakes(study))
    assert {picture_of(card).shape[0] for _, card in list(all_cards(found))[:20]} == {96}
    assert len(json.dumps(found)) < 3_000_000, "the page has 10 MB for everything"


def test_a_model_without_mistakes_has_none(table: Table) -> None:
    finding = mistakes(planted_study(table, logits_NA=(10.0 * table.targets - 5).astype(np.float32)))
    assert page_data(finding)["overall"] == []
    assert finding.figures == {}
    assert finding.tables["mistakes"][1] == []


def test_galleries_have_a_figure_and_a_table(study: FinishedRun) -> None:
    for job in (mistakes, labels):
        finding = job(study)
        finding.figures[job.__name__].savefig(io.BytesIO(), dpi=40)
        columns, rows = finding.tables[job.__name__]
        assert all(len(row) == len(columns) for row in rows)
        assert rows


def test_planted_wrong_labels_are_found_first(table: Table) -> None:
    generator = np.random.default_rng(0)
    truth = table.targets
    logits = (generator.normal(0, 1, truth.shape) + 10.0 * truth - 5.0).astype(np.float32)
    study = planted_study(table, logits_NA=logits)
    unseen = np.concatenate([study.splits.valid, study.splits.test])
    planted = set()
    for i in range(3):
        for label in (0, 1):
            rows = generator.choice(unseen[truth[unseen, i] == label], 2, replace=False)
            planted |= {(int(row), i) for row in rows}
    wrong = truth.copy()
    for row, i in planted:
        wrong[row, i] = 1 - wrong[row, i]
    finding = labels(planted_study(dataclasses.replace(table, targets=wrong), logits_NA=logits, temperature=1))
    found = page_data(finding)
    first = [(table.names.index(card["file"]), ATTRIBUTES.index(card["attribute"])) for card in found["suspects"][:12]]
    assert set(first) == planted
    for card, (row, i) in zip(found["suspects"][:12], first, strict=True):
        assert card["label"] == wrong[row, i]
        assert card["quality"] == pytest.approx(card["probability"] if card["label"] else 1 - card["probability"])
        assert picture_of(card).shape == (109, 89, 3)
    qualities = [card["quality"] for card in found["suspects"]]
    assert qualities == sorted(qualities)
    assert all(found["per_attribute"][name] >= 4 for name in ATTRIBUTES)
    assert "Northcutt" in found["method"]
    assert {row[2] for row in finding.tables["labels"][1][:12]} == {"valid", "test"}


def test_suspects_are_the_cells_off_the_diagonal_of_the_confident_joint() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random((400, 2)) < [0.5, 0.1]).astype(np.uint8)
    probabilities = sigmoid(generator.normal(0, 1, targets.shape) + 2.0 * targets - 1 - np.array([0, 2]))
    found = suspects(probabilities, targets)
    for i in range(2):
        both = np.stack([1 - probabilities[:, i], probabilities[:, i]], axis=1)
        thresholds = [both[targets[:, i] == label, label].mean() for label in (0, 1)]
        for n in range(400):
            reached = [label for label in (0, 1) if both[n, label] >= thresholds[label]]
            taken_for = max(reached, key=lambda label: both[n, label]) if reached else targets[n, i]
            assert found[n, i] == (taken_for != targets[n, i])
    assert found.any(axis=0).all()


def test_an_attribute_of_one_class_has_no_suspects() -> None:
    probabilities = np.random.default_rng(0).random((50, 2))
    targets = np.stack([np.zeros(50), np.arange(50) % 2], axis=1).astype(np.uint8)
    assert suspects(probabilities, targets).any(axis=0).tolist() == [False, True]


def test_self_confidence_is_the_probability_of_the_label() -> None:
    found = self_confidence(np.array([[0.9, 0.9]]), np.array([[1, 0]], dtype=np.uint8))
    assert found[0] == pytest.approx([0.9, 0.1])
