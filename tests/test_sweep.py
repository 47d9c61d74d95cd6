"""Studies through the command, with real trainings."""

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import torch
import yaml
from launching import ROOT, clean_environment, read_events, read_metrics
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sentences import refusal
from small_run import assert_same_training
from wandb_log import read_records, wandb_files

from distrib.cli.sweep import main
from distrib.config import read_yaml
from distrib.ranks.machine import cpu_computes_in_bf16
from distrib.studies.definition import read_study
from distrib.studies.run import check, share
from distrib.training.residency import _room

SMALL = {
    "data.attributes": ["Smiling", "Male"], "data.image_size": [32, 32], "train.batch_size": 16, "train.epochs": 2,
    "explain.after_training": False, "tracking.mode": "disabled", "run.device": "cpu", "run.ranks": 1,
    "train.precision": "no",
}  # fmt: skip


def write_study(folder: Path, faces: Path, name: str = "little", **fields: object) -> Path:
    """A study of trainings that take seconds; a field named `set` is added to what all of them set."""
    extra = fields.pop("set", {})
    assert isinstance(extra, Mapping)
    whole = {"sampler": "grid", "objective": "val_loss", **fields, "set": {**SMALL, "data.root": str(faces), **extra}}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(whole, sort_keys=False))
    return file


def command(file: Path, *options: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "distrib",
        "sweep",
        str(file),
        "--folder",
        str(file.parent / "study"),
        *map(str, options),
    ]


def sweep(file: Path, *options: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(file, *options),
        cwd=ROOT,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def trials(folder: Path) -> list[dict[str, str]]:
    """The rows of study.csv."""
    with (folder / "study/study.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_study_is_trained_told_and_gone_on_with(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    variants = {"plain": {}, "broken": {"model.weights": str(weights)}, "lower": {"optim.lr": 1e-4}}
    file = write_study(tmp_path, faces, space={"how": {"variants": variants}}, budget={"trials": 2}, seeds=[5])
    done = sweep(file)
    assert f"trial 1: failed: model.weights {weights}" in done.stdout
    assert "little-0000: epoch 2 of 2, val_loss " in done.stdout
    assert "; 1 to go, about " in done.stdout
    plain, broken = trials(tmp_path)
    assert (plain["state"], broken["state"]) == ("finished", "failed")
    assert str(weights) in broken["reason"]
    run = tmp_path / "study" / plain["runs"]
    rows = read_metrics(run)
    assert float(plain["val_loss"]) == min(row["val_loss"] for row in rows)
    assert len(rows) == int(plain["epochs"]) == 2
    assert read_yaml(run / "config.yaml").tracking.group == "little"

    # The best configuration is one that --config takes, and trains the same.
    assert main([str(file), "--folder", str(tmp_path / "study"), "--best"]) == 0
    printed = capsys.readouterr().out
    best = tmp_path / "best.yaml"
    best.write_text(printed)
    assert "Trial 0" in printed
    assert read_yaml(best).train.seed == 5
    assert read_yaml(tmp_path / "study/best.yaml") == read_yaml(best)
    assert "little" in (tmp_path / "study/study/index.html").read_text()

    # A larger budget resumes the study; what has been trained is not trained again.
    write_study(tmp_path, faces, space={"how": {"variants": variants}}, budget={"trials": 3}, seeds=[5])
    sweep(file)
    assert [each["state"] for each in trials(tmp_path)] == ["finished", "failed", "finished"]
    assert len(read_events(run, "start")) == 1

    # What a trial failed by is mended, and it is tried again.
    shutil.copy(run / "best/model.safetensors", weights)
    done = sweep(file, "--retry-failed")
    assert "again:   1 failed trial" in done.stdout
    plain, broken, _, again = trials(tmp_path)
    assert (broken["state"], again["state"], again["how"]) == ("failed", "finished", "broken")
    assert "tried again as trial 3" in broken["reason"]

    # What the study is of does not change under its trials, nor is another one's best given out for its own.
    write_study(tmp_path, faces, space={"how": {"variants": variants}}, budget={"trials": 3}, seeds=[6])
    monkeypatch.setattr("distrib.studies.trial.Stop", lambda: None)  # it would take pytest's signals
    assert main([str(file), "--folder", str(tmp_path / "study")]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert "seeds" in refused
    assert main([str(file), "--folder", str(tmp_path / "study"), "--best"]) == 2
    assert "seeds" in capsys.readouterr().err


@pytest.mark.slow
def test_pruning_is_agreed_by_all_ranks(faces: Path, tmp_path: Path) -> None:
    file = write_study(
        tmp_path, faces, space={"optim.lr": [1e-3]}, pruner={"name": "threshold", "upper": 0.0},
        set={"run.ranks": 2, "train.epochs": 3}, launch=str(ROOT / "launch/cpu.yaml"),
    )  # fmt: skip
    sweep(file)
    [only] = trials(tmp_path)
    assert (only["state"], only["epochs"]) == ("pruned", "1")
    run = tmp_path / "study" / only["runs"]
    assert len(read_metrics(run)) == 1
    [end] = read_events(run, "end")
    assert end["pruned"]
    assert read_events(run, "start")[0]["ranks"] == 2
    assert not read_events(run, "lost")


@pytest.mark.slow
def test_all_trials_train_in_the_precision_that_their_study_has_measured_once(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train.precision": "auto", "train.epochs": 1, "data.subset": 64}
    file = write_study(tmp_path, faces, space={"optim.lr": [1e-3, 1e-4, 1e-5]}, budget={"trials": 2}, set=settings)
    done = sweep(file, "--workers", 2)
    kept = tmp_path / "study/precision.json"
    chosen = json.loads(kept.read_text())["precision"]
    assert done.stdout.count(f"precision {chosen}") == 1
    runs = [tmp_path / "study" / each["runs"] for each in trials(tmp_path)]
    assert [read_yaml(run / "config.yaml").train.precision for run in runs] == [chosen] * 2
    starts = [start for run in runs for start in read_events(run, "start")]
    assert [(start["precision"], start["precision_seconds"]) for start in starts] == [(chosen, None)] * 2
    assert main([str(file), "--folder", str(tmp_path / "study"), "--best"]) == 0
    (tmp_path / "best.yaml").write_text(capsys.readouterr().out)
    best = read_yaml(tmp_path / "best.yaml")
    assert best == read_yaml(tmp_path / "study/best.yaml")
    assert best.train.precision == chosen

    # Whatever a measurement would find now, the study keeps to what it has chosen.
    other = "bf16" if chosen == "no" and cpu_computes_in_bf16() else "no"
    kept.write_text(json.dumps({"precision": other}))
    write_study(tmp_path, faces, space={"optim.lr": [1e-3, 1e-4, 1e-5]}, budget={"trials": 3}, set=settings)
    assert "measured here" not in sweep(file).stdout
    third = tmp_path / "study" / trials(tmp_path)[2]["runs"]
    assert read_yaml(third / "config.yaml").train.precision == other


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_as_if_it_had_not_been(faces: Path, tmp_path: Path) -> None:
    file = write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, set={"train.epochs": 4}, storage="sqlite")
    process = subprocess.Popen(command(file), cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    run = tmp_path / "study/trials/little-0000"
    _wait_for(lambda: (run / "metrics.csv").exists(), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert [event["reason"] for event in read_events(run, "stop")] == ["SIGTERM"]
    sweep(file)
    [only] = trials(tmp_path)
    assert only["state"] == "finished"
    assert len(read_events(run, "resume")) == 1
    config = read_yaml(tmp_path / "study/trials/little-0000.yaml").replace("run", folder=tmp_path / "alone")
    (tmp_path / "alone.yaml").write_text(config.to_yaml())
    alone = subprocess.run(
        [sys.executable, "distrib/train.py", "--config", tmp_path / "alone.yaml"], cwd=ROOT, env=clean_environment()
    )
    assert alone.returncode == 0
    assert_same_training(run, tmp_path / "alone")


@pytest.mark.slow
def test_a_trial_that_does_not_convince_at_the_cheapest_rung_goes_no_further(faces: Path, tmp_path: Path) -> None:
    rungs, pruner = [{"train.epochs": 1}, {"train.epochs": 2}], {"name": "threshold", "upper": 0.0}
    sweep(write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, fidelity=rungs, pruner=pruner))
    [only] = trials(tmp_path)
    assert (only["state"], only["epochs"], only["runs"]) == ("pruned", "1", "trials/little-0000-rung0")
    assert only["reason"] == "given up after rung 0"


@pytest.mark.slow
def test_the_value_of_a_trial_is_the_mean_over_its_seeds(faces: Path, tmp_path: Path) -> None:
    sweep(write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, seeds=[3, 8],
                      set={"tracking.mode": "offline", "data.subset": 64}))  # fmt: skip
    [only] = trials(tmp_path)
    runs = [tmp_path / "study" / run for run in only["runs"].split()]
    assert [read_yaml(run / "config.yaml").train.seed for run in runs] == [3, 8]
    for run in runs:
        [file] = wandb_files(run)
        [described] = [record.run for record in read_records(file) if record.WhichOneof("record_type") == "run"]
        assert (described.run_group, described.display_name) == ("little", run.name)
    values = [min(row["val_loss"] for row in read_metrics(run)) for run in runs]
    assert values[0] != values[1]
    assert float(only["val_loss"]) == pytest.approx(statistics.fmean(values))
    assert float(only["val_loss_sd"]) == pytest.approx(statistics.stdev(values))


@pytest.mark.slow
def test_running_out_of_memory_is_a_result(faces: Path, tmp_path: Path) -> None:
    huge = {"data.image_size": [2048, 2048], "data.prefetch": 1}
    file = write_study(tmp_path, faces, space={"size": {"variants": {"huge": huge}}})
    # Address space, so that an allocation fails where a machine would begin to suffer.
    limited = ["prlimit", f"--as={9 * 2**30}", "--", *command(file)]
    done = subprocess.run(limited, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    [only] = trials(tmp_path)
    assert only["state"] == "out of memory", only["reason"]
    assert "train.norm_size" in only["reason"]


@pytest.mark.slow
def test_a_trial_climbs_from_cheap_to_dear_and_starts_from_what_it_has_learnt(faces: Path, tmp_path: Path) -> None:
    rungs = [
        {"data.subset": 48, "data.image_size": [24, 24], "train.epochs": 1},
        {"data.subset": 96, "data.image_size": [32, 32], "train.epochs": 2},
    ]
    pruner = {"name": "threshold", "upper": 10.0}
    file = write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, fidelity=rungs, pruner=pruner)
    sweep(file)
    [only] = trials(tmp_path)
    cheap, dear = (tmp_path / "study" / run for run in only["runs"].split())
    assert [len(read_metrics(run)) for run in (cheap, dear)] == [1, 2]
    assert read_yaml(dear / "config.yaml").model.weights == str(cheap / "best")
    assert read_yaml(cheap / "config.yaml").model.weights == "none"
    assert (only["state"], only["epochs"]) == ("finished", "3")
    assert float(only["val_loss"]) == min(row["val_loss"] for row in read_metrics(dear))


def test_gpus_and_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    file = tmp_path / "shared.yaml"
    file.write_text("space: {optim.lr: [0.1]}\nsampler: grid\nset: {data.decoder: torch}\n")
    study = read_study(file)
    shares = share(study, 2)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in shares] == ["4,7", "5"]
    assert [cores for _, cores in shares] == [{0, 2, 6}, {1, 3}]
    refusal(lambda: share(study, 4), "--workers is 4", "3 GPUs")
    refusal(lambda: share(study, 0), "--workers is 0")
    wide = replace(study, base=study.base.replace("run", ranks=2))
    refusal(lambda: share(wide, 2), "run.ranks is 2", "each of 2 workers has 1 of the 3 GPUs", "at most 1 worker")
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in share(wide, 1)] == ["4,5,7"]


def test_small_trials_share_a_gpu_where_they_are_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900, 1000))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    file = tmp_path / "shared.yaml"
    file.write_text("space: {optim.lr: [0.1]}\nsampler: grid\nset: {data.decoder: torch}\n")
    study = read_study(file)
    seen = [(each["CUDA_VISIBLE_DEVICES"], each["SLURM_CPUS_ON_NODE"], cores) for each, cores in share(study, None, 2)]
    assert seen == [("4", "1", {0, 4}), ("7", "1", {1, 5}), ("4", "1", {2, 6}), ("7", "1", {3, 7})]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in share(study, 3, 2)] == ["4", "7", "4"]
    run: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cuda"), num_processes=1, local_process_index=0)
    )
    room = []
    for environment, _ in share(study, 3, 2):
        with monkeypatch.context() as of_worker:
            for name, value in environment.items():
                of_worker.setenv(name, value)
            room.append(_room(run).gpu)
    assert room == [450, 900, 450]  # bytes that the images of a trial may count on
    assert len(share(study, None)) == 1
    refusal(lambda: share(study, 5, 2), "--workers is 5", "2 GPUs", "at most 4")
    refusal(lambda: share(study, None, 5), "--workers-per-gpu 5 asks for 10 workers", "8 cores")
    refusal(lambda: share(study, None, 0), "--workers-per-gpu is 0")
    wide = replace(study, base=study.base.replace("run", ranks=2))
    refusal(
        lambda: share(wide, None, 2),
        "run.ranks is 2",
        "each of 4 workers has 1 of the 2 GPUs",
        "leave out --workers-per-gpu",
    )
    on_cpu = replace(study, base=study.base.replace("run", device="cpu"))
    refusal(lambda: share(on_cpu, None, 2), "--workers-per-gpu is 2", "trains on the CPU", "say --workers")


def test_more_workers_than_cores_are_refused(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrib.studies.trial.Stop", lambda: None)  # it would take pytest's signals
    file = write_study(tmp_path, faces, space={"optim.lr": [1e-3]})
    assert main([str(file), "--folder", str(tmp_path / "study"), "--workers", "1000"]) == 2
    assert "--workers is 1000" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_weights_that_no_trial_uses_are_not_asked_for(faces: Path, tmp_path: Path) -> None:
    absent = {"model.weights": str(tmp_path / "absent.pt")}
    study = read_study(write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, set=absent))
    refusal(lambda: check(study), "model.weights", "absent.pt")
    space = {"model.weights": ["none"]}
    assert check(read_study(write_study(tmp_path, faces, space=space, set=absent))) == check(
        read_study(write_study(tmp_path, faces, space=space))
    )


@pytest.mark.parametrize("arguments", [[], ["--workers", "2", "study.yaml"]])
def test_a_study_is_named_first(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "distrib sweep STUDY.yaml" in said.err
    assert not said.out


@pytest.mark.slow
def test_a_disk_that_fails_ends_in_a_sentence_and_the_trial_is_gone_on_with(faces: Path, tmp_path: Path) -> None:
    """And settings that come again after it are not trained again."""
    file = write_study(
        tmp_path, faces, space={"optim.lr": [1e-3]}, sampler="random", budget={"trials": 2}, set={"train.epochs": 1}
    )
    log = tmp_path / "study/trials/little-0000.log"
    log.mkdir(parents=True)
    done = sweep(file, status=2)
    assert done.stderr.count("\n") == 1
    assert str(log) in done.stderr
    assert "the same command resumes" in done.stderr
    log.rmdir()
    assert "trial 0 again" in sweep(file).stdout
    first, second = trials(tmp_path)
    assert first["state"] == second["state"] == "finished"
    assert first["val_loss"] == second["val_loss"]
    assert first["runs"] == second["runs"] == "trials/little-0000"
    assert "trial 0" in second["reason"]
    assert len(read_events(tmp_path / "study" / first["runs"], "start")) == 1


def test_a_missing_data_set_is_said_once_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrib.studies.trial.Stop", lambda: None)  # it would take pytest's signals
    file = write_study(tmp_path, tmp_path / "nowhere", space={"optim.lr": [1e-3]})
    assert main([str(file), "--folder", str(tmp_path / "study")]) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_of_six_trials_none_is_lost_or_doubled_when_a_worker_is_killed(faces: Path, tmp_path: Path) -> None:
    space = {"optim.lr": [1e-2, 3e-3, 1e-3], "train.batch_size": [32, 48]}
    file = write_study(tmp_path, faces, space=space, set={"train.epochs": 3})
    process = subprocess.Popen(
        command(file, "--workers", 2), cwd=ROOT, env=clean_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _wait_for(lambda: (tmp_path / "study/trials/little-0002/metrics.csv").exists(), process)
    worker = next(each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline()))
    worker.kill()
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert "has died (ended by SIGKILL): another takes its place" in output
    rows = trials(tmp_path)
    assert Counter(each["state"] for each in rows) == {"finished": 6}
    assert len({(each["optim.lr"], each["train.batch_size"]) for each in rows}) == 6
    assert sorted(path.name for path in (tmp_path / "study/trials").iterdir() if path.is_dir()) == [
        f"little-{number:04d}" for number in range(6)
    ]
    for each in rows:
        run = tmp_path / "study" / each["runs"]
        assert len(read_metrics(run)) == 3
        assert len(read_events(run, "end")) == 1
        # The run that outlived its worker was waited for, and not started again beside itself.
        assert len(read_events(run, "start")) == 1
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study/journal.log")))
    assert len(optuna.load_study(study_name="little", storage=storage).trials) == 6


@pytest.mark.slow
def test_a_whole_worker_that_is_gone_leaves_its_trial_to_the_next(faces: Path, tmp_path: Path) -> None:
    """Worker, launcher and ranks at once, as a node that loses its power."""
    file = write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, set={"run.ranks": 2, "train.epochs": 4})
    process = subprocess.Popen(
        command(file), cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    run = tmp_path / "study/trials/little-0000"
    _wait_for(lambda: (run / "metrics.csv").exists(), process)
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        each.kill()
    process.wait()
    done = sweep(file)
    assert "trial 0 again" in done.stdout
    [only] = trials(tmp_path)
    assert only["state"] == "finished"
    assert len(read_metrics(run)) == 4
    assert len(read_events(run, "start")) == 2


def _wait_for(happened, process: subprocess.Popen[str], seconds: float = 200) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "it ended before anything could happen to it"
        assert time.monotonic() < until
        time.sleep(0.05)
