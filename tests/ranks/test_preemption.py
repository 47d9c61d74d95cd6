"""Requests to stop, at the moments where two threads meet."""

import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distrib.ranks.host_copy import LAG, HostCopy
from distrib.ranks.stopping import STOP_BUTTON, Agreed, Agreement, Stopped, StopRequests


class Meeting(StopRequests):
    """The signal's thread is at work on SIGTERM while the main thread, in the report, hears of it."""

    thread_between = main_between = False

    @property
    def reason(self) -> str | None:
        if self.main_between:  # the thread has begun, the main thread comes before it has seen whether it is the first
            self.main_between = False
            with pytest.raises(Stopped):
                self._in_main_thread(signal.SIGTERM, None)
        return self._reason

    @reason.setter
    def reason(self, reason: str | None) -> None:
        if self.thread_between:  # the main thread has begun, the thread comes before that has written the reason
            self.thread_between = False
            self._request(signal.SIGTERM)
        self._reason = reason

    def _leave(self, status: int, line: str) -> None:
        raise AssertionError(line)


def test_a_request_in_the_report_gives_it_up_and_does_not_end_the_process(tmp_path: Path) -> None:
    requests = Meeting()
    with requests.raised(tmp_path / "preempt"):
        requests.thread_between = True
        with pytest.raises(Stopped):
            requests._in_main_thread(signal.SIGTERM, None)
    requests = Meeting()
    with requests.raised(tmp_path / "preempt"):
        requests.main_between = True
        requests._request(signal.SIGTERM)
    assert requests.reason == "SIGTERM"


def test_a_request_from_another_thread_waits_for_the_step_and_interrupts_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = StopRequests()
    with requests.listening():
        with requests.deferred(None):
            requests.ask(STOP_BUTTON)
            requests.ask("another")
            assert requests.wanted()
        assert capsys.readouterr().err == f"\ndistrib: {STOP_BUTTON}: stopping after this step\n"
        with pytest.raises(Stopped, match=STOP_BUTTON), requests.raised(tmp_path / "preempt"):
            pytest.fail("a report is begun that nobody wants")

    requests = StopRequests()
    with requests.listening(), requests.raised(tmp_path / "preempt"):
        threading.Timer(0.2, requests.ask, [STOP_BUTTON]).start()
        with pytest.raises(Stopped, match=STOP_BUTTON):
            time.sleep(20)
    assert requests.reason == STOP_BUTTON


def test_on_a_gpu_an_answer_comes_two_rounds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is agreed on once is heard of once, but for a stop, which stays."""
    monkeypatch.setattr(HostCopy, "lag", LAG)
    requests = StopRequests()
    agreement = Agreement(requests, SimpleNamespace(device=torch.device("cpu"), num_processes=1))  # type: ignore[arg-type]
    nothing, stop = Agreed(False, False, False, False), Agreed(True, False, False, False)
    agreement.wish(save=True, failed=False, replaced=False)
    assert agreement.round() == nothing
    agreement.wish(save=False, failed=True, replaced=True)
    assert agreement.round() == nothing
    agreement.wish(save=False, failed=False, replaced=False)
    requests.ask("somebody")
    assert agreement.round() == Agreed(False, True, False, False)
    assert agreement.round() == Agreed(False, False, True, True)
    assert agreement.round() == agreement.round() == stop
