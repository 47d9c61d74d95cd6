"""`distrib reproduce` with real trainings: stopped, resumed, and again."""

import signal
import subprocess
import sys
import time
from collections import Counter
from html import unescape
from pathlib import Path

import pytest
from launching import ROOT, clean_environment, read_events, read_metrics

# Findings of four runs in all: three seeds of a training, and one that is explained.
FINDINGS = ("epochs", "visualisations")


def command(faces: Path, folder: Path) -> list[str]:
    options = [
        "--only", *FINDINGS, "--scale", 0.0005, "--folder", folder, "--data.root", faces,
        "--data.attributes", "Smiling", "--data.image-size", 32, 32,
        "--run.device", "cpu", "--run.ranks", 1, "--tracking.mode", "disabled",
    ]  # fmt: skip
    return [sys.executable, "-m", "distrib", "reproduce", *map(str, options)]


@pytest.mark.slow
def test_findings_are_reproduced_and_the_same_command_goes_on(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = folder / "studies/epochs/trials/epochs-0000-seed0"
    process = subprocess.Popen(
        command(faces, folder), cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    until = time.monotonic() + 200
    while not (first / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 75, output
    assert "the same command resumes" in output
    assert not (folder / "index.html").exists(), "nothing is found yet"

    def reproduce() -> str:
        done = subprocess.run(
            command(faces, folder), cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = reproduce()
    assert "This is a small version of the report (--scale 0.0005)" in told
    runs = sorted(path for path in folder.glob("studies/*/trials/*") if path.is_dir())
    assert Counter(run.parents[1].name for run in runs) == {"epochs": 3, "visualisations": 1}
    assert [len(read_metrics(run)) for run in runs] == [3, 3, 3, 2]
    starts = [len(read_events(run, "start")) for run in runs]
    assert starts[1:] == [1, 1, 1]

    page, text = unescape((folder / "index.html").read_text()), (folder / "reproduction.md").read_text()
    sentences = [line.partition(". ")[2] for line in told.splitlines() if line.startswith(("Epochs and", "The visual"))]
    assert "3 epochs are too few to see a loss turn" in sentences[0]
    note = next(line for line in told.splitlines() if line.startswith("This is a small version"))
    for each in (*sentences, note, "The conclusion of the report is undecided"):
        assert each in page
        assert each in text
    for link in page.split('href="studies/')[1:]:
        assert (folder / "studies" / link.partition('"')[0].partition("#")[0]).is_file()
    assert "trials/visualisations-0000/report/index.html#decide" in page

    assert reproduce().splitlines()[:1] == told.splitlines()[:1]
    assert [len(read_events(run, "start")) for run in runs] == starts, "nothing was trained again"
    assert (folder / "reproduction.md").read_text() == text
