from pathlib import Path

import numpy as np
import pytest
from sentences import refusal

from distrib.data.store import FolderStore
from distrib.data.table import Table, read_table
from distrib.scoring.predictions import Predictions, load_predictions, save_predictions

NAMES = ["a.jpg", "sub folder/b.png", "Gesicht ü.jpg", "\N{GRINNING FACE}.jpg", 'quo"te\\.jpg']

MADE_FROM = "these weights and these images"


def example(split: str = "test", people: bool = True, images: int = 5) -> Predictions:
    generator = np.random.default_rng(2)
    return Predictions(
        split=split,
        attributes=("Smiling", "5_o_Clock_Shadow"),
        names=NAMES[:images],
        rows=np.arange(images, dtype=np.int64) * 3,
        logits_NA=generator.normal(size=(images, 2)).astype(np.float32),
        targets_NA=generator.integers(0, 2, (images, 2)).astype(np.uint8),
        identity_N=np.arange(images, dtype=np.int64) + 10**12 if people else None,
    )


def assert_same(found: Predictions, wanted: Predictions) -> None:
    assert (found.split, found.attributes, found.names) == (wanted.split, wanted.attributes, wanted.names)
    for name in ("rows", "logits_NA", "targets_NA", "identity_N"):
        one, other = getattr(found, name), getattr(wanted, name)
        if other is None:
            assert one is None
        else:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    kept = [example("valid", people=False, images=3), example("test")]
    kept[1].logits_NA[0] = [np.nan, -np.inf]
    save_predictions(tmp_path / "predictions.npz", kept, MADE_FROM)
    found = load_predictions(tmp_path / "predictions.npz", MADE_FROM)
    assert list(found) == ["valid", "test"]
    for each in kept:
        assert_same(found[each.split], each)
        assert len(found[each.split]) == len(each.names)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"], "nothing is left over"


def test_saving_replaces_what_was_there(tmp_path: Path) -> None:
    save_predictions(tmp_path / "predictions.npz", [example("valid"), example("test")], MADE_FROM)
    save_predictions(tmp_path / "predictions.npz", [example("test", images=2)], MADE_FROM)
    found = load_predictions(tmp_path / "predictions.npz", MADE_FROM)
    assert list(found) == ["test"]
    assert_same(found["test"], example("test", images=2))


def test_predictions_of_a_table_are_of_its_rows(faces: Path) -> None:
    table: Table = read_table(faces).select(["Male", "Smiling"])
    rows = np.array([7, 3, 100], np.int64)
    logits = np.zeros((3, 2), np.float32)
    found = Predictions.of("valid", table, rows, logits)
    assert found.attributes == ("Male", "Smiling")
    for place, row in enumerate(rows):
        assert found.names[place] == table.names[row]
        assert found.targets_NA[place].tolist() == table.targets[row].tolist()
        assert table.identity is not None
        assert found.identity_N is not None
        assert found.identity_N[place] == table.identity[row]
    assert found.logits_NA is logits


def test_a_table_without_people_gives_predictions_without(tmp_path: Path) -> None:
    table = Table(FolderStore(tmp_path, ["a", "b"]), ["a", "b"], ("x",), np.array([[0], [1]], np.uint8), None, None, ())
    assert Predictions.of("test", table, np.array([1]), np.zeros((1, 1), np.float32)).identity_N is None


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "half", "bit rot", "array", "other arrays", "pickle"])
def test_a_file_that_holds_no_predictions_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "predictions.npz"
    save_predictions(file, [example()], MADE_FROM)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("hello\n" * 99)
    elif damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "bit rot":
        place = content.index(b"test/logits.npy") + 100
        file.write_bytes(
            content[:place] + bytes(255 - byte for byte in content[place : place + 8]) + content[place + 8 :]
        )
    elif damage == "array":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif damage == "other arrays":
        np.savez(file, weights=np.zeros(3))
    else:
        np.savez(file, index=np.array([{"test": {}}], dtype=object))
    refusal(lambda: load_predictions(file, MADE_FROM), str(file), "distrib explain")


def test_predictions_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "predictions.npz"
    save_predictions(file, [example()], "one model")
    refusal(lambda: load_predictions(file, "another"), str(file), "another model")
