import os
from pathlib import Path

import pytest
from sentences import refusal

from distrib.base.errors import afterwards
from distrib.base.files import check_output, folder_written_whole, written_whole


def test_a_file_is_there_whole_at_the_end_and_not_before(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text("older")
    with written_whole(file, "--json") as staged:
        staged.write_text("newer")
        assert file.read_text() == "older"
    assert file.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_after_an_error_the_older_file_stays(error: BaseException, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text("older")

    def write() -> None:
        with written_whole(file, "--json") as staged:
            staged.write_text("half of it")
            raise error

    with pytest.raises(type(error)):
        write()
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, which Linux has")

    def write() -> None:
        with written_whole(tmp_path / "scores.json", "--json"):
            full.write_text("x")

    refusal(write, "--json", "scores.json cannot be written", "No space left")
    assert not list(tmp_path.iterdir())


def test_a_name_that_just_fits_is_written(tmp_path: Path) -> None:
    file = tmp_path / ("あ" * 83 + ".json")
    with written_whole(file, "--json") as staged:
        staged.write_text("scores")
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    folder = tmp_path / ("い" * 85)
    with folder_written_whole(folder, "--out") as staged:
        (staged / "a").touch()
    assert (folder / "a").exists()


def test_clean_up_does_not_hide_the_first_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        with written_whole(tmp_path / "file/scores.json", "--json") as staged:
            staged.write_text("x")  # and what is to be removed afterwards cannot be looked at either

    refusal(write, "--json", "scores.json cannot be written (Not a directory)")

    def fail(error: Exception) -> None:
        raise error

    def both() -> None:
        with afterwards(lambda: fail(OSError("the second"))):
            raise ValueError("the first")

    def second() -> None:
        with afterwards(lambda: fail(OSError("the second"))):
            pass

    with pytest.raises(ValueError, match="the first"):
        both()
    with pytest.raises(OSError, match="the second"):
        second()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    check_output(tmp_path / "scores.json", "--json")
    refusal(lambda: check_output(tmp_path, "--json"), "--json", "is a folder")
    refusal(lambda: check_output(tmp_path / "none/scores.json", "--json"), "--json", "none is not a folder")
    refusal(lambda: check_output(tmp_path / ("x" * 300), "--json"), "--json", "cannot be written (File name too long)")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if not os.access(closed, os.W_OK):  # root may write everywhere
        refusal(lambda: check_output(closed / "scores.json", "--json"), "no permission to write")
