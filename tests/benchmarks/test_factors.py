"""benchmarks/factors.py: what a study's settings gain, from the study.csv that `distrib sweep` writes."""

import sys
from pathlib import Path

import pytest
from launching import ROOT
from scipy.stats import ttest_ind

sys.path.insert(0, str(ROOT / "benchmarks"))

from factors import SCORES, Found, gain, in_markdown, read

from distrib.studies.definition import read_study
from distrib.studies.record import Objective, Parameter, State, StudyRecord, TrialRecord, study_csv


def found(values: list[float], seconds: float) -> Found:
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return Found(dict.fromkeys(SCORES, (mean, spread)), len(values), seconds)


def test_a_gain_is_told_by_the_test_of_the_seeds_themselves() -> None:
    ours, base = [0.91, 0.915, 0.913], [0.90, 0.904, 0.905]
    got = gain(found(ours, 60), found(base, 30))
    assert got["time"] == 2
    assert got["val_roc_auc"]["gain"] == pytest.approx(0.029 / 3)
    assert got["val_roc_auc"]["p"] == pytest.approx(ttest_ind(ours, base, equal_var=False).pvalue)


def test_the_largest_gain_is_first_and_what_chance_explains_is_not_bold() -> None:
    base = found([0.90, 0.904, 0.905], 30)
    gains = {
        "noise": gain(found([0.90, 0.907, 0.906], 30), base),
        "better": gain(found([0.94, 0.941, 0.942], 45), base),
        "worse": gain(found([0.80, 0.801, 0.802], 30), base),
    }
    lines = in_markdown(base.scores, gains).splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == ["| as it is", "| better", "| noise", "| worse"]
    assert lines[3].startswith("| better | **+0.0380** ± 0.0028 |")
    assert lines[3].endswith("| 1.50 |")
    assert "**" not in lines[4]
    assert "**-0.1020**" in lines[5]


@pytest.mark.parametrize("name", ["screening", "stem"])
def test_the_studies_of_the_recipe_have_a_setting_to_compare_with(name: str) -> None:
    study = read_study(ROOT / f"configs/recipe/{name}.yaml")
    [parameter] = study.parameters
    assert parameter.name == "factor"
    assert "as it is" in parameter.choices


def test_a_studys_own_file_is_read_without_what_has_not_finished(tmp_path: Path) -> None:
    objectives = tuple(Objective(score, "maximize") for score in SCORES)

    def trial(number: int, state: State, factor: str) -> TrialRecord:
        scores = ((0.9, 0.8, 0.7), (0.01, 0.02, 0.03)) if state == "finished" else (None, None)
        return TrialRecord(number, state, {"factor": factor}, *scores, (), 16, 80.0, ("trials/a", "trials/b"), "")

    trials = (trial(0, "finished", "as it is"), trial(1, "failed", "SGD"), trial(2, "finished", "SGD, Nesterov"))
    parameters = (Parameter("factor", tuple(str(each.settings["factor"]) for each in trials)),)
    record = StudyRecord("screening", tmp_path, objectives, parameters, trials, 3, (), (), seeds=2)
    file = tmp_path / "study.csv"
    file.write_text(study_csv(record))
    finished, states = read(file)
    assert set(finished) == {"as it is", "SGD, Nesterov"}
    assert states == {"SGD": "failed"}
    known = zip(SCORES, ((0.9, 0.01), (0.8, 0.02), (0.7, 0.03)), strict=True)
    assert finished["as it is"] == Found(dict(known), 2, 80.0)
