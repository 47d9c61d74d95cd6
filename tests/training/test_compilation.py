"""`train.compile`: one graph of the network, on real ranks, and the run that it is without."""

import inspect
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import on_ranks
from launching import read_events, read_metrics
from safetensors.torch import load_file
from small_run import assert_same_training, go_back, settings
from torch import fx, nn
from torch._inductor.exc import InductorError

from distrib import train as program
from distrib.base.errors import UserError
from distrib.checking.check import Bench, Failed
from distrib.checking.stepping import nan_moves_nothing
from distrib.config import Config, read_yaml
from distrib.model.network import AttributeClassifier
from distrib.ranks import ending
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.training import probe
from distrib.training.checkpoint import Checkpoint
from distrib.training.compilation import choose_mode, compile_network
from distrib.training.grouping import group_batch
from distrib.training.step import TrainStep

GPU = Config().replace("run", device="cuda")
CPU = Config().replace("run", device="cpu")


def resumed_from(tmp_path: Path, mode: str) -> Checkpoint:
    (tmp_path / "config.yaml").write_text(GPU.replace("train", compile=mode).to_yaml())
    return Checkpoint(tmp_path, {}, {})


@pytest.mark.parametrize(
    ("config", "before", "mode"),
    [
        (GPU, None, "default"),
        (CPU, None, "no"),
        (GPU.replace("train", deterministic=True), None, "no"),
        (GPU.replace("train", deterministic=True, compile="default"), None, "default"),
        (GPU.replace("train", norm_size="batch"), None, "no"),
        (GPU.replace("train", norm_size="batch"), "default", "no"),
        (CPU.replace("train", compile="default"), None, "default"),
        (GPU, "reduce-overhead", "reduce-overhead"),
        (CPU, "default", "default"),
        (GPU, "auto", "no"),  # of a version that did not compile
        (GPU.replace("train", compile="no"), "default", "no"),
    ],
)
def test_what_auto_is_and_what_a_run_keeps(config: Config, before: str | None, mode: str, tmp_path: Path) -> None:
    checkpoint = None if before is None else resumed_from(tmp_path, before)
    grouping = group_batch(config, 2, None)
    assert choose_mode(config, checkpoint, grouping).train.compile == mode


def test_what_cannot_be_both_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.deterministic is true, and train\.compile is max-autotune"):
        CPU.replace("train", compile="max-autotune", deterministic=True)
    config = GPU.replace("train", deterministic=True)
    with pytest.raises(UserError, match=r"max-autotune.*set train\.compile to default or no"):
        choose_mode(config, resumed_from(tmp_path, "max-autotune"), group_batch(config, 2, None))
    synchronised = GPU.replace("train", norm_size="batch", compile="default")
    with pytest.raises(
        UserError, match=r"SyncBatchNorm.* on 2 ranks, and train\.compile is default.*set train\.compile"
    ):
        group_batch(synchronised, 2, None)
    assert not group_batch(synchronised, 1, None).synchronised


def graphs() -> list[tuple[int, int, bool]]:
    """What this rank compiles of a network in DDP: of each graph its parameters that are trained, those that its
    backward pass gives a gradient, and whether a size in it is variable."""
    found: list[tuple[int, bool]] = []
    gradients: list[int] = []

    def look(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        trained = sum(isinstance(each, nn.Parameter) and each.requires_grad for each in inputs)
        found.append((trained, any(isinstance(each, torch.SymInt | int) for each in inputs)))
        return graph.forward

    # inductor's place is taken by what looks at the graphs that it would get.
    real = torch.compile
    torch.compile = lambda function, mode, **rest: real(function, backend=look, **rest)
    accelerator = start_ranks(resolve(CPU.replace("train", precision="bf16")))
    net = AttributeClassifier(2)
    compile_network(net, "default", deterministic=False)
    for policy, size in (("layer3", 32), ("none", 32), ("none", 48)):
        net.freeze(policy)
        model = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False, static_graph=True)
        for _ in range(2):
            model.train()
            with accelerator.autocast():
                model(torch.zeros(4, size, size, 3, dtype=torch.uint8)).float().sum().backward()
            model.eval()
            with torch.inference_mode(), accelerator.autocast():
                for part in range(1, 4):
                    net(torch.zeros(part, size, size, 3, dtype=torch.uint8))
        gradients.append(sum(parameter.grad is not None for parameter in net.parameters()))
        net.zero_grad(set_to_none=True)
    accelerator.end_training()
    return [(trained, count, variable) for (trained, variable), count in zip(found, gradients, strict=True)]


@pytest.mark.slow
def test_there_is_one_graph_of_each_size_and_part_and_none_of_evaluation() -> None:
    """DDP's buckets, of which the gradients fill two, do not cut it."""
    all_of_it = len(list(AttributeClassifier(2).parameters()))
    last = len(list(AttributeClassifier(2).net.layer4.parameters())) + 2
    for found in on_ranks(2, graphs):
        assert found == [(count, count, False) for count in (last, all_of_it, all_of_it)]


def test_a_graph_that_fails_in_the_middle_of_a_run_is_a_sentence(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The probe has found nothing; the compiler's place is taken by one that fails in the sixth forward pass."""
    passes = 0

    def compiled(net: AttributeClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 6:
            raise InductorError(RuntimeError("no space left for a kernel"), inspect.currentframe())
        return AttributeClassifier.logits(net, images_BHWC)

    folder = tmp_path / "run"
    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    few = ("--data.subset", 64, "--train.epochs", 2, "--tracking.mode", "off", "--train.compile", "default")
    assert program.main([str(each) for each in settings(faces, folder, *few)]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said.startswith(
        "distrib: error: train.compile is default, and compiling the network failed in step 5 (epoch 2): "
        "RuntimeError: no space left for a kernel; resume without it: "
    )
    assert said.endswith(read_events(folder, "error")[0]["reason"])
    remedy = said.partition("resume without it: ")[2]
    assert remedy == f"--config {folder / 'config.yaml'} --resume auto --train.compile no"
    assert program.main(remedy.split()) == 0
    assert [row["epoch"] for row in read_metrics(folder)] == [1, 2]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A compiler, and what it has compiled kept from test to test."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"needs a C++ compiler, and there is no {compiler}")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("needs Python's headers (python3-dev)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


def trained(*arguments: object) -> tuple[int, int]:
    """The program on this rank: its status, and how many graphs it has compiled."""
    status = program.main([str(each) for each in arguments])
    return status, torch._dynamo.utils.counters["stats"]["unique_graphs"]


def options(faces: Path, folder: Path, *more: object) -> list[object]:
    """An epoch with two groups of eight in each of four steps, in what compiles fastest: float32, and the first layers
    frozen. Images grow after two steps, and the weights are averaged. The learning rate is so small that rounding does
    not grow."""
    plain = ["--optim.name", "sgd", "--optim.momentum", 0, "--optim.lr", 1e-5, "--optim.schedule", "constant"]
    plain += ["--model.freeze", "layer3", "--data.grow", "16@0 32@0.5", "--train.ema", 0.9]
    plain += ["--train.precision", "no", "--train.norm-size", 8, "--train.epochs", 1, "--tracking.mode", "disabled"]
    plain += ["--data.subset", 64, "--checkpoint.every-steps", 1, "--checkpoint.keep", 99]
    return settings(faces, folder, *plain, *more)


LAST = ["--checkpoint.every-steps", 99]  # the only checkpoint, where no run is taken up from another


@pytest.fixture(name="whole", scope="module")
def a_compiled_run(kernels: None, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one on two ranks."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    # What was compiled when it was tried is what the steps take: a graph of each size.
    assert on_ranks(2, trained, *options(faces, folder, "--train.compile", "default"), timeout=600) == [(0, 2)] * 2
    return folder


@pytest.mark.slow
def test_a_compiled_run_is_the_run_that_it_would_be(whole: Path, faces: Path, tmp_path: Path) -> None:
    assert on_ranks(2, trained, *options(faces, tmp_path)) == [(0, 0)] * 2
    for run, mode in ((whole, "default"), (tmp_path, "no")):
        (start,) = read_events(run, "start")
        assert start["compile"] == read_yaml(run / "config.yaml").train.compile == mode
        assert (start["compile_seconds"] is None) == (mode == "no")
    weights, others = (load_file(run / "best/model.safetensors") for run in (whole, tmp_path))
    assert list(weights) == list(others)
    for row, other in zip(read_metrics(whole), read_metrics(tmp_path), strict=True):
        for loss in ("train_loss", "val_loss", "val_loss_raw"):
            assert row[loss] == pytest.approx(other[loss], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "graphs"), [(1, 2), (3, 1)], ids=["before images grow", "after"])
def test_a_compiled_run_resumes_to_the_bit(steps: int, graphs: int, whole: Path, faces: Path, tmp_path: Path) -> None:
    again = go_back(whole, tmp_path / "again", steps)
    assert on_ranks(2, trained, *options(faces, again, "--resume", "auto", *LAST)) == [(0, graphs)] * 2
    assert [start["compile"] for start in read_events(again, "start")] == ["default"] * 2
    assert_same_training(again, whole)


@pytest.mark.slow
def test_a_compiled_step_accumulates(whole: Path, faces: Path, tmp_path: Path) -> None:
    """The same groups on one rank, one after the other."""
    assert on_ranks(1, trained, *options(faces, tmp_path, "--train.compile", "default", *LAST)) == [(0, 2)]
    (start,) = read_events(tmp_path, "start")
    assert start["accumulation"] == 2
    losses = [[row["train_loss"] for row in read_metrics(run)] for run in (whole, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_compiled_run_in_bf16_thaws_a_stage(kernels: None, faces: Path, tmp_path: Path) -> None:
    """The graph of each part that is trained; in bf16 a compiled kernel rounds in other places."""
    losses = []
    for mode, graphs in (("default", 2), ("no", 0)):
        stages = ["--model.freeze", "layer4 2:layer3", "--data.grow", "none", "--train.epochs", 2]
        precise = ["--train.precision", "bf16", "--train.compile", mode]
        run = options(faces, tmp_path / mode, *stages, *precise, *LAST)
        assert on_ranks(1, trained, *run, timeout=600) == [(0, graphs)]
        losses.append([row["train_loss"] for row in read_metrics(tmp_path / mode)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow
def test_a_nan_moves_nothing_of_a_compiled_step(kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `distrib check --gpu` asks of the compiled step, on the CPU; and it finds one that moves."""
    bench = Bench.make(torch.device("cpu"), tmp_path)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    nan_moves_nothing(bench, "adamw", "no", "default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled + 1
    monkeypatch.setattr(TrainStep, "_note", lambda self, bad, step: torch.zeros_like(bad))
    with pytest.raises(Failed, match=r"a step whose loss is NaN has moved .* of adamw in float32"):
        nan_moves_nothing(bench, "adamw", "no", "default")


def trained_without_compiler(nothing: Path, *arguments: object) -> tuple[int, int]:
    """The same where rank 1 has no compiler and nothing compiled, on machines on which `auto` would compile."""
    decide = probe.choose_mode
    probe.choose_mode = lambda config, *_: decide(config.replace("run", device="cuda"), *_).replace("run", device="cpu")
    ending.SPEAK_WITHIN = 0  # there is no launcher to wait for
    if os.environ["RANK"] == "1":
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(nothing)
        torch._inductor.config.cpp.cxx = ("no-such-compiler",)  # which is read from CXX when torch is imported
    return trained(*arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("whole")
def test_where_one_rank_cannot_compile_all_do_without_or_leave(faces: Path, tmp_path: Path) -> None:
    auto, explicit = tmp_path / "auto", tmp_path / "explicit"
    statuses = on_ranks(2, trained_without_compiler, tmp_path, *options(faces, auto))
    assert [status for status, _ in statuses] == [0, 0]
    (start,) = read_events(auto, "start")
    assert start["compile"] == read_yaml(auto / "config.yaml").train.compile == "no"
    assert start["compile_seconds"] is None
    (warning,) = [each for each in start["warnings"] if "compile" in each]
    assert warning.startswith("train.compile auto: the network does not compile on rank 1 (InvalidCxxCompiler: No work")

    asked = options(faces, explicit, "--train.compile", "default")
    statuses = on_ranks(2, trained_without_compiler, tmp_path, *asked)
    assert [status for status, _ in statuses] == [2, 2]
    (error,) = read_events(explicit, "error")
    assert error["reason"].startswith(
        "train.compile is default, and the network does not compile on rank 1 (InvalidCxx"
    )
    assert error["reason"].endswith("choose train.compile no")
