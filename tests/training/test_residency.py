"""Where a run keeps its decoded images, what it says of that, and what it refuses."""

import dataclasses
import errno
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from image_files import encoded, smooth
from launching import read_events

from distrib.base.errors import UserError
from distrib.config import Config
from distrib.data import reader
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import Tracker
from distrib.training import residency
from distrib.training.check import read_data
from distrib.training.checkpoint import Checkpoint
from distrib.training.residency import Room, hold_images
from distrib.training.run import written_down
from distrib.training.training_run import TrainingRun

GB = 10**9


def a_run(faces: Path, **data: Any) -> TrainingRun:
    config = Config().replace("run", device="cpu").replace("train", precision="no", batch_size=16)
    config = config.replace("explain", after_training=False).replace("data", root=faces, decoder="torch", **data)
    table, splits = read_data(config)
    return TrainingRun(config, Accelerator(cpu=True), table, splits, RunFolder(Path("none")), Tracker())


def resumed_from(tmp_path: Path, resident: str) -> Checkpoint:
    (tmp_path / "config.yaml").write_text(Config().replace("data", resident=resident, decoder="torch").to_yaml())
    return Checkpoint(tmp_path, {}, {})


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "free_memory", lambda: 10**6)


def test_on_a_cpu_auto_is_never(faces: Path) -> None:
    run, found = hold_images(a_run(faces), None)
    assert (run.images, run.config.data.resident, found.mode) == (None, "never", "never")
    assert found.line == "decoded for each batch (data.resident auto: on a CPU it saves little)"


def test_the_images_of_training_and_validation_are_held(faces: Path) -> None:
    run, found = hold_images(a_run(faces, resident="host"), None)
    assert run.images is not None
    held = {*run.splits.train.tolist(), *run.splits.valid.tolist()}
    assert run.images.rows.tolist() == sorted(held)
    assert run.images.pixels_NHWC.shape == (len(held), 218, 178, 3)
    assert run.config.data.resident == "host"
    size = len(held) * 218 * 178 * 3 / 1e6
    assert re.fullmatch(
        rf"decoded once, into the memory of the machine \({size:.1f} MB of the .* GB that is free\)", found.line
    )
    assert not found.notes


@pytest.mark.parametrize(
    ("mode", "room", "refusal"),
    [
        ("device", Room(machine=1, gpu=40 * GB, shared=False), None),
        ("device", Room(machine=50 * GB, gpu=40 * GB, shared=True), None),
        ("device", Room(machine=30 * GB, gpu=40 * GB, shared=True),
         "20.0 GB is more than 50% of the 30.0 GB that is free in this machine's memory"),
        ("device", Room(machine=50 * GB, gpu=30 * GB, shared=False),
         "20.0 GB is more than 50% of the 30.0 GB that is free on a GPU"),
        ("device", Room(machine=50 * GB, gpu=None, shared=False), "this run is on the CPU"),
        ("host", Room(machine=50 * GB, gpu=None, shared=True), None),
        ("host", Room(machine=30 * GB, gpu=40 * GB, shared=True),
         "20.0 GB is more than 50% of the 30.0 GB that is free in this machine's memory"),
    ],
)  # fmt: skip
def test_what_has_room(mode: str, room: Room, refusal: str | None) -> None:
    assert room.refusal(mode, 20 * GB) == refusal


@pytest.mark.usefixtures("little_memory")
def test_what_is_asked_for_and_does_not_fit_is_refused(faces: Path) -> None:
    with pytest.raises(UserError, match=r"data\.resident is host, but .* MB is more than 50% of the 1\.0 MB"):
        hold_images(a_run(faces, resident="host"), None)
    with pytest.raises(UserError, match=r"data\.resident is device, but this run is on the CPU: set it to auto"):
        hold_images(a_run(faces, resident="device"), None)


def test_a_run_that_is_resumed_has_its_images_where_they_were(faces: Path, tmp_path: Path) -> None:
    run, found = hold_images(a_run(faces, resident="auto"), resumed_from(tmp_path, "host"))
    assert (run.config.data.resident, found.before) == ("host", None)
    assert run.images is not None
    run, found = hold_images(a_run(faces, resident="never"), resumed_from(tmp_path, "host"))
    assert (run.images, found.mode, found.before) == (None, "never", "host")


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("asked", "before"), [("auto", "host"), ("host", "host"), ("host", "never")])
def test_where_they_do_not_fit_any_more_that_is_said(faces: Path, tmp_path: Path, asked: str, before: str) -> None:
    run, found = hold_images(a_run(faces, resident=asked), resumed_from(tmp_path, before))
    assert (run.images, run.config.data.resident) == (None, "never")
    assert "is more than 50% of the 1.0 MB" in found.line
    if before == "host":
        now = "and are now decoded for each batch: their pixels stay the same"
        assert found.notes == (f"images were decoded once, into the memory of the machine, {now}",)
        assert found.before == "host"


def test_dalis_pixels_change_with_where_images_are() -> None:
    """It resizes by itself, unless they are in memory, and the torch decoder decodes otherwise."""
    torch = Config().replace("data", decoder="torch", resident="never").data
    dali = torch.model_copy(update={"decoder": "dali"})
    held = dali.model_copy(update={"resident": "host"})
    filtered = "differ slightly, by about 0.15 grey levels where an image is resized"
    for then, now, pixels in (
        (torch, torch.model_copy(update={"resident": "host"}), "stay the same"),
        (torch, held, "differ slightly"),
        (dali, held, filtered),
        (held, held.model_copy(update={"resident": "device"}), "stay the same"),
    ):
        said = residency._change(then, now)
        assert said.endswith(f": their pixels {pixels}")


def with_files(faces: Path, folder: Path, files: dict[int, bytes]) -> Path:
    """The same data set with other bytes in some rows."""
    shutil.copytree(faces, folder)
    for row, data in files.items():
        (folder / "img_align_celeba" / f"{row + 1:06}.jpg").write_bytes(data)
    return folder


def test_images_of_different_sizes_are_never_held(faces: Path, tmp_path: Path) -> None:
    root = with_files(faces, tmp_path / "faces", {5: encoded(smooth(100, 90))})
    differ = r"images differ in size: .*000006\.jpg is 100 pixels high and 90 wide, others 218 and 178"
    with pytest.raises(UserError, match=rf"data\.resident is host, but {differ}"):
        hold_images(a_run(root, resident="host"), None)
    (tmp_path / "run").mkdir()
    run, found = hold_images(a_run(root), resumed_from(tmp_path / "run", "host"))
    assert (run.images, found.mode) == (None, "never")
    assert "images differ in size" in found.line


def test_every_broken_image_is_named_at_once(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = a_run(faces).splits
    trained, valid = splits.train[:2].tolist(), splits.valid[:2].tolist()
    root = with_files(faces, tmp_path / "faces", dict.fromkeys([*trained, *valid], b"text"))
    with pytest.raises(UserError, match=rf"4 images of {root} cannot be decoded; they are named above"):
        hold_images(a_run(root, resident="host"), None)
    said = capsys.readouterr().err
    assert all(f"{row + 1:06}.jpg cannot be decoded" in said for row in [*trained, *valid])
    # Others are trained on in place of broken ones, if that is asked for; validation has no such choice.
    with pytest.raises(UserError, match=rf"2 images of {root} cannot be decoded; they are named above"):
        hold_images(a_run(root, resident="host", on_error="skip"), None)
    run = a_run(root, resident="host", on_error="skip")
    run = dataclasses.replace(run, splits=dataclasses.replace(run.splits, valid=splits.valid[2:]))
    held, found = hold_images(run, None)
    assert held.images is not None
    assert sorted(held.images.broken) == sorted(trained)
    assert found.notes == ("2 training images cannot be decoded, and others take their place",)


def test_a_job_sees_what_a_person_has_to_mend_and_nothing_that_may_pass(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = int(a_run(faces).splits.train[0])
    root = with_files(faces, tmp_path / "faces", {row: b"text"})
    run = dataclasses.replace(a_run(root, resident="host"), folder=RunFolder(tmp_path / "run"))
    with pytest.raises(UserError), written_down(run):
        hold_images(run, None)
    (event,) = read_events(tmp_path / "run", "error")
    assert f"{row + 1:06}.jpg cannot be decoded" in event["reason"]

    def fail(_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reader, "_PAUSES", ())
    run = dataclasses.replace(a_run(faces, resident="host"), folder=RunFolder(tmp_path / "other"))
    whole = run.table.store.read
    monkeypatch.setattr(run.table.store, "read", lambda each: fail(each) if each == row else whole(each))
    for seen in (row, int(run.splits.train[1])):  # where sizes are looked at, and later
        row = seen
        with pytest.raises(UserError, match="cannot be read") as raised, written_down(run):
            hold_images(run, None)
        assert raised.value.may_pass
    assert not (tmp_path / "other").exists()
