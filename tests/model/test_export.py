from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from random_model import write_model
from sentences import refusal

from distrib.model.export import TOLERANCE, Export, export_onnx
from distrib.model.trained import TrainedModel, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "best")


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return load(folder)


@pytest.fixture(scope="module")
def exported(folder: Path, model: TrainedModel) -> Export:
    return export_onnx(model, folder / "model.onnx")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 40, 32, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_runtime_gets_the_probabilities_of_pictures(model: TrainedModel, exported: Export, count: int) -> None:
    """By onnxruntime alone, as another program would."""
    session = onnxruntime.InferenceSession(str(exported.file))
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("pictures", "tensor(uint8)", [40, 32, 3])
    assert [(out.name, out.type) for out in session.get_outputs()] == [
        ("probabilities", "tensor(float)"), ("logits", "tensor(float)"),
    ]  # fmt: skip
    probabilities, logits = session.run(None, {"pictures": pictures(count)})
    wanted = model.logits(pictures(count))
    assert wanted.std() > 1e-3  # the model tells these images apart
    np.testing.assert_allclose(logits, wanted, atol=TOLERANCE)
    np.testing.assert_allclose(probabilities, model.probabilities(wanted), atol=TOLERANCE)
    uncalibrated = 1 / (1 + np.exp(-wanted))
    assert np.abs(probabilities - uncalibrated).max() > 10 * TOLERANCE


def test_it_is_one_file_that_describes_itself(folder: Path, model: TrainedModel, exported: Export) -> None:
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors", "README.md", "model.onnx"}
    alone = load(exported.file)
    assert alone.description == model.description
    np.testing.assert_allclose(alone.logits(pictures(3)), model.logits(pictures(3)), atol=TOLERANCE)


@pytest.mark.slow
def test_the_small_stem_is_exported_and_loaded_too(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "model", stem="small"))
    alone = load(export_onnx(model, tmp_path / "model.onnx").file)
    assert alone.description.stem == "small"
    np.testing.assert_allclose(alone.logits(pictures(3)), model.logits(pictures(3)), atol=TOLERANCE)


def test_no_path_of_this_machine_is_in_the_file(exported: Export) -> None:
    data = exported.file.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in data
    assert b"distrib/model" not in data


def test_the_check_and_the_clock_are_reported(exported: Export) -> None:
    assert 0 < exported.difference <= TOLERANCE
    assert exported.torch_ms > 0
    assert exported.onnxruntime_ms > 0
    onnx.checker.check_model(onnx.load(exported.file), full_check=True)


def test_the_model_itself_stays_as_it_was(model: TrainedModel, exported: Export) -> None:
    """The export is made from a copy."""
    untouched = load(model.source)
    for mine, its in zip(model.net.parameters(), untouched.net.parameters(), strict=True):
        assert mine.stride() == its.stride()
        assert torch.equal(mine, its)


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    """Weights that are not numbers: no probability equals another. An older file stays."""
    broken = write_model(tmp_path / "broken")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["fc.bias"][1] = float("nan")
    safetensors.torch.save_file(weights, broken / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"older")
    refusal(lambda: export_onnx(load(broken), out / "model.onnx"), "is not written", "differ", "nan", "at most 0.0001")
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("model.onnx", b"older")]


def test_an_onnx_file_is_not_exported_again(exported: Export, tmp_path: Path) -> None:
    refusal(
        lambda: export_onnx(load(exported.file), tmp_path / "again.onnx"), "is an ONNX file already", "model folder"
    )


def test_a_place_that_cannot_be_written_is_refused_first(model: TrainedModel, tmp_path: Path) -> None:
    refusal(lambda: export_onnx(model, tmp_path / "none" / "model.onnx"), "--out", "is not a folder")
    refusal(lambda: export_onnx(model, tmp_path), "--out", "is a folder")
