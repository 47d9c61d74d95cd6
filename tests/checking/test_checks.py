"""`distrib check --gpu` on this CPU: it passes, and finds what is planted."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrib.checking import decoding, stepping
from distrib.checking.check import Bench, Check, Failed
from distrib.data.batch import Batch
from distrib.data.decoders import DaliDecoder, TorchDecoder, dali_installed
from distrib.data.reader import ImageReader
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
    monkeypatch.setattr(TorchDecoder, "_cut", lambda *arguments: np.roll(cut(*arguments), 1, axis=1))
    said = found(decoding.parity, bench, tmp_path)
    assert "differs from the reference by" in said
    assert "at most 1 and 8 were expected" in said


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
    assert "in a batch of 64 differ by 1 grey levels" in found(decoding.places, bench, tmp_path)


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


def test_a_step_that_moves_in_spite_of_nan_is_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "_note", lambda self, bad, step: torch.zeros_like(bad))
    assert "a step whose loss is NaN has moved" in found(stepping.nonfinite, bench, tmp_path)


def test_moments_of_other_weights_are_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "lay_out", lambda optimizer: None)
    assert "the moments of adam are off by" in found(stepping.memory_format, bench, tmp_path)


def test_memory_that_grows_is_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, kept = TrainStep.__call__, []

    def keeping(self: TrainStep, *arguments: Any) -> None:
        kept.append(torch.ones(2**22))  # 16 MiB
        step(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", keeping)
    assert "the host's memory grew by" in found(stepping.memory, bench, tmp_path)


def test_a_checkpoint_of_a_later_step_is_found(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(change: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
        return tree  # not a copy

    write = checkpoint.CheckpointWriter._write

    def slowly(*arguments: Any) -> Any:
        time.sleep(2)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "_map_tensors", late)
    monkeypatch.setattr(checkpoint.CheckpointWriter, "_write", slowly)
    assert "tensors of a checkpoint are of a later step than its own" in found(stepping.checkpoint, bench, tmp_path)


def test_steps_that_differ_from_run_to_run_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, calls = stepping.batch, iter(range(1000))
    monkeypatch.setattr(stepping, "batch", lambda bench, seed: batch(bench, seed=next(calls)))
    assert "net.conv1.weight" in stepping.differences(bench, deterministic=False)


@pytest.mark.slow
def test_this_machine_passes_and_writes_down_what_it_has_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distrib", "check", "--gpu", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "found.json").read_text())
    outcomes = {name: each["outcome"] for name, each in written["checks"].items()}
    assert set(outcomes.values()) == {"passed", "left out"}
    assert {name for name, outcome in outcomes.items() if outcome == "left out"} == {
        "driver and architecture", "JPEG hardware", "overflow in fp16", "waiting in a step",
    } | (set() if dali_installed() else {"decoded images", "places in a batch"})  # fmt: skip
    assert "the bottleneck is the" in written["checks"]["speed by part"]["sentence"]
    assert len(done.stdout.splitlines()) == len(outcomes) + 1
