"""Whatever a configuration file or a command line holds, there is a configuration or one sentence."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import check_sentence, edited, read_or_told
from hypothesis import example, given, settings
from hypothesis import strategies as st
from launching import ROOT
from sentences import refusal

from distrib.config import Config, load_config, read_yaml
from distrib.config.section import keys
from distrib.config.yaml_files import MAX_KEYS
from distrib.train import main

KEYS = sorted(keys())
# As text, because PyYAML does not write all that it reads.
VALUES = [
    "", "~", "{}", "[]", "[[]]", "{a: b}", "[1, [2, {3: 4}]]", "yes", "maybe", "0", "-1", "3", "1.5", "1e-3", ".nan",
    "-.inf", "1e999", "0x10", "0x" + "f" * 6000, "9" * 400, "9" * 5000, "1_0", "1:30", "0b", "2001-01-01",
    "2001-99-99", "2001-01-01 00:00:00 +99:99", '"\\0"', '"a\\nb"', '"\\e[2J"', '"\\u2028"', '"\\ud800"',
    "!!set {a, b}", "!!binary //8=", "!!binary ü", "!!int x", "!!float x", "!!bool x", "!!null x", "!!timestamp x",
    "!!omap [a: 1]", "!!str 1", "!x y",
    "!!python/name:os.system", '!!python/object/apply:os.system ["true"]', "*a", "&a [*a]",
    "&a {b: *a}", "{<<: {a: 1}}", "{<<: 3}", "{? [a] : b}", "'", '"', "|", ">", "@", "%", "[1", "{a", "a: b: c", "- a",
    "~nobody-of-this-name/x", "x" * 300, "none", "auto", "all", "[all, Smiling]", "[178, 178]", "[Smiling, Smiling]",
    "[[0xffffffff]]", "[0x" + "f" * 6000 + "]", "{0x" + "f" * 6000 + " : 1}", "cosine", "conv1", "#", "\x1b", "\ufeff",
]  # fmt: skip
WORDS = [*(value for value in VALUES if "\0" not in value), "--help", "--config", "configs/celeba.yaml", "\udcff", "-"]
READY_MADE = (ROOT / "configs/celeba.yaml").read_bytes()


def check_file(content: bytes) -> None:
    """A configuration that comes back as it is when it is written again, or a sentence that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        file, again = Path(folder) / "some.yaml", Path(folder) / "again.yaml"
        file.write_bytes(content)
        config = read_or_told(lambda: read_yaml(file), file)
        if config is not None:
            again.write_text(config.to_yaml(), encoding="utf-8")
            assert read_yaml(again) == config


def tree(values: dict[str, str]) -> str:
    """YAML with these values, as they are, under these keys."""
    groups: dict[str, list[str]] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, []).append(f"{name}: {value}")
    lines = []
    for group, entries in groups.items():
        outer, _, inner = group.partition(".")
        indent = "    " if inner else "  "
        lines += [f"{outer}:", *([f"  {inner}:"] if inner else []), *(indent + entry for entry in entries)]
    return "\n".join(lines)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_value_under_a_real_key_is_a_configuration_or_a_sentence(values: dict[str, str]) -> None:
    check_file(tree(values).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:12])
def test_every_value_is_one_or_the_other_wherever_it_stands(value: str) -> None:
    for text in (value, f"data: {value}", f"data:\n  dali: {value}", f"{value}: 1", f"data:\n  {value}: 1"):
        check_file(text.encode("utf-8", "surrogatepass"))
    for key in ("data.root", "data.attributes", "train.epochs", "optim.lr"):
        check_file(tree({key: value}).encode("utf-8", "surrogatepass"))


@settings(deadline=None, max_examples=60)
@given(edited(READY_MADE, [value.encode("utf-8", "surrogatepass") for value in VALUES] + [b"\xff", b"\0", b"\t"]))
def test_an_edited_file_is_a_configuration_or_a_sentence(content: bytes) -> None:
    check_file(content)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=3)
)
NAMES = st.sampled_from(sorted({part for key in KEYS for part in key.split(".")})) | st.text(max_size=4)
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)), TREES, max_size=2))
def test_any_tree_under_a_real_group_is_a_configuration_or_a_sentence(values: dict[str, Any]) -> None:
    check_file(yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KEYS, "resume", "config", "train.epoch", "", "-"]),
            st.lists(st.sampled_from(WORDS), max_size=2),
        ),
        max_size=3,
    )
)
@example([("run.folder", ["a\nb"])])
@example([("data.root", ["\udcff"])])
@example([("data.root", ["~nobody-of-this-name/x"])])
@example([("train.epochs", ["9" * 400])])
@example([("config", ["x" * 300])])
@example([("a\nb", [])])
def test_any_command_line_is_a_configuration_or_a_sentence(options: list[tuple[str, list[str]]]) -> None:
    argv = [word for name, words in options for word in (f"--{name}", *words)]
    code: object = 0
    try:
        read_or_told(lambda: load_config(argv))
    except SystemExit as stop:
        code = stop.code
    assert not code  # of --help


# --- what the search found


def told(tmp_path: Path, text: str, *parts: str) -> str:
    file = tmp_path / "some.yaml"
    file.write_text(text, encoding="utf-8")
    sentence = refusal(lambda: read_yaml(file), str(file), *parts)
    check_sentence(sentence)
    return sentence


def test_merges_of_merges_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each line has nine times the keys of the one before; twelve such lines would have 10^11."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}" for i in range(6)]
    told(tmp_path, "\n".join(lines), "line 5", f"more than {MAX_KEYS} keys")


def test_merges_that_a_person_writes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("optim: &base {lr: 0.5}\ntracking: {}\n")
    assert read_yaml(file).optim.lr == 0.5
    file.write_text("optim:\n  <<: {lr: 0.25, momentum: 0.5}\n  momentum: 0.75\n")
    assert (read_yaml(file).optim.lr, read_yaml(file).optim.momentum) == (0.25, 0.75)


def test_a_set_is_refused_because_it_has_no_order(tmp_path: Path) -> None:
    """Its order follows Python's hashes: each rank would learn other attributes."""
    told(tmp_path, "data: {attributes: !!set {Smiling, Male, Young}}", "set")


@pytest.mark.parametrize("key", ["run.folder", "data.root", "explain.photograph", "model.weights", "run.resume"])
@pytest.mark.parametrize("name", ['"a\\nb"', '"a\\0b"', '"\\e[2J"', '"\\ud800"'])
def test_names_that_no_terminal_shows_are_refused(tmp_path: Path, key: str, name: str) -> None:
    told(tmp_path, tree({key: name}), key, "no terminal shows")


@pytest.mark.parametrize("key", ["run.folder", "data.root", "explain.photograph", "model.weights", "run.resume"])
def test_names_that_no_file_system_takes_are_refused(tmp_path: Path, key: str) -> None:
    for name in ("x" * 300, "a/" + "\u00e9" * 200 + "/b", "a/" * 600):
        told(tmp_path, tree({key: name}), key, "too long")


def test_numbers_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    told(tmp_path, f"train: {{epochs: 0x{'f' * 6000}}}", "train.epochs", "24000 bits")
    told(tmp_path, f"train: {{epochs: [0x{'f' * 6000}]}}", "train.epochs", "thousands of digits")


# --- as a user meets it


@pytest.mark.parametrize(
    "text",
    ["[", "train: {epochs: [0x" + "f" * 6000 + "]}", "data: {root: ~nobody-of-this-name/x}", 'run: {folder: "a\\nb"}'],
    ids=["no YAML", "digits", "no such user", "two lines"],
)
def test_the_program_says_one_line_and_leaves_with_2(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "some.yaml")]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("distrib: error: ")
    assert printed.err.endswith("\n")
    check_sentence(printed.err[:-1], tmp_path / "some.yaml")
