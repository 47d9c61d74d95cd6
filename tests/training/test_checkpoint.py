import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import distrib.training.checkpoint
from distrib.base.errors import UserError
from distrib.base.files import recover_folder, replace_folder
from distrib.config import Config, OptimConfig, read_yaml
from distrib.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Contents,
    DamagedError,
    Progress,
    find_checkpoint,
    later_than,
    load_checkpoint,
    save_checkpoint,
    set_aside,
)
from distrib.training.optimizer import make_optimizer

FILES = ["model.safetensors", "model.json", "trainer.pt", "config.yaml", "manifest.json"]


def weights(number: float = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "conv": (torch.randn(4, 3, 5, 5) + number).to(memory_format=torch.channels_last),
        "bias": torch.tensor([number, -0.0, 1e-42, float("inf")]),
        "count": torch.tensor(7),
        "half": torch.randn(3, 2).bfloat16().T,  # not contiguous
    }


def save(folder: Path, number: int, /, keep: int = 9, **progress: Any) -> Path:
    optimizer = {"state": {}, "param_groups": []}
    contents = Contents(weights(number), optimizer, None, Progress(**progress), '{"epoch": 1}', number)
    return save_checkpoint(folder, contents, "data", Config().to_yaml(), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def find(folder: Path, resume: str = "auto") -> tuple[Checkpoint | None, list[str]]:
    reports: list[str] = []
    return find_checkpoint(folder, resume, reports.append), reports


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bytes_of = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*bytes_of)


# --- what goes in comes out


def test_a_checkpoint_comes_back_to_the_bit(tmp_path: Path) -> None:
    progress = {
        "epoch": 3, "step": 7, "loss_sum": 0.1 + 0.2, "seconds": 1.5, "best_epoch": 2, "best_score": 1 / 3,
        "skipped": (3, 5),
    }  # fmt: skip
    saved = save(tmp_path / "checkpoints", 107, **progress)
    assert saved.name == "step-00000107"
    assert names(saved) == sorted(FILES)
    found = load_checkpoint(saved)
    assert found.folder == saved
    assert set(found.weights) == set(weights())
    for name, tensor in weights(107).items():
        assert same_bits(found.weights[name], tensor), name
    assert found.progress == Progress(**progress)
    assert read_yaml(saved / "config.yaml") == Config()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path, name: str, memory: torch.memory_format) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=memory)
        return net, make_optimizer(net, OptimConfig.model_validate({"name": name, "weight_decay": 0.1}))

    def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    net, optimizer = build()
    for number in range(3):
        step(net, optimizer, number)
    contents = Contents(net.state_dict(), optimizer.state_dict(), None, Progress(), "{}", 3)
    saved = save_checkpoint(tmp_path, contents, "data", "", 1)
    for number in range(3, 6):
        step(net, optimizer, number)

    found = load_checkpoint(saved)
    resumed, its_optimizer = build()
    resumed.load_state_dict(found.weights)
    its_optimizer.load_state_dict(found.trainer["optimizer"])
    for number in range(3, 6):
        step(resumed, its_optimizer, number)
    for key, tensor in net.state_dict().items():
        assert same_bits(resumed.state_dict()[key], tensor), key
    assert resumed[0].weight.is_contiguous(memory_format=memory)


def test_the_trained_network_is_kept_beside_its_average(tmp_path: Path) -> None:
    optimizer, network = {"state": {}, "param_groups": []}, weights(2)
    writer = CheckpointWriter(tmp_path, "data", Config().to_yaml(), 1, None)
    writer.save(Contents(weights(1), optimizer, None, Progress(), "{}", 1, network))
    kept = {name: tensor.clone() for name, tensor in network.items()}
    network["conv"].zero_()  # the training continues while the checkpoint is written
    writer.wait()
    checkpoint = load_checkpoint(tmp_path / "step-00000001")
    assert all(same_bits(tensor, checkpoint.weights[name]) for name, tensor in weights(1).items())
    assert all(same_bits(tensor, checkpoint.trainer["network"][name]) for name, tensor in kept.items())


def test_one_of_an_earlier_version_knows_of_no_average(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    trainer = torch.load(folder / "trainer.pt", weights_only=True)
    del trainer["network"]
    torch.save(trainer, folder / "trainer.pt")
    (folder / "manifest.json").unlink()
    distrib.training.checkpoint._write_manifest(folder)
    assert load_checkpoint(folder).trainer["network"] is None


def test_the_scaler_is_kept(tmp_path: Path) -> None:
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12}
    saved = save_checkpoint(tmp_path, Contents(weights(), {}, scaler, Progress(), "{}", 1), "data", "", 1)
    assert load_checkpoint(saved).trainer["scaler"] == scaler


def test_other_programs_can_read_the_weights(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    with safetensors.safe_open(saved / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(weights())
    listed = json.loads((saved / "manifest.json").read_text())["files"]
    assert set(listed) == set(FILES) - {"manifest.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest


# --- which are kept


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 99, 100, 1000):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step-00000099", "step-00000100", "step-00001000"]


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "keep-this").mkdir()
    for step in (1, 2):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["keep-this", "notes.txt", "step-00000002"]


def test_older_ones_go_only_after_the_new_one_is_there(tmp_path: Path) -> None:
    save(tmp_path, 1, keep=1)
    broken = Contents({"not a tensor": "text"}, {}, None, Progress(), "{}", 2)  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path, broken, "data", "", 1)
    found, _ = find(tmp_path)
    assert found is not None
    assert found.folder.name == "step-00000001"


@pytest.mark.parametrize("keep", [1, 2])
def test_after_going_back_to_an_earlier_one_the_new_ones_are_kept(tmp_path: Path, keep: int) -> None:
    # --resume checkpoints/step-00000100 where later ones lie, or a later one is damaged and passed over.
    for step in (100, 200, 300, 400):
        save(tmp_path, step)
    saved = save(tmp_path, 150, keep=keep)
    assert saved.is_dir()
    load_checkpoint(saved)


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 7, epoch=1)
    saved = save(tmp_path, 7, epoch=2)
    assert load_checkpoint(saved).progress.epoch == 2
    assert names(tmp_path) == ["step-00000007"]


# --- damage


def flip(file: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[min(len(data) - 1, int(place * len(data)))] ^= 0x10
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        changed = change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest if changed is None else changed))

    return damage


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"byte of {name} at {place}": ((lambda folder, n=name, p=place: flip(folder / n, p)), name)
        for name in ("model.safetensors", "trainer.pt", "config.yaml")
        for place in (0.0, 0.5, 1.0)
    },
    **{f"half of {name}": ((lambda folder, n=name: truncate(folder / n)), name) for name in FILES},
    **{f"empty {name}": ((lambda folder, n=name: (folder / n).write_bytes(b"")), name) for name in FILES},
    **{f"no {name}": ((lambda folder, n=name: (folder / n).unlink()), f"{name} is missing") for name in FILES},
    "empty folder": (empty, "manifest.json is missing"),
    "older version": (
        edit_manifest(lambda manifest: manifest.update(version=3)),
        "it is of version 3, and this program reads version 4",
    ),
    "newer version": (edit_manifest(lambda manifest: manifest.update(version=99)), "version 99"),
    "no version": (edit_manifest(lambda manifest: {"files": manifest["files"]}), "manifest.json"),
    "a list": (edit_manifest(lambda _: [1, 2]), "manifest.json"),
    "null": (edit_manifest(lambda _: 0), "manifest.json"),
    "files is text": (edit_manifest(lambda manifest: {**manifest, "files": "all"}), "manifest.json"),
    "a file is not listed": (
        edit_manifest(lambda manifest: manifest["files"].pop("trainer.pt") and None),
        "trainer.pt",
    ),
    "not JSON": ((lambda folder: (folder / "manifest.json").write_text("{]")), "manifest.json"),
    "not text": ((lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")), "manifest.json"),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    damage, says = DAMAGES[name]
    good = save(tmp_path, 100, epoch=1)
    bad = save(tmp_path, 200, epoch=2)
    damage(bad)
    with pytest.raises(DamagedError, match=re.escape(says)):
        load_checkpoint(bad)
    found, reports = find(tmp_path)
    assert found is not None
    assert found.folder == good
    assert found.progress.epoch == 1
    assert len(reports) == 1
    assert str(bad) in reports[0]
    assert says in reports[0]
    with pytest.raises(UserError) as error:
        find(tmp_path, str(bad))
    assert str(bad) in str(error.value)
    assert says in str(error.value)
    assert "--resume auto" in str(error.value)


def test_a_file_in_place_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    good = save(tmp_path, 100)
    (tmp_path / "step-00000200").write_text("oops")
    found, reports = find(tmp_path)
    assert found is not None
    assert found.folder == good
    assert len(reports) == 1


def test_auto_takes_the_newest_whole_one(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step, epoch=step)
    found, reports = find(tmp_path)
    assert found is not None
    assert found.progress.epoch == 100
    assert reports == []


def test_several_damaged_ones_are_all_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (2, 3):
        truncate(tmp_path / f"step-{step:08d}/trainer.pt")
    found, reports = find(tmp_path)
    assert found is not None
    assert found.folder.name == "step-00000001"
    assert ["step-00000003" in reports[0], "step-00000002" in reports[1]] == [True, True]


def test_where_none_is_whole_the_run_does_not_start_over(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step) / "model.safetensors", 0.9)
    reports: list[str] = []
    with pytest.raises(UserError, match="none of the 2 checkpoints") as error:
        find_checkpoint(tmp_path, "auto", reports.append)
    assert str(tmp_path) in str(error.value)
    assert len(reports) == 2


def test_where_there_is_none_at_all_auto_starts(tmp_path: Path) -> None:
    assert find(tmp_path / "nothing") == (None, [])
    assert find(tmp_path) == (None, [])


def test_a_leftover_staged_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.staged")
    found, reports = find(tmp_path)
    assert found is not None
    assert found.folder.name == "step-00000001"
    assert reports == []
    (tmp_path / ".step-00000002.staged/stale").write_text("from the crash")
    assert names(save(tmp_path, 2)) == sorted(FILES)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_named_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        find(tmp_path, str(tmp_path / "step-00000009"))
    assert str(tmp_path / "step-00000009") in str(error.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    torch.save({"optimizer": Trap(tmp_path / "it ran")}, saved / "trainer.pt")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["trainer.pt"] = hashlib.sha256((saved / "trainer.pt").read_bytes()).hexdigest()
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="does not hold what a checkpoint holds"):
        load_checkpoint(saved)
    assert not (tmp_path / "it ran").exists()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.witness,)


# --- replacing a folder


def write(content: str) -> Callable[[Path], None]:
    return lambda staged: (staged / "file").write_text(content) and None


def test_replacing_makes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep/best"
    replace_folder(target, write("one"))
    assert (target / "file").read_text() == "one"
    (target / "surplus").write_text("")
    replace_folder(target, write("two"))
    assert names(target) == ["file"]
    assert (target / "file").read_text() == "two"
    assert names(target.parent) == ["best"]


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "best"
    replace_folder(target, write("one"))

    def fail(staged: Path) -> None:
        (staged / "file").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(UserError, match="cannot be written"):
        replace_folder(target, fail)
    assert (target / "file").read_text() == "one"
    assert names(tmp_path) == ["best"]


def test_a_crash_before_the_first_rename(tmp_path: Path) -> None:
    target = tmp_path / "best"
    replace_folder(target, write("old"))
    (tmp_path / ".best.staged").mkdir()
    recover_folder(target)
    assert names(tmp_path) == ["best"]
    assert (target / "file").read_text() == "old"


def test_a_crash_between_the_renames(tmp_path: Path) -> None:
    target = tmp_path / "best"
    replace_folder(tmp_path / ".best.old", write("old"))
    replace_folder(tmp_path / ".best.staged", write("new"))
    recover_folder(target)
    assert (target / "file").read_text() in {"old", "new"}
    assert names(tmp_path) == ["best"]


def test_a_crash_before_the_old_one_was_removed(tmp_path: Path) -> None:
    target = tmp_path / "best"
    replace_folder(target, write("new"))
    (tmp_path / ".best.old").mkdir()
    recover_folder(target)
    assert (target / "file").read_text() == "new"
    replace_folder(target, write("newer"))
    assert names(tmp_path) == ["best"]


def test_recovering_where_nothing_happened(tmp_path: Path) -> None:
    recover_folder(tmp_path / "best")
    recover_folder(tmp_path / "nowhere/best")
    assert names(tmp_path) == []


# --- in the background


def contents(state: dict[str, torch.Tensor], step: int) -> Contents:
    optimizer = {"state": {0: {"momentum_buffer": state["bias"]}}, "param_groups": []}
    return Contents(state, optimizer, None, Progress(step=step), "{}", step)


def writer(folder: Path, failed: Callable[[str], None] | None = None) -> CheckpointWriter:
    return CheckpointWriter(folder, "data", Config().to_yaml(), keep=2, failed=failed)


def test_what_is_written_is_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training continues and changes the weights while the disk is busy."""
    go_on = threading.Event()
    save = distrib.training.checkpoint.save_checkpoint
    monkeypatch.setattr(distrib.training.checkpoint, "save_checkpoint", lambda *args: go_on.wait(20) and save(*args))
    state = weights(1)
    background = writer(tmp_path)
    background.save(contents(state, 1))
    for tensor in state.values():
        tensor.zero_()
    assert not background.has_failed()
    assert not list(tmp_path.iterdir())  # it is not there yet, and nobody has waited for it
    go_on.set()
    background.wait()
    found = load_checkpoint(tmp_path / "step-00000001")
    for name, tensor in weights(1).items():
        assert same_bits(found.weights[name], tensor), name
    assert same_bits(found.trainer["optimizer"]["state"][0]["momentum_buffer"], weights(1)["bias"])


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread."""
    limit = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.01)


def test_one_is_written_after_the_other(tmp_path: Path) -> None:
    background = writer(tmp_path)
    for step in (1, 2, 3):
        background.save(contents(weights(step), step))
    background.wait()
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_one_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    stops, told = writer(tmp_path / "file"), []
    stops.save(contents(weights(), 1))
    until(stops.has_failed)
    with pytest.raises(UserError, match="cannot be written"):
        stops.wait()
    stops.wait()  # it has been said
    assert not stops.has_failed()
    goes_on = writer(tmp_path / "file", told.append)
    goes_on.save(contents(weights(), 1))
    goes_on.save(contents(weights(), 2))
    goes_on.wait()
    assert len(told) == 2
    goes_on.save(contents(weights(), 3))
    until(lambda: goes_on.has_failed() or len(told) == 3)
    assert len(told) == 3  # without waiting for the next one, and it is no reason to stop
    goes_on.save(contents(weights(), 4))
    with pytest.raises(UserError, match="cannot be written"):
        goes_on.wait(at_any_rate=True)
    assert all("cannot be written" in sentence for sentence in told)


def test_what_comes_first_is_written_first_from_a_copy_of_the_weights(tmp_path: Path) -> None:
    go_on, seen = threading.Event(), []

    def first(copy: dict[str, torch.Tensor]) -> None:
        go_on.wait(20)
        seen.append((copy, names(tmp_path)))

    state, background = weights(1), writer(tmp_path)
    background.save(contents(state, 1), first)
    for tensor in state.values():
        tensor.zero_()
    go_on.set()
    background.wait()
    [(copy, before)] = seen
    assert before == []
    assert names(tmp_path) == ["step-00000001"]
    assert all(same_bits(copy[name], tensor) for name, tensor in weights(1).items())


def test_where_what_comes_first_cannot_be_written_the_run_stops_and_there_is_no_checkpoint(tmp_path: Path) -> None:
    def first(_: dict[str, torch.Tensor]) -> None:
        raise UserError("best/ cannot be written")

    told: list[str] = []
    background = writer(tmp_path, told.append)  # of a run that continues without its checkpoints
    background.save(contents(weights(), 1), first)
    until(background.has_failed)
    with pytest.raises(UserError, match="best/ cannot be written"):
        background.save(contents(weights(), 2))
    assert told == []
    assert names(tmp_path) == []


def test_a_disk_that_does_not_answer_says_nothing_about_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(distrib.training.checkpoint, "_sha256", fail)
    with pytest.raises(UserError, match=r"cannot be read now \(Input/output error\)"):
        find(tmp_path)


def test_what_is_passed_over_is_kept_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    later = later_than(tmp_path, 1)
    assert [path.name for path in later] == ["step-00000003", "step-00000002"]
    aside = [set_aside(path) for path in later]
    assert names(tmp_path) == ["passed-over-step-00000002", "passed-over-step-00000003", "step-00000001"]
    assert {path.name for path in aside} == set(names(tmp_path)) - {"step-00000001"}
    found, reports = find(tmp_path)
    assert found is not None
    assert (found.folder.name, reports) == ("step-00000001", [])
