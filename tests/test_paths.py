"""Paths as people write them, and names made of theirs."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentences import refusal

from distrib.base.paths import MAX_NAME, expanded_path, fitting_name
from distrib.cli.compare import main as compare
from distrib.cli.explain import main as explain
from distrib.cli.export import main as export
from distrib.cli.predict import main as predict
from distrib.cli.prepare import main as prepare
from distrib.cli.reproduce import main as reproduce
from distrib.cli.sweep import main as sweep
from distrib.config import load_config
from distrib.evaluate import main as evaluate
from distrib.model.trained import load


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/ada")
    monkeypatch.setenv("BELOW_HOME", "~/below")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "/home/ada"),
        ("~/runs/one", "/home/ada/runs/one"),
        ("$SCRATCH/runs", "/scratch/ada/runs"),
        ("${SCRATCH}/runs", "/scratch/ada/runs"),
        ("${SCRATCH}2", "/scratch/ada2"),
        ("$BELOW_HOME/runs", "/home/ada/below/runs"),
        ("data/$SCRATCH", "data//scratch/ada"),
        ("data/celeba", "data/celeba"),
        ("a$", "a$"),
        ("$5", "$5"),
        ("${", "${"),
        ("${5}", "${5}"),
        ("50%$-", "50%$-"),
        ("$(", "$("),
        ("copy $(1)/${2}", "copy $(1)/${2}"),
        ("${SCRATCH}{a}", "/scratch/ada{a}"),
        ("old~", "old~"),
        ("a/~/b", "a/~/b"),
    ],
)
def test_a_path_is_what_a_shell_would_make_of_it(written: str, meant: str) -> None:
    assert expanded_path(written) == Path(meant)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("$NOWHERE/runs", ["$NOWHERE/runs", "the environment variable NOWHERE is not set", "write the path out"]),
        ("${NOWHERE}", ["NOWHERE is not set"]),
        ("$EMPTY/runs", ["EMPTY is empty"]),
        ("${SCRATCH:-/tmp}/runs", ["no other ${…} than ${NAME} is known", "write the path out"]),
        ("${NOWHERE:-${SCRATCH}}/runs", ["no other ${…} than ${NAME} is known"]),
        ("${oc.env:SCRATCH}/runs", ["no other ${…} than ${NAME} is known"]),
        ("a/${ SCRATCH }", ["no other ${…} than ${NAME} is known"]),
        ("${SCRATCH/runs", ["no other ${…} than ${NAME} is known"]),
        ("runs/$(whoami)", ["no command is run in $(…)", "write the path out"]),
        ("~no_such_user/runs", ["~no_such_user is not a user's home folder"]),
    ],
)
def test_what_cannot_be_expanded_is_refused(written: str, parts: list[str]) -> None:
    refusal(lambda: expanded_path(written), *parts)
    refusal(lambda: load(written), *parts)


@pytest.mark.parametrize("option", ["--config", "--data.root", "--run.folder", "--run.resume", "--model.weights",
                                    "--explain.photograph"])  # fmt: skip
def test_so_is_each_path_of_a_training(option: str) -> None:
    refusal(lambda: load_config([f"{option}=$NOWHERE/x"]), "NOWHERE is not set")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (compare, ["$NOWHERE/a", "b"]),
        (compare, ["a", "b", "--out", "$NOWHERE/page.html"]),
        (predict, ["$NOWHERE/run", "photo.jpg"]),
        (predict, ["run", "photo.jpg", "--out", "$NOWHERE"]),
        (export, ["$NOWHERE/run", "--to", "onnx"]),
        (export, ["run", "--to", "onnx", "--out", "$NOWHERE/model.onnx"]),
        (evaluate, ["$NOWHERE/run"]),
        (evaluate, ["run", "--data.root", "$NOWHERE"]),
        (evaluate, ["run", "--predictions", "$NOWHERE/all.csv"]),
        (evaluate, ["run", "--json", "$NOWHERE/all.json"]),
        (evaluate, ["run", "--csv", "$NOWHERE/all.csv"]),
        (evaluate, ["run", "--against", "$NOWHERE/other"]),
        (explain, ["$NOWHERE/run"]),
        (prepare, ["faces", "--count", "1", "--out", "$NOWHERE/faces"]),
        (prepare, ["split", "--root", "$NOWHERE/celeba", "--out", "out"]),
        (sweep, ["$NOWHERE/study.yaml"]),
        (sweep, ["study.yaml", "--folder", "$NOWHERE/study"]),
        (reproduce, ["--folder", "$NOWHERE/reproduction"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_so_is_each_path_of_the_other_programs(
    main: object,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert callable(main)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("distrib: error: ")
    assert "the environment variable NOWHERE is not set" in said.err
    assert len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=300),
       st.sampled_from(["", ".png", ".face2.Arched_Eyebrows.png"]))  # fmt: skip
def test_a_name_fits_and_says_what_it_is_of(stem: str, ending: str) -> None:
    name = fitting_name(stem, ending)
    assert len(name.encode()) <= MAX_NAME
    assert name.endswith(ending)
    if len((stem + ending).encode()) <= MAX_NAME:
        assert name == stem + ending


def test_names_that_are_cut_stay_apart_and_whole() -> None:
    long = "あ" * 79
    names = {fitting_name(long + last, ".Arched_Eyebrows.png") for last in ("", "い", "う")}
    assert len(names) == 3
    assert all(name.startswith("あ" * 60) for name in names)
    # か and its voicing mark are one character to whoever reads them.
    cut = fitting_name("か\u3099" * 100, ".png").removesuffix(".png").rpartition("-")[0]
    assert cut == "か\u3099" * (len(cut) // 2)
    odd = os.fsdecode(b"\x8e\xca" * 200)
    assert len(os.fsencode(fitting_name(odd, ".png"))) <= MAX_NAME
