"""The watch over the ranks, with a key-value store that does what a test wants."""

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked_ranks import on_ranks

from distrib.config import Config
from distrib.ranks import watch
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import StopRequests
from distrib.ranks.watch import OVER, Watch, _Process


class SlowStore:
    """Takes its time to answer, like that of a launcher which is stopped for a while."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def set(self, key: str, value: str) -> None:
        if threading.current_thread().name == "watch":
            self.asked.set()
            time.sleep(0.5)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [b"0 0" for _ in keys]


def test_it_leaves_no_thread_in_the_store_at_which_the_interpreter_would_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    monkeypatch.setattr(Watch, "_connect", lambda _: store)
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda *_: None)
    ranks = SimpleNamespace(process_index=0, num_processes=2)
    with Watch(ranks, timeout=4, start_timeout=4, give_up=lambda _: None):
        assert store.asked.wait(5)
    assert "watch" not in {thread.name for thread in threading.enumerate()}


def hang_beside_a_stopped_rank(folder: Path) -> None:
    """Rank 1 stands still; rank 0 waits for it in a collective operation, and its launcher asks it to stop."""
    accelerator = start_ranks(resolve(Config().replace("run", device="cpu").replace("train", precision="no")))
    requests, watch.GONE_AFTER = StopRequests(), 2.0
    requests.listen()
    lost = folder / f"lost-{accelerator.process_index}"
    with requests.deferred(None), Watch(accelerator, 600, 600, lost.write_text, requests.pressed):
        if accelerator.process_index == 1:
            (folder / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        os.dup2(os.open(folder / "said", os.O_CREAT | os.O_WRONLY), 2)
        os.kill(os.getpid(), signal.SIGTERM)
        torch.distributed.all_reduce(torch.ones(1))  # as with NCCL: no error, and no end


@pytest.mark.slow
def test_asked_to_stop_beside_a_silent_rank_it_names_it_and_leaves(tmp_path: Path) -> None:
    began = time.monotonic()
    try:
        with pytest.raises(EOFError):  # rank 0 leaves without an answer
            on_ranks(2, hang_beside_a_stopped_rank, tmp_path)
        assert time.monotonic() - began < 30  # when the launcher would have killed it
        said = (tmp_path / "said").read_text()
        pid = (tmp_path / "stopped").read_text()
        sentence = (
            rf"rank 1 \(process {pid} on .+\) gives no sign of life for 2 s, and this rank has been asked to stop"
        )
        assert re.search(rf"distrib: SIGTERM: stopping after this step\ndistrib: rank 0 leaves: {sentence}\n", said), (
            said
        )
        assert re.fullmatch(sentence, (tmp_path / "lost-0").read_text())
    finally:
        with suppress(FileNotFoundError):
            os.kill(int((tmp_path / "stopped").read_text()), signal.SIGKILL)


def wait_beside_a_dead_rank(folder: Path) -> None:
    """Rank 1 dies; nobody asks rank 0 to stop, whose launcher may wait for ever."""
    accelerator = start_ranks(resolve(Config().replace("run", device="cpu").replace("train", precision="no")))
    watch.GONE_AFTER = 1.0
    with Watch(accelerator, 600, 600, (folder / f"lost-{accelerator.process_index}").write_text):
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # as with NCCL: no error, and no end


def test_a_rank_whose_process_has_ended_is_named_and_left(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(EOFError):  # neither leaves with an answer
        on_ranks(2, wait_beside_a_dead_rank, tmp_path)
    assert time.monotonic() - began < 30
    assert re.fullmatch(r"rank 1 \(process \d+ on .+\) has gone", (tmp_path / "lost-0").read_text())


def test_only_of_this_machine_is_it_known_that_a_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _Process.own()
    assert not own.has_ended()
    child = subprocess.Popen(["sleep", "60"])
    ended = replace(own, number=child.pid)
    assert not ended.has_ended()
    child.kill()
    child.wait()
    assert ended.has_ended()
    assert not replace(ended, system="another's").has_ended()
    monkeypatch.setattr(_Process, "own", classmethod(lambda _: replace(ended, system="")))
    assert not replace(ended, system="").has_ended(), "where nothing tells machines apart"


@pytest.mark.parametrize(
    ("last_sign", "asked", "leaves"),
    [("1.5", True, True), ("1.5", False, False), (OVER, True, False)],
    ids=["silent", "not asked", "at its end"],
)
def test_a_silence_is_waited_out_unless_it_is_asked_to_stop(
    last_sign: str, asked: bool, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that has come to its end is silent too: rank 0 may still be writing the last checkpoint."""

    class Store:
        def set(self, key: str, value: str) -> None:
            self.own = value.encode()

        def multi_get(self, keys: list[str]) -> list[bytes]:
            return [self.own, f"{last_sign} 0".encode()]

    left: list[str] = []
    monkeypatch.setattr(Watch, "_connect", lambda _: Store())
    monkeypatch.setattr(Watch, "_leave", lambda _, sentence: left.append(sentence))
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda *_: None)
    monkeypatch.setattr(watch, "GONE_AFTER", 0.3)
    ranks: Any = SimpleNamespace(process_index=0, num_processes=2)
    monkeypatch.setattr(watch, "BEAT", 0.05)
    with Watch(ranks, 600, 600, lambda _: None, lambda: asked):
        time.sleep(0.6)
    assert bool(left) is leaves
