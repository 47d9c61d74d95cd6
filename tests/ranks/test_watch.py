"""The watch over the ranks, with a key-value store that does what a test wants."""

import threading
import time
from types import SimpleNamespace

import pytest

from distrib.ranks.watch import Watch


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
