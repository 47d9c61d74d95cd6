"""Whatever a study's file holds, there is a study or one sentence."""

import tempfile
from pathlib import Path

from fuzzing import edited, read_or_told
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distrib.studies.definition import StudyFile, read_study

KEYS = sorted(StudyFile.model_fields)
PLACES = ["space.optim.lr", "space.optim.lr.low", "space.optim.name", "space.a.variants", "space.train.batch_size.when"]
VALUES = [
    "", "~", "{}", "[]", "[[]]", "{a: b}", "[1, [2, {3: 4}]]", "0", "-1", "3", ".nan", "-.inf", "1e999", "9" * 400,
    '"\\0"', '"a\\nb"', '"\\e[2J"', "!!set {a, b}", "!!binary //8=", "2001-01-01", "[2001-01-01]", "*a", "&a [*a]",
    "{? [a] : b}", "'", "[.nan, .nan]", "[~, ~]", "[true, 1, 1.0]", "{low: 1, high: 2}", "{low: .nan, high: 2}",
    "{low: 1, high: .inf}", "{low: 0, high: 1, step: 1.0e-300}", "{low: 1, high: 99999999999999999999}",
    "{choices: [1], when: {optim.lr: 1}}", "{choices: [1], when: [1]}", "{variants: {x: 3}}", "{variants: {1: {}}}",
    "{variants: {x: {data.root: 3}}}", "{variants: {}}", "grid", "tpe", "[val_loss]", "[3]", "{score: val_loss}",
    "{name: tpe, seed: x}", "{name: [1]}", "{trials: 1.0e+30}", "[{}, {}]", "[{train.epochs: 1}, {train.epochs: 2}]",
    "x" * 300, "a://b:c@d", "https://[", "{data.image_size: 3}", "{data.attributes: [1]}", "{optim.lr: {a: 1}}",
]  # fmt: skip
WHOLE = b"""\
set: {train.epochs: 3}
space:
  optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
  optim.name: [adam, sgd]
  optim.momentum: {low: 0.5, high: 0.9, when: {optim.name: sgd}}
  how: {variants: {plain: {}, frozen: {model.freeze: backbone}}}
sampler: {name: tpe, seed: 3}
pruner: median
objective: [val_loss]
seeds: [0, 1]
budget: {trials: 3, hours: 1.5}
fidelity: [{data.subset: 10}, {}]
storage: sqlite
"""


def check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "some.yaml"
        file.write_bytes(content)
        study = read_or_told(lambda: read_study(file), file)
        if study is not None:
            assert study.parameters


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3))
@example({"space": "{optim.lr: [1], 3: [1]}"})
@example({"launch": '"\\0"'})
def test_any_value_under_any_key(values: dict[str, str]) -> None:
    whole = {"space": "{optim.lr: [0.1]}", "sampler": "grid", **values}
    check("\n".join(f"{key}: {value}" for key, value in whole.items()).encode())


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["optim.lr", "optim.name", "data.image_size", "train.batch_size", "a", "1", "data.subset"]),
       st.sampled_from(VALUES), st.sampled_from(["grid", "{name: random}"]))  # fmt: skip
def test_any_value_in_the_space(name: str, value: str, sampler: str) -> None:
    check(f"space:\n  {name}: {value}\nsampler: {sampler}\nbudget: {{trials: 2}}\n".encode())


@settings(deadline=None, max_examples=150)
@given(edited(WHOLE, [value.encode() for value in VALUES]))
def test_a_study_that_was_edited_badly(content: bytes) -> None:
    check(content)


def test_the_study_that_is_edited_is_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whole.yaml"
        file.write_bytes(WHOLE)
        assert read_study(file).planned == 3
