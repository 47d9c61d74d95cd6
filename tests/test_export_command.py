"""`distrib export`, as a user runs it."""

import re
import shutil
import warnings
from pathlib import Path

import pytest
from random_model import write_model

from distrib.cli import export as program
from distrib.model.trained import load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_model(folder / "best")
    return folder


def test_a_run_is_exported_quietly_and_the_latency_printed(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert program.main([str(run), "--to", "onnx"]) == 0
    printed, said = capfd.readouterr()
    assert said == ""
    assert load(run / "best/model.onnx").attributes == ("Smiling", "Eyeglasses", "Male")
    file, difference, latency = printed.splitlines()
    assert file == f"{run / 'best/model.onnx'}: 44.7 MB, 3 attributes"
    assert re.fullmatch(r"largest difference from torch: [\d.]+e-\d+ in a probability", difference)
    assert re.fullmatch(r"one image: [\d.]+ ms by torch, [\d.]+ ms by onnxruntime, on this CPU", latency)


def test_the_file_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    model = shutil.copytree(run / "best", tmp_path / "copied", ignore=shutil.ignore_patterns("*.onnx"))
    assert program.main([str(model), "--to", "onnx", "--out", str(tmp_path / "faces.onnx")]) == 0
    assert load(tmp_path / "faces.onnx").attributes == load(model).attributes
    assert not (model / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "--to", "onnx"], "nowhere holds no model"),
        (["RUN", "--to", "onnx", "--out", "missing/model.onnx"], "--out missing/model.onnx cannot be written"),
        (["RUN", "--to", "onnx", "--out", "file/model.onnx"], "file is not a folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: list[str],
    sentence: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    status = program.main([str(run) if each == "RUN" else each for each in arguments])
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("distrib: error: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_another_format_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main([str(run), "--to", "tflite"])
    assert stop.value.code == 2
    assert "tflite" in capsys.readouterr().err
