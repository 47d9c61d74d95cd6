import csv
import errno
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from distrib.base.errors import UserError
from distrib.base.files import write_whole
from distrib.base.json import finite
from distrib.config import SCORES, Config, read_yaml
from distrib.runs.folder import BY_ATTRIBUTE, RunFolder
from distrib.runs.metrics import ADDED, METRICS, SPEED, read_speed
from distrib.scoring.metrics import Scores
from distrib.training.start import choose

SCORES_OF_TWO = Scores(("Bald", "Smiling"), {name: np.array([0.25, 0.75]) for name in SCORES})
LOGITS = np.linspace(-3, 3, 10, dtype=np.float32).reshape(5, 2)
BY_NAN = {"epoch": 2, "score": math.nan, "by": {"Bald": (0.5, math.inf)}}


def row(epoch: int) -> dict[str, float]:
    return {name: epoch if name == "epoch" else epoch + 0.5 for name in METRICS}


def opened(path: Path, resuming: bool = False) -> RunFolder:
    folder = RunFolder(path)
    folder.check("auto" if resuming else "never")
    folder.make()
    folder.open()
    return folder


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def filled(path: Path, epochs: int) -> RunFolder:
    folder = opened(path)
    for epoch in range(1, epochs + 1):
        folder.epoch(row(epoch), SCORES_OF_TWO)
    return folder


def test_the_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    opened(tmp_path / "runs/today/first")
    assert (tmp_path / "runs/today/first").is_dir()
    assert list((tmp_path / "runs/today/first").iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints", "best"])
def test_a_new_run_does_not_start_over_an_earlier_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="--resume auto") as error:
        opened(tmp_path)
    assert str(tmp_path) in str(error.value)
    opened(tmp_path, resuming=True)


def test_a_run_from_elsewhere_without_a_checkpoint_of_its_own_may_begin_there_again(tmp_path: Path) -> None:
    folder, elsewhere = RunFolder(tmp_path / "run"), tmp_path / "other/checkpoints/step-00000004"
    (folder.path / "best").mkdir(parents=True)
    folder.event("start", checkpoint=None)
    assert folder.origin() is None
    folder.event("start", checkpoint=str(elsewhere))
    assert folder.origin() == elsewhere
    folder.check(str(elsewhere))
    for other in ("never", str(elsewhere.with_name("step-00000006"))):
        with pytest.raises(UserError, match="holds a run already"):
            folder.check(other)
    with pytest.raises(UserError, match="which is gone, and has no checkpoint of its own yet"):
        choose(folder, "auto")
    (folder.checkpoints / "step-00000005").mkdir(parents=True)
    assert folder.origin() is None
    with pytest.raises(UserError, match="holds a run already"):
        folder.check(str(elsewhere))


def test_a_folder_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "slurm-12.out").write_text("hello")
    opened(tmp_path)
    assert (tmp_path / "slurm-12.out").read_text() == "hello"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(UserError, match=r"run\.folder") as error:
            opened(path)
        assert str(path) in str(error.value)


def test_the_configuration_is_a_valid_config(tmp_path: Path) -> None:
    config = Config().replace("optim", lr=0.25)
    opened(tmp_path).write_config(config.to_yaml())
    assert read_yaml(tmp_path / "config.yaml") == config


def test_metrics_are_an_epoch_a_row_under_one_header(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "epoch,step,train_loss,val_loss,val_accuracy,val_balanced_accuracy,val_precision,val_recall,val_f1,val_roc_auc,"
        "val_average_precision,lr,images_per_second,seconds"
    )
    assert len(lines) == 4
    rows = table(tmp_path / "metrics.csv")
    assert [int(each["epoch"]) for each in rows] == [1, 2, 3]
    assert [float(each["val_f1"]) for each in rows] == [1.5, 2.5, 3.5]


def test_metrics_by_attribute_are_an_epoch_and_attribute_a_row(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    rows = table(tmp_path / "metrics_by_attribute.csv")
    assert tuple(rows[0]) == BY_ATTRIBUTE == ("epoch", "attribute", *SCORES)
    assert [(each["epoch"], each["attribute"]) for each in rows] == [
        ("1", "Bald"), ("1", "Smiling"), ("2", "Bald"), ("2", "Smiling"),
    ]  # fmt: skip
    assert [float(each["roc_auc"]) for each in rows] == [0.25, 0.75] * 2


def test_numbers_come_back_to_the_bit_and_odd_names_whole(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    value = 0.1 + 0.2
    names = ('has, a comma and "quotes"', "Bärtig")
    folder.epoch({**row(1), "train_loss": value}, Scores(names, {name: np.array([value, np.nan]) for name in SCORES}))
    assert float(table(tmp_path / "metrics.csv")[0]["train_loss"]) == value
    by_attribute = table(tmp_path / "metrics_by_attribute.csv")
    assert [each["attribute"] for each in by_attribute] == list(names)
    assert float(by_attribute[0]["f1"]) == value
    assert math.isnan(float(by_attribute[1]["f1"]))


@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 9])
def test_rows_of_later_epochs_are_forgotten(tmp_path: Path, epoch: int) -> None:
    folder = filled(tmp_path, 3)
    for number in (1, 2, 3):
        folder.speed(dict.fromkeys(SPEED) | {"epoch": number})
    folder.forget_after(epoch, 100)
    kept = [each for each in (1, 2, 3) if each <= epoch]
    assert [int(each["epoch"]) for each in table(tmp_path / "metrics.csv")] == kept
    assert [int(each["epoch"]) for each in table(tmp_path / "speed.csv")] == kept
    by_attribute = [int(each["epoch"]) for each in table(tmp_path / "metrics_by_attribute.csv")]
    assert by_attribute == [each for each in kept for _ in range(2)]
    folder.epoch(row(len(kept) + 1), SCORES_OF_TWO)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,")
    assert len(lines) == len(kept) + 2
    assert not list(tmp_path.glob(".*"))


def test_an_earlier_versions_speed_csv_is_read_and_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    folder, before = filled(tmp_path, 2), SPEED[: -len(ADDED)]
    rows = [[str(number), *["0.5"] * (len(before) - 1)] for number in (1, 2)]
    (tmp_path / "speed.csv").write_text("".join(f"{','.join(row)}\n" for row in (before, *rows)))
    earlier = read_speed(tmp_path)
    assert [(row["epoch"], row["report_share"]) for row in earlier] == [(1, 0), (2, 0)]
    folder.forget_after(2, 100)
    assert read_speed(tmp_path) == earlier
    folder.speed(dict.fromkeys(SPEED, 0.25) | {"epoch": 3})
    header, *lines = (tmp_path / "speed.csv").read_text().splitlines()
    assert header == ",".join(SPEED)
    assert {line.count(",") for line in lines} == {len(SPEED) - 1}
    assert [row["report_share"] for row in read_speed(tmp_path)] == [0, 0, 0.25]


def test_what_a_stopped_process_did_is_forgotten_where_it_will_be_done_again(tmp_path: Path) -> None:
    folder = filled(tmp_path, 1)
    for epoch, step in ((0, 3), (1, 8), (1, 10), (1, 15)):
        folder.speed(dict.fromkeys(SPEED, 0.5) | {"epoch": epoch, "step": step})
    folder.forget_after(1, 10)
    assert [(row["epoch"], row["step"]) for row in read_speed(tmp_path)] == [(0, 3), (1, 8), (1, 10)]
    folder.forget_after(0, 0)
    assert read_speed(tmp_path) == []


def test_epochs_are_compared_as_numbers(tmp_path: Path) -> None:
    folder = filled(tmp_path, 12)
    folder.forget_after(9, 100)
    assert [int(each["epoch"]) for each in table(tmp_path / "metrics.csv")] == list(range(1, 10))


def test_a_row_cut_off_by_a_crash_is_forgotten(tmp_path: Path) -> None:
    folder = filled(tmp_path, 2)
    for name in ("metrics.csv", "metrics_by_attribute.csv"):
        with (tmp_path / name).open("a") as stream:
            stream.write("2,17,0.33")
    folder.forget_after(2, 100)
    assert [int(each["epoch"]) for each in table(tmp_path / "metrics.csv")] == [1, 2]
    assert len(table(tmp_path / "metrics_by_attribute.csv")) == 4


@pytest.mark.parametrize("torn", ["", "epoch,step,tr"])
def test_a_file_cut_off_in_its_header_is_begun_anew(tmp_path: Path, torn: str) -> None:
    # A full disk leaves an empty file: it is created before anything is written.
    folder = opened(tmp_path)
    (tmp_path / "metrics.csv").write_text(torn)
    folder.forget_after(0, 0)
    folder.epoch(row(1), SCORES_OF_TWO)
    (only,) = table(tmp_path / "metrics.csv")
    assert tuple(only) == METRICS
    assert float(only["train_loss"]) == 1.5


def test_what_is_written_whole_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "file", "text")
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_nothing_to_forget(tmp_path: Path) -> None:
    opened(tmp_path).forget_after(3, 100)
    assert list(tmp_path.iterdir()) == []


def test_events_are_a_line_each_in_order(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.event("start", ranks=2, attributes=("Bald",), note="Bärtig\nsecond line")
    opened(tmp_path, resuming=True).event("end", epochs=3)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["start", "end"]
    assert events[0]["note"] == "Bärtig\nsecond line"
    assert events[0]["attributes"] == ["Bald"]
    assert all(event["time"][:2] == "20" for event in events)


def test_best_is_replaced_whole(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    last = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    folder.save_best({"a": torch.zeros(2), "stale": torch.ones(1)}, LOGITS, {"epoch": 1}, "# first")
    folder.save_best({"a": last}, LOGITS + 1, BY_NAN, "# last")
    files = ["README.md", "model.json", "model.safetensors", "validation.safetensors"]
    assert sorted(path.name for path in folder.best.iterdir()) == files
    assert (folder.best / "README.md").read_text() == "# last"
    kept = safetensors.torch.load_file(folder.best / "validation.safetensors")["logits"]
    assert torch.equal(kept, torch.from_numpy(LOGITS + 1))
    loaded = safetensors.torch.load_file(folder.best / "model.safetensors")
    assert set(loaded) == {"a"}
    assert torch.equal(loaded["a"], last)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder.best / "model.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"epoch": 2, "score": None, "by": {"Bald": [0.5, None]}}
    folder.forget_former_best()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


def saved_best(folder: RunFolder, *epochs: int) -> None:
    for epoch in epochs:
        folder.save_best({"a": torch.full((2,), float(epoch))}, LOGITS, {"epoch": epoch}, "")


def kept(tmp_path: Path) -> dict[str, float]:
    """Folder -> the number in the weights in it."""
    files = tmp_path.glob("*/model.safetensors")
    return {file.parent.name: float(safetensors.torch.load_file(file)["a"][0]) for file in files}


@pytest.mark.parametrize(
    ("epoch", "passed_over", "wanted", "gone"),
    [
        (3, False, {"best": 3}, False),
        (1, False, {"best": 1}, False),
        (1, True, {"best": 1, "passed-over-best": 3}, False),
        (2, False, {}, True),
        (0, True, {"passed-over-best": 3}, True),
    ],
)
def test_the_best_that_the_checkpoint_knows_comes_back(
    tmp_path: Path, epoch: int, passed_over: bool, wanted: dict[str, float], gone: bool
) -> None:
    folder = opened(tmp_path)
    saved_best(folder, 1, 2, 3)  # and no checkpoint came on the disk after the first
    assert kept(tmp_path) == {"best": 3, "former-best": 1}
    assert opened(tmp_path, resuming=True).recall_best(epoch, passed_over) is gone
    assert kept(tmp_path) == wanted


def test_without_links_the_former_best_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    saved_best(opened(tmp_path), 1, 2)
    assert kept(tmp_path) == {"best": 2, "former-best": 1}


def test_best_survives_a_crash_between_the_renames(tmp_path: Path) -> None:
    opened(tmp_path).save_best({"a": torch.zeros(2)}, LOGITS, {"epoch": 1}, "")
    (tmp_path / "best").rename(tmp_path / ".best.old")
    (tmp_path / ".best.staged").mkdir()
    (tmp_path / ".best.staged/model.json").write_text("half")
    folder = opened(tmp_path, resuming=True)
    assert json.loads((folder.best / "model.json").read_text()) == {"epoch": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1.5, 1.5),
        (math.nan, None),
        (math.inf, None),
        (3, 3),
        ("nan", "nan"),
        (None, None),
        (True, True),
        ({"a": [math.nan, {"b": (1.0, -math.inf)}]}, {"a": [None, {"b": [1.0, None]}]}),
    ],
)
def test_finite(value: Any, wanted: Any) -> None:
    assert finite(value) == wanted


# --- one run a folder

HOLD = """
import sys, time
from pathlib import Path
from distrib.runs.folder import RunFolder
RunFolder(Path(sys.argv[1])).lock()
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the folder."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    yield other
    other.kill()
    other.wait()


def test_a_folder_in_use_is_refused_and_its_user_is_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
        RunFolder(tmp_path).lock()


def test_a_killed_run_leaves_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / "run.lock").exists()
    folder = RunFolder(tmp_path)
    folder.lock()
    assert str(os.getpid()) in (tmp_path / "run.lock").read_text()
    folder.unlock()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_waits_for_its_earlier_self(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    threading.Timer(1, holder.kill).start()
    folder = RunFolder(tmp_path)
    folder.lock(patience=20)
    folder.unlock()


def test_who_unlocks_does_not_take_the_lock_of_who_came_after(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    first.unlock()
    second.lock()
    first.unlock()
    with pytest.raises(UserError, match="in use"):
        first.lock()
    second.unlock()


def test_what_a_crash_left_half_written_is_swept(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in (".step-00000004.staged", ".step-00000002.old", "step-00000002", ".step-00000001.old"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "file").write_text(name)
    (tmp_path / ".metrics.csv.staged").write_text("half")
    opened(tmp_path, resuming=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000001", "step-00000002"]
    assert (checkpoints / "step-00000001/file").read_text() == ".step-00000001.old"
    assert (checkpoints / "step-00000002/file").read_text() == "step-00000002"
    assert not list(tmp_path.glob(".*"))
