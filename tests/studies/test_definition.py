"""Studies as their files say, and what is refused before the first trial."""

from pathlib import Path

import optuna
import pytest
import yaml
from sentences import refusal

from distrib.base.errors import UserError
from distrib.studies.definition import Study, read_study, to_yaml
from distrib.studies.folder import StudyFolder
from distrib.studies.scale import Scale

ROOT = Path(__file__).resolve().parents[2]


def study(folder: Path, text: str, **options: object) -> Study:
    file = folder / "a-study.yaml"
    file.write_text(text)
    return read_study(file, options)


GRID = "sampler: grid\n"


def test_a_grid_has_its_points_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {train.batch_size: [16, 32], optim.lr: {low: 0.1, high: 0.3, step: 0.1}}")
    assert [(each["train.batch_size"], each["optim.lr"]) for each in found.points()] == [
        (16, 0.1), (16, 0.2), (16, 0.3), (32, 0.1), (32, 0.2), (32, 0.3),
    ]  # fmt: skip
    assert found.planned == 6


def test_yamls_words_are_those_of_the_settings(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        GRID
        + "set: {tracking.mode: off}\nwarm_start: no\npruner: off\n"
        + "space: {train.precision: [no, bf16], data.flip: [yes, no],"
        + " b: {variants: {on: {optim.name: sgd}, off: {model.freeze: no}},"
        + " when: {train.precision: no, data.flip: no}}}",
    )
    assert found.base.tracking.mode == "disabled"
    assert (found.fields.warm_start, found.fields.pruner.name) == (False, "none")
    assert [tuple(point.values()) for point in found.points()] == [
        ("no", True), ("no", False, "on"), ("no", False, "off"), ("bf16", True), ("bf16", False),
    ]  # fmt: skip
    configs = [found.config(point, {}, None) for point in found.points()]
    assert [each.train.precision for each in configs] == ["no"] * 3 + ["bf16"] * 2
    assert [each.optim.name for each in configs].count("sgd") == 1
    assert read_study(tmp_path / "a-study.yaml") == found


def test_a_range_may_be_written_without_a_dot(tmp_path: Path) -> None:
    space = "space: {optim.lr: {low: 1e-4, high: 1e-2, log: yes}}\n"
    (parameter,) = study(tmp_path, space + "budget: {trials: 1}").parameters
    assert (parameter.low, parameter.high, parameter.log) == (0.0001, 0.01, True)


@pytest.mark.parametrize(
    "space", ["{low: 1e1, high: 1e2}", "{low: 10.0, high: 100}", "{low: 10, high: 1e2, step: 3e1}"]
)
def test_a_range_of_whole_numbers_may_be_written_as_others(tmp_path: Path, space: str) -> None:
    (parameter,) = study(tmp_path, f"space: {{train.batch_size: {space}}}\nbudget: {{trials: 1}}").parameters
    assert (parameter.low, parameter.high) == (10, 100)
    assert type(parameter.low) is type(parameter.high) is int


def test_paths_of_a_study_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("HERE", str(tmp_path))
    (tmp_path / "base.yaml").write_text("train: {epochs: 7}")
    (tmp_path / "launch.yaml").write_text("num_processes: 2")
    text = (
        "base: $HERE/base.yaml\nlaunch: ${HERE}/launch.yaml\nstorage: sqlite:///$HERE/a.db\nset: {data.root: ~/faces}\n"
        "space: {model.weights: [no, ~/a.pt]}"
    )
    found = study(tmp_path, GRID + text)
    assert (found.base.train.epochs, found.base.data.root) == (7, Path("/home/ada/faces"))
    assert (found.fields.launch, found.fields.storage) == (tmp_path / "launch.yaml", f"sqlite:///{tmp_path}/a.db")
    assert [found.config(each, {}, None).model.weights for each in found.points()] == ["none", "/home/ada/a.pt"]


def test_a_conditional_setting_is_in_no_other_point(tmp_path: Path) -> None:
    space = "space: {optim.momentum: {choices: [0.5, 0.9], when: {optim.name: sgd}}, optim.name: [adam, sgd]}"
    found = study(tmp_path, GRID + space)
    assert found.points() == [
        {"optim.name": "adam"},
        {"optim.name": "sgd", "optim.momentum": 0.5},
        {"optim.name": "sgd", "optim.momentum": 0.9},
    ]
    assert found.config(found.points()[2], {}, None).optim.momentum == 0.9


def test_base_set_point_rung_and_seed_lie_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 0.5, weight_decay: 0.1}\ntrain: {epochs: 9, batch_size: 8}\n")
    text = (
        "base: base.yaml\nset: {train.epochs: 7}\nspace: {optim.lr: [0.25]}\nsampler: grid\nseeds: 2\n"
        "pruner: halving\nfidelity: [{data.subset: 10}, {}]\n"
    )
    found = study(tmp_path, text, **{"train.batch_size": 4})
    config = found.config(found.points()[0], found.rungs[0], 1)
    assert (config.optim.lr, config.optim.weight_decay, config.train.epochs) == (0.25, 0.1, 7)
    assert (config.train.batch_size, config.data.subset, config.train.seed) == (4, 10, 1)
    assert config.tracking.group == "a-study"
    assert found.seeds == (0, 1)


def test_variants_set_several_settings_under_one_name(tmp_path: Path) -> None:
    text = GRID + "space: {how: {variants: {plain: {}, sgd: {optim.name: sgd, optim.lr: 0.1}}}}"
    found = study(tmp_path, text)
    configs = [found.config(point, {}, None) for point in found.points()]
    assert [(each.optim.name, each.optim.lr) for each in configs] == [("adamw", 1e-3), ("sgd", 0.1)]


@pytest.mark.parametrize("keys", ["{optim.name: sgd, optim.nesterov: true}", "{optim.nesterov: true, optim.name: sgd}"])
def test_settings_that_need_each_other_may_be_named_in_any_order(keys: str, tmp_path: Path) -> None:
    """Nesterov's momentum is sgd's alone, and the base has adamw."""
    found = study(tmp_path, f"{GRID}space: {{how: {{variants: {{plain: {{}}, nesterov: {keys}}}}}}}")
    configs = [found.config(point, {}, None) for point in found.points()]
    assert [(each.optim.name, each.optim.nesterov) for each in configs] == [("adamw", False), ("sgd", True)]
    found = study(tmp_path, f"{GRID}set: {keys}\nspace: {{optim.lr: [0.1]}}")
    assert found.config(found.points()[0], {}, None).optim.nesterov


def test_what_is_valid_under_its_condition_alone_may_be_varied(tmp_path: Path) -> None:
    space = "space: {optim.nesterov: {choices: [false, true], when: {optim.name: NAME}}, optim.name: [adamw, sgd]}"
    found = study(tmp_path, GRID + space.replace("NAME", "sgd"))
    configs = [found.config(point, {}, None) for point in found.points()]
    expected = [("adamw", False), ("sgd", False), ("sgd", True)]
    assert [(each.optim.name, each.optim.nesterov) for each in configs] == expected
    for never in ("adamw", "[sgd, adamw]"):
        with pytest.raises(UserError, match=r"space: .*optim\.nesterov"):
            study(tmp_path, GRID + space.replace("NAME", never))
    nested = space.replace("{optim.name: NAME}", "{optim.momentum: 0.9}").replace(
        "{optim.nesterov", "{optim.momentum: {choices: [0.5, 0.9], when: {optim.name: sgd}}, optim.nesterov"
    )
    found = study(tmp_path, GRID + nested)
    assert sum(found.config(point, {}, None).optim.nesterov for point in found.points()) == 1


def test_values_that_are_lists_are_choices_too(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {data.image_size: [[64, 64], [96, 80]]}")
    assert [found.config(point, {}, None).data.image_size for point in found.points()] == [(64, 64), (96, 80)]


def test_optuna_samples_what_the_space_says(tmp_path: Path) -> None:
    text = (
        "space: {optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}, train.batch_size: {low: 16, high: 64, step: 16},\n"
        "  optim.momentum: {low: 0.5, high: 0.9, when: {optim.name: sgd}}, optim.name: [adam, sgd]}\n"
        "budget: {trials: 3}\n"
    )
    found = study(tmp_path, text)
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [found.suggest(search.ask()) for _ in range(40)]
    assert all(1e-4 <= float(each["optim.lr"]) <= 1e-2 and each["train.batch_size"] % 16 == 0 for each in points)
    assert sum(float(each["optim.lr"]) < 1e-3 for each in points) > 10, "half of them lie below the middle decade"
    assert all(("optim.momentum" in each) == (each["optim.name"] == "sgd") for each in points)
    assert {type(each["train.batch_size"]) for each in points} == {int}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("space: {optim.l: [1]}", ["optim.l", "did you mean optim.lr"]),
        ("space: {lr: [0.1]}", ["lr", "did you mean optim.lr"]),
        ("space: {optim.lr: [0.1, high]}", ["optim.lr", "'high'", "valid number"]),
        ("space: {optim.lr: [0.1, -1]}", ["optim.lr", "-1", "greater than 0"]),
        ("space: {optim.lr: [0.1, 0.1]}", ["optim.lr", "0.1", "twice"]),
        ("space: {optim.lr: []}", ["optim.lr", "list of values"]),
        ("space: {optim.lr: 0.1}", ["optim.lr", "expected a list"]),
        ("space: {optim.lr: {low: few, high: 1}}", ["optim.lr.low", "'few'", "a number"]),
        ("space: {optim.lr: {low: 2, high: 1}}", ["optim.lr", "low to be less than high"]),
        ("space: {optim.lr: {low: 0.1, high: 1, steps: 2}}", ["steps", "did you mean step"]),
        ("space: {optim.lr: {low: 0.1, high: 1}}", ["optim.lr", "range without steps", "grid"]),
        ("space: {optim.name: {low: 0, high: 1}}", ["optim.name"]),
        ("space: {train.batch_size: {low: 16, high: 64, step: 1.5}}", ["train.batch_size.step", "a whole number"]),
        ("sampler: {name: tpe, options: {int: [1]}}", ["options.int is [1]", "integer"]),
        ("sampler: {name: tpe, options: {1: 2}}", ["options.1 is 1", "put it in quotes"]),
        ("space: {train.batch_size: {low: 16, high: 64.5}}", ["train.batch_size is 64.5", "integer"]),
        ("space: {optim.name: [adam, rmsprop]}", ["optim.name", "rmsprop"]),
        ("space: {run.folder: [a]}", ["run.folder", "leave it out"]),
        ("space: {optim.lr: [0.1]}\nset: {train.epoch: 3}", ["set", "train.epoch", "did you mean train.epochs"]),
        ("space: {optim.lr: [0.1]}\nset: 3", ["set", "3"]),
        ("space: {}", ["space is empty"]),
        ("space: {optim.lr: [0.1]}\nobjective: val_auc", ["val_auc", "not logged", "val_roc_auc"]),
        ("space: {optim.lr: [0.1]}\nobjective: [val_loss, val_loss]", ["objective", "once"]),
        ("space: {optim.lr: [0.1]}\nobjective: [val_loss, seconds]\npruner: median", ["pruner", "one objective"]),
        ("space: {optim.lr: [0.1]}\nseeds: [1, 1]", ["seeds", "once"]),
        ("space: {train.seed: [0, 1]}\nseeds: 2", ["train.seed", "both"]),
        ("space: {optim.lr: [0.1]}\npruner: medium", ["medium", "did you mean median"]),
        ("space: {optim.lr: [0.1]}\nbudgt: {trials: 3}", ["budgt", "did you mean budget"]),
        ("space: {optim.lr: [0.1]}\nbudget: {trials: 0}", ["budget.trials", "0"]),
        ("space: {optim.lr: [0.1]}\nstorage: postgresql://me:secret@host/db", ["password", "PGPASSWORD"]),
        ("space: {optim.lr: [0.1]}\nstorage: 'postgresql://me@host/db?password=secret'", ["password", "PGPASSWORD"]),
        ("space: {optim.lr: [0.1]}\nlaunch: nowhere.yaml", ["launch", "nowhere.yaml"]),
        ("space: {optim.lr: [0.1]}\nfidelity: [{}]", ["fidelity", "two"]),
        ("space: {optim.lr: [0.1]}\nfidelity: [{optim.lr: 1}, {}]\npruner: halving", ["optim.lr", "fidelity"]),
        ("space: {optim.lr: [0.1]}\nfidelity: [{train.epochs: 1}, {}]", ["fidelity", "pruner"]),
        ("space: {a: {variants: {x: {optim.lr: -1}}}}", ["space.a.variants.x", "optim.lr"]),
        ("space: {a: {variants: {x: {optim.lr: 1}}}, optim.lr: [1]}", ["optim.lr", "twice"]),
        ("space: {optim.lr: {variants: {x: {}}}}", ["optim.lr", "another name"]),
        ("space: {optim.lr: {choices: [1], when: {optim.nam: sgd}}}", ["optim.nam"]),
        ("space: {optim.name: [sgd], optim.lr: {choices: [1], when: {optim.name: adam}}}", ["optim.name adam", "none"]),
        ("space: {train.batch_size: [6], train.accumulation: [4]}", ["train.batch_size 6", "train.accumulation 4"]),
        ("space: [1, 2]", ["space"]),
        ("space: {tracking.entity: [on, a]}", ["tracking.entity has on", "in quotes"]),
        ("space: {optim.lr: [0.1]}\nset: {tracking.entity: no}", ["tracking.entity has no", "in quotes"]),
        ("space: {optim.lr: [0.1]}\nset: {data.root: $NO_SUCH_VARIABLE}", ["data.root", "NO_SUCH_VARIABLE is not set"]),
        ("space: {optim.lr: [0.1]}\nbase: $NO_SUCH_VARIABLE/a.yaml", ["base", "NO_SUCH_VARIABLE is not set"]),
        ("- 1", ["list", "expected keys"]),
        ("space: {optim.lr: [0.1]}\nbase: nowhere.yaml", ["nowhere.yaml", "no such file"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_the_first_trial(tmp_path: Path, text: str, parts: list[str]) -> None:
    refusal(lambda: study(tmp_path, text if text.startswith("-") else GRID + text), "a-study.yaml", *parts)


def test_a_search_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget"):
        study(tmp_path, "space: {optim.lr: [0.1]}")


def test_an_option_that_the_study_varies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.lr is varied by space, and the command line sets it too"):
        study(tmp_path, GRID + "space: {optim.lr: [0.1]}", **{"optim.lr": 0.5})


def test_what_the_study_decides_is_no_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the command line sets run\.folder, which a study decides"):
        study(tmp_path, GRID + "space: {optim.lr: [0.1]}", **{"run.folder": "runs/a"})


def test_a_name_that_is_no_part_of_a_folder_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a b.yaml"
    file.write_text("space: {optim.lr: [0.1]}\nsampler: grid\n")
    with pytest.raises(UserError, match="rename the file"):
        read_study(file)


def test_the_kept_epoch_is_the_best_by_the_objective(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {optim.lr: [0.1]}\nobjective: val_f1")
    assert found.base.checkpoint.best_score == "f1"
    told = study(tmp_path, GRID + "space: {optim.lr: [0.1]}\nobjective: val_f1\nset: {checkpoint.best_score: loss}")
    assert told.base.checkpoint.best_score == "loss"


@pytest.mark.parametrize("file", sorted((ROOT / "configs/report").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_report_are_valid(file: Path) -> None:
    assert read_study(file).planned


def test_a_scale_makes_images_epochs_and_pictures_fewer_and_never_more_than_there_are(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {data.subset: [80000, null]}\nset: {train.epochs: 16}")
    small = Scale(1 / 16, {"official": 150_000, "identity": 9, "image": 9})
    configs = [small(found.config(point, {}, None)) for point in found.points()]
    assert [each.data.subset for each in configs] == [5000, 10173]
    assert [(each.train.epochs, each.data.image_size) for each in configs] == [(8, (96, 96))] * 2
    few = Scale(1 / 16, {"official": 3000, "identity": 9, "image": 9})
    assert few(found.config(found.points()[0], {}, None)).data.subset is None
    whole = Scale(1.0, {"official": 162_770, "identity": 9, "image": 9})
    assert [whole(found.config(point, {}, None)).data.subset for point in found.points()] == [80000, None]


def test_a_study_of_the_version_before_norm_size_goes_on(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {optim.lr: [0.1, 0.2]}")
    folder = StudyFolder(tmp_path, "a-study")
    text = to_yaml(found)
    assert text.count("norm_size: auto") == text.count("accumulation: auto") == 1
    folder.definition.write_text(
        text.replace("    norm_size: auto\n", "").replace("accumulation: auto", "accumulation: 1")
    )
    folder.check(found)
    other = study(tmp_path, GRID + "space: {optim.lr: [0.1, 0.2]}\nset: {train.norm_size: 8}")
    refusal(lambda: folder.check(other), "train.norm_size auto", "now it is 8")


def test_a_study_of_a_version_without_todays_settings_goes_on(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {optim.lr: [0.1, 0.2]}")
    folder = StudyFolder(tmp_path, "a-study")
    before = yaml.safe_load(to_yaml(found))
    del before["config"]["augment"]
    for later in ("grow", "fold", "min_zoom", "eval_zoom"):
        del before["config"]["data"][later]
    folder.definition.write_text(yaml.safe_dump(before))
    folder.check(found)
    other = study(tmp_path, GRID + "space: {optim.lr: [0.1, 0.2]}\nset: {augment.mixup: 0.2}")
    refusal(lambda: folder.check(other), "augment.mixup 0.0", "now it is 0.2")


def test_a_study_of_a_version_with_settings_that_were_taken_out_goes_on(tmp_path: Path) -> None:
    found = study(tmp_path, GRID + "space: {optim.lr: [0.1, 0.2]}")
    folder = StudyFolder(tmp_path, "a-study")
    text = to_yaml(found)
    assert text.count("\n  train:\n") == text.count("\n  optim:\n") == 1

    def as_it_was(loss: str, decay: str) -> None:
        before = text.replace("\n  train:\n", f"\n  train:\n    loss: {loss}\n    focal_gamma: 2.0\n")
        before = before.replace("\n  optim:\n", f"\n  optim:\n    layer_decay: {decay}\n")
        folder.definition.write_text(before)

    as_it_was("bce", "null")
    folder.check(found)
    as_it_was("focal", "null")
    refusal(lambda: folder.check(found), "train.loss focal", "now it is None")
    as_it_was("bce", "0.8")
    refusal(lambda: folder.check(found), "optim.layer_decay 0.8", "now it is None")
