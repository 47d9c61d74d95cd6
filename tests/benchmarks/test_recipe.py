"""benchmarks/recipe.py: its gains are those of the scores, its intervals those of people, and it runs to its end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from recipe import ATTRIBUTE, FLIPPED, PLAIN, REPORT, SHORT, Validation, gain, in_markdown, summary, time_to_reach
from train import OURS, Training

from distrib.scoring.metrics import score

NAMES = ("Smiling", ATTRIBUTE, "Bald")
SEEDS, IMAGES = 2, 60


@pytest.fixture
def validation() -> Validation:
    """Of 20 people with three images each; nobody is bald, so that there is no ROC AUC of it."""
    targets = np.random.default_rng(0).integers(0, 2, (IMAGES, len(NAMES))).astype(np.uint8)
    targets[:, 2] = 0
    return Validation(NAMES, targets, np.arange(IMAGES) // 3)


def made(validation: Validation, skill: float, seed: int, name: str = OURS) -> Training:
    """A training whose logits tell the targets by so much."""
    noise = np.random.default_rng(seed).normal(size=validation.targets.shape)
    logits = (noise + skill * (2.0 * validation.targets - 1)).astype(np.float32)
    return Training([60.0, 120.0], [0.6, 0.8], logits[:, [1]] if name == REPORT else logits)


@pytest.fixture
def trainings(validation: Validation) -> dict[str, list[Training]]:
    skills = {OURS: 1.0, REPORT: 0.3, PLAIN: 0.5}
    return {
        name: [made(validation, skill, 10 * turn + len(name), name) for turn in range(SEEDS)]
        for name, skill in skills.items()
    }


@pytest.mark.parametrize("name", ["accuracy", "roc_auc"])
@pytest.mark.parametrize("peer", [PLAIN, REPORT])
def test_a_gain_is_the_difference_of_the_means_over_seeds(
    peer: str, name: str, validation: Validation, trainings: dict[str, list[Training]]
) -> None:
    known = [1] if peer == REPORT else [0, 1, 2]
    attributes, targets = tuple(NAMES[i] for i in known), validation.targets[:, known]
    means = {
        which: [score(attributes, each[..., -len(known) :], targets).mean()[name] for each in logits]
        for which, logits in {
            OURS: [found.logits[:, known] for found in trainings[OURS]],
            peer: [found.logits for found in trainings[peer]],
        }.items()
    }
    differences = np.subtract(means[OURS], means[peer])
    found = gain(trainings, validation, OURS, peer, name, float(differences.mean()) - 1e-9)
    assert found["gain"] == pytest.approx(differences.mean())
    assert found["by_seed"] == pytest.approx(differences.tolist())
    assert (found["distrib"], found["other"]) == pytest.approx((np.mean(means[OURS]), np.mean(means[peer])))
    assert found["met"]
    assert not gain(trainings, validation, OURS, peer, name, float(differences.mean()) + 1e-6)["met"]


def test_more_images_of_the_same_people_say_no_more(
    validation: Validation, trainings: dict[str, list[Training]]
) -> None:
    """Each image four times over is the same evidence where identities are drawn, and seems more where images are."""
    low, high = gain(trainings, validation, OURS, PLAIN, "accuracy", 0.0)["interval"]
    assert low < high

    def four(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, 4, axis=0)

    more = {name: [found._replace(logits=four(found.logits)) for found in each] for name, each in trainings.items()}
    assert validation.identity is not None
    people = Validation(NAMES, four(validation.targets), four(validation.identity))
    assert gain(more, people, OURS, PLAIN, "accuracy", 0.0)["interval"] == pytest.approx((low, high))
    narrower = gain(more, people._replace(identity=None), OURS, PLAIN, "accuracy", 0.0)
    assert narrower["resampled"] == "images"
    assert narrower["interval"][1] - narrower["interval"][0] < 0.7 * (high - low)


def test_the_time_is_of_the_first_epoch_that_reaches_the_last_score_of_the_other() -> None:
    nothing = np.zeros((0, 0), np.float32)
    plain = [Training([300.0, 600.0], [0.9, 0.8], nothing), Training([400.0, 800.0], [0.7, 0.85], nothing)]
    mine = [Training([60.0, 120.0, 180.0], [0.7, 0.8, 0.9], nothing), Training([80.0, 160.0], [0.85, 0.9], nothing)]
    found = time_to_reach(mine, plain)
    assert found["share_by_seed"] == [0.2, 0.1]
    assert (found["share"], found["met"]) == (pytest.approx(0.15), True)
    slow = time_to_reach([mine[0], Training([80.0, 160.0], [0.7, 0.84], nothing)], plain)
    assert slow["share_by_seed"] == [0.2, None]
    assert (slow["share"], slow["met"]) == (None, False)


def test_the_table_names_what_is_missed_and_what_took_too_long(
    validation: Validation, trainings: dict[str, list[Training]]
) -> None:
    result = {
        "setting": {"minutes": 1.5},
        "trainings": {
            name: [summary(name, found, validation, 150.0 if name == OURS else 90.0) for found in each]
            for name, each in trainings.items()
        },
        "gains": [
            gain(trainings, validation, OURS, PLAIN, "roc_auc", 0.9),
            gain(trainings, validation, OURS, REPORT, "roc_auc", 0),
        ],
        "time": {OURS: time_to_reach(trainings[OURS], trainings[PLAIN])},
    }
    text = in_markdown(result)
    assert "beyond the budget of 1.5 minutes: report, plain" in text
    (missed, met) = (line for line in text.splitlines() if line.startswith("| distrib: roc_auc of"))
    assert missed.endswith("| **no** |")
    assert met.endswith("| yes |")
    assert f"roc_auc of {ATTRIBUTE} over report" in met


@pytest.mark.slow
def test_all_recipes_train_to_their_end_and_are_compared(faces: Path, tmp_path: Path) -> None:
    config, file = tmp_path / "tiny.yaml", tmp_path / "recipe.json"
    config.write_text("train: {batch_size: 16, epochs: 2}\noptim: {schedule: one-cycle}\n")
    of_distrib = ["--config", str(config), "--short", str(config)]
    command = [sys.executable, str(ROOT / "benchmarks/recipe.py"), "--root", str(faces), *of_distrib]
    small = ["--seeds", "7", "8", "--size", "32", "--images", "64", "--epochs", "1", "--json", str(file)]
    small += ["--folder", str(tmp_path / "kept")]
    done = subprocess.run([*command, *small], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    assert {name: [len(each["seconds"]) for each in found] for name, found in result["trainings"].items()} == {
        OURS: [2, 2], FLIPPED: [2, 2], SHORT: [1, 1], REPORT: [1, 1], PLAIN: [1, 1]
    }  # fmt: skip
    for name, found in ((name, each) for name, trained in result["trainings"].items() for each in trained):
        # The scores are computed anew from the logits: these are of the right images, in the right order.
        if name != FLIPPED:
            assert found["mean_roc_auc"] == pytest.approx(max(found["roc_auc"]), abs=1e-6)
        assert found["within_budget"] or name == SHORT  # a third of a second of plain's is too little for an epoch
    assert [(each["of"], each["over"], each["score"], each["wanted"]) for each in result["gains"]] == [
        (which, *goal)
        for which in (OURS, FLIPPED)
        for goal in ((PLAIN, "accuracy", 0.008), (PLAIN, "roc_auc", 0.010), (REPORT, "roc_auc", 0.03))
    ]
    with np.load(tmp_path / "kept/distrib-2-7.npz") as kept:
        both = zip(kept["logits"].T, kept["flipped"].T, strict=True)
        alike = [np.corrcoef(plain, flipped)[0, 1] for plain, flipped in both]  # each attribute has its temperature
        assert 0.6 < np.median(alike) < 0.999
    assert {each["resampled"] for each in result["gains"]} == {"identities"}
    assert result["setting"]["validation_images"] == 16
    assert "| gain |" in done.stdout

    file.unlink()
    subprocess.run([*command, *small], check=True, timeout=600)  # in which nothing could be trained anew
    assert json.loads(file.read_text())["trainings"] == result["trainings"]
    config.write_text("train: {batch_size: 8, epochs: 2}\n")
    other = subprocess.run([*command, *small], capture_output=True, text=True, timeout=600)
    assert "has trainings of another setting (configuration of distrib" in other.stderr
