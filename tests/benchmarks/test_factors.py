"""benchmarks/factors.py: what a study's settings gain, from the study.csv that `distrib sweep` writes."""

import sys
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT
from safetensors.numpy import save_file
from scipy.stats import ttest_ind

sys.path.insert(0, str(ROOT / "benchmarks"))

from factors import SCORES, Found, Validation, gain, in_markdown, read

from distrib.config import read_yaml
from distrib.studies.definition import read_study
from distrib.studies.record import Objective, Parameter, State, StudyRecord, TrialRecord, study_csv


def found(values: list[float], seconds: float) -> Found:
    by_seed = dict(enumerate(values))
    return Found(dict.fromkeys(SCORES, by_seed), dict.fromkeys(by_seed, seconds), {})


def test_a_gain_is_told_by_the_test_of_the_seeds_themselves() -> None:
    ours, base = [0.91, 0.915, 0.913], [0.90, 0.904, 0.905]
    got = gain(found(ours, 60), found(base, 30))
    assert got["time"] == 2
    assert got["val_roc_auc"]["gain"] == pytest.approx(0.029 / 3)
    assert got["val_roc_auc"]["p"] == pytest.approx(ttest_ind(ours, base, equal_var=False).pvalue)


def test_a_setting_is_compared_by_the_seeds_that_both_have() -> None:
    base = found([0.90, 0.80, 0.70], 30)
    got = gain(found([0.91, 0.83], 60), base)
    assert got["seeds"] == 2
    assert got["val_roc_auc"]["gain"] == pytest.approx(0.02)
    with pytest.raises(ValueError, match=r"no seed of \[\] is one of the base's, \[0, 1, 2\]"):
        gain(found([], 60), base)


def test_people_say_how_sure_a_gain_is(tmp_path: Path) -> None:
    """Of 20 people with three images each one model knows more than the other, whoever is drawn."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, (60, 3)).astype(np.uint8)
    validation = Validation(targets, np.arange(60) // 3)
    runs = {}
    for name, skill in (("better", 2.0), ("base", 0.5)):
        runs[name] = {}
        for seed in (0, 1):
            runs[name][seed] = tmp_path / f"{name}-{seed}"
            (runs[name][seed] / "best").mkdir(parents=True)
            logits = (random.normal(size=targets.shape) + skill * (2.0 * targets - 1)).astype(np.float32)
            save_file({"logits": logits}, runs[name][seed] / "best/validation.safetensors")
    better, base = (found([0.9, 0.8], 30)._replace(runs=runs[name]) for name in ("better", "base"))
    low, high = gain(better, base, validation)["val_roc_auc"]["interval"]
    assert 0 < low < high
    low, high = gain(base, base, validation)["val_roc_auc"]["interval"]
    assert low == high == 0
    assert " (+0.0000 to +0.0000) |" in in_markdown("it", base, {"the same": gain(base, base, validation)})


def test_the_largest_gain_is_first_and_what_chance_explains_is_not_bold() -> None:
    base = found([0.90, 0.904, 0.905], 30)
    gains = {
        "noise": gain(found([0.90, 0.907, 0.906], 30), base),
        "better": gain(found([0.94, 0.941, 0.942], 45), base),
        "once": gain(found([0.93], 30), base),
        "worse": gain(found([0.80, 0.801, 0.802], 30), base),
    }
    lines = in_markdown("as it is", base, gains).splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == ["| as it is", "| better", "| once", "| noise", "| worse"]
    assert lines[3].startswith("| better | 3 | **+0.0380** ± 0.0028 |")
    assert lines[3].endswith("| 1.50 |")
    assert lines[4].startswith("| once | 1 | +0.0300 |")
    assert "**" not in lines[5]
    assert "**-0.1020**" in lines[6]


@pytest.mark.parametrize("name", ["screening", "stem"])
def test_the_studies_of_the_recipe_have_a_setting_to_compare_with(name: str) -> None:
    study = read_study(ROOT / f"configs/recipe/{name}.yaml")
    seed, factor = study.parameters
    assert (seed.name, seed.choices) == ("train.seed", (0, 1, 2))
    assert factor.name == "factor"
    assert "as it is" in factor.choices


@pytest.mark.parametrize("file", sorted((ROOT / "configs/recipe").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_files_of_the_recipe_are_of_settings_that_there_are(file: Path) -> None:
    """Each is a study, but for what studies and benchmarks are based on."""
    if file.stem in ("base", "quick"):
        assert read_yaml(file).data.image_size == (112, 112)
    else:
        assert read_study(file).points()
        assert "root:" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["short", "smaller"])
def test_what_a_third_of_the_time_gives_is_looked_for_on_one_fold(name: str) -> None:
    study = read_study(ROOT / f"configs/recipe/{name}.yaml")
    assert study.base.data.fold == "2/5"
    assert len(study.parameters[1].choices) == 4


def test_studies_are_read_together_without_what_has_not_finished(tmp_path: Path) -> None:
    objectives = tuple(Objective(score, "maximize") for score in SCORES)

    def trial(number: int, state: State, factor: str, score: float, seed: int = 0) -> TrialRecord:
        values = (score, 0.8, 0.7) if state == "finished" else None
        return TrialRecord(
            number, state, {"train.seed": seed, "factor": factor}, values, None, (), 8, 80.0, ("trials/a",), ""
        )

    def write(name: str, *trials: TrialRecord) -> Path:
        factors = tuple(sorted({str(each.settings["factor"]) for each in trials}))
        parameters = (Parameter("train.seed", (0, 1)), Parameter("factor", factors))
        record = StudyRecord(name, tmp_path, objectives, parameters, trials, 3, (), ())
        file = tmp_path / name / "study.csv"
        file.parent.mkdir()
        file.write_text(study_csv(record))
        return file

    first = write("first", trial(0, "finished", "as it is", 0.9), trial(1, "failed", "SGD", 0.0))
    second = write("second", trial(0, "finished", "as it is", 0.92, 1), trial(1, "finished", "SGD, Nesterov", 0.93))
    finished, unfinished = read([first, second])
    assert set(finished) == {"as it is", "SGD, Nesterov"}
    assert finished["as it is"].scores["val_roc_auc"] == {0: 0.9, 1: 0.92}
    assert finished["as it is"].seconds == {0: 80.0, 1: 80.0}
    assert finished["as it is"].runs[1] == tmp_path / "second/trials/a"
    assert unfinished == ["SGD, trial 1 of first: failed"]
    with pytest.raises(ValueError, match="as it is was trained twice with seed 0"):
        read([first, first])
