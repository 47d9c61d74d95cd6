"""What `train.precision: auto` comes to on a CPU, which has to measure, and on GPUs, which are known."""

import json
from pathlib import Path

import pytest
import torch
from launching import read_events
from small_run import settings

from distrib import train as program
from distrib.config import Config, read_yaml
from distrib.ranks import machine
from distrib.ranks.machine import resolve
from distrib.training import precision
from distrib.training.precision import Precision, choose_precision, measure

CPU = Config().replace("run", device="cpu")


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has instructions for bf16, whatever this one has."""
    monkeypatch.setattr(machine, "cpu_computes_in_bf16", lambda: True)


def measured(monkeypatch: pytest.MonkeyPatch, no: float, bf16: float) -> list[int]:
    """Let a measurement find these seconds; the list has an entry for each time that somebody measures."""
    asked: list[int] = []

    def found(_: Config, ranks: int) -> dict[str, float]:
        asked.append(ranks)
        return {"no": no, "bf16": bf16}

    monkeypatch.setattr(precision, "measure", found)
    return asked


@pytest.mark.parametrize(("no", "bf16", "chosen"), [(2.0, 1.0, "bf16"), (1.0, 1.4, "no"), (1.05, 1.0, "no")])
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch, no: float, bf16: float, chosen: str) -> None:
    measured(monkeypatch, no, bf16)
    found = choose_precision(CPU, ranks=2)
    assert found.name == chosen
    assert found.reason == f" (measured here: bf16 is {no / bf16:.2f} times as fast as float32)"


def test_a_real_measurement_takes_a_moment_and_draws_nothing_from_the_training() -> None:
    config = CPU.replace("data", image_size=(32, 32))
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    seconds = measure(config, ranks=2)
    assert torch.equal(torch.rand(1), wanted)
    assert set(seconds) == {"no", "bf16"}
    assert all(0 < value < 5 for value in seconds.values())


@pytest.mark.usefixtures("bf16")
def test_only_a_training_leaves_it_open() -> None:
    assert resolve(CPU).train.precision == "auto"
    assert resolve(CPU, like="bf16").train.precision == "bf16"
    for trained in ("no", "fp16"):
        assert resolve(CPU, like=trained).train.precision == "no"


def test_a_cpu_without_bf16_has_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_computes_in_bf16", lambda: False)
    assert resolve(CPU).train.precision == "no"
    assert resolve(CPU, like="bf16").train.precision == "no"


@pytest.mark.parametrize(
    ("native", "capability", "wanted"),
    [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"), (False, (7, 0), "fp16"), (False, (6, 1), "no")],
)
def test_a_gpu_takes_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, native: bool, capability: tuple[int, int], wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    config = Config().replace("run", device="cuda").replace("data", decoder="torch")
    assert resolve(config).train.precision == wanted


@pytest.mark.usefixtures("bf16")
def test_a_run_measures_once_says_so_and_keeps_what_it_has_chosen(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = measured(monkeypatch, no=1.0, bf16=3.0)
    folder = tmp_path / "run"
    options = [str(each) for each in settings(faces, folder, "--train.precision", "auto", "--train.epochs", 1)]
    assert program.main(options) == 0
    assert asked == [1]
    assert "precision no (measured here: bf16 is 0.33 times as fast as float32)" in capsys.readouterr().out
    (start,) = [event for event in read_events(folder) if event["event"] == "start"]
    assert (start["precision"], start["precision_seconds"]) == ("no", {"no": 1.0, "bf16": 3.0})
    assert read_yaml(folder / "config.yaml").train.precision == "no"

    measured(monkeypatch, no=3.0, bf16=1.0)  # another moment, in which the answer would be another
    assert program.main([*options, "--train.epochs", "2", "--resume", "auto"]) == 0
    assert asked == [1]
    starts = [event for event in read_events(folder) if event["event"] == "start"]
    assert [start["precision"] for start in starts] == ["no", "no"]


def test_a_run_of_another_machine_is_measured_anew_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, no=3.0, bf16=1.0)
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "start", "precision": "fp16"}) + "\n")
    config = CPU.replace("run", folder=tmp_path, resume="auto")
    assert choose_precision(config, ranks=1) == Precision("bf16", {"no": 3.0, "bf16": 1.0})
    assert "this run was trained in fp16, which this CPU does not compute in" in capsys.readouterr().err


def test_a_run_that_its_launcher_starts_again_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch, no=3.0, bf16=1.0)
    start = {"event": "start", "precision": "no", "launch": "process 7 of 1.00 on here"}
    (tmp_path / "events.jsonl").write_text(json.dumps(start) + "\n")
    config = CPU.replace("run", folder=tmp_path)
    assert config.run.resume == "never"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr("distrib.runs.folder.launch_id", lambda: "process 7 of 1.00 on here")
    assert choose_precision(config, ranks=1) == Precision("no", {})
    assert asked == []
