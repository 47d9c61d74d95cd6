"""Runs that begin with another's weights and free their layers one after the other; whole, and taken up again."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from forked_ranks import on_ranks, train_on_ranks
from free_ranks import free_in_stages
from launching import launch, read_events
from safetensors.torch import load_file
from small_run import BATCH, EVERY, assert_same_training, go_back, settings, the_plan
from torchvision.models import resnet18

from distrib import train as program
from distrib.config import OptimConfig
from distrib.model.network import AttributeClassifier
from distrib.training.checkpoint import Checkpoint, Progress
from distrib.training.optimizer import make_optimizer, set_learning_rate
from distrib.training.state import restore

STAGES = "backbone 2:layer2 3:none"
TRAINED = [
    {"fc"},
    {"layer3", "layer4", "fc"},
    {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"},
]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# A run of a few steps, and one checkpoint.
SHORT = [
    "--data.subset", 64, "--train.epochs", 1, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled",
]  # fmt: skip


def staged(faces: Path, folder: Path, *more: object) -> list[object]:
    """Of three stages, an epoch each; weight decay and the optimiser's averages would move what only seems frozen."""
    return settings(
        faces, folder, "--model.freeze", STAGES, "--optim.weight-decay", 0.05, "--optim.backbone-lr", 3e-4,
        "--checkpoint.keep", 99, "--tracking.mode", "disabled", *more,
    )  # fmt: skip


# To its end, without a checkpoint within an epoch.
GO_ON = ["--resume", "auto", "--checkpoint.every-steps", 99]


def changed(earlier: Path, later: Path) -> set[str]:
    """The tensors in which two checkpoints differ."""
    one, other = (load_file(each / "model.safetensors") for each in (earlier, later))
    return {name for name in one if not torch.equal(one[name], other[name])}


def moments(faces: Path, run: Path) -> dict[str, int]:
    """Where in a staged run there are checkpoints to resume from: steps of the run."""
    per_epoch = the_plan(faces, run).steps_per_epoch
    assert per_epoch > EVERY
    return {
        "in the first stage": EVERY,
        "between the first and the second": per_epoch,
        "in the second stage": per_epoch + EVERY,
        "between the second and the third": 2 * per_epoch,
        "in the third stage": 2 * per_epoch + EVERY,
    }


@pytest.fixture(scope="module")
def undisturbed(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged run on one rank."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = launch(*staged(faces, folder), ranks=1)
    assert done.returncode == 0, done.stderr
    return folder


def test_each_stage_trains_what_it_says(faces: Path, undisturbed: Path) -> None:
    at = {steps: undisturbed / f"checkpoints/step-{steps:08d}" for steps in moments(faces, undisturbed).values()}
    first, end_of_first, _, end_of_second, last = at.values()
    for earlier, later, trained in zip(
        (first, end_of_first, end_of_second), (end_of_first, end_of_second, last), TRAINED, strict=True
    ):
        moved = changed(earlier, later)
        assert {name.partition(".")[0] for name in moved} == trained
        assert all(
            name in moved for name in load_file(later / "model.safetensors") if name.partition(".")[0] in trained
        )
    events = [(event["epoch"], event["freeze"]) for event in read_events(undisturbed, "freeze")]
    assert events == [(2, "layer2"), (3, "none")]
    assert read_events(undisturbed, "start")[0]["freeze"] == "backbone"
    assert len(read_events(undisturbed, "start")[0]["weights"]["new"]) == 122


@pytest.mark.parametrize(
    "moment",
    ["in the first stage", pytest.param("in the second stage", marks=pytest.mark.slow),
     "between the second and the third"],
)  # fmt: skip
def test_it_goes_on_in_every_stage_as_if_it_had_not_stopped(
    moment: str, faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = go_back(undisturbed, tmp_path / "run", moments(faces, undisturbed)[moment])
    assert program.main(list(map(str, staged(faces, folder, *GO_ON)))) == 0
    assert len(read_events(folder, "resume")) == 1
    assert_same_training(undisturbed, folder)


@pytest.mark.slow
def test_on_two_ranks_it_goes_on_as_if_it_had_not_stopped(faces: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    done = train_on_ranks(2, *staged(faces, undisturbed))
    assert done.returncode == 0, done.stderr
    for number, moment in enumerate(["between the first and the second", "in the second stage"]):
        folder = go_back(undisturbed, tmp_path / str(number), moments(faces, undisturbed)[moment])
        done = train_on_ranks(2, *staged(faces, folder, *GO_ON))
        assert done.returncode == 0, done.stderr
        assert len(read_events(folder, "resume")) == 1
        assert_same_training(undisturbed, folder)


@pytest.mark.slow
def test_nothing_is_left_of_an_earlier_stage_on_several_ranks() -> None:
    """Its DDP would wait for its own gradients, and accelerate's autocast be put around itself."""
    for stages in on_ranks(2, free_in_stages):
        assert [stage["moved"] for stage in stages] == TRAINED
        assert all(stage["same on all ranks"] for stage in stages)
        assert not any(stage["earlier DDP is there"] for stage in stages)
        assert all(stage["static graph"] for stage in stages)
        for stage in stages[1:]:
            assert stage["earlier buckets are there"]
            assert not any(stage["earlier buckets are there"])
        assert stages[0]["wrappers"] == stages[1]["wrappers"] == stages[2]["wrappers"] > 0


def test_a_run_may_begin_with_another_s_weights(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was loaded and what was not is said; and what is frozen stays what was loaded, statistics and all."""
    best, folder = finished[0] / "best", tmp_path / "other"
    common = ["--model.weights", finished[0], *SHORT]
    options = ["--data.attributes", "Smiling", "Young", "--model.freeze", "backbone"]
    assert program.main([str(each) for each in settings(faces, folder, *common, *options)]) == 0
    said = capsys.readouterr().out
    assert f"model:   resnet18, weights from {best}, a new head\n" in said
    assert "         loaded: conv1, bn1, layer1, layer2, layer3, layer4 (120 tensors)\n" in said
    reason = "the head there is for Smiling, Eyeglasses, Male, and this run is for Smiling, Young"
    assert f"         new: fc.weight, fc.bias ({reason})\n" in said
    (start,) = read_events(folder, "start")
    assert len(start["weights"]["loaded"]) == 120
    assert (start["weights"]["new"], start["weights"]["reason"]) == (["fc.weight", "fc.bias"], reason)
    donor, trained = (load_file(each / "model.safetensors") for each in (best, folder / "best"))
    assert all(name.startswith("fc.") or torch.equal(tensor, donor[name]) for name, tensor in trained.items())

    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--model.freeze", "backbone", "--model.frozen-statistics", "updated", "--optim.lr", "1e-12"]
    assert program.main([str(each) for each in settings(faces, tmp_path / "same", *common, *options)]) == 0
    assert f"model:   resnet18, weights from {best}, its head too\n" in capsys.readouterr().out
    trained = load_file(tmp_path / "same/best/model.safetensors")
    torch.testing.assert_close(trained["fc.weight"], donor["fc.weight"], rtol=0, atol=1e-9)
    moved = {name for name in donor if not torch.equal(trained[name], donor[name])} - {"fc.weight", "fc.bias"}
    assert moved == {name for name in donor if name.endswith(STATISTICS)}


def test_a_run_begins_with_imagenets_weights_where_torchvision_would_keep_them(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without network. torch compares a file with the hash in its name when it has downloaded it, and only then."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    file, folder = tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth", tmp_path / "run"
    options = ["--model.weights", "imagenet", "--model.freeze", "layer1", "--data.subset", 2 * BATCH]
    options += ["--train.epochs", 1, "--tracking.mode", "disabled"]
    assert program.main([str(each) for each in settings(faces, folder, *options)]) == 2
    assert str(file) in capsys.readouterr().err
    assert not folder.exists()

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(31)
    donor = resnet18(num_classes=1000).state_dict()
    torch.save(donor, file)
    assert program.main([str(each) for each in settings(faces, folder, *options)]) == 0
    said = capsys.readouterr().out
    assert "weights from torchvision ResNet18_Weights.IMAGENET1K_V1, a new head\n" in said
    assert "new: fc.weight, fc.bias (the file's head has 1000 outputs, this run has 3)\n" in said
    (start,) = read_events(folder, "start")
    assert len(start["weights"]["loaded"]) == 120
    trained = load_file(folder / "best/model.safetensors")
    weights = [name for name in donor if not name.startswith("fc.") and not name.endswith(STATISTICS)]
    frozen = [name for name in weights if name.partition(".")[0] in ("conv1", "bn1", "layer1")]
    assert all(torch.equal(trained[name], donor[name]) for name in frozen)
    later = [name for name in weights if name not in frozen]
    assert not any(torch.equal(trained[name], donor[name]) for name in later)
    assert all((trained[name] - donor[name]).abs().max() < 0.01 for name in later), "two steps from where it began"
    assert trained["fc.weight"].shape == (3, 512)


def test_a_file_of_another_training_is_looked_through_and_one_of_none_refused(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "other.pth.tar", tmp_path / "run"
    options = ["--model.weights", file, "--model.freeze", "backbone", *SHORT]
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 46830571\n")
    assert program.main([str(each) for each in settings(faces, folder, *options)]) == 2
    assert f"model.weights {file} is a Git LFS pointer" in capsys.readouterr().err
    assert not folder.exists()

    AcceleratorState._reset_state(reset_partial_state=True)
    plain = {f"module.{name}": tensor for name, tensor in load_file(finished[0] / "best/model.safetensors").items()}
    averaged = {name: tensor / 2 if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    torch.save({"arch": "resnet18", "args": Namespace(lr=0.1), "state_dict": plain, "state_dict_ema": averaged}, file)
    assert program.main([str(each) for each in settings(faces, folder, *options)]) == 0
    found = (
        "the averaged weights, under state_dict_ema, in the names that begin with module., rather than the plain ones, "
        "under state_dict, in the names that begin with module."
    )
    assert f"         found: {found}\n" in capsys.readouterr().out
    (start,) = read_events(folder, "start")
    assert start["weights"]["found"] == found
    trained = load_file(folder / "best/model.safetensors")
    assert torch.equal(trained["layer1.0.conv1.weight"], averaged["module.layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--model.freeze", "backbone 2:layer2"], "model.freeze is backbone 2:layer2, and "),
        (["--model.frozen-statistics", "updated"], "model.frozen_statistics is updated, and "),
        (["--train.epochs", 2], "model.freeze has 3:none, which is after the end of the run of train.epochs 2"),
    ],
)
def test_other_stages_do_not_go_on_from_a_checkpoint(
    change: list[object], sentence: str, faces: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = staged(faces, undisturbed, "--resume", "auto", "--train.epochs", 9, *change)
    assert program.main(list(map(str, options))) == 2
    assert sentence in capsys.readouterr().err


def test_another_rate_of_the_backbone_goes_on_from_a_checkpoint() -> None:
    net = AttributeClassifier(2)
    earlier = make_optimizer(net, OptimConfig()).state_dict()
    trainer = {"optimizer": earlier, "scaler": None, "progress": asdict(Progress()), "data": "data"}
    optimizer = make_optimizer(net, OptimConfig(lr=1e-3, backbone_lr=1e-4))
    alone = SimpleNamespace(scaler=None)
    restore(Checkpoint(Path("step-00000001"), net.net.state_dict(), trainer), net, optimizer, alone)  # type: ignore[arg-type]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.1, 0.1, 1.0, 1.0]
    set_learning_rate(optimizer, 1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-4, 1e-3, 1e-3]
