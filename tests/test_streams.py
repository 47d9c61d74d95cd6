"""What a program prints, where it cannot be printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked_ranks import train_on_ranks
from launching import ROOT, clean_environment, read_events
from random_model import write_model
from small_run import settings

from distrib.base.streams import PIPE_CLOSED, standard_streams

PROGRAM = """
import sys
from pathlib import Path
from distrib.base.streams import standard_streams

@standard_streams({arguments})
def main():
    {work}
    return 0

sys.exit(main())
"""
# More than a pipe holds.
TALK = "for number in range(100_000): print('line', number)"


def program(work: str, arguments: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(work=work, arguments=arguments)]


def cut_off(command: list[str], **environment: str) -> tuple[int, str]:
    """Exit status and standard error of a program whose reader leaves after a line."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=clean_environment(PYTHONUNBUFFERED="", **environment),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    return process.wait(timeout=300), errors


def test_a_reader_that_leaves_ends_a_program_quietly() -> None:
    assert cut_off(program(TALK)) == (PIPE_CLOSED, "")


def test_what_is_printed_last_may_be_what_meets_the_closed_pipe() -> None:
    work = "print('first', flush=True); import time; time.sleep(1); print('last')"
    assert cut_off(program(work)) == (PIPE_CLOSED, "")


def test_the_work_that_is_worth_more_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "result"
    status, errors = cut_off(program(f"{TALK}\n    Path({str(file)!r}).write_text('whole')", "goes_on=True"))
    assert status == 0
    assert file.read_text() == "whole"
    assert errors.startswith("distrib: warning: standard output cannot be written (Broken pipe)")
    assert len(errors.splitlines()) == 1


def test_so_it_does_from_where_that_is_known_on(tmp_path: Path) -> None:
    file = tmp_path / "result"
    work = f"""
    import logging
    log = logging.StreamHandler(sys.stdout)  # made before
    with standard_streams(goes_on=True):
        for number in range(100_000):
            log.emit(logging.LogRecord("a", 20, "a", 1, "line", (), None))
        Path({str(file)!r}).write_text("whole")
    """
    status, errors = cut_off(program(work.strip()))
    assert status == 0
    assert file.read_text() == "whole"
    assert len(errors.splitlines()) == 1


def test_an_error_is_not_hidden_by_the_closed_pipe() -> None:
    work = "print('first', flush=True); import time; time.sleep(1); print('last'); raise ValueError('a bug')"
    status, errors = cut_off(program(work))
    assert status == 1
    assert "ValueError: a bug" in errors
    assert "BrokenPipe" not in errors


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_terminal_lacks_are_escaped(encoding: str) -> None:
    work = "print('été 写真 ╭─'); print('写', file=sys.stderr)"
    done = subprocess.run(
        program(work), capture_output=True, cwd=ROOT, env=clean_environment(PYTHONIOENCODING=encoding)
    )  # fmt: skip
    wanted = "été 写真 ╭─\n".encode(encoding, "backslashreplace")
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted, b"\\u5199\n")


def test_a_program_without_a_standard_output_works(tmp_path: Path) -> None:
    work = f"print(sys.stdout.isatty(), flush=True)\n    Path({str(tmp_path / 'result')!r}).write_text('whole')"
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *program(work)], cwd=ROOT, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "result").read_text() == "whole"


def test_a_full_disk_is_a_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program("print('a result')"), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("distrib: error: standard output cannot be written (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


def test_streams_that_are_not_the_processs_own_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with standard_streams():
        assert sys.stdout is before
        print("写")
    assert capsys.readouterr().out == "写\n"


def test_the_command_itself_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "distrib", "--help"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, b"")


def help_into(stdout: int, *options: str) -> tuple[int, str]:
    """Exit status and standard error of a program that shows its configuration's help."""
    work = f"from distrib.config import load_config; load_config({options!r})"
    done = subprocess.run(program(work), cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("options", [["--help"], ["-h"], ["--optim.lr", "--help"]], ids=" ".join)
def test_so_does_the_help_of_a_configuration(options: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert help_into(writing, *options) == (PIPE_CLOSED, "")
    os.close(writing)


def test_a_help_on_a_full_disk_is_a_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")
    with Path("/dev/full").open("w") as full:
        status, said = help_into(full.fileno(), "--help")
    assert status == 2
    assert said.startswith("distrib: error: standard output cannot be written (No space left on device)")
    assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_every_program_explains_itself_on_any_terminal(environment: dict[str, str]) -> None:
    beside = ["explain", "compare", "predict", "export", "sweep", "reproduce", "prepare"]
    programs = ["distrib.train", "distrib.evaluate", *(f"distrib.cli.{name}" for name in beside)]
    work = f"""
    from importlib import import_module
    for name in {programs}:
        try:
            import_module(name).main(["--help"])
        except SystemExit as end:
            print(name, "ends with", end.code)
    """.strip()
    done = subprocess.run(program(work), cwd=ROOT, env=clean_environment(**environment), capture_output=True)
    assert done.returncode == 0, done.stderr
    for name in programs:
        assert f"{name} ends with 0".encode() in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--csv"]], ids=str)
def test_predict_into_head(options: list[str], faces: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "best")
    command = [sys.executable, "-m", "distrib", "predict", str(model), str(faces / "img_align_celeba"), *options]
    assert cut_off(command) == (PIPE_CLOSED, "")


@pytest.mark.slow
def test_a_training_outlives_its_terminal(faces: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    short = ["--train.epochs", 1, "--data.subset", 64, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    done = train_on_ranks(2, *settings(faces, whole, *short))
    assert done.returncode == 0, done.stderr
    command = ["distrib", "train", *settings(faces, cut, *short, "--run.ranks", 2)]
    status, errors = cut_off([sys.executable, "-m", *map(str, command)])
    assert status == 0, errors
    assert "Traceback" not in errors
    assert errors.count("standard output cannot be written") == 1
    assert [event["epochs"] for event in read_events(cut, "end")] == [1]
    assert {file.name for file in (cut / "best").iterdir()} == {file.name for file in (whole / "best").iterdir()}
