import io
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentences import refusal

from distrib.base.errors import UserError
from distrib.base.words import nearest
from distrib.config import SCORES, Config, load_config, read_yaml
from distrib.config.section import keys

REPOSITORY = Path(__file__).resolve().parents[1]


def written(folder: Path, text: str | bytes, name: str = "experiment.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


# --- where a value comes from


def test_without_options_the_defaults_hold() -> None:
    config, name = load_config([])
    assert config == Config()
    assert name == "run"


def test_command_line_wins_over_yaml_wins_over_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, "optim: {lr: 0.5, weight_decay: 0.25}\ntrain: {epochs: 3}\n")
    config, name = load_config(["--optim.lr", "0.125", "--config", str(file), "--train.seed=7"])
    assert name == "experiment"
    assert (config.optim.lr, config.optim.weight_decay) == (0.125, 0.25)
    assert (config.train.epochs, config.train.seed) == (3, 7)
    assert config.train.batch_size == Config().train.batch_size


@pytest.mark.parametrize("spelling", ["--train.batch-size", "--train.batch_size"])
def test_hyphens_and_underscores_are_the_same_key(spelling: str) -> None:
    assert load_config([spelling, "128"])[0].train.batch_size == 128


def test_an_override_keeps_the_other_keys_of_its_group(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {attributes: [Smiling, Young], image_size: [64, 48], dali: {hw_decoder_load: 0.5}}")
    config, _ = load_config([f"--config={file}", "--data.dali.preallocate-width", "0", "--data.threads", "3"])
    assert config.data.attributes == ("Smiling", "Young")
    assert config.data.image_size == (64, 48)
    assert (config.data.dali.hw_decoder_load, config.data.dali.preallocate_width) == (0.5, 0)
    assert config.data.threads == 3


def test_values_of_every_kind_on_the_command_line() -> None:
    words = """
        --data.attributes Smiling Young --data.image-size 64 48 --data.flip False --data.subset 100 --optim.clip-norm 1
        --model.weights some/file.pt --data.split image --data.root /data
    """
    config, _ = load_config(words.split())
    assert config.data.attributes == ("Smiling", "Young")
    assert config.data.image_size == (64, 48)
    assert config.data.flip is False
    assert (config.data.subset, config.optim.clip_norm) == (100, 1.0)
    assert (config.model.weights, config.data.split, config.data.root) == ("some/file.pt", "image", Path("/data"))


def test_an_option_switches_off_what_the_yaml_switched_on(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {subset: 100}\noptim: {clip_norm: 2}\n")
    config, _ = load_config(["--config", str(file), "--data.subset", "None", "--optim.clip-norm", "None"])
    assert (config.data.subset, config.optim.clip_norm) == (None, None)


def test_the_configuration_of_a_run_that_was_moved_is_not_taken_for_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs/a"
    (run / "checkpoints").mkdir(parents=True)
    written(run, "run: {folder: runs/a}", "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config(["--config", "runs/a/config.yaml"])[0].run.folder == Path("runs/a")
    moved = (tmp_path / "runs").rename(tmp_path / "moved") / "a"
    for arguments in (["--config", str(moved / "config.yaml")], ["--config=moved/a/config.yaml", "--resume", "auto"]):
        refusal(partial(load_config, arguments), "its run.folder is runs/a", "moved or copied", "moved/a to go on")
    for folder in ("moved/a", "elsewhere"):
        named = ["--config", str(moved / "config.yaml"), "--run.folder", folder]
        assert load_config(named)[0].run.folder == Path(folder)
    (moved / "checkpoints").rmdir()  # a configuration that somebody has kept
    assert load_config(["--config", str(moved / "config.yaml")])[0].run.folder == Path("runs/a")


@pytest.mark.parametrize("words", [["--resume", "auto"], ["--resume=auto"], ["--run.resume", "auto"]])
def test_resume_has_a_short_spelling(words: list[str]) -> None:
    assert load_config(words)[0].run.resume == "auto"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_wrong_option_is_a_sentence_on_any_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    sentence = refusal(lambda: load_config(["--optim.lr", "fast"]))
    assert sentence == "Error parsing --optim.lr: could not convert string to float: 'fast'; `--help` lists all options"


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "0.001", "'1e-3'"])
def test_a_float_may_be_written_without_a_dot(tmp_path: Path, number: str) -> None:
    # YAML 1.1 reads 1e-3 as a string.
    lr = read_yaml(written(tmp_path, f"optim: {{lr: {number}}}")).optim.lr
    assert isinstance(lr, float)
    assert lr == 0.001


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {precision: no}", "train.precision", "no"),
        ("train: {precision: No}", "train.precision", "no"),
        ("train: {precision: OFF}", "train.precision", "no"),
        ("train: {precision: false}", "train.precision", "no"),
        ("train: {precision: 'no'}", "train.precision", "no"),
        ("tracking: {mode: off}", "tracking.mode", "disabled"),
        ("tracking: {mode: false}", "tracking.mode", "disabled"),
        ("tracking: {mode: 'off'}", "tracking.mode", "disabled"),
        ("train: {positive_weight: no}", "train.positive_weight", "none"),
        ("model: {weights: off}", "model.weights", "none"),
        ("model: {freeze: no}", "model.freeze", "none"),
        ("data: {grow: no}", "data.grow", "none"),
        ("model: {freeze: {1: backbone, 3: off}}", "model.freeze", "backbone 3:none"),
        ("run: {resume: no}", "run.resume", "never"),
        ("data: {flip: off}", "data.flip", False),
        ("data: {flip: Yes}", "data.flip", True),
        ("explain: {after_training: on}", "explain.after_training", True),
        ("data: {attributes: ['No', 'yes']}", "data.attributes", ("No", "yes")),
        ("tracking: {group: 'on'}", "tracking.group", "on"),
    ],
)
def test_a_word_that_yaml_takes_for_true_or_false_is_the_fields_own(
    tmp_path: Path, text: str, key: str, value: object
) -> None:
    config = read_yaml(written(tmp_path, text))
    assert value_of(config, key) == value
    assert type(value_of(config, key)) is type(value)
    assert read_yaml(written(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: {attributes: [Smiling, No]}", ["data.attributes has No", "put it in quotes"]),
        ("data: {attributes: Yes}", ["data.attributes has Yes", "put it in quotes"]),
        ("explain: {group: no}", ["explain.group has no", "YAML takes for false", "put it in quotes"]),
        ("tracking: {group: on}", ["tracking.group has on", "YAML takes for true", "put it in quotes"]),
        ("data: {root: off}", ["data.root has off", "put it in quotes"]),
        ("tracking: {group: 2026}", ["tracking.group is 2026", "put it in quotes"]),
        ("run: {folder: 1_000}", ["run.folder is 1000", "put it in quotes"]),
        # Quotes would not help here.
        ("train: {precision: on}", ["train.precision is 'on'", "'bf16'"]),
        ("tracking: {mode: yes}", ["tracking.mode is 'yes'", "'disabled'"]),
        ("model: {freeze: on}", ["model.freeze has on", "choose one of none, backbone"]),
        ("checkpoint: {best_score: no}", ["checkpoint.best_score has no", "choose one of loss, accuracy"]),
        ("train: {epochs: yes}", ["train.epochs is 'yes'", "integer"]),
        ("data: {image_size: [on, 64]}", ["data.image_size.0 is 'on'", "integer"]),
        ("yes: 5", ["yes is not a known key"]),
        ("data: {no: 5}", ["data.no is not a known key"]),
    ],
)
def test_elsewhere_it_is_said_what_yaml_makes_of_it(tmp_path: Path, text: str, parts: list[str]) -> None:
    sentence = refusal(lambda: read_yaml(written(tmp_path, text)), *parts)
    assert ("in quotes" in sentence) == ("put" in " ".join(parts) or "choose" in " ".join(parts))


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--train.precision", "no"], "train.precision", "no"),
        (["--train.precision=No"], "train.precision", "no"),
        (["--train.precision", "false"], "train.precision", "no"),
        (["--tracking.mode", "off"], "tracking.mode", "disabled"),
        (["--tracking.mode=OFF"], "tracking.mode", "disabled"),
        (["--data.flip", "no"], "data.flip", False),
        (["--explain.after-training=yes"], "explain.after_training", True),
        (["--model.freeze", "off"], "model.freeze", "none"),
        (["--model.weights=no"], "model.weights", "none"),
        (["--run.resume", "no"], "run.resume", "never"),
        (["--resume", "Off"], "run.resume", "never"),
        (["--run.resume", "./no"], "run.resume", "./no"),
        (["--data.root", "off"], "data.root", Path("off")),
        (["--data.attributes", "No", "yes"], "data.attributes", ("No", "yes")),
        (["--tracking.group", "on"], "tracking.group", "on"),
    ],
)
def test_so_it_is_on_the_command_line(words: list[str], key: str, value: object) -> None:
    assert value_of(load_config(words)[0], key) == value


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {epochs: 010}", "train.epochs", 10),  # 8 by YAML 1.1
        ("train: {epochs: 1_000}", "train.epochs", 1000),
        ("train: {epochs: 0x10}", "train.epochs", 16),
        ("train: {early_stopping: None}", "train.early_stopping", None),  # as --help has it
        ("run: {folder: None}", "run.folder", None),
        ("run: {folder: ~}", "run.folder", None),
        ("run: {folder:}", "run.folder", None),
        ("run: {folder: 2026-01-01}", "run.folder", Path("2026-01-01")),
        ("run: {folder: 2026-01-01 10:00:00}", "run.folder", Path("2026-01-01 10:00:00")),
        ("tracking: {group: 1:30}", "tracking.group", "1:30"),  # 90 by YAML 1.1
        ("tracking: {group: 007}", "tracking.group", "007"),
        ("tracking: {group: 'None'}", "tracking.group", "None"),
    ],
)
def test_a_value_is_what_it_looks_like(tmp_path: Path, text: str, key: str, value: object) -> None:
    config = read_yaml(written(tmp_path, text))
    assert value_of(config, key) == value
    assert read_yaml(written(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize("text", ["train: {epochs: 1:30}", "run: {timeout: 1:30}", "train: {seed: 2026-01-01}"])
def test_a_time_or_a_date_is_no_number(tmp_path: Path, text: str) -> None:
    refusal(lambda: read_yaml(written(tmp_path, text)), "it should be a valid")


@pytest.mark.parametrize("key", ["data.root", "run.folder", "run.resume", "model.weights", "explain.photograph"])
def test_a_path_is_expanded_and_kept_so(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/ada")
    monkeypatch.delenv("NOWHERE", raising=False)
    group, name = key.split(".")
    for text, meant in (("~/x", "/home/ada/x"), ("$SCRATCH/x", "/scratch/ada/x"), ("${SCRATCH}/a$", "/scratch/ada/a$")):
        config = read_yaml(written(tmp_path, yaml.safe_dump({group: {name: text}})))
        assert str(value_of(config, key)) == meant
        assert value_of(load_config([f"--{key}={text}"])[0], key) == value_of(config, key)
        assert yaml.safe_load(config.to_yaml())[group][name] == meant
    file = written(tmp_path, yaml.safe_dump({group: {name: "$NOWHERE/x"}}))
    refusal(lambda: read_yaml(file), f"{key} is '$NOWHERE/x', but the environment variable NOWHERE is not set")


@pytest.mark.parametrize(
    "text",
    ["backbone 2:layer3 5:none", "{1: backbone, 2: layer3, 5: none}", "{'1': backbone, '2': layer3, '5': none}",
     "'1:backbone  2:layer3\t5:none'"],
)  # fmt: skip
def test_layers_may_be_freed_one_after_the_other(tmp_path: Path, text: str) -> None:
    model = read_yaml(written(tmp_path, f"model: {{freeze: {text}}}")).model
    assert model.freeze == "backbone 2:layer3 5:none"
    assert model.stages == ((1, "backbone"), (2, "layer3"), (5, "none"))
    assert [model.freeze_in(epoch) for epoch in range(1, 7)] == ["backbone", *["layer3"] * 3, "none", "none"]
    again, _ = load_config(["--model.freeze", "backbone 2:layer3 5:none"])
    assert again.model == model


@pytest.mark.parametrize(
    "text", ["112@0 144@.5 218@0.75", "{112: 0, 144: .5, 218: 0.75}", "'112@0  144@0.5\t218@0.75'"]
)
def test_images_may_grow(tmp_path: Path, text: str) -> None:
    config = read_yaml(written(tmp_path, f"data: {{image_size: [218, 178], grow: {text}}}"))
    shares, sizes = zip(*config.data.stages, strict=True)
    assert [float(share) for share in shares] == [0, 0.5, 0.75]
    assert sizes == ((112, 96), (144, 112), (218, 178))  # 112 x 178 / 218 is 91.4, 144 x 178 / 218 is 117.6
    again, _ = load_config(["--data.image-size", "218", "178", "--data.grow", config.data.grow])
    assert again.data == config.data


@pytest.mark.parametrize(
    ("image_size", "grow", "size"),
    [
        ((64, 64), "32@0 64@0.5", (32, 32)),
        ((100, 31), "96@0 100@0.5", (96, 16)),  # 29.8 is nearer to 32, which no image is as wide as
        ((400, 20), "16@0 400@0.5", (16, 16)),
        ((400, 8), "16@0 400@0.5", (16, 8)),
        ((64, 96), "48@0 64@0.5", (48, 80)),  # 72 is between 64 and 80
    ],
)
def test_smaller_images_have_about_the_aspect_of_large_ones(
    image_size: tuple[int, int], grow: str, size: tuple[int, int]
) -> None:
    data = Config().replace("data", image_size=image_size, grow=grow).data
    assert [stage.size for stage in data.stages] == [size, image_size]


def test_the_last_layer_may_be_freed_in_the_last_epoch(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "model: {freeze: backbone 3:none}\ntrain: {epochs: 3}")).model.stages[-1][0] == 3


def test_one_attribute_needs_no_list(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "data: {attributes: Smiling}")).data.attributes == ("Smiling",)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "data:\noptim:\n", "data:\n  dali:\n", "{}"])
def test_a_group_with_nothing_under_it_has_its_defaults(tmp_path: Path, text: str) -> None:
    assert read_yaml(written(tmp_path, text)) == Config()


# What every run has written that was trained before these settings were taken out.
OFF = """
augment: {cutmix: 0.0, erasing: 0.0, saturation: 0.0, hue: 0.0, blur: 0.0, rotation: 0.0, translation: 0.0, scale: 0.0,
  brightness: 0.0, contrast: 0.0, grey: 0.0, mixup: 0.0}
model: {stochastic_depth: 0.0, dropout: 0.0}
optim: {layer_decay: null}
train: {loss: bce, focal_gamma: 2.0, gamma_positive: 0.0, gamma_negative: 4.0, margin: 0.05}
"""


def test_a_file_of_an_earlier_version_is_read_where_it_does_without_what_was_taken_out(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, OFF)) == Config()
    for there, other, key in (
        ("dropout: 0.0", "dropout: 0.2", "model.dropout"),
        ("bce", "focal", "train.loss"),
        ("cutmix: 0.0", "cutmix: 1.0", "augment.cutmix"),
        ("hue: 0.0", "hue: 0.02", "augment.hue"),
        ("rotation: 0.0", "rotation: 5.0", "augment.rotation"),
        ("layer_decay: null", "layer_decay: 0.8", "optim.layer_decay"),
    ):
        file = written(tmp_path, OFF.replace(there, other))
        refusal(
            lambda file=file: read_yaml(file), str(file), f"{key} is {other.rpartition(' ')[2]}, a setting that later"
        )


READY_MADE = [*sorted((REPOSITORY / "configs").glob("*.yaml")), REPOSITORY / "configs/recipe/quick.yaml"]


@pytest.mark.parametrize("file", READY_MADE, ids=lambda file: file.name)
def test_the_ready_made_configurations_load(file: Path) -> None:
    config, name = load_config(["--config", str(file)])
    assert name == file.stem
    assert config.ineffective() == []
    assert config != Config()


def test_there_are_ready_made_configurations() -> None:
    assert len(list((REPOSITORY / "configs").glob("*.yaml"))) >= 2


# --- help


def test_help_lists_every_key_with_its_description_and_default(tmp_path: Path) -> None:
    # As a person runs it, in a process of its own; narrow enough for one column.
    result = subprocess.run(
        [sys.executable, "-m", "distrib.config", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr == ""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).replace("│", " ").split())
    lines = {" ".join(line.strip("│ ").split()) for line in result.stdout.splitlines()}
    assert len(keys()) > 40
    for key, field in keys().items():
        option = "--" + key.replace("_", "-")
        assert field.description, f"{key} has no description"
        assert any(line.split(" ")[0] == option for line in lines), f"{option} is not in --help"
        default = value_of(Config(), key)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert f"{field.description} (default: {shown})" in text, key


def test_help_shows_what_the_yaml_has_made_of_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = written(tmp_path, "optim: {lr: 0.0625}")
    with pytest.raises(SystemExit) as stop:
        load_config(["--config", str(file), "--help"])
    assert not stop.value.code
    assert "(default: 0.0625)" in capsys.readouterr().out


def test_keys_are_the_leaves_of_the_tree() -> None:
    def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for name, value in tree.items():
            found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
        return found

    assert set(keys()) == leaves(Config().model_dump())


# --- refusals


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--optim.lrr", "--optim.lr"),
        ("--lr", "--optim.lr"),
        ("--optim.learning-rate", "--optim.lr"),
        ("--batch-size", "--train.batch-size"),
        ("--train.epoch", "--train.epochs"),
        ("--data.dali.hw-decoder-lod", "--data.dali.hw-decoder-load"),
    ],
)
@pytest.mark.parametrize("joint", [" ", "="])
def test_a_mistyped_option_is_refused_with_the_nearest_one(option: str, meant: str, joint: str) -> None:
    refusal(lambda: load_config(f"{option}{joint}3".split()), f"{option} ", f"did you mean {meant}?", "--help")


def test_an_option_like_none_is_refused_without_a_guess() -> None:
    assert "did you mean" not in refusal(lambda: load_config(["--xyzzy", "3"]), "--xyzzy", "--help")


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("leaning_rate: 3", "leaning_rate", "optim.lr"),
        ("optim: {leaning_rate: 3}", "optim.leaning_rate", "optim.lr"),
        ("learning_rate: 3", "learning_rate", "optim.lr"),
        ("lr: 3", "lr", "optim.lr"),
        ("optim: {lrr: 3}", "optim.lrr", "optim.lr"),
        ("train: {warmup_epochs: 3}", "train.warmup_epochs", "optim.warmup_epochs"),
        ("data: {dali: {hw_decoder_lod: 1}}", "data.dali.hw_decoder_lod", "data.dali.hw_decoder_load"),
    ],
)
def test_a_mistyped_yaml_key_is_refused_with_the_nearest_one(tmp_path: Path, text: str, key: str, meant: str) -> None:
    file = written(tmp_path, text)
    refusal(lambda: read_yaml(file), str(file), f" {key} is not a known key", f"did you mean {meant}?", "--help")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("trian: {epochs: 3}", "train"),
        ("modell: {weights: none}", "model"),
        ("optimizer: {lr: 3}", "optim"),
        ("trian:", "train"),
        ("data: {dail: {hw_decoder_load: 1}}", "data.dali"),
        ("on: {push: 3}", None),
        ("on:", None),
        ("on: 3", None),
    ],
)
def test_a_mistyped_group_is_refused_with_the_nearest_one(tmp_path: Path, text: str, meant: str | None) -> None:
    sentence = refusal(lambda: read_yaml(written(tmp_path, text)), " is not a known key")
    assert re.findall(r"did you mean (.*?)\?", sentence) == ([meant] if meant else [])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("train.epochs: 3", ["train:", "  epochs: 3"]),
        ("train: {train.epochs: 3}", ["train:", "  epochs: 3"]),
        ("data.dali.hw_decoder_load: 1", ["data:", "  dali:", "    hw_decoder_load: 1"]),
        ("data: {dali.hw_decoder_load: 1}", ["data:", "  dali:", "    hw_decoder_load: 1"]),
        ("data.dali.hw_decoder: 1", ["optim:", "  lr: 1"]),
        ("data.dali: {hw_decoder_load: 1}", ["data:", "  dali: {hw_decoder_load: 1}"]),
    ],
)
def test_a_key_with_dots_is_refused_with_how_a_file_has_it(tmp_path: Path, text: str, lines: list[str]) -> None:
    sentence = refusal(lambda: read_yaml(written(tmp_path, text)), " is not a known key", "below")
    assert ("did you mean data.dali.hw_decoder_load?" in sentence) == text.startswith("data.dali.hw_decoder:")
    assert re.findall("`(.*?)`", sentence) == [re.sub(": .*$", ": …", line) for line in lines]
    read_yaml(written(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize("key", ["interval", "integer", "none_at_all", "function", "xyzzy", "int"])
def test_the_refusal_names_the_unknown_key_whatever_it_begins_with(tmp_path: Path, key: str) -> None:
    refusal(lambda: read_yaml(written(tmp_path, f"train: {{{key}: 3}}")), f" train.{key} is not a known key")
    refusal(lambda: read_yaml(written(tmp_path, f"{key}: 3")), f" {key} is not a known key")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", "fast"),
        ("optim.lr", "[1, 2]"),
        ("optim.lr", "null"),
        ("train.epochs", "1.5"),
        ("train.epochs", "many"),
        ("data.flip", "maybe"),
        ("data.image_size", "64"),
        ("data.image_size", "[64]"),
        ("data.image_size", "[64, 64, 3]"),
        ("data.image_size", "[64, wide]"),
        ("data.attributes", "[1, 2]"),
        ("data.attributes", "{Smiling: 1}"),
        ("data.root", "[a]"),
        ("data.subset", "half"),
        ("data.decoder", "ffcv"),
        ("optim.name", "adagrad"),
        ("optim.schedule", "linear"),
        ("model.weights", "null"),
        ("model", "resnet18"),
        ("data.dali", "3"),
        # out of range
        ("optim.lr", "0"),
        ("optim.lr", "-1"),
        ("optim.lr", ".nan"),
        ("optim.lr", ".inf"),
        ("optim.weight_decay", "-0.1"),
        ("optim.momentum", "1"),
        ("optim.clip_norm", "0"),
        ("optim.backbone_lr", "0"),
        ("model.freeze", "[backbone, none]"),
        ("model.freeze", "null"),
        ("model.stem", "tiny"),
        ("model.frozen_statistics", "frozen"),
        ("train.batch_size", "0"),
        ("train.epochs", "0"),
        ("train.accumulation", "0"),
        ("train.label_smoothing", "1"),
        ("train.seed", "-1"),
        ("data.image_size", "[7, 64]"),
        ("data.image_size", "[64, 5000]"),
        ("data.min_zoom", "0"),
        ("data.min_zoom", "1.01"),
        ("data.eval_zoom", "0"),
        ("data.eval_zoom", "1.01"),
        ("data.subset", "0"),
        ("data.threads", "0"),
        ("data.prefetch", "0"),
        ("data.dali.hw_decoder_load", "1.5"),
        ("checkpoint.keep", "0"),
        ("run.ranks", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, key: str, value: str) -> None:
    tree: Any = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        tree = {part: tree}
    file = written(tmp_path, yaml.safe_dump(tree))
    refusal(lambda: read_yaml(file), f"{file}: {key}")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--optim.lr fast", ["--optim.lr", "fast"]),
        ("--optim.lr -1", ["optim.lr", "-1", "greater than 0"]),
        ("--optim.lr nan", ["optim.lr", "nan"]),
        ("--optim.lr", ["--optim.lr"]),
        ("--train.epochs 1.5", ["--train.epochs", "1.5"]),
        ("--data.image-size 64", ["--data.image-size"]),
        ("--data.image-size 3 64", ["data.image_size", "3"]),
        ("--data.flip maybe", ["--data.flip", "maybe"]),
        ("--optim.name adagrad", ["--optim.name", "adagrad", "adamw"]),
        ("--data.attributes", ["data.attributes"]),
        ("--optim.lr 1 surplus", ["surplus"]),
        ("surplus", ["surplus"]),
        ("-x", ["-x"]),
        ("--resume", ["resume"]),
        ("--data.subset some", ["--data.subset", "some"]),
    ],
)
def test_a_wrong_option_is_one_sentence_that_names_it(words: str, parts: list[str]) -> None:
    sentence = refusal(lambda: load_config(words.split()), *parts)
    assert len(sentence) < 400
    assert not re.search("[│╭╰\x1b]", sentence)


def test_a_refusal_leaves_the_terminal_width_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    refusal(lambda: load_config(["--optim.lr", "fast"]))
    assert os.environ["COLUMNS"] == "77"
    monkeypatch.delenv("COLUMNS")
    refusal(lambda: load_config(["--optim.lr", "fast"]))
    assert "COLUMNS" not in os.environ


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("optim: {warmup_epochs: 4}\ntrain: {epochs: 3}", ["optim.warmup_epochs", "train.epochs", "4", "3"]),
        ("train: {batch_size: 10, accumulation: 3}", ["train.batch_size", "train.accumulation", "10", "3"]),
        ("data: {split_fractions: [0.5, 0.2, 0.2]}", ["data.split_fractions", "0.9"]),
        ("data: {fold: 6/5}", ["data.fold is 6/5", "such as 2/5 for the second of five"]),
        ("data: {fold: 1/1}", ["data.fold is 1/1"]),
        ("data: {fold: 0/5}", ["data.fold is 0/5"]),
        ("data: {attributes: []}", ["data.attributes"]),
        ("train: {profile: 0}", ["train.profile is 0", "greater than or equal to 1"]),
        ("train: {profile: 101}", ["train.profile is 101", "less than or equal to 100"]),
        ("data: {attributes: [Smiling, Young, Smiling]}", ["data.attributes", "Smiling"]),
        ("model: {freeze: layer5}", ["model.freeze is layer5", "did you mean layer4?"]),
        ("model: {freeze: all}", ["model.freeze", "leaves nothing to train, not even the head"]),
        ("model: {freeze: ''}", ["model.freeze is empty"]),
        ("model: {freeze: {}}", ["model.freeze is empty"]),
        ("model: {freeze: backbone 2:layr3}", ["model.freeze has layr3", "did you mean layer3?"]),
        ("model: {freeze: backbone 2:all}", ["model.freeze", "leaves nothing to train"]),
        ("model: {freeze: '2:layer3 5:none'}", ["model.freeze begins with 2:layer3", "from the start"]),
        ("model: {freeze: {2: layer3, 5: none}}", ["model.freeze begins with 2:layer3", "from the start"]),
        ("model: {freeze: backbone layer3}", ["model.freeze has layer3", "expected EPOCH:POLICY"]),
        ("model: {freeze: 'backbone 2.5:layer3'}", ["model.freeze has 2.5:layer3", "expected EPOCH:POLICY"]),
        ("model: {freeze: backbone 1:none}", ["model.freeze has 1:none after epoch 1", "ascend"]),
        ("model: {freeze: backbone 3:layer3 2:none}", ["model.freeze has 2:none after epoch 3", "ascend"]),
        ("model: {freeze: {1: backbone, 3: layer3, 2: none}}", ["model.freeze has 2:none after epoch 3", "ascend"]),
        ("model: {freeze: backbone 2:layer4}", ["model.freeze has 2:layer4 after backbone", "free more layers"]),
        ("model: {freeze: layer1 2:layer3}", ["model.freeze has 2:layer3 after layer1", "free more layers"]),
        ("model: {freeze: backbone 4:none}\ntrain: {epochs: 3}", ["model.freeze has 4:none", "train.epochs 3"]),
        ("data: {grow: ''}", ["data.grow is empty", "80@0 178@0.5"]),
        ("data: {grow: {}}", ["data.grow is empty", "or none"]),
        ("data: {grow: 112 178@0.5}", ["data.grow has 112: expected HEIGHT@SHARE each, such as 80@0 178@0.5"]),
        ("data: {grow: 112@0 178@-0.5}", ["data.grow has 178@-0.5: expected HEIGHT@SHARE"]),
        ("data: {grow: 112@0 178@1/2}", ["data.grow has 178@1/2: expected HEIGHT@SHARE"]),
        ("data: {grow: {0: 112, 0.5: 178}}", ["data.grow has 0@112: expected HEIGHT@SHARE"]),
        ("data: {grow: 112@0.1 178@0.5}", ["data.grow begins with 112@0.1", "how high images are at 0"]),
        ("data: {grow: 112@0 178@1.0}", ["data.grow has 178@1.0", "less than 1"]),
        ("data: {grow: 112@0 144@0.5 178@0.5}", ["data.grow has 178@0.5 after 144@0.5", "shares in ascending order"]),
        ("data: {grow: 112@0 96@0.5 178@0.6}", ["data.grow has 96@0.5 after 112@0", "heights in ascending order"]),
        ("data: {grow: 100@0 178@0.5}", ["data.grow has 100@0", "multiples of 16 pixels, such as 96"]),
        ("data: {grow: 112@0 144@0.5}", ["data.grow ends with 144@0.5", "data.image_size is 178 178", "be 178"]),
        ("data: {grow: 112@0 178@0.5, image_size: [224, 178]}", ["ends with 178@0.5", "let the last height be 224"]),
        ("optim: {nesterov: true}", ["optim.nesterov is true", "optim.name is adamw", "set optim.name to sgd"]),
        ("optim: {nesterov: true, name: sgd, momentum: 0}", ["optim.nesterov is true", "optim.momentum is 0"]),
        ("checkpoint: {best_score: auc}", ["checkpoint.best_score", "auc", "did you mean roc_auc?"]),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused_by_name(tmp_path: Path, text: str, fields: list[str]) -> None:
    refusal(lambda: read_yaml(written(tmp_path, text)), *fields)


def test_values_from_yaml_and_command_line_are_checked_together(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {batch_size: 12, accumulation: 3}")
    assert load_config(["--config", str(file), "--train.batch-size", "15"])[0].train.batch_size == 15
    refusal(lambda: load_config(["--config", str(file), "--train.batch-size", "16"]), "train.batch_size 16")


def test_a_warm_up_as_long_as_the_run_is_allowed(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "optim: {warmup_epochs: 3}\ntrain: {epochs: 3}")).optim.warmup_epochs == 3


@pytest.mark.parametrize("score", SCORES)
def test_every_score_can_choose_the_best_epoch(tmp_path: Path, score: str) -> None:
    assert read_yaml(written(tmp_path, f"checkpoint: {{best_score: {score}}}")).checkpoint.best_score == score


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("- a\n- b\n", ["holds a list"]),
        ("just words", ["holds a str"]),
        ("3", ["holds a"]),
        ("optim: {lr: 1", ["not valid YAML"]),
        ("optim:\n  lr: 1\n wd: 2\n", ["line 3", "not valid YAML"]),
        ("a: b: c", ["line 1", "not valid YAML"]),
        (b"\x80\x81", ["cannot be read", "not UTF-8 text", "save it as UTF-8"]),
        ("optim: {lr: 1}".encode("utf-16"), ["not UTF-8 text", "save it as UTF-8"]),
        ("run: {folder: été}".encode("latin-1"), ["not UTF-8 text", "save it as UTF-8"]),
        ("{1: 2}", ["1"]),
        ("a: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    file = written(tmp_path, text)
    refusal(lambda: read_yaml(file), str(file), *parts)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nothing.yaml"
    refusal(lambda: load_config(["--config", str(file)]), str(file), "no such file")
    refusal(lambda: load_config(["--config", str(tmp_path)]), str(tmp_path), "cannot be read")


@pytest.mark.parametrize("words", [["--config"], ["--config", "--optim.lr", "1"], ["--optim.lr", "1", "--config"]])
def test_config_needs_a_value(words: list[str]) -> None:
    refusal(lambda: load_config(words), "--config needs the path")


@pytest.mark.parametrize("words", ["--config a --config b", "--config=a --config b", "--config=a --config=b"])
def test_config_is_given_once(words: str) -> None:
    refusal(lambda: load_config(words.split()), "--config is given 2 times", "a, b")


@pytest.mark.parametrize(
    "text",
    [
        "optim: {lr: 2001-99-99}",  # looks like a date
        "optim: {lr: 0x_}",  # looks like a number
        "data: {root: !!timestamp 2000-01-01t00:00:00+99:99}",
        "train: {seed: " + "9" * 5000 + "}",
        "train: {seed: !!int many}",
        "data: {flip: !!bool maybe}",
        "data: {root: !!timestamp now}",
        'data: {root: "\\UFFFFFFFF"}',
        "[" * 1500,
    ],
    ids=lambda text: text[:24],
)
def test_scalars_that_the_yaml_library_chokes_on_are_refused(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    refusal(lambda: read_yaml(file), str(file))


def test_a_refusal_stays_a_sentence_however_much_was_found(tmp_path: Path) -> None:
    sentence = refusal(lambda: read_yaml(written(tmp_path, f"optim: {{lr: {list(range(5000))}}}")), "optim.lr")
    assert len(sentence) < 1000


def test_a_seed_that_the_random_generators_cannot_take_is_refused(tmp_path: Path) -> None:
    # The plan's key and torch's seed have 64 bits.
    assert read_yaml(written(tmp_path, f"train: {{seed: {2**63 - 1}}}")).train.seed == 2**63 - 1
    refusal(lambda: read_yaml(written(tmp_path, f"train: {{seed: {2**64}}}")), "train.seed")


_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.sampled_from(["1e-3", ""])
)
_NAMES = st.one_of(
    st.sampled_from(sorted({part for key in keys() for part in key.split(".")})), st.text(max_size=6), st.integers()
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_NAMES, inner, max_size=4)),
    max_leaves=12,
)


def config_or_user_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "some.yaml"
        file.write_bytes(content)
        try:
            outcome: object = read_yaml(file)
        except UserError as refused:
            outcome = refused
    assert isinstance(outcome, Config) or str(file) in str(outcome)


@settings(max_examples=80, deadline=None)
@given(_TREES)
@example({"train": {"epochs": 10**400}})
@example({"optim": {"lr": 10**400}})
def test_any_yaml_tree_is_a_configuration_or_a_user_error(tree: Any) -> None:
    config_or_user_error(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@settings(max_examples=250, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("ab:-?!&*[]{},#|>%'\" \n\t01ex_.~<=", max_size=40).map(str.encode)))
@example(b"\x00")
@example("\ufeffoptim: {lr: 1}".encode())
@example("optim: {lr: 1}".encode("utf-16"))
@example(b"&a {data: *a}")
@example(b"a: 0b_")
def test_any_bytes_are_a_configuration_or_a_user_error(content: bytes) -> None:
    config_or_user_error(content)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=4))
@example(["--optim.lr", ""])
@example(["--", "--optim.lr"])
@example(["--data.root=\x00"])
def test_any_command_line_is_a_configuration_or_a_user_error(words: list[str]) -> None:
    code: object = 0
    try:
        load_config(words)
    except UserError:
        pass
    except SystemExit as stop:
        code = stop.code
    assert not code


def test_a_name_that_is_no_text_is_refused_with_what_would_make_it_text() -> None:
    name = os.fsdecode(b"caf\xe9")
    for key in ("data.root", "run.resume", "tracking.group"):
        sentence = refusal(
            lambda key=key: load_config([f"--{key}={name}"]), f"{key} is caf", "not text in this locale (utf-8)"
        )
        assert "LC_ALL" not in sentence


@pytest.mark.parametrize("place", ["command line", "file"])
def test_so_is_one_that_the_locale_does_not_know(tmp_path: Path, place: str) -> None:
    words = ["--data.root", "café"]
    if place == "file":
        words = ["--config", str(written(tmp_path, "data: {root: café}"))]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "distrib.config", *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False)
    assert done.returncode
    assert b"data.root is caf" in done.stderr
    assert b"not text in this locale (ascii): set LC_ALL=C.UTF-8, or choose another name" in done.stderr
    environment = {**environment, "LC_ALL": "C.UTF-8"}
    assert not subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False).returncode


# --- to_yaml


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Configurations that a person may have."""
    positive = st.floats(1e-12, 1e6)
    epochs = draw(st.integers(2, 100))
    size = st.integers(8, 4096)
    name = st.text(min_size=1, max_size=6).filter(lambda name: name != "all")  # which stands alone
    height, accumulation = draw(size), draw(st.integers(1, 4))
    return Config.model_validate(
        {
            "data": {
                "root": draw(st.sampled_from(["data/celeba", "/päth/with blanks", "yes", "1e3", "null", "~", "#a: b"])),
                "attributes": draw(st.just(["all"]) | st.lists(name, min_size=1, max_size=3, unique=True)),
                "split": draw(st.sampled_from(["official", "identity", "image"])),
                "subset": draw(st.none() | st.integers(1, 10**9)),
                "image_size": (height, draw(size)),
                "flip": draw(st.booleans()),
                "grow": draw(st.sampled_from(["none", f"{height}@0"])),
                "min_zoom": draw(st.floats(1e-6, 1)),
                "eval_zoom": draw(st.floats(1e-6, 1)),
                "dali": {"hw_decoder_load": draw(st.floats(0, 1))},
            },
            "model": {
                "weights": draw(st.sampled_from(["none", "imagenet", "off", "1.0"])),
                "stem": draw(st.sampled_from(["imagenet", "small"])),
                "freeze": draw(st.sampled_from(["none", "backbone", "layer2", f"layer2 {epochs}:none"])),
                "frozen_statistics": draw(st.sampled_from(["kept", "updated"])),
            },
            "optim": {
                "lr": draw(positive),
                "backbone_lr": draw(st.none() | positive),
                "clip_norm": draw(st.none() | positive),
                "warmup_epochs": draw(st.floats(0, epochs)),
            },
            "train": {
                "epochs": epochs,
                "accumulation": accumulation,
                "batch_size": accumulation * draw(st.integers(1, 512)),
                "precision": draw(st.sampled_from(["auto", "no", "bf16", "fp16"])),
                "seed": draw(st.integers(0, 2**63 - 1)),
            },
            "run": {
                "folder": draw(st.none() | st.sampled_from(["runs/a", "no"])),
                "ranks": draw(st.none() | st.just(3)),
            },
        }
    )


@settings(max_examples=25, deadline=None)
@given(configs())
def test_to_yaml_comes_back_as_an_equal_configuration(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        assert read_yaml(file) == config
        assert load_config(["--config", str(file)])[0] == config


def test_to_yaml_writes_every_key() -> None:
    tree = yaml.safe_load(Config().to_yaml())
    for key in keys():
        value: Any = tree
        for part in key.split("."):
            value = value[part]


# --- the tree itself


def test_a_configuration_is_frozen() -> None:
    config = Config()
    for section, name in ((config, "data"), (config.optim, "lr"), (config.data.dali, "hw_decoder_load")):
        with pytest.raises((UserError, pydantic.ValidationError)):
            setattr(section, name, getattr(section, name))
    assert config == Config()


def test_replace_changes_one_group_and_validates_it() -> None:
    before = Config()
    after = before.replace("train", precision="bf16", epochs=3)
    assert (after.train.precision, after.train.epochs, after.train.batch_size) == ("bf16", 3, before.train.batch_size)
    assert before == Config()
    assert after.data == before.data
    refusal(lambda: before.replace("train", epochs=0), "train.epochs")
    refusal(lambda: before.replace("train", epoch=3), "train.epoch ", "train.epochs")


@pytest.mark.parametrize("crop", ["round", "0", "1.2"])
def test_a_crop_is_a_word_or_a_share(crop: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{crop: {crop}}}\n", encoding="utf-8")
    refusal(lambda: load_config(["--config", str(file)]), "data.crop", "'square' or 'full', or a number")
    assert load_config(["--data.crop", "0.83"])[0].data.crop == 0.83


@pytest.mark.parametrize(
    ("idle", "used", "key"),
    [
        ("--data.split-fractions .6 .2 .2", "--data.split image", "data.split_fractions"),
        ("--data.split-seed 3", "--data.fold 2/5", "data.split_seed"),
        (
            "--train.norm-size 16 --model.weights imagenet --model.freeze backbone",
            "--augment.mixup .2",
            "train.norm_size",
        ),
        ("--optim.momentum .5", "--optim.name sgd", "optim.momentum"),
        ("--data.grow 178@0", "--data.grow none", "data.grow"),
        ("--data.decoder torch --data.dali.hw-decoder-load .5", "--data.decoder dali", "data.dali"),
        (
            "--train.deterministic True --data.dali.hw-decoder-load .9",
            "--train.deterministic False",
            "data.dali.hw_decoder_load",
        ),
        ("--tracking.mode disabled --tracking.upload-best True", "--tracking.mode offline", "tracking.upload_best"),
        ("--model.freeze backbone", "--model.weights imagenet", "the frozen backbone"),
        ("--model.freeze layer4", "--model.freeze layer3", "the frozen backbone"),
        ("--model.frozen-statistics updated", "--model.freeze layer2", "model.frozen_statistics"),
        (
            "--optim.backbone-lr 1 --model.weights imagenet --model.freeze backbone",
            "--model.freeze none",
            "optim.backbone_lr",
        ),
    ],
)
def test_a_setting_without_effect_is_warned_about(idle: str, used: str, key: str) -> None:
    (warning,) = load_config(idle.split())[0].ineffective()
    assert warning.startswith(f"{key} has no effect because ")
    assert load_config(idle.split() + used.split())[0].ineffective() == []


def test_the_defaults_have_an_effect() -> None:
    assert Config().ineffective() == []
    assert Config().replace("train", deterministic=True).ineffective() == []


def test_a_random_backbone_that_is_freed_later_has_an_effect() -> None:
    freed_later = Config().replace("model", freeze="backbone 2:layer3", frozen_statistics="updated")
    assert freed_later.replace("optim", backbone_lr=1e-4).ineffective() == []


def test_nearest() -> None:
    assert nearest("SMILING", ["Smiling", "Young"]) == " (did you mean Smiling?)"
    assert nearest("xyzzy", ["Smiling", "Young"]) == ""
    assert nearest("learning_rat", {"learning_rate": "optim.lr"}) == " (did you mean optim.lr?)"
