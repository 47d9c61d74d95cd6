"""`distrib evaluate`, as a user runs it; on two real ranks where it is about ranks."""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from accelerate.state import AcceleratorState
from launching import launch, read_metrics
from random_model import write_model
from small_run import copied

from distrib import evaluate as program
from distrib import train
from distrib.cli.explain import main as explain
from distrib.cli.export import main as export
from distrib.config import TUNED_SCORES, DataConfig
from distrib.data.images import decode
from distrib.data.splits import digest, make_splits
from distrib.data.table import read_table
from distrib.model.export import export_onnx
from distrib.model.trained import load

ATTRIBUTES = ("Smiling", "Eyeglasses", "Male")
FLOAT32 = ("--device", "cpu", "--precision", "no")


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that takes seconds, whose images grow, and which is evaluated by the middle of each."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    AcceleratorState._reset_state(reset_partial_state=True)
    options = [
        "--run.folder", folder, "--run.device", "cpu", "--data.root", faces, "--data.attributes", *ATTRIBUTES,
        "--data.image-size", 32, 32, "--train.batch-size", 16, "--train.epochs", 2, "--train.precision", "no",
        "--explain.after-training", False, "--tracking.mode", "disabled", "--data.grow", "16@0 32@0.5",
        "--data.min-zoom", 0.7, "--data.eval-zoom", 0.85,
    ]  # fmt: skip
    assert train.main([*map(str, options)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(load(run), tmp_path_factory.mktemp("exported") / "model.onnx").file


def evaluate(folder: Path, *arguments: object) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The program in this process: its JSON, and its predictions as the rows of their CSV file."""
    AcceleratorState._reset_state(reset_partial_state=True)
    files = ["--json", folder / "scores.json", "--predictions", folder / "predictions.csv"]
    assert program.main([str(each) for each in (*arguments, *FLOAT32, *files)]) == 0
    with (folder / "predictions.csv").open(newline="") as file:
        return json.loads((folder / "scores.json").read_text()), list(csv.DictReader(file))


def numbers(tree: dict[str, Any]) -> dict[str, float]:
    """The leaves of nested groups by their path, nothing left out."""
    leaves = {}
    for name, value in tree.items():
        inner = numbers(value) if isinstance(value, dict) else {"": np.nan if value is None else value}
        leaves.update({f"{name}/{rest}": leaf for rest, leaf in inner.items()})
    return leaves


def scores_of(result: dict[str, Any]) -> dict[str, float]:
    return numbers({name: result[name] for name in ("mean", "attributes")})


def test_the_validation_split_has_the_scores_of_the_best_epoch(run: Path, tmp_path: Path) -> None:
    result, predictions = evaluate(tmp_path, run, "--split", "valid")
    about = json.loads((run / "best/model.json").read_text())
    row = next(row for row in read_metrics(run) if row["epoch"] == about["epoch"])
    assert result["epoch"] == about["epoch"]
    assert result["images"] == len(predictions) == about["validation"]["images"]
    for name in ("loss", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "average_precision"):
        assert result["mean"][name] == pytest.approx(row[f"val_{name}"], abs=1e-6)
    with (run / "metrics_by_attribute.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["epoch"]) == about["epoch"]]
    assert [row["attribute"] for row in rows] == list(result["attributes"]) == list(ATTRIBUTES)
    for row in rows:
        assert result["attributes"][row["attribute"]]["f1"] == pytest.approx(float(row["f1"]), abs=1e-6)


def test_the_scores_follow_from_the_predictions(run: Path, tmp_path: Path) -> None:
    result, predictions = evaluate(tmp_path, run, "--split", "all")
    assert len(predictions) == result["images"] == 200
    model = load(run)
    for i, name in enumerate(ATTRIBUTES):
        found = result["attributes"][name]
        label = np.array([int(row[f"{name}_label"]) for row in predictions])
        probability = np.array([float(row[f"{name}_probability"]) for row in predictions])
        decision = np.array([int(row[f"{name}_decision"]) for row in predictions])
        assert found["positives"] == label.sum()
        assert found["baseline_accuracy"] == pytest.approx(max(label.mean(), 1 - label.mean()))
        assert found["accuracy"] == pytest.approx(np.mean((probability >= 0.5) == label))
        assert found["threshold"] == model.description.thresholds[i]
        assert (decision == (probability >= found["threshold"])).all()
        assert found["tuned"]["accuracy"] == pytest.approx(np.mean(decision == label))
        assert found["tuned"]["recall"] == pytest.approx(np.mean(decision[label == 1]))
    for name in ("accuracy", "f1", "baseline_accuracy"):
        mean = np.mean([row[name] for row in result["attributes"].values()])
        assert result["mean"][name] == pytest.approx(mean)


def test_other_thresholds_are_chosen_without_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the images that they were tuned on each kind is the best in its own score."""
    found = {}
    for score in TUNED_SCORES:
        found[score], predictions = evaluate(tmp_path, run, "--split", "valid", "--thresholds", score)
        assert found[score]["tuned_for"] == score
        for name, row in found[score]["attributes"].items():
            decision = np.array([int(each[f"{name}_decision"]) for each in predictions])
            label = np.array([int(each[f"{name}_label"]) for each in predictions])
            assert row["tuned"]["accuracy"] == pytest.approx(np.mean(decision == label))
    assert "tuned for balanced accuracy, as above" in capsys.readouterr().out
    for name in ATTRIBUTES:
        for score in TUNED_SCORES:
            values = {choice: found[choice]["attributes"][name]["tuned"][score] for choice in TUNED_SCORES}
            told = found["f1"]["attributes"][name]["by_thresholds"]
            assert {choice: told[choice][score] for choice in TUNED_SCORES} == values
            if values[score] is not None:  # no image has Eyeglasses
                assert values[score] == max(*values.values(), found[score]["attributes"][name][score])
    by_default, _ = evaluate(tmp_path, run, "--split", "valid")
    assert by_default == found["f1"]


def test_a_run_decides_by_the_thresholds_that_it_was_asked_for(run: Path, faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [
        "--config", run / "config.yaml", "--run.folder", folder, "--data.root", faces, "--data.subset", 16,
        "--train.epochs", 1, "--checkpoint.thresholds", "accuracy",
    ]  # fmt: skip
    assert train.main([*map(str, options)]) == 0
    about = json.loads((folder / "best/model.json").read_text())
    assert about["tuned_for"] == "accuracy"
    assert "tuned for the best accuracy of each" in (folder / "best/README.md").read_text()
    result, _ = evaluate(tmp_path, folder, "--split", "valid")
    assert result["tuned_for"] == "accuracy"
    assert [row["threshold"] for row in result["attributes"].values()] == about["thresholds"]
    for row in result["attributes"].values():
        assert row["tuned"]["accuracy"] >= row["baseline_accuracy"] or row["roc_auc"] is None
    onnx = export_onnx(load(folder), tmp_path / "model.onnx").file
    assert load(onnx).description == load(folder).description
    assert load(onnx).with_thresholds("f1").description.thresholds == tuple(about["other_thresholds"]["f1"])


def test_a_model_of_an_earlier_version_has_thresholds_for_f1_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    shutil.copytree(run / "best", older)
    about = json.loads((older / "model.json").read_text())
    del about["tuned_for"], about["other_thresholds"]
    (older / "model.json").write_text(json.dumps(about))
    result, _ = evaluate(tmp_path, older, "--split", "valid")
    assert result["tuned_for"] == "f1"
    assert list(result["mean"]["by_thresholds"]) == ["f1"]
    capsys.readouterr()
    assert program.main([str(older), "--thresholds", "accuracy"]) == 2
    assert "no thresholds tuned for accuracy" in capsys.readouterr().err


def test_two_ranks_give_the_same_as_one(run: Path, tmp_path: Path) -> None:
    alone, alone_predictions = evaluate(tmp_path, run, "--split", "all", "--batch-size", 7)
    file, parquet = tmp_path / "two.json", tmp_path / "two.parquet"
    done = launch(
        run, "--split", "all", "--batch-size", 7, *FLOAT32, "--json", file, "--predictions", parquet,
        script="distrib/evaluate.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads(file.read_text())
    assert (alone["ranks"], two["ranks"]) == (1, 2)
    assert scores_of(two) == pytest.approx(scores_of(alone), abs=1e-6, nan_ok=True)
    assert done.stdout.count("Attribute ") == 1

    rows = pyarrow.parquet.read_table(parquet).to_pylist()
    assert list(rows[0]) == list(alone_predictions[0])
    for mine, other in zip(rows, alone_predictions, strict=True):
        for name, value in mine.items():
            if name.endswith("_probability"):
                assert value == pytest.approx(float(other[name]), abs=1e-6)
            else:
                assert str(value) == other[name]


def test_the_table_and_the_csv_have_the_same_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = evaluate(tmp_path, run, "--split", "valid", "--csv", tmp_path / "scores.csv")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = {row["attribute"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*ATTRIBUTES, "mean"]
    for name, row in rows.items():
        expected = result["mean"] if name == "mean" else result["attributes"][name]
        assert float(row["f1"]) == expected["f1"]
        assert float(row["tuned_f1"]) == expected["tuned"]["f1"]
        line = next(line for line in printed if line and line[0] == name)
        for score in ("loss", "precision", "recall", "f1"):
            assert f"{expected[score]:.4f}" in line
        for score in ("accuracy", "baseline_accuracy"):
            assert f"{expected[score]:.2%}" in line


def test_parquet_reads_back_with_types(run: Path, faces: Path, tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    assert program.main([str(run), "--split", "valid", *FLOAT32, "--predictions", str(file)]) == 0
    predictions = pyarrow.parquet.read_table(file)
    assert predictions.column_names == [
        "file", "split", "identity",
        *(f"{name}_{kind}" for name in ATTRIBUTES for kind in ("label", "probability", "decision")),
    ]  # fmt: skip
    table = read_table(faces)
    rows = make_splits(table, DataConfig()).valid
    assert predictions["file"].to_pylist() == [table.names[row] for row in rows]
    assert set(predictions["split"].to_pylist()) == {"valid"}
    assert table.identity is not None
    assert predictions["identity"].to_pylist() == table.identity[rows].tolist()
    male = table.targets[rows, table.attributes.index("Male")]
    assert predictions["Male_label"].to_pylist() == male.tolist()
    assert str(predictions["Male_probability"].type) == "double"
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.parquet"}


def test_an_onnx_file_has_the_scores_of_its_model(run: Path, exported: Path, tmp_path: Path) -> None:
    by_torch, torch_rows = evaluate(tmp_path, run, "--split", "all")
    by_onnx, onnx_rows = evaluate(tmp_path, exported, "--split", "all")
    assert by_onnx["model"] == str(exported)
    assert scores_of(by_onnx) == pytest.approx(scores_of(by_torch), abs=1e-4, nan_ok=True)
    for mine, other in zip(torch_rows, onnx_rows, strict=True):
        assert float(mine["Smiling_probability"]) == pytest.approx(float(other["Smiling_probability"]), abs=1e-4)


def test_flip_is_the_mean_of_picture_and_mirror_image(run: Path, faces: Path, tmp_path: Path) -> None:
    flipped, rows = evaluate(tmp_path, run, "--split", "valid", "--flip")
    plain, plain_rows = evaluate(tmp_path, run, "--split", "valid")
    assert (flipped["flip"], plain["flip"]) == (True, False)
    model, table = load(run), read_table(faces)
    pictures = np.stack([model.fit(decode((table.store.folder / row["file"]).read_bytes())) for row in rows])
    straight, mirrored = model.logits(pictures), model.logits(np.ascontiguousarray(pictures[:, :, ::-1]))
    expected = model.probabilities((straight + mirrored) / 2)
    for i, name in enumerate(ATTRIBUTES):
        found = [float(row[f"{name}_probability"]) for row in rows]
        assert found == pytest.approx(expected[:, i].tolist(), abs=1e-5)
    assert rows != plain_rows


def test_a_checkpoint_can_be_scored(run: Path, tmp_path: Path) -> None:
    last = max((run / "checkpoints").iterdir())
    result, _ = evaluate(tmp_path, last, "--split", "valid")
    assert result["epoch"] == 2
    assert result["mean"]["roc_auc"] == pytest.approx(read_metrics(run)[-1]["val_roc_auc"], abs=1e-6)


def test_the_report_looks_at_the_same_part_of_each_image(run: Path, tmp_path: Path) -> None:
    again = copied(run, tmp_path / "run")
    (again / "best/validation.safetensors").unlink()  # so that the report has to score these images too
    assert explain([str(again), "--only", "scores", "--run.device", "cpu", "--tracking.mode", "disabled"]) == 0
    means = json.loads((again / "report/data/scores.json").read_text())["data"]["means"]
    for split in ("valid", "test"):
        result, _ = evaluate(tmp_path, run, "--split", split)
        assert means[split]["roc_auc"] == pytest.approx(result["mean"]["roc_auc"], abs=1e-6)
        assert means[split]["loss"] == pytest.approx(result["mean"]["loss"], abs=1e-6)
    best = next(row for row in read_metrics(run) if row["epoch"] == load(run).description.epoch)
    assert means["valid"]["loss"] == pytest.approx(best["val_loss"], abs=1e-6)
    # The whole of each image has other scores.
    about = json.loads((again / "best/model.json").read_text())
    (again / "best/model.json").write_text(json.dumps({**about, "eval_zoom": 1.0}))
    whole, _ = evaluate(tmp_path, again, "--split", "test")
    assert whole["mean"]["loss"] != pytest.approx(means["test"]["loss"], abs=1e-4)


def test_a_model_against_itself_differs_by_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = evaluate(tmp_path, run, "--split", "all", "--against", run / "best")
    against = result["against"]
    assert against["resampled"] == "identities"
    assert list(against["attributes"]) == list(ATTRIBUTES)
    for row in (against["mean"], *against["attributes"].values()):
        for each in row.values():
            assert each["difference"] == 0
            assert each["interval"] == [0, 0]
    assert "no attribute differs clearly in ROC AUC, of 3 in common" in capsys.readouterr().out


def test_names_may_have_bytes_that_are_no_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    parquet = folder / "predictions.parquet"
    scores, rows = evaluate(folder, run)
    assert len(rows) == scores["images"]
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("RESULTS", str(folder))
    assert program.main([str(run), *FLOAT32, "--predictions=$RESULTS/predictions.parquet"]) == 0
    with parquet.open("rb") as file:
        assert pyarrow.parquet.read_table(file).num_rows == scores["images"]
    shutil.copytree(run / "best", folder / "best")
    capsys.readouterr()
    for main, arguments in ((program.main, [folder]), (export, [run, "--to", "onnx", "--out", folder / "model.onnx"])):
        assert main([*map(str, arguments)]) == 2
        assert "bytes in its name that are not UTF-8" in capsys.readouterr().err


def test_two_models_are_compared_on_what_both_know(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one takes images of another size, and knows its attributes in another order."""
    other = write_model(tmp_path / "other", attributes=("Bald", "Male", "Smiling"), image_size=(48, 40), crop="full")
    mine, _ = evaluate(tmp_path, run, "--split", "all", "--against", other)
    root = json.loads((run / "best/model.json").read_text())["training"]["config"]["data"]["root"]
    its, _ = evaluate(tmp_path, other, "--split", "all", "--data.root", root)
    against = mine["against"]
    assert against["model"] == str(other)
    assert list(against["attributes"]) == ["Smiling", "Male"]
    for name, row in against["attributes"].items():
        for score, each in row.items():
            assert each["first"] == pytest.approx(mine["attributes"][name][score], abs=1e-6)
            assert each["second"] == pytest.approx(its["attributes"][name][score], abs=1e-6)
            assert each["difference"] == pytest.approx(each["first"] - each["second"])
            assert each["interval"][0] <= each["interval"][1]
    mean = np.mean([row["accuracy"]["difference"] for row in against["attributes"].values()])
    assert against["mean"]["accuracy"]["difference"] == pytest.approx(mean)
    printed = capsys.readouterr().out
    assert f"against {other}:" in printed
    assert f"{against['mean']['accuracy']['difference']:+.4f}" in printed


def test_it_is_said_what_the_other_model_was_trained_on(
    run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its split was drawn, and has images for training that are the official split's for the test."""
    drawn = DataConfig(root=faces, split="image")
    table = read_table(faces).select(("Male", "Bald"))
    splits = make_splits(table, drawn)
    training = {"data": digest(table, splits.train, splits.valid), "config": {"data": {"split": "image"}}}
    other = write_model(tmp_path / "other", attributes=("Male", "Bald"), training=training)
    official = make_splits(table, DataConfig(root=faces))
    seen = len(np.intersect1d(official.test, splits.train))
    assert seen
    evaluate(tmp_path, run, "--split", "test", "--against", other)
    said = capsys.readouterr().err
    whole = f"{seen} of the {len(official.test)} images in the test split"
    assert f"--against {other}: the model was trained on {whole}: scores flatter it" in said
    evaluate(tmp_path, run, "--split", "test", "--against", run / "best")
    assert "--against" not in capsys.readouterr().err


def own_data(
    faces: Path, folder: Path, *columns: str, split: Sequence[str] = (), group: bool = False, rows: int = 10
) -> Path:
    """Ten of the faces as a data set with a table.csv, without splits and identities where they are not asked for."""
    (folder / "images").mkdir(parents=True)
    table = read_table(faces).select(columns)
    assert table.identity is not None
    lines = [",".join(("file", *columns, *(["split"] if split else []), *(["group"] if group else [])))]
    for row in range(rows):
        shutil.copy(table.store.path(row), folder / "images")
        more = [*split[row % len(split) :][:1]] if split else []
        more += [str(table.identity[row])] if group else []
        lines.append(",".join((table.names[row], *map(str, table.targets[row]), *more)))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def model_of(faces: Path, folder: Path, seed: int = 0, **data: Any) -> Path:
    """A model as if it had been trained on the faces with these settings of the data."""
    config = DataConfig(root=faces, attributes=ATTRIBUTES, image_size=(40, 32), crop="full", **data)
    table = read_table(faces).select(ATTRIBUTES)
    splits = make_splits(table, config)
    training = {
        "config": {"data": config.model_dump(mode="json")}, "data": digest(table, splits.train, splits.valid)
    }  # fmt: skip
    return write_model(folder, seed, training=training)


def test_another_data_set_without_splits(run: Path, faces: Path, tmp_path: Path) -> None:
    root = own_data(faces, tmp_path / "own", "Male", "Smiling", "Eyeglasses", "Bald")
    result, rows = evaluate(tmp_path, run, "--data.root", root, "--split", "all")
    assert result["images"] == 10
    assert "identity" not in rows[0]
    _, on_faces = evaluate(tmp_path, run, "--split", "all")
    found, wanted = ([float(row["Smiling_probability"]) for row in each] for each in (rows, on_faces[:10]))
    assert found == pytest.approx(wanted, abs=1e-6)


# --- each split asks for itself


def test_a_data_set_with_a_test_split_alone_is_scored(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is said of a training that is none of its business, whatever was drawn for that."""
    model = model_of(faces, tmp_path / "model", subset=40)
    root = own_data(faces, tmp_path / "own", *ATTRIBUTES, "Bald", split=["test"], rows=60)
    result, rows = evaluate(tmp_path, model, "--data.root", root, "--split", "test")
    assert result["images"] == 60
    assert [row["file"] for row in rows] == read_table(faces).names[:60]
    captured = capsys.readouterr()
    assert "test: 60 images" in captured.out
    assert "warning" not in captured.err


def test_the_sentence_for_a_split_that_is_not_there_names_those_that_are(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(faces, tmp_path / "model")
    root = own_data(faces, tmp_path / "own", *ATTRIBUTES, split=["train", "test"])
    assert program.main([str(model), "--data.root", str(root), "--split", "valid", *FLOAT32]) == 2
    said = capsys.readouterr().err
    assert "the validation split of" in said
    assert "is empty under data.split official (training 5, validation 0, test 5 images)" in said
    assert "choose --split train, --split test or --split all" in said
    for split, images in (("train", 5), ("test", 5), ("all", 10)):  # the remedies are some
        assert evaluate(tmp_path, model, "--data.root", root, "--split", split)[0]["images"] == images


@pytest.mark.parametrize("of_training", ["official", "identity"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_table_without_splits_is_one(
    of_training: str, split: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(faces, tmp_path / "model", split=of_training)
    root = own_data(faces, tmp_path / "own", *ATTRIBUTES)
    assert program.main([str(model), "--data.root", str(root), "--split", split, *FLOAT32]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"--split {split} asks for a split, and {root} has none of its own" in said
    assert said.endswith("score all of it by --split all")
    assert evaluate(tmp_path, model, "--data.root", root, "--split", "all")[0]["images"] == 10


def test_a_random_split_of_the_training_is_not_drawn_for_other_data(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(faces, tmp_path / "model", split="identity")
    root = own_data(faces, tmp_path / "own", *ATTRIBUTES, split=["train", "valid", "test", "test"], group=True, rows=40)
    result, _ = evaluate(tmp_path, model, "--data.root", root)
    assert result["images"] == 20
    said = capsys.readouterr().err
    assert f"{root} is not the data that the model was trained on" in said
    assert "its own split is used; --data.split identity draws one" in said
    drawn = ("--data.split", "identity", "--data.split-fractions", 0.4, 0.3, 0.3)
    evaluate(tmp_path, model, "--data.root", root, *drawn)
    assert "not the data" not in capsys.readouterr().err


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_data_of_the_training_has_its_random_split_wherever_it_lies(
    split: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(faces, tmp_path / "model", split="image", split_seed=3, subset=40)
    moved = Path(shutil.copytree(faces, tmp_path / "moved"))
    _, there = evaluate(tmp_path, model, "--split", split)
    _, rows = evaluate(tmp_path, model, "--data.root", moved, "--split", split)
    table = read_table(faces)
    splits = make_splits(table, DataConfig(split="image", split_seed=3, subset=40))
    assert [row["file"] for row in rows] == [table.names[row] for row in getattr(splits, split)]
    assert rows == there
    said = capsys.readouterr().err
    assert "not the data" not in said
    assert ("Identities in the test split that are in the training images too" in said) == (split == "test")


def test_images_that_the_model_was_trained_on_are_counted(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another split of the same data tests on them."""
    model, fractions = model_of(faces, tmp_path / "model", subset=100), (0.2, 0.3, 0.5)
    options = ["--data.split", "image", "--data.split-fractions", *fractions]
    _, rows = evaluate(tmp_path, model, *options)
    table = read_table(faces)
    trained = {table.names[row] for row in make_splits(table, DataConfig(subset=100)).train}
    seen = sum(row["file"] in trained for row in rows)
    assert seen > 0
    assert f"The model was trained on {seen} of the 100 images in the test split" in capsys.readouterr().err


def test_images_of_other_splits_need_not_be_there(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where somebody has the annotations of a whole data set, and the images of its test."""
    root, model = Path(shutil.copytree(faces, tmp_path / "faces")), model_of(faces, tmp_path / "model")
    folded = model_of(faces, tmp_path / "folded", fold="2/5")
    table = read_table(root)
    splits = make_splits(table, DataConfig())
    for row in (*splits.train, *splits.valid):
        table.store.path(row).unlink()
    (table.store.folder / "more.jpg").write_bytes(table.store.path(splits.test[0]).read_bytes())
    result, rows = evaluate(tmp_path, model, "--data.root", root)
    assert [row["file"] for row in rows] == [table.names[row] for row in splits.test]
    assert evaluate(tmp_path, folded, "--data.root", root)[1] == rows  # which validated on a fold of those that lack
    assert "lacks" not in (said := capsys.readouterr().err)
    assert "more.jpg" not in said
    lost = table.store.path(splits.test[1])
    lost.unlink()
    assert program.main([str(model), "--data.root", str(root), *FLOAT32]) == 2
    assert f"lacks 1 of the {len(splits.test)} images of the split test ({lost.name})" in capsys.readouterr().err
    result, _ = evaluate(tmp_path, model, "--data.root", root, "--data.missing", "skip")
    assert result["images"] == len(splits.test) - 1
    assert program.main([str(model), "--data.root", str(root), "--split", "valid", *FLOAT32]) == 2


@pytest.mark.parametrize("split", ["test", "all"])
def test_one_image_is_scored_and_compared(
    split: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model, other = (model_of(faces, tmp_path / name, seed) for seed, name in enumerate(["model", "other"]))
    root = own_data(faces, tmp_path / "own", *ATTRIBUTES, split=["test"], group=True, rows=1)
    result, rows = evaluate(tmp_path, model, "--data.root", root, "--split", split, "--against", other)
    assert len(rows) == result["images"] == 1
    assert result["mean"]["roc_auc"] is None
    assert result["against"]["mean"]["accuracy"]["interval"] is None
    captured = capsys.readouterr()
    assert f"{split}: 1 image\n" in captured.out
    where = "the test split" if split == "test" else root
    assert f"ROC AUC is undefined for {', '.join(ATTRIBUTES)} in {where}: every image" in captured.err
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


def test_the_splits_can_be_others_than_in_training(run: Path, faces: Path, tmp_path: Path) -> None:
    options = ("--data.split", "image", "--data.split-seed", 3, "--data.split-fractions", 0.5, 0.3, 0.2)
    result, rows = evaluate(tmp_path, run, "--split", "test", *options)
    table = read_table(faces)
    splits = make_splits(table, DataConfig(split="image", split_seed=3, split_fractions=(0.5, 0.3, 0.2)))
    assert [row["file"] for row in rows] == [table.names[row] for row in splits.test]
    assert result["images"] == 40


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere holds no model"),
        (["RUN", "--data.root", "nowhere"], "data.root is nowhere, which is not a folder"),
        (["RUN", "--data.root", "OWN", "--split", "all"], "has no labels for Eyeglasses"),
        (["RUN", "--json", "missing/scores.json"], "--json missing/scores.json cannot be written"),
        (["RUN", "--csv", "file/scores.csv"], "--csv file/scores.csv cannot be written: file is not a folder"),
        (["RUN", "--predictions", "rows.txt"], "--predictions rows.txt ends neither in .parquet nor in .csv"),
        (["RUN", "--against", "nowhere"], "nowhere holds no model"),
        (["RUN", "--against", "OTHER"], "has no attribute in common"),
        (["OTHER"], "does not say which data it was trained on"),
        (["RUN", "--batch-size", "0"], "--batch-size is 0"),
        (["RUN", "--data.threads", "0"], "data.threads is 0"),
        (["RUN", "--data.split-fractions", "0.5", "0.1", "0.1"], "add up to 0.7"),
        (["ONNX", "--precision", "bf16"], "--precision bf16 does not go with"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: list[str],
    sentence: str,
    run: Path,
    exported: Path,
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    places = {"RUN": run, "ONNX": exported}
    if "OWN" in arguments:
        places["OWN"] = own_data(faces, tmp_path / "own", "Smiling", "Male")
    if "OTHER" in arguments:
        places["OTHER"] = write_model(tmp_path / "other", attributes=("Bald", "Young"))
    status = program.main([str(places.get(each, each)) for each in arguments])
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("distrib: error: ")
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once(run: Path) -> None:
    done = launch(run, "--json", "missing/scores.json", script="distrib/evaluate.py")
    assert done.returncode != 0
    assert done.stderr.count("distrib: error: ") == 1
    assert "--json missing/scores.json cannot be written" in done.stderr


def test_an_unknown_option_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main([str(run), "--data.rot", "x"])
    assert stop.value.code == 2
    assert "--data.root" in capsys.readouterr().err
