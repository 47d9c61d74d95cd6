"""In which precision the trials of a study train, where its file leaves that to the machine."""

import json
from pathlib import Path

import pytest
from sentences import refusal

from distrib.ranks import machine
from distrib.studies.definition import Study, read_study
from distrib.studies.folder import StudyFolder
from distrib.studies.precision import with_kept_precision, with_precision
from distrib.training import precision


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A CPU on which bf16 is found to be faster; the list has an entry for each time that somebody measures."""
    asked: list[int] = []

    def found(_config: object, ranks: int) -> dict[str, float]:
        asked.append(ranks)
        return {"no": 3.0, "bf16": 1.0}

    monkeypatch.setattr(machine, "cpu_computes_in_bf16", lambda: True)
    monkeypatch.setattr("distrib.studies.precision.use_all_cores", lambda local_ranks: None)
    monkeypatch.setattr(precision, "measure", found)
    return asked


def a_study(folder: Path, space: str = "optim.lr: [0.1, 0.2]", settings: str = "run.device: cpu") -> Study:
    file = folder / "measured.yaml"
    file.write_text(f"space: {{{space}}}\nsampler: grid\nset: {{{settings}}}\n")
    return read_study(file)


def precisions(study: Study) -> list[str]:
    return [study.config(point, {}, None).train.precision for point in study.points()]


def test_whoever_is_first_measures_and_the_others_take_its_choice(
    tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    study, folder = a_study(tmp_path), StudyFolder(tmp_path, "measured")
    assert precisions(study) == ["auto", "auto"]
    assert with_kept_precision(study, folder) == study
    first = with_precision(study, folder, workers=1)
    assert precisions(first) == ["bf16", "bf16"]
    said = "precision bf16 (measured here: bf16 is 3.00 times as fast as float32), for all trials\n"
    assert capsys.readouterr().out == said
    assert with_precision(study, folder, workers=1) == with_kept_precision(study, folder) == first
    assert asked == [1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("space", "settings", "wanted"),
    [
        ("optim.lr: [0.1, 0.2]", "run.device: cpu, train.precision: no", ["no", "no"]),
        ("train.precision: [auto, no]", "run.device: cpu", ["auto", "no"]),
        ("run.device: [cpu, auto]", "optim.lr: 0.1", ["auto", "auto"]),
    ],
)
def test_what_the_study_names_or_varies_is_left_alone(
    tmp_path: Path, asked: list[int], space: str, settings: str, wanted: list[str]
) -> None:
    study = with_precision(a_study(tmp_path, space, settings), StudyFolder(tmp_path, "measured"), workers=1)
    assert precisions(study) == wanted
    assert asked == []


def test_a_machine_that_does_not_compute_in_it_chooses_anew_with_a_warning(
    tmp_path: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    study, folder = a_study(tmp_path), StudyFolder(tmp_path, "measured")
    folder.precision.write_text(json.dumps({"precision": "fp16"}))
    assert precisions(with_precision(study, folder, workers=1)) == ["bf16", "bf16"]
    assert "trained in fp16, which this machine does not compute in" in capsys.readouterr().err
    assert with_kept_precision(study, folder).precision == "bf16"


def test_a_choice_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    study, folder = a_study(tmp_path), StudyFolder(tmp_path, "measured")
    folder.precision.write_text("bf16")
    refusal(lambda: with_kept_precision(study, folder), "precision.json", "remove it")
