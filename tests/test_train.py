"""Whole runs, on two real ranks through `accelerate launch` where it is about ranks."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from celeba_forms import archived, on_the_hub
from forked_ranks import on_ranks, train_on_ranks
from launching import ROOT, clean_environment, launch, read_events, read_metrics
from PIL import Image, ImageOps
from safetensors.torch import load_file
from score_ranks import score_here
from small_run import BATCH, EPOCHS, EVERY, assert_same_training, copied, observed, settings, the_plan
from wandb_log import read_history

import distrib.training.checkpoint
from distrib import train as program
from distrib.__main__ import check
from distrib.base.errors import UserError
from distrib.config import Config, read_yaml
from distrib.data.decoders import dali_installed
from distrib.ranks import machine
from distrib.ranks.machine import fallbacks, resolve
from distrib.ranks.stopping import STOPPED
from distrib.runs.metrics import METRICS, PARTS, SPEED, read_speed
from distrib.training.speed import flops_per_image

needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")


def test_a_run_leaves_what_it_promises(faces: Path, finished: tuple[Path, str, Path]) -> None:
    folder, printed, _ = finished
    plan = the_plan(faces, folder)
    table = re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+ +[\d.]+% ", printed, re.MULTILINE)
    assert table == ["1", "2", "3"]
    assert re.search(r"Epoch +Loss +Validation Loss +Accuracy +Precision +F1 +ROC AUC", printed)
    assert str(folder) in printed

    rows = read_metrics(folder)
    assert tuple(rows[0]) == METRICS
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [plan.steps_per_epoch * epoch for epoch in (1, 2, 3)]
    by_attribute = (folder / "metrics_by_attribute.csv").read_text().splitlines()
    assert by_attribute[0].startswith("epoch,attribute,loss,accuracy")
    assert [line.split(",")[1] for line in by_attribute[1:]] == ["Smiling", "Eyeglasses", "Male"] * EPOCHS

    start, *_, end = read_events(folder)
    assert start["event"] == "start"
    assert end["event"] == "end"
    assert start["ranks"] == 2
    assert start["decoder"] == "torch"
    assert start["splits"]["train"] == len(plan.rows)
    assert {"torch", "accelerate", "python"} <= set(start["versions"])

    assert len(list((folder / "checkpoints").glob("step-*"))) == 3
    best = json.loads((folder / "best/model.json").read_text())
    winner = max(rows, key=lambda row: row["val_roc_auc"])
    assert best["epoch"] == winner["epoch"]
    assert best["validation"]["roc_auc"] == winner["val_roc_auc"]
    assert best["attributes"] == ["Smiling", "Eyeglasses", "Male"]
    assert load_file(folder / "best/model.safetensors")["fc.weight"].shape == (3, 512)


def test_a_run_says_where_its_time_went(faces: Path, finished: tuple[Path, str, Path]) -> None:
    folder, printed, _ = finished
    (*rows, last), plan = read_speed(folder), the_plan(faces, folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row, metrics in zip(rows, read_metrics(folder), strict=True):
        assert tuple(row) == SPEED
        assert sum(row[f"{part}_share"] for part in PARTS) == pytest.approx(1)
        of_epoch = {part for part in PARTS if row[f"{part}_share"] > 0}
        assert of_epoch == set(PARTS) - {"report"} - (set() if row is rows[0] else {"preparation"})
        assert row["step"] == metrics["step"]
        # Half of every batch is rank 0's.
        images = plan.steps_per_epoch * BATCH / 2
        assert row["flops"] == flops_per_image(3, (32, 32), "none") * images
        training = row["seconds"] * (row["data_share"] + row["steps_share"])
        assert row["mfu"] == pytest.approx(row["flops"] / training / row["peak_flops_per_second"])
        assert np.isnan(row["device_memory"])
        assert 1e8 < row["host_memory"] < 1e11
    # What comes after the last epoch: its checkpoint, and no report here.
    assert (last["epoch"], last["step"], last["checkpoints_share"], last["flops"]) == (3, rows[-1]["step"], 1, 0)
    shares = ", ".join(rf"{part} .+%" for part in PARTS[:-1])
    used = r"rank 0: MFU .+%, at most \d[\d.]* .B of the host's memory"
    assert re.search(rf"^time: .+: {shares}\n{used}$", printed, re.MULTILINE)
    logged = [row for row in read_history(folder) if "speed/mfu" in row]
    assert [row["speed/data_share"] for row in logged] == pytest.approx([row["data_share"] for row in rows])
    assert any("train/data_share" in row for row in read_history(folder))


def test_a_run_writes_nothing_into_its_data_set(faces: Path, finished: tuple[Path, str, Path]) -> None:
    # A folder's time changes with every file that is made or removed in it.
    newest = max(path.stat().st_mtime_ns for path in (faces, *faces.rglob("*")))
    assert newest < min(path.stat().st_mtime_ns for path in finished[0].rglob("*") if path.is_file())


def test_the_ranks_train_on_the_plan_and_nothing_else(faces: Path, finished: tuple[Path, str, Path]) -> None:
    folder, _, seen = finished
    plan = the_plan(faces, folder)
    per_epoch = plan.steps_per_epoch
    planned = {s: sorted(plan.batch(s // per_epoch, s % per_epoch).ids.tolist()) for s in range(per_epoch * EPOCHS)}
    assert observed(seen) == planned
    assert len(list(seen.glob("rank-*.jsonl"))) == 2


def test_config_yaml_is_a_configuration(finished: tuple[Path, str, Path]) -> None:
    folder, _, _ = finished
    config = read_yaml(folder / "config.yaml")
    assert config.to_yaml() == (folder / "config.yaml").read_text()
    assert config.run.folder == folder
    assert "auto" not in (config.train.precision, config.data.decoder, config.run.device)


def test_wandb_has_the_numbers_of_metrics_csv(finished: tuple[Path, str, Path]) -> None:
    folder, _, _ = finished
    history = [row for row in read_history(folder) if "val/roc_auc" in row]
    for row, logged in zip(read_metrics(folder), history, strict=True):
        assert logged["epoch"] == row["epoch"]
        assert logged["train/epoch_loss"] == pytest.approx(row["train_loss"], rel=1e-6)
        for score in ("loss", "accuracy", "f1", "roc_auc", "average_precision"):
            assert logged[f"val/{score}"] == pytest.approx(row[f"val_{score}"], rel=1e-6)
        assert "val/by_attribute/roc_auc/Smiling" in logged
    assert any("train/images_per_second" in row for row in read_history(folder))


def test_a_killed_run_resumes_exactly(faces: Path, finished: tuple[Path, str, Path], tmp_path: Path) -> None:
    undisturbed, _, _ = finished
    per_epoch = the_plan(faces, undisturbed).steps_per_epoch
    folder = tmp_path / "run"
    # In the middle of epoch 2, one step after the checkpoint in it.
    killed = launch(
        *settings(faces, folder), script="tests/support/observer.py", DISTURB=f"{per_epoch + EVERY + 1} 1 self:SIGKILL",
        DISTURB_AFTER=str(folder / f"checkpoints/step-{per_epoch + EVERY:08d}"),
    )  # fmt: skip
    assert killed.returncode != 0
    (lost,) = read_events(folder, "lost")
    assert re.fullmatch(r"rank 1 \(process \d+ on .+\) has gone", lost["reason"])
    assert [row["epoch"] for row in read_metrics(folder)] == [1]
    resumed = launch(*settings(faces, folder, "--resume", "auto", "--train.profile", 2))
    assert resumed.returncode == 0, resumed.stderr
    (event,) = read_events(folder, "resume")
    assert (event["epoch"], event["step"]) == (1, EVERY)
    assert_same_training(undisturbed, folder)
    assert_profiled(folder, steps=2)


def assert_profiled(folder: Path, steps: int) -> None:
    """The trace has what these steps consist of, and so has the table."""
    with gzip.open(folder / "profile/trace.json.gz") as stream:
        names = [event["name"] for event in json.load(stream)["traceEvents"]]
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == steps
    table = (folder / "profile/operators.txt").read_text()
    for once in ("waiting for data", "Optimizer.step#AdamW.step", "DistributedDataParallel.forward"):
        assert names.count(once) == steps
        assert once in table
    for operator in ("aten::convolution", "aten::convolution_backward", "c10d::allreduce_"):
        assert operator in names
        assert operator in table


@pytest.mark.slow
def test_a_run_may_find_its_images_in_another_form_when_it_is_resumed(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    undisturbed, _, _ = finished
    per_epoch = the_plan(faces, undisturbed).steps_per_epoch
    folder, archive, hub = tmp_path / "run", archived(faces, tmp_path / "zip"), on_the_hub(faces, tmp_path / "hub")
    stop = f"{per_epoch + EVERY + 1} 0 self:SIGTERM"
    stopped = train_on_ranks(2, *settings(archive, folder), DISTURB=stop)
    assert stopped.returncode == STOPPED, stopped.stderr
    assert len(read_events(folder, "stop")) == 1
    # Decoded once by both ranks, where each batch was decoded before; and deterministic, as every run on a CPU is.
    more = ("--data.resident", "host", "--train.deterministic", True, "--checkpoint.every-steps", 99)
    resumed = train_on_ranks(2, *settings(hub, folder, "--resume", "auto", *more))
    assert resumed.returncode == 0, resumed.stderr
    assert "row groups of up to 7" in resumed.stderr
    assert "images:  decoded once, into the memory of the machine (22." in resumed.stdout
    assert "images were decoded for each batch, and are now decoded once, into the memory" in resumed.stderr
    (event,) = read_events(folder, "resident")
    assert (event["before"], event["now"]) == ("never", "host")
    assert [event["deterministic"] for event in read_events(folder, "start")] == [False, True]
    assert "JPEG hardware" not in resumed.stdout  # which is a matter of GPUs
    assert_same_training(undisturbed, folder)


def test_other_images_under_the_same_names_are_refused(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, same, other = finished[0], shutil.copytree(faces, tmp_path / "same"), tmp_path / "other"
    for file in (same / "img_align_celeba").iterdir():  # saved again, as another form may have them
        Image.open(file).save(file, quality=90)
    shutil.copytree(faces, other)
    for file in (other / "img_align_celeba").iterdir():
        ImageOps.invert(Image.open(file)).save(file)
    refused = []
    for root in (same, other):
        options = [folder / "config.yaml", "--train.epochs", 9, "--resume", "auto", "--data.root", root]
        status = check([*map(str, options)])
        refused.append((status, "look otherwise: restore the data set" in capsys.readouterr().err))
    assert refused == [(0, False), (2, True)]


@pytest.mark.slow
def test_stopped_on_two_ranks_it_goes_on_with_one(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    undisturbed, _, seen = finished
    per_epoch = the_plan(faces, undisturbed).steps_per_epoch
    folder, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    stop = per_epoch + EVERY + 1  # in the middle of epoch 2, one step after the checkpoint in it
    options = settings(faces, folder, "--tracking.mode", "disabled")
    launch(
        *options, script="tests/support/observer.py", OBSERVE=str(first),
        DISTURB=f"{stop} 0 self:SIGKILL", DISTURB_AFTER=str(folder / f"checkpoints/step-{stop - 1:08d}"),
    )  # fmt: skip
    resumed = train_on_ranks(1, *options, "--resume", "auto", "--checkpoint.every-steps", 99, OBSERVE=str(second))
    assert resumed.returncode == 0, resumed.stderr
    assert {**observed(first), **observed(second)} == observed(seen)
    assert min(observed(second)) == stop - 1
    assert read_events(folder, "start")[-1]["ranks"] == 1
    assert [row["epoch"] for row in read_metrics(folder)] == [1, 2, 3]


@pytest.mark.slow
def test_one_and_two_ranks_give_the_same_scores(faces: Path, finished: tuple[Path, str, Path]) -> None:
    folder, _, _ = finished
    scores = []
    for ranks in (1, 2):
        found = on_ranks(ranks, score_here, folder / "best", faces)
        assert found == [found[0]] * ranks
        assert found[0].pop("ranks") == ranks
        scores.append(found[0])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[0]["images"] == 200


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["torch", pytest.param("dali", marks=needs_dali)])
def test_broken_images_are_replaced_alike_on_any_number_of_ranks(decoder: str, faces: Path, tmp_path: Path) -> None:
    root = shutil.copytree(faces, tmp_path / "faces")
    rows = [2, 7]
    victims = [root / "img_align_celeba" / f"{row + 1:06}.jpg" for row in rows]
    victims[0].write_bytes(victims[0].read_bytes()[:-300])
    victims[1].write_bytes(b"not an image")
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        more = ["--data.on-error", "skip", "--data.decoder", decoder, "--train.norm-size", 8, "--train.precision", "no"]
        more += ["--optim.lr", 1e-6, "--optim.schedule", "constant"]  # so low that rounding stays rounding
        more += ["--train.epochs", 2, "--checkpoint.every-steps", 99]
        # From memory they are replaced alike, too; what DALI resizes would differ there.
        more += ["--data.resident", "host" if ranks == 2 and decoder == "torch" else "never"]
        done = train_on_ranks(ranks, *settings(root, folder, *more))
        assert done.returncode == 0, done.stderr
        events = read_events(folder, "replaced")
        for event in events:
            plan = the_plan(root, folder)
            assert event["row"] in rows
            assert event["image"] == f"{event['row'] + 1:06}.jpg"
            assert event["by"] == f"{plan.substitute(event['epoch'] - 1, event['row'], 0) + 1:06}.jpg"
        # A training epoch leaves a few images out, which its successor has.
        assert {event["row"] for event in events} == set(rows)
        assert "000003.jpg cannot be decoded" in done.stderr
        assert "is trained on in its place" in done.stderr
        newest = max((folder / "checkpoints").iterdir())
        assert torch.load(newest / "trainer.pt", weights_only=True)["progress"]["replaced"] == tuple(rows)
        found.append(([(event["epoch"], event["row"], event["by"]) for event in events], read_metrics(folder)))
    assert sorted(found[0][0]) == sorted(found[1][0])
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)


def test_a_broken_image_ends_all_ranks_and_is_named(faces: Path, tmp_path: Path) -> None:
    broken = tmp_path / "faces"
    (broken / "img_align_celeba").mkdir(parents=True)
    for file in faces.glob("*.txt"):
        (broken / file.name).write_bytes(file.read_bytes())
    for picture in (faces / "img_align_celeba").iterdir():
        (broken / "img_align_celeba" / picture.name).symlink_to(picture)
    victim = broken / "img_align_celeba" / "000003.jpg"
    victim.unlink()
    victim.write_bytes((faces / "img_align_celeba" / "000003.jpg").read_bytes()[:1500])
    # All training images in two steps, so that none is left out.
    few = ["--train.batch-size", 82, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    done = launch(*settings(broken, tmp_path / "run", *few))
    assert done.returncode != 0
    assert re.search(r"distrib: error: rank [01]: .*000003\.jpg cannot be decoded", done.stderr)
    (error,) = read_events(tmp_path / "run", "error")
    assert "000003.jpg cannot be decoded" in error["reason"]
    assert "distrib/training" not in done.stderr  # the trace of our own code is nobody's business


def test_a_loss_that_is_not_finite_stops_all_ranks(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = launch(
        *settings(faces, folder, "--optim.lr", "1e30", "--optim.schedule", "constant", "--train.log-every", 5)
    )
    assert done.returncode != 0
    assert len(re.findall("distrib: error: .* not finite in step", done.stderr)) == 1
    (error,) = read_events(folder, "error")
    assert f"distrib: error: {error['reason']}\n" in done.stderr
    (event,) = read_events(folder, "nonfinite")
    plan = the_plan(faces, folder)
    step = event["step"] - 1
    assert event["ids"] == plan.batch(step // plan.steps_per_epoch, step % plan.steps_per_epoch).ids.tolist()
    assert all(re.fullmatch(r"\d{6}\.jpg", image) for image in event["images"])
    assert len(event["images"]) == BATCH
    for checkpoint in (folder / "checkpoints").glob("step-*"):  # none holds what the bad step left behind
        assert all(bool(t.isfinite().all()) for t in load_file(checkpoint / "model.safetensors").values())


def test_fewer_ranks_than_asked_for_is_refused(faces: Path, tmp_path: Path) -> None:
    done = launch(*settings(faces, tmp_path / "run", "--run.ranks", 3))
    assert done.returncode != 0
    assert "distrib: error: run.ranks is 3, but the launcher started 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_variable_that_wandb_refuses_ends_all_ranks_before_anything_is_written(faces: Path, tmp_path: Path) -> None:
    done = launch(*settings(faces, tmp_path / "run"), WANDB_API_KEY="short", timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("distrib: error: W&B refuses WANDB_API_KEY (API key must have 40+ characters, has 5)") == 1
    assert done.stderr.count("distrib: error: ") == 1
    assert "distrib/training" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_accelerates_silent_single_process_is_refused(faces: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "distrib/train.py",
         *map(str, settings(faces, tmp_path / "run"))],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "was asked for several processes and started only this one" in done.stderr
    assert not (tmp_path / "run").exists()


def here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The program in this process: its exit status and what it said on stderr."""
    status = program.main([*map(str, arguments), "--tracking.mode", "disabled"])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data.root", "nowhere"], "data.root is nowhere"),
        (["--data.attributes", "Smilng"], "did you mean Smiling?"),
        (["--train.batch-size", 5000], "train.batch_size 5000 exceeds the training split"),
        (["--data.subset", 100000], "data.subset"),
        (["--model.weights", "missing.pt"], "model.weights missing.pt is not a file"),
        (["--train.precision", "fp16"], "train.precision fp16 needs a GPU"),
        (["--model.freeze", "layer9"], "model.freeze is layer9"),
        (["--optim.lrr", 1], "did you mean --optim.lr?"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: list[object], sentence: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = here(capsys, *settings(faces, tmp_path / "run"), *arguments)
    assert status == 2
    assert sentence in said
    errors = [line for line in said.splitlines() if line.startswith("distrib: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in said


def test_a_used_run_folder_is_not_written_over(
    faces: Path, finished: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, said = here(capsys, *settings(faces, folder))
    assert status == 2
    assert "holds a run already" in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--train.batch-size", 8], "train.batch_size is 8"),
        (["--data.attributes", "Smiling"], "data.attributes is ('Smiling',)"),
        (["--train.seed", 1], "train.seed is 1"),
        (["--optim.name", "sgd"], "optim.name is sgd"),
        (["--checkpoint.best-score", "loss"], "checkpoint.best_score is loss"),
        (["--checkpoint.thresholds", "accuracy"], "checkpoint.thresholds is accuracy"),
    ],
)
def test_another_training_does_not_go_on_from_a_checkpoint(
    change: list[object], sentence: str, faces: Path, finished: tuple[Path, str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, said = here(capsys, *settings(faces, folder, "--resume", "auto", "--train.epochs", 9), *change)
    assert status == 2
    assert sentence in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_images_do_not_go_on_from_a_checkpoint(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "faces"
    shutil.copytree(faces, other)
    rows = (other / "list_attr_celeba.txt").read_bytes().splitlines(keepends=True)
    rows[2] = rows[2].replace(b"-1", b" 1")
    (other / "list_attr_celeba.txt").write_bytes(b"".join(rows))
    status, said = here(capsys, *settings(other, finished[0], "--resume", "auto", "--train.epochs", 9))
    assert status == 2
    assert "the training images or labels" in said


def test_a_finished_run_is_left_as_it_is(
    faces: Path, finished: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status = program.main([str(each) for each in settings(faces, folder, "--resume", "auto")])
    assert status == 0
    assert "is finished: 3 epochs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_the_ranks_agree_that_a_run_is_finished_whatever_they_see(
    faces: Path, finished: tuple[Path, str, Path]
) -> None:
    done = train_on_ranks(2, *settings(faces, finished[0], "--resume", "auto"), BLIND="1")
    assert done.returncode == 0, done.stderr
    assert "is finished: 3 epochs" in done.stdout


def test_a_checkpoint_elsewhere_does_not_write_over_a_run(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    shutil.copytree(finished[0], other)
    checkpoint = max((finished[0] / "checkpoints").iterdir())
    status, said = here(capsys, *settings(faces, other, "--resume", checkpoint, "--train.epochs", 9))
    assert status == 2
    assert "holds a run already" in said


def test_a_finished_checkpoint_elsewhere_starts_no_run(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = max((finished[0] / "checkpoints").iterdir())
    status, said = here(capsys, *settings(faces, tmp_path / "run", "--resume", last))
    assert status == 2
    assert f"{last} is finished: 3 epochs; raise train.epochs to continue; nothing is left to train in" in said
    assert not (tmp_path / "run").exists()


def test_more_epochs_go_on_from_a_finished_run(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = copied(finished[0], tmp_path / "run")
    start = max((folder / "checkpoints").iterdir())
    hashed: list[Path] = []
    sha256 = distrib.training.checkpoint._sha256
    monkeypatch.setattr(distrib.training.checkpoint, "_sha256", lambda path: hashed.append(path) or sha256(path))
    status, said = here(
        capsys, *settings(faces, folder, "--resume", "auto", "--train.epochs", 4, "--optim.weight-decay", 0.1,
                  "--train.profile", 90, "--checkpoint.every-steps", 99)
    )  # fmt: skip
    assert status == 0, said
    assert "train.profile 90 has no effect: after a warm-up of 10 steps no epoch has 91 steps left" in said
    assert [row["epoch"] for row in read_speed(folder)] == [1, 2, 3, 3, 4, 4]
    assert [row["epoch"] for row in read_metrics(folder)] == [1, 2, 3, 4]
    assert (folder / "metrics.csv").read_text().startswith((finished[0] / "metrics.csv").read_text())
    newest = max((folder / "checkpoints").iterdir())
    decays = {g["weight_decay"] for g in torch.load(newest / "trainer.pt")["optimizer"]["param_groups"]}
    assert decays == {0.1, 0.0}  # today's settings, not the checkpoint's
    names = ["config.yaml", "model.json", "model.safetensors", "trainer.pt"]
    assert sorted(path.name for path in hashed if path.parent == start) == names  # read and hashed once


def test_what_a_finished_run_chose_stays_in_its_configuration(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed between its last checkpoint and its end, and nothing is left to train."""
    folder = copied(finished[0], tmp_path / "run")
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(line for line in lines if '"event": "end"' not in line))
    status, said = here(capsys, *settings(faces, folder, "--resume", "auto"))
    assert status == 0, said
    before, after = read_yaml(finished[0] / "config.yaml"), read_yaml(folder / "config.yaml")
    assert (after.train, after.data) == (before.train, before.data)
    assert (after.train.compile, after.data.resident) == ("no", "never")


@pytest.mark.parametrize("named", ["itself", "by a link", "once passed over"])
def test_going_back_to_an_earlier_checkpoint_forgets_what_came_after(
    named: str, faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished[0], tmp_path / "run")
    earlier, *_, last = sorted((folder / "checkpoints").iterdir())  # in epoch 3, before its end
    if named == "by a link":
        (tmp_path / "link").symlink_to(earlier)
        earlier = tmp_path / "link"
    elif named == "once passed over":
        earlier = earlier.rename(earlier.with_name(f"passed-over-{earlier.name}"))
    about = json.loads((folder / "best/model.json").read_text())
    (folder / "best/model.json").write_text(json.dumps({**about, "epoch": 3}))
    trainer = torch.load(earlier / "trainer.pt", weights_only=True)
    assert trainer["progress"]["best_epoch"] < 3
    status, said = here(capsys, *settings(faces, folder, "--resume", earlier, "--checkpoint.every-steps", 99))
    assert status == 0, said
    assert "best is of an epoch later than" in said
    assert f"{last} is passed over, and is kept as" in said
    assert (folder / "passed-over-best/model.json").exists()
    assert [row["epoch"] for row in read_metrics(folder)] == [1, 2, 3]
    assert json.loads((folder / "best/model.json").read_text())["epoch"] == 3
    assert len(read_events(folder, "resume")) == 1


@pytest.fixture(scope="module")
def stopped_early(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learning rate of nearly 0 leaves the loss where the first epoch put it, but for BatchNorm's statistics."""
    folder = tmp_path_factory.mktemp("stopped-early") / "run"
    options = ["--optim.lr", "1e-12", "--train.early-stopping", 1, "--train.epochs", 30, "--checkpoint.every-steps", 99]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert program.main([*map(str, settings(faces, folder, *options)), "--tracking.mode", "disabled"]) == 0
    return folder


def test_early_stopping_stops(stopped_early: Path) -> None:
    (end,) = read_events(stopped_early, "end")
    assert end["stopped_early"]
    assert end["epochs"] == end["best_epoch"] + 1 < 30


def test_a_run_that_stopped_early_says_how_to_go_on(
    stopped_early: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(stopped_early, tmp_path / "run")
    options = ["--config", folder / "config.yaml", "--run.folder", folder, "--resume", "auto"]
    assert program.main([str(each) for each in options]) == 0
    assert "raise train.early_stopping to continue" in capsys.readouterr().out
    assert read_metrics(folder) == read_metrics(stopped_early)


def test_a_disk_that_is_full_ends_in_a_sentence(faces: Path, finished: tuple[Path, str, Path], tmp_path: Path) -> None:
    """No file may grow past 30 MB: best/ and the checkpoints do not fit."""
    command = shlex.join([sys.executable, "distrib/train.py", *map(str, settings(faces, tmp_path / "run"))])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 30000; exec {command} --tracking.mode disabled"],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.staged"))


def test_dali_asked_for_and_absent_is_refused(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # as if it were not installed
    monkeypatch.setattr("distrib.data.decoders.importlib.util.find_spec", lambda name: None)
    status, said = here(capsys, *settings(faces, tmp_path / "run", "--data.decoder", "dali"))
    assert status == 2
    assert "NVIDIA DALI is not installed" in said


@pytest.mark.parametrize(
    "options",
    [
        ["--data.decoder", "dali"],
        ["--train.accumulation", 4],
        ["--model.freeze", "layer3", "--optim.name", "sgd", "--optim.clip-norm", 1],
        ["--train.precision", "no", "--train.channels-last", False],
        ["--model.stem", "small", "--data.image-size", 16, 16, "--data.fold", "2/5"],
        ["--train.label-smoothing", 0.1, "--train.positive-weight", "balanced", "--data.split", "identity"],
    ],
)
def test_every_setting_trains(
    options: list[object], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "dali" in options:
        pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI, which exists for Linux alone")
    folder = tmp_path / "run"
    short = ["--train.epochs", 1, "--data.subset", 64, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    arguments = settings(faces, folder, *options, *short)
    status = program.main([str(each) for each in arguments])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert ("valid (fold 2/5 of the training split)" in said.out) == ("--data.fold" in options)
    (row,) = read_metrics(folder)
    assert np.isfinite(row["train_loss"])
    assert np.isfinite(row["val_loss"])


def test_no_gpu_is_said(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    short = ["--train.epochs", 1, "--data.subset", 32, "--checkpoint.every-steps", 99]
    status, said = here(capsys, *settings(faces, tmp_path / "run", "--run.device", "auto", *short))
    assert status == 0
    assert "run.device auto found no GPU" in said
    assert any("no GPU" in note for note in read_events(tmp_path / "run", "start")[0]["warnings"])


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.2")
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    for name in ("nvidiactl", "nvidia-uvm"):  # which are there without a GPU too
        (tmp_path / name).touch()
    assert resolve(Config()).run.device == "cpu"
    (tmp_path / "nvidia0").touch()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for visible in (None, "0,1", "GPU-5e1f", "MIG-1"):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        for device in ("auto", "cuda"):  # as the job scripts say
            with pytest.raises(
                UserError, match=r"driver 535\.129\.03\), and torch .*, built for CUDA 13\.2, cannot use it"
            ):
                resolve(Config().replace("run", device=device))
    assert resolve(Config().replace("run", device="cpu")).run.device == "cpu"
    (tmp_path / "nvidia0").unlink()
    (tmp_path / "nvidia0").mkdir()  # which cannot be opened, as the GPUs of a node by a job that was given none
    assert resolve(Config()).run.device == "cpu"
    (tmp_path / "nvidia0").rmdir()
    (tmp_path / "nvidia0").touch()
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert resolve(Config()).run.device == "cpu"


def test_no_dali_on_a_gpu_is_said() -> None:
    asked = Config()
    on_gpu = asked.replace("run", device="cuda").replace("data", decoder="torch")
    assert "no NVIDIA DALI" in fallbacks(asked, on_gpu)[0]
    assert fallbacks(on_gpu, on_gpu) == []


def test_frozen_layers_stay_as_they_were(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    short = ["--train.epochs", 1, "--data.subset", 64]
    status, said = here(capsys, *settings(faces, folder, "--model.freeze", "backbone", *short))
    assert status == 0, said
    first, last = [load_file(f / "model.safetensors") for f in sorted((folder / "checkpoints").iterdir())]
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_no_name_in_distrib_hides_another_module() -> None:
    """`accelerate launch distrib/train.py` puts distrib/ first on sys.path."""
    names = {path.stem for path in (ROOT / "distrib").iterdir() if not path.name.startswith("__")}
    dependencies = {"accelerate", "numpy", "PIL", "psutil", "pydantic", "yaml", "rich", "safetensors", "sklearn",
                    "simplejpeg", "torch", "torchvision", "tyro", "wandb", "nvidia"}  # fmt: skip
    assert not names & (set(sys.stdlib_module_names) | dependencies)


@pytest.mark.parametrize("name", ["cpu", "one_gpu", "one_node", "many_nodes"])
def test_launch_files_are_accelerate_configurations(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = ROOT / "launch" / f"{name}.yaml"
    loaded = load_config_from_file(str(file))
    written = yaml.safe_load(file.read_text())
    assert loaded.num_processes == written["num_processes"]
    assert str(loaded.distributed_type.value) == written["distributed_type"]
