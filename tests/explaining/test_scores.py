import dataclasses
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from planted import ATTRIBUTES, CONFIG, faces_table, planted_study
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    roc_auc_score,
)

from distrib.base.errors import UserError
from distrib.base.json import finite
from distrib.config import SCORES
from distrib.data.table import Table
from distrib.explaining.finished_run import Analysis, Finding, FinishedRun
from distrib.explaining.scores import (
    OPERATING_POINTS,
    calibration,
    confusion,
    correlation,
    correlations,
    fairness,
    operating,
    precision_recall,
    roc,
    scores,
)
from distrib.scoring.calibration import sigmoid
from distrib.scoring.predictions import Predictions

JOBS: tuple[Analysis, ...] = (scores, roc, precision_recall, confusion, calibration, fairness, correlation)


@pytest.fixture(scope="module")
def table(faces: Path) -> Table:
    return faces_table(faces)


@pytest.fixture(scope="module")
def study(table: Table) -> FinishedRun:
    return planted_study(table)


def page_data(finding: Finding) -> Any:
    """What the page is given, once NaN is null."""
    return json.loads(json.dumps(finite(finding.data), allow_nan=False))


def with_test(study: FinishedRun, predictions: Predictions) -> FinishedRun:
    """The study with other predictions of its test images."""
    return dataclasses.replace(study, predictions=study.predictions | {"test": predictions})


def check_figures(finding: Finding) -> None:
    """Every figure can be written, and none is blank."""
    for figure in finding.figures.values():
        stream = io.BytesIO()
        figure.savefig(stream, format="rgba", dpi=40)
        pixels = np.frombuffer(stream.getvalue(), np.uint8)
        assert len(np.unique(pixels)) > 10


def check_tables(finding: Finding) -> None:
    for columns, rows in finding.tables.values():
        assert rows
        assert all(len(row) == len(columns) for row in rows)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_every_job_makes_json_figures_and_tables(job: Analysis, study: FinishedRun) -> None:
    finding = job(study)
    assert page_data(finding)
    assert next(iter(finding.figures)) == job.__name__
    check_figures(finding)
    check_tables(finding)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda table: table.select(["Smiling"]), id="one attribute"),
        pytest.param(
            lambda table: dataclasses.replace(table, targets=np.zeros_like(table.targets)), id="attributes nobody has"
        ),
        pytest.param(
            lambda table: dataclasses.replace(table, attributes=("<script>$x$", "_hidden", "Bangs" * 20)),
            id="odd names",
        ),
    ],
)
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_every_job_copes(job: Analysis, change: Callable[[Table], Table], table: Table) -> None:
    changed = change(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finding = job(planted_study(changed))
        check_figures(finding)
    check_tables(finding)
    found = page_data(finding)["attributes"]
    assert [each["name"] if isinstance(each, dict) else each for each in found] == list(changed.attributes)


def test_scores_are_scikit_learn_s(study: FinishedRun) -> None:
    found = page_data(scores(study))
    assert found["splits"] == ["valid", "test"]
    assert found["tuned_for"] == "f1"
    assert found["resampled"] == "identities"
    assert found["resamples"] == CONFIG.explain.bootstrap
    for split in ("valid", "test"):
        predictions = study.predictions[split]
        tuned = sigmoid(predictions.logits_NA / 2) >= 0.4
        for i, row in enumerate(found["attributes"]):
            truth, logits = predictions.targets_NA[:, i], predictions.logits_NA[:, i].astype(np.float64)
            assert row["name"] == ATTRIBUTES[i]
            assert tuple(row[split]) == SCORES
            assert row["images"][split] == len(truth)
            assert row["positives"][split] == truth.sum()
            assert row["baseline_accuracy"][split] == pytest.approx(max(truth.mean(), 1 - truth.mean()))
            assert row["threshold"] == 0.4
            assert row[split]["roc_auc"] == pytest.approx(roc_auc_score(truth, logits))
            assert row[split]["accuracy"] == pytest.approx(accuracy_score(truth, logits >= 0))
            assert row["tuned"][split]["f1"] == pytest.approx(f1_score(truth, tuned[:, i]))
            assert row["by_thresholds"][split] == {"f1": {"threshold": 0.4, **row["tuned"][split]}}
            assert row["tuned"][split]["precision"] == pytest.approx(precision_score(truth, tuned[:, i]))
        for name in SCORES:
            mean = np.mean([row[split][name] for row in found["attributes"]])
            assert found["means"][split][name] == pytest.approx(mean)
        mean = np.mean([row["tuned"][split]["f1"] for row in found["attributes"]])
        assert found["means"]["tuned"][split]["f1"] == pytest.approx(mean)


def test_intervals_hold_the_test_scores(study: FinishedRun) -> None:
    found = page_data(scores(study))
    for row in [*found["attributes"], found["means"]]:
        for name in ("roc_auc", "average_precision", "f1", "accuracy", "balanced_accuracy"):
            low, high = row["interval"][name]
            assert low <= row["test"][name] <= high
            assert low < high


def test_curves_agree_with_the_scores(study: FinishedRun) -> None:
    table_of_scores = page_data(scores(study))["attributes"]
    areas = page_data(roc(study))["attributes"]
    averages = page_data(precision_recall(study))["attributes"]
    test = study.predictions["test"]
    for i, row in enumerate(table_of_scores):
        truth, logits = test.targets_NA[:, i], test.logits_NA[:, i]
        assert areas[row["name"]]["auc"] == pytest.approx(roc_auc_score(truth, logits))
        assert areas[row["name"]]["interval"] == row["interval"]["roc_auc"]
        assert averages[row["name"]]["average_precision"] == pytest.approx(average_precision_score(truth, logits))
        assert averages[row["name"]]["interval"] == row["interval"]["average_precision"]
        assert averages[row["name"]]["prevalence"] == pytest.approx(truth.mean())


def test_the_curves_in_the_figure_have_the_area_that_is_stated(study: FinishedRun) -> None:
    finding = roc(study)
    axes = finding.figures["roc"].axes[0]
    lines = {str(line.get_label()).partition(",")[0]: line for line in axes.get_lines()}
    for name in ATTRIBUTES:
        x, y = (np.asarray(each) for each in lines[name].get_data())
        assert np.trapezoid(y, x) == pytest.approx(finding.data["attributes"][name]["auc"])
    assert axes.get_legend() is not None


def test_without_identities_pictures_are_drawn(table: Table) -> None:
    found = scores(planted_study(dataclasses.replace(table, identity=None))).data
    assert found["resampled"] == "images"


def test_an_attribute_of_one_class_has_null_for_what_is_undefined(table: Table) -> None:
    table = dataclasses.replace(table, targets=table.targets * np.array([1, 0, 1], np.uint8))
    study = planted_study(table)
    row = page_data(scores(study))["attributes"][1]
    assert row["test"]["roc_auc"] is None
    assert row["interval"]["roc_auc"] is None
    assert row["test"]["accuracy"] is not None
    assert row["baseline_accuracy"]["test"] == 1
    assert page_data(roc(study))["attributes"]["Bangs"] == {"auc": None, "interval": None}
    assert page_data(scores(study))["means"]["test"]["roc_auc"] is not None


def test_confusion_counts_are_scikit_learn_s(study: FinishedRun) -> None:
    found = page_data(confusion(study))["attributes"]
    test = study.predictions["test"]
    decided = {"at_half": test.logits_NA >= 0, "tuned": sigmoid(test.logits_NA / 2) >= 0.4}
    for i, name in enumerate(ATTRIBUTES):
        assert found[name]["threshold"] == 0.4
        for which, decisions in decided.items():
            (tn, fp), (fn, tp) = confusion_matrix(test.targets_NA[:, i], decisions[:, i])
            assert found[name][which] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert found[ATTRIBUTES[0]]["tuned"] != found[ATTRIBUTES[0]]["at_half"]


@pytest.mark.parametrize("images", [100, 2000])
def test_operating_points_are_exact(images: int, table: Table) -> None:
    rows = np.arange(images) % len(table)
    study = planted_study(table)
    generator = np.random.default_rng(3)
    test = study.predictions["test"]
    targets = table.targets[rows]
    predictions = dataclasses.replace(
        test,
        targets_NA=targets,
        logits_NA=(generator.normal(0, 2, targets.shape) + targets).astype(np.float32),
    )
    probabilities = study.model.probabilities(predictions.logits_NA)
    found = json.loads(json.dumps(operating(with_test(study, predictions)).data, allow_nan=False))["attributes"]
    for i, row in enumerate(found):
        thresholds = row["thresholds"]
        assert row["name"] == ATTRIBUTES[i]
        assert (row["default"], row["tuned"]) == (0.5, 0.4)
        assert len(thresholds) <= OPERATING_POINTS
        assert thresholds == sorted(set(thresholds), reverse=True)
        assert {0.5, 0.4} <= set(thresholds)
        for threshold, tp, fp in zip(thresholds, row["tp"], row["fp"], strict=True):
            decided = probabilities[:, i] >= threshold
            assert tp == (decided & (targets[:, i] == 1)).sum()
            assert fp == (decided & (targets[:, i] == 0)).sum()
        assert (row["tp"][0], row["fp"][0]) == (0, 0)
        assert (row["tp"][-1], row["fp"][-1]) == (row["positives"], row["negatives"])
        assert thresholds[-1] == 0
        # The curve through these points is near the curve through all.
        area = np.trapezoid(np.array(row["tp"]) / row["positives"], np.array(row["fp"]) / row["negatives"])
        assert area == pytest.approx(roc_auc_score(targets[:, i], probabilities[:, i]), abs=0.002)


def test_operating_points_of_certainties_and_of_one_class(table: Table) -> None:
    study = planted_study(dataclasses.replace(table, targets=table.targets * np.array([1, 0, 1], np.uint8)))
    test = study.predictions["test"]
    sure = dataclasses.replace(test, logits_NA=np.where(test.logits_NA > 0, 1000, -1000).astype(np.float32))
    for row in operating(with_test(study, sure)).data["attributes"]:
        assert (row["tp"][0], row["fp"][0]) == (0, 0), "a certain yes is below the first threshold"
        assert (row["tp"][-1], row["fp"][-1]) == (row["positives"], row["negatives"])
    assert row["positives"] + row["negatives"] == len(test)


def test_operating_points_meet_the_confusion_matrices(study: FinishedRun) -> None:
    matrices = confusion(study).data["attributes"]
    for row in operating(study).data["attributes"]:
        for threshold, which in ((0.5, "at_half"), (0.4, "tuned")):
            at = row["thresholds"].index(threshold)
            assert row["tp"][at] == matrices[row["name"]][which]["tp"]
            assert row["fp"][at] == matrices[row["name"]][which]["fp"]


def test_calibration_of_logits_that_are_twice_too_large(table: Table) -> None:
    generator = np.random.default_rng(0)
    true_logits = generator.normal(0, 1.5, table.targets.shape)
    table = dataclasses.replace(
        table, targets=(generator.random(table.targets.shape) < sigmoid(true_logits)).astype(np.uint8)
    )
    study = planted_study(table, logits_NA=(4 * true_logits).astype(np.float32), temperature=4.0)
    found = page_data(calibration(study))
    test = study.predictions["test"]
    assert found["bins"] == 15
    for i, row in enumerate(found["attributes"]):
        assert row["temperature"] == 4.0
        assert row["ece_after"] < row["ece_before"]
        assert row["nll_before"] == pytest.approx(log_loss(test.targets_NA[:, i], sigmoid(test.logits_NA[:, i])))
        assert row["nll_after"] == pytest.approx(log_loss(test.targets_NA[:, i], sigmoid(true_logits[test.rows, i])))
        assert sum(row["before"]["count"]) == sum(row["after"]["count"]) == len(test)
        assert len(row["after"]["confidence"]) == len(row["after"]["frequency"]) == 15
    assert found["means"]["ece_before"] == pytest.approx(np.mean([row["ece_before"] for row in found["attributes"]]))


def test_an_unfair_model_is_found_out(table: Table, faces: Path) -> None:
    male = faces_table(faces, ["Male"]).targets[:, 0].astype(bool)
    generator = np.random.default_rng(0)
    signal = 6.0 * table.targets - 3.0
    signal[male, 0] = 0  # Smiling cannot be seen on men
    study = planted_study(table, logits_NA=(signal + generator.normal(size=signal.shape)).astype(np.float32))
    found = page_data(fairness(study))
    rows = study.predictions["test"].rows
    assert found["group"] == "Male"
    assert found["groups"] == ["Male", "not Male"]
    assert found["images"] == [male[rows].sum(), (~male[rows]).sum()]
    assert found["scores"] == list(SCORES)
    smiling, bangs, _ = found["attributes"]
    for name in ("roc_auc", "accuracy", "balanced_accuracy", "average_precision", "loss"):
        assert smiling["worst"][name] == 0
        assert smiling["gap"][name] == pytest.approx(abs(np.subtract(*smiling["values"][name])))
    assert smiling["gap"]["roc_auc"] > 0.2
    assert bangs["gap"]["roc_auc"] < 0.1
    in_group = rows[male[rows]]
    assert smiling["positives"][0] == table.targets[in_group, 0].sum()


def test_the_group_may_be_an_attribute_that_the_model_knows(faces: Path) -> None:
    table = faces_table(faces, ["Male", "Smiling"])
    found = page_data(fairness(planted_study(table)))
    assert found["attributes"][0]["values"]["roc_auc"] == [None, None], "all of a group are alike in it"
    assert found["attributes"][0]["worst"]["roc_auc"] is None
    assert found["attributes"][1]["gap"]["roc_auc"] is not None


def test_groups_that_cannot_be_compared_are_refused(table: Table) -> None:
    def grouped(group: str, table: Table) -> FinishedRun:
        explain = CONFIG.explain.model_copy(update={"group": group})
        return planted_study(table, CONFIG.model_copy(update={"explain": explain}))

    with pytest.raises(UserError, match="did you mean Male"):
        fairness(grouped("Mal", table))
    nobody = dataclasses.replace(table, targets=table.targets * np.array([0, 1, 1], np.uint8))
    with pytest.raises(UserError, match=r"explain\.group is Smiling, but every test image is not Smiling"):
        fairness(grouped("Smiling", nobody))


def test_correlations_are_numpy_s() -> None:
    values = np.random.default_rng(0).integers(0, 2, (200, 4)).astype(np.uint8)
    np.testing.assert_allclose(correlations(values), np.corrcoef(values.T), atol=1e-12)


def test_correlation_finds_what_the_model_mixes_up(table: Table) -> None:
    logits = (4.0 * table.targets - 2.0).astype(np.float32)
    logits[:, 1] = logits[:, 0]  # Bangs is decided as Smiling is
    found = page_data(correlation(planted_study(table, logits_NA=logits)))
    assert found["attributes"] == list(ATTRIBUTES)
    assert found["predictions"][0][1] == pytest.approx(1)
    first, second, labels, decided = found["largest_differences"][0]
    assert (first, second) == ("Smiling", "Bangs")
    assert decided == pytest.approx(1)
    assert labels == pytest.approx(found["labels"][0][1])
    assert len(found["largest_differences"]) == 3


def test_a_constant_attribute_has_no_correlation(table: Table) -> None:
    study = planted_study(dataclasses.replace(table, targets=table.targets * np.array([1, 0, 1], np.uint8)))
    found = page_data(correlation(study))
    assert found["labels"][0][1] is None
    assert all("Bangs" not in pair[:2] for pair in found["largest_differences"])


@pytest.mark.parametrize("job", [roc, confusion], ids=lambda job: job.__name__)
def test_figures_for_forty_attributes(job: Analysis, faces: Path) -> None:
    figure = job(planted_study(faces_table(faces, ["all"]))).figures[job.__name__]
    figure.savefig(io.BytesIO(), dpi=40)
    text = [each for each in figure.findobj(Text) if each.get_text()]
    assert {"Arched Eyebrows", "5 o Clock Shadow", "Young"} <= {each.get_text() for each in text}
    assert min(each.get_fontsize() for each in text) >= 7
