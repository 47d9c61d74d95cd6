"""`distrib check --gpu` on this CPU: it passes, and finds what is planted."""

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from launching import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from distrib.checking import decoding, ranks, speed, stepping
from distrib.checking.check import Bench, Check, Failed, LeftOut, Passed
from distrib.checking.devices import devices
from distrib.checking.images import kind_of
from distrib.checking.machine import describe, variables
from distrib.checking.run import check_machine
from distrib.data.batch import Batch, Request
from distrib.data.decoders import DaliDecoder, TorchDecoder, dali_installed
from distrib.data.images import is_plain_jpeg, read_jpeg_header
from distrib.data.reader import ImageReader
from distrib.ranks import machine
from distrib.ranks.watch import Watch
from distrib.training import checkpoint, state
from distrib.training.step import TrainStep

needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(torch.device("cpu"), tmp_path_factory.mktemp("bench"))


def found(check: Check, bench: Bench, tmp_path: Path) -> str:
    """What a check says of something planted."""
    with pytest.raises(Failed) as failed:
        check(replace(bench, folder=tmp_path))
    return str(failed.value)


@needs_dali
def test_other_pixels_than_the_references_are_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: Callable[..., Any] = TorchDecoder._cut

    def shifted(self: TorchDecoder, row: int, *others: Any) -> Any:
        return np.roll(cut(self, row, *others), 1, axis=1) if kind_of(row) == "grey" else cut(self, row, *others)

    monkeypatch.setattr(TorchDecoder, "_cut", shifted)
    with pytest.raises(Failed, match="differs from the reference in 2 of 10 ways to encode and to cut") as failed:
        decoding.parity(bench)
    assert ".jpg being grey at" in str(failed.value)
    assert str(failed.value).endswith("; at most 1 and 8 were expected")
    assert len(failed.value.figures) == 10


@needs_dali
def test_pixels_that_depend_on_the_place_in_a_batch_are_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = DaliDecoder.batches

    def differing(self: DaliDecoder, requests: Any) -> Iterator[Batch]:
        for each in batches(self, requests):
            places = (torch.arange(len(each)) % 2).to(torch.uint8).view(-1, 1, 1, 1)
            yield replace(each, images_BHWC=each.images_BHWC // 2 + places)

    monkeypatch.setattr(DaliDecoder, "batches", differing)
    assert "in a batch of 64 differ by 1 grey level (" in found(decoding.places, bench, tmp_path)


def test_a_batch_that_is_written_over_while_it_is_held_is_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = TorchDecoder.batches
    memory: list[torch.Tensor] = []

    def reused(self: TorchDecoder, requests: Any) -> Iterator[Batch]:
        for each in batches(self, requests):
            memory[:] = memory or [torch.empty_like(each.images_BHWC)]
            yield replace(each, images_BHWC=memory[0].copy_(each.images_BHWC))

    monkeypatch.setattr(TorchDecoder, "batches", reused)
    assert "of 50 batches of data.decoder torch changed" in found(decoding.lifetime, bench, tmp_path)


def test_damage_that_nobody_notices_is_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageReader, "decode", lambda *_: np.zeros((218, 178, 3), np.uint8))
    monkeypatch.setattr(decoding, "dali_installed", lambda: False)
    assert found(decoding.damage, bench, tmp_path) == "data.decoder torch decodes a truncated JPEG without a word"


@needs_dali
def test_damage_reaches_both_decoders_and_what_dali_makes_of_it_is_said(bench: Bench, tmp_path: Path) -> None:
    passed = decoding.damage(replace(bench, folder=tmp_path))
    assert passed.sentence.startswith("a truncated JPEG is named within ")
    seen = []
    for number in (0, 2):  # without and with an end
        data = (tmp_path / f"damaged-{number}" / f"{decoding.BAD}.jpg").read_bytes()
        seen.append(is_plain_jpeg(data, read_jpeg_header(data)))
    assert seen == [False, True]


def test_jpeg_hardware_that_is_slower_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder(bench: Bench, load: float) -> Any:
        def batches(requests: Any) -> list[Any]:
            time.sleep(0.2 if load else 0.05)
            return list(requests)

        return SimpleNamespace(batches=batches)

    monkeypatch.setattr(Bench, "need_gpu", lambda *_: None)
    monkeypatch.setattr(decoding, "_need_dali", lambda: None)
    monkeypatch.setattr(decoding, "_dali", decoder)
    monkeypatch.setattr(decoding, "has_jpeg_hardware", lambda: True)
    assert decoding.jpeg_hardware(bench).sentence.endswith(": set data.dali.hw_decoder_load 0, which is faster here")


def test_a_training_frees_the_one_before(bench: Bench) -> None:
    with no_automatic_collection():
        with stepping.training(bench) as small:
            for number in range(3):
                small.step([stepping.batch(bench)], number)
            assert not small.agreement._heard
            network = weakref.ref(small.net)
        del small
        with stepping.training(bench):
            assert network() is None


@contextmanager
def no_automatic_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_step_that_moves_in_spite_of_nan_is_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "_note", lambda self, bad, step: torch.zeros_like(bad))
    assert "a step whose loss is NaN has moved" in found(stepping.nonfinite, bench, tmp_path)


def test_moments_of_other_weights_are_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "lay_out", lambda optimizer: None)
    assert "the moments of adam are off by" in found(stepping.memory_format, bench, tmp_path)


def test_memory_that_grows_is_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def keeping(self: TrainStep, *arguments: Any) -> None:
        """No step, which would take long, but what a step would keep."""
        kept.append(torch.ones(2**22))  # 16 MiB

    monkeypatch.setattr(TrainStep, "__call__", keeping)
    assert "the host's memory grew by" in found(stepping.memory, bench, tmp_path)


def test_a_checkpoint_of_a_later_step_is_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(change: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
        return tree  # not a copy

    write = checkpoint.CheckpointWriter._write

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "_map_tensors", late)
    monkeypatch.setattr(checkpoint.CheckpointWriter, "_write", slowly)
    assert "tensors of a later step than its own: " in found(stepping.checkpoint, bench, tmp_path)


def test_steps_that_differ_from_run_to_run_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, calls = stepping.batch, iter(range(1000))
    monkeypatch.setattr(stepping, "batch", lambda bench, seed: batch(bench, seed=next(calls)))
    monkeypatch.setattr(stepping, "REPEATED", 2)
    assert "net.conv1.weight" in stepping.differences(bench, deterministic=False)


@pytest.mark.parametrize(
    ("built", "runs"),
    [
        (["sm_75", "sm_80", "sm_120", "compute_120"], False),
        (["sm_72", "sm_70a"], True),
        (["sm_60", "sm_72"], False),
        (["sm_60", "compute_60"], True),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_found(
    built: list[str], runs: bool, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volta = SimpleNamespace(name="Tesla V100", major=7, minor=0, total_memory=2**34, multi_processor_count=80)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: built)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: volta)
    on_gpu = replace(bench, device=torch.device("cuda"))
    if runs:
        assert "Tesla V100 (sm_70, 16 GiB)" in devices(on_gpu).sentence
    else:
        said = found(devices, on_gpu, tmp_path)
        assert said.startswith("GPU 0 (Tesla V100) is sm_70, and torch")
        assert f"was built for {', '.join(built)}: install" in said


def test_a_gpu_that_torch_cannot_use_is_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "driver_of_gpus", lambda: "535.129.03")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = found(devices, bench, tmp_path)
    assert said.startswith("this machine has an NVIDIA GPU (driver 535.129.03), and torch")
    assert "cannot use it: update the driver or install torch for an older CUDA" in said


def test_a_step_that_waits_for_the_device_is_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, modes = stepping.batch(bench), ["default"]

    def waiting(self: TrainStep, micro_batches: Any, step: int) -> None:
        if modes[-1] == "error" and len(micro_batches) == 2:
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)
    monkeypatch.setattr(TrainStep, "__call__", waiting)
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(Bench, "synchronise", lambda _: None)
    monkeypatch.setattr(stepping, "batch", lambda _: ready)
    said = found(stepping.synchronisation, bench, tmp_path)
    assert said == "a step in float32 waits for the device: called a synchronizing CUDA operation"
    assert modes == ["default", "error", "default"]


def test_an_overflow_that_moves_the_weights_is_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate has no fp16 on a CPU; in float32, with the same scaler, nothing overflows at this scale."""
    start = stepping.start_ranks

    def with_scaler(config: Any) -> Any:
        accelerator = start(config.replace("train", precision="no"))
        accelerator.scaler = torch.amp.GradScaler("cpu")
        accelerator.unscale_gradients = lambda each: accelerator.scaler.unscale_(each.optimizer)
        return accelerator

    monkeypatch.setattr(Bench, "need_gpu", lambda *_: None)
    monkeypatch.setattr(stepping, "start_ranks", with_scaler)
    assert "a gradient that overflows in fp16 has moved" in found(stepping.overflow, bench, tmp_path)


@pytest.mark.parametrize(
    ("slow", "named"),
    [
        ("make_decoder", "decoding, and with images in memory (data.resident) the step"),
        ("make_resident_decoder", "the step, and with images in memory (data.resident) cutting them out"),
        ("step", "the step"),
    ],
)
def test_the_part_that_is_slow_is_named(slow: str, named: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowed(make: Callable[..., Any]) -> Callable[..., Any]:
        def batches(decoder: Any, requests: Iterator[Request]) -> Iterator[Batch]:
            for each in decoder.batches(requests):
                time.sleep(0.6)
                yield each

        return lambda *arguments: SimpleNamespace(batches=partial(batches, make(*arguments)))

    monkeypatch.setattr(speed, "SECONDS", 0.05)
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: time.sleep(0.6 if slow == "step" else 0.2))
    if slow != "step":
        monkeypatch.setattr(speed, slow, slowed(getattr(speed, slow)))
    assert speed.bottleneck(bench).sentence.endswith(f"; the bottleneck is {named}")


@pytest.mark.parametrize(("slow", "fast"), [("no", "bf16"), ("bf16", "float32")])
def test_the_fast_precision_is_named(slow: str, fast: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: TrainStep, *_: Any) -> None:
        time.sleep(0.1 if self._train.precision == slow else 0.01)

    monkeypatch.setattr(speed, "SECONDS", 0.05)
    monkeypatch.setattr(speed, "computes_in", lambda precision, _: precision != "fp16")
    monkeypatch.setattr(TrainStep, "__call__", step)
    assert speed.precisions(bench).sentence.endswith(f"; the fastest is {fast}")


def test_a_network_that_cannot_be_compiled_is_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(bench: Bench, precision: str, mode: str, held: Batch) -> float:
        if mode == "default":
            raise RuntimeError("no\nTriton")
        return 1.0

    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(speed, "_step_rate", rate)
    said = found(speed.precisions, bench, tmp_path)
    assert said == "the network cannot be compiled (RuntimeError: no Triton): train with train.compile no"


# --- faults of a rank, in a process of its own


def keep_own_statistics(bench: Bench, answer: ranks.Answer) -> None:
    TrainStep._agree = lambda self, loss, statistics: loss  # type: ignore[method-assign]
    ranks.STEPS = 2
    ranks.share_steps(bench, answer)


def wait_for_ever(bench: Bench, answer: ranks.Answer) -> None:
    Watch._verdict = lambda self, now: None  # type: ignore[method-assign]
    ranks.stand_still(bench, answer)


def leave_without_a_word(bench: Bench, answer: ranks.Answer) -> None:
    answer(None)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)


def fail_on_one_rank(bench: Bench, answer: ranks.Answer) -> None:
    if os.environ["RANK"] == "0":
        time.sleep(60)  # as in a collective operation
    raise RuntimeError("no memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "work", "planted", "sentence"),
    [
        (ranks.agreement, "share_steps", keep_own_statistics, "2 ranks have different weights after 20 steps"),
        (ranks.agreement, "share_steps", fail_on_one_rank, "rank 1 of 2: RuntimeError: no memory"),
        (ranks.lost_rank, "stand_still", wait_for_ever, "rank 1 stood still, and after 2 s rank 0 still had not left"),
        (ranks.lost_rank, "stand_still", leave_without_a_word, "rank 1 stood still, and none of those that have left"),
    ],
    ids=["other statistics", "one fails", "never left", "not named"],
)
def test_a_fault_of_one_of_two_ranks_is_found(
    check: Check,
    work: str,
    planted: Callable[..., None],
    sentence: str,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranks, work, planted)
    monkeypatch.setattr(ranks, "TIMEOUT", 1.0)  # here alone: a rank's own is longer, so that it cannot help itself
    # Waited out by the rank that never leaves; where it leaves, its process may take long to end on a busy machine.
    monkeypatch.setattr(ranks, "SLACK", 1.0 if planted is wait_for_ever else 60.0)
    assert sentence in found(check, bench, tmp_path)


def test_a_gpu_that_another_process_cannot_share_leaves_a_check_out(tmp_path: Path) -> None:
    mine, theirs = Pipe()
    theirs.send((None, ("AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "")))
    with pytest.raises(LeftOut, match="the GPU is in exclusive mode"):
        ranks._answers([ranks.Rank(None, mine, tmp_path / "none.log")])  # type: ignore[arg-type]


# --- the whole


def passing(_: Bench) -> Passed:
    return Passed("well")


def test_what_was_seen_before_a_check_that_hangs_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[dict[str, Any]] = []
    check_machine(torch.device("cpu"), lambda found: kept.append(deepcopy(found)), {"one": passing, "two": passing})
    outcomes = [{name: each["outcome"] for name, each in found["checks"].items()} for found in kept]
    assert outcomes == [
        {"one": "running"}, {"one": "passed", "two": "running"}, {"one": "passed", "two": "passed"}
    ]  # fmt: skip
    assert all(found["machine"]["cpu"] for found in kept)
    assert [line.partition(" (")[0] for line in capsys.readouterr().out.splitlines()] == [
        "passed    one: well", "passed    two: well"
    ]  # fmt: skip


def test_a_gpu_that_is_lost_is_blamed_on_one_check_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def illegal(*_: Any) -> Passed:
        monkeypatch.setattr(Bench, "synchronise", illegal)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    checks = {"one": passing, "two": illegal, "three": passing}
    found = check_machine(torch.device("cpu"), lambda _: None, checks)["checks"]
    assert [each["outcome"] for each in found.values()] == ["passed", "failed", "left out"]
    assert found["three"]["sentence"] == 'the GPU was lost in "two"'


def test_no_check_is_begun_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.checking.run.BEGUN_WITHIN", -1.0)
    (found,) = check_machine(torch.device("cpu"), lambda _: None, {"one": passing})["checks"].values()
    assert (found["outcome"], found["sentence"]) == ("left out", "no time was left after -1 s")


HANGING = """
import json, subprocess, sys, time
from pathlib import Path
import torch
from distrib.checking import run
from distrib.checking.check import Passed

def passing(bench):
    return Passed("well")

def hanging(bench):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(sys.argv[1], "child").write_text(f"{child.pid} {bench.folder}")
    child.wait()  # it goes on as soon as that is killed
    return Passed("well")

def keep(found):
    Path(sys.argv[1], "found.json").write_text(json.dumps(found["checks"]))

run.ENDED_WITHIN = 2.0
run.check_machine(torch.device("cpu"), keep, {"one": passing, "two": hanging, "three": passing})
"""


def test_a_check_that_hangs_is_given_up_with_all_that_it_has_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    sentence = "it had not ended 2 s after the checks began"
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"failed    two: {sentence} (")
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: (each["outcome"], each["sentence"]) for name, each in found.items()} == {
        "one": ("passed", "well"), "two": ("failed", sentence)
    }  # fmt: skip
    child, folder = (tmp_path / "child").read_text().split()
    # Nobody may have asked yet how it ended.
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
    assert not Path(folder).exists()


def test_a_driver_that_hangs_before_any_check_is_given_up_too() -> None:
    program = HANGING.replace("run.check_machine", "run.describe = lambda device: time.sleep(600)\nrun.check_machine")
    command = [sys.executable, "-c", program.replace("sys.argv[1]", "'/dev/null'").replace("keep, {", "print, {")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "failed    description of the machine: it had not ended 2 s after the checks began (2.0 s)" in done.stdout


def test_a_library_that_refuses_to_be_asked_is_no_end_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def conflicting() -> int:
        raise RuntimeError("cuDNN version incompatibility")

    monkeypatch.setattr("torch.backends.cudnn.version", conflicting)
    described = describe(torch.device("cpu"))
    assert described["versions"]["cuDNN of torch"] is None
    assert described["bytes of /dev/shm"]["in all"] > 0


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no GPUs")
def test_what_is_held_on_a_gpu_stays_there(bench: Bench) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):  # it refuses operations between tensors of the CPU and of a GPU
        held = speed._held(replace(bench, device=torch.device("cuda")), 64, (218, 178))
        trained = stepping.batch(replace(bench, device=torch.device("cuda")), math.nan)
        for each in (held, trained):
            assert each.images_BHWC.device.type == each.targets_BA.device.type == "cuda"
        assert decoding._digest(held).device.type == "cuda"


def test_no_secret_is_written_down() -> None:
    told = {"CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "PYTORCH_CUDA_ALLOC_CONF": "x", "OMP_NUM_THREADS": "8"}
    assert variables({**told, "WANDB_API_KEY": "a", "NVIDIA_API_KEY": "b", "NCCL_PASSWORD": "c", "HOME": "d"}) == told
