import sys

import pytest

from distrib.runs.terminal import time_left


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_alone_shows_how_far_a_long_piece_of_work_is(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    with time_left("report:  occlusion", 10) as report:
        report(3)
        report(4)
    shown = capsys.readouterr().out
    assert ("report:  occlusion" in shown) == ("7/10" in shown) == terminal
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown) == terminal
