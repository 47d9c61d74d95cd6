"""`distrib prepare`: the command around what `tests/data/` tests."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzzing import check_sentence
from launching import read_metrics
from small_run import settings

from distrib import train
from distrib.__main__ import check
from distrib.cli import prepare
from distrib.cli.prepare import main
from distrib.config import DataConfig
from distrib.data.splits import make_splits
from distrib.data.table import read_table


def split(root: Path, out: Path, *more: object) -> int:
    return main(["split", "--root", str(root), "--out", str(out), *map(str, more)])


def refused(capsys: pytest.CaptureFixture[str], *parts: object) -> str:
    """The one sentence that a command has ended with."""
    said = capsys.readouterr()
    assert said.out == ""
    sentence = said.err.removesuffix("\n")
    check_sentence(sentence, "distrib: error: ", *parts)
    assert "data." not in sentence
    return sentence


def test_a_separated_data_set_is_trained_on_like_any_other(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = tmp_path / "separated", ["--train.epochs", 1, "--tracking.mode", "disabled"]
    assert split(faces, out, "--fractions", 0.6, 0.2, 0.2, "--seed", 3) == 0
    capsys.readouterr()
    arguments = [str(each) for each in settings(out, tmp_path / "run", *more)]
    assert check(arguments) == 0
    config = DataConfig(split="identity", split_fractions=(0.6, 0.2, 0.2), split_seed=3)
    expected = make_splits(read_table(faces), config)
    sizes = f"{len(expected.train)} train, {len(expected.valid)} valid, {len(expected.test)} test"
    assert sizes in capsys.readouterr().out
    assert train.main(arguments) == 0
    assert len(read_metrics(tmp_path / "run")) == 1


def test_the_summary_says_what_is_proved(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert split(faces, tmp_path / "out") == 0
    said = capsys.readouterr()
    proof = json.loads((tmp_path / "out/separation.json").read_text())
    _, *rows = [line.split() for line in said.out.splitlines()[:4]]
    names = ("train", "valid", "test")
    assert rows == [[name, str(proof["images"][name]), str(proof["identities"][name])] for name in names]
    assert "Identities in more than one split: 0.\n" in said.out
    assert "Image contents (SHA-256) in more than one split: 0.\n" in said.out
    assert str(tmp_path / "out") in said.out
    assert "reading images: 100 of 200\n" in said.err
    assert "checking images: 200 of 200\n" in said.err


def test_the_summary_says_what_leaks(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert split(faces, tmp_path / "out", "--by", "image") == 0
    proof = json.loads((tmp_path / "out/separation.json").read_text())
    identities = proof["identities_in_more_than_one_split"]
    images = proof["images_of_identities_in_more_than_one_split"]
    assert identities > 0
    said = capsys.readouterr().out
    assert f"Identities in more than one split: {identities}, with {images} images; " in said
    assert "--by identity" in said


def test_a_folder_whose_name_is_no_text(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).symlink_to(faces)
    except OSError:
        pytest.skip("this file system takes names of text alone")
    assert split(tmp_path / name, tmp_path / f"{name}-out") == 0
    capsys.readouterr().out.encode()
    assert json.loads((tmp_path / f"{name}-out/separation.json").read_text())["source"].endswith("caf\\udce9")


def test_identities_and_duplicates_that_a_data_set_has_not_and_has(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "faces"
    root.mkdir()
    table = read_table(faces)
    for row in range(20):
        (root / f"{row}.jpg").write_bytes(table.store.path(max(row, 1)).read_bytes())
    (root / "table.csv").write_text("file,odd\n" + "".join(f"{row}.jpg,{row % 2}\n" for row in range(20)))
    assert split(root, tmp_path / "out") == 2
    refused(capsys, "--by is identity", str(root), "set --by to image")
    assert split(root, tmp_path / "out", "--by", "image") == 0
    said = capsys.readouterr()
    assert "distrib: warning: 2 images were joined into 1 group" in said.err
    assert "unknown" in said.out


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--fractions", 0.8, 0.1, 0.2], ["--fractions (0.8, 0.1, 0.2) add up to 1.1"]),
        (["--fractions", 1.2, -0.1, -0.1], ["--fractions"]),
        (["--fractions", 1, 0, 0], ["the validation split", "is empty", "--fractions"]),
        (["--seed", -1], ["--seed is -1"]),
        (["--workers", 0], ["--workers is 0"]),
        (["--root", "nowhere"], ["--root is nowhere"]),
    ],
)
def test_what_is_wrong_is_said_by_the_name_of_the_option(
    faces: Path, tmp_path: Path, options: list[object], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert split(faces, tmp_path / "out", *options) == 2
    refused(capsys, *parts)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["faces", "split"])
def test_ctrl_c_ends_in_one_line(
    faces: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare._PlainProgress, "__call__", interrupt)
    options = {"faces": ["--count", "60", "--workers", "1"], "split": ["--root", str(faces)]}
    assert main([command, "--out", str(tmp_path / "out"), *options[command]]) == 130
    assert capsys.readouterr().err == "distrib: interrupted; nothing was written\n"
    assert not any(tmp_path.iterdir())


def test_a_bar_for_each_part_of_the_work_on_a_terminal(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert split(faces, tmp_path / "out", "--files", "copy") == 0
    said = capsys.readouterr().err
    for work in ("reading images", "copying images", "checking images"):
        assert work in said
    assert "200/200" in said
