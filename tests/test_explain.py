"""What follows a training, on real runs: the report after it, `distrib explain`, and jobs that fail."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forked_ranks import train_on_ranks
from launching import launch, read_events, read_metrics
from PIL import Image, ImageOps
from random_model import write_model
from small_run import copied
from wandb_log import read_history, run_ids

from distrib import train
from distrib.cli.explain import main
from distrib.config import SCORES, Config, read_yaml
from distrib.data import annotations
from distrib.data.annotations import read_attributes
from distrib.data.splits import digest, make_splits
from distrib.data.table import read_table
from distrib.explaining import maps
from distrib.explaining.finished_run import Finding, FinishedRun
from distrib.model.trained import load
from distrib.reporting.panels import PANELS, SUMMARY
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import read_speed

JOBS = tuple(PANELS)
ATTRIBUTES = ("Smiling", "Eyeglasses", "Blond_Hair")


def settings(faces: Path, folder: Path, *more: object) -> list[object]:
    """A run that takes seconds, with a report that does too."""
    return [
        "--run.folder", folder, "--run.device", "cpu", "--data.root", faces, "--data.attributes", *ATTRIBUTES,
        "--data.image-size", 40, 32, "--data.crop", "full", "--train.batch-size", 16, "--train.epochs", 2,
        "--explain.images", 2, "--explain.truth-images", 6, "--explain.bootstrap", 50, "--explain.group", "Smiling",
        "--explain.window", 12, "--explain.stride", 8, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reported(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A run on two ranks with its report: its folder, what it printed, and where its observers wrote."""
    folder, seen = tmp_path_factory.mktemp("reported") / "run", tmp_path_factory.mktemp("seen")
    done = launch(*settings(faces, folder), script="tests/support/observer.py", OBSERVE=str(seen))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, seen


@pytest.fixture
def run(reported: tuple[Path, str, Path], tmp_path: Path) -> Path:
    """A copy of that run to change."""
    return copied(reported[0], tmp_path / "run")


def result(folder: Path, job: str) -> dict[str, object]:
    return json.loads((folder / f"report/data/{job}.json").read_text())


def test_training_ends_with_every_job_and_the_page(reported: tuple[Path, str, Path]) -> None:
    folder, printed, _ = reported
    assert {job: result(folder, job)["error"] for job in JOBS} == dict.fromkeys(JOBS)
    page = folder / "report/index.html"
    assert str(page) in printed
    assert 10_000 < page.stat().st_size < 10_000_000
    for part in (
        "Where the time went",
        "Waiting for data",
        "The parts of the report",
        "MFU, over all epochs",
        "FLOP/s is what",
    ):
        assert part in page.read_text()
    last, (event,) = read_speed(folder)[-1], read_events(folder, "report")
    assert last["epoch"] == 2
    assert event["seconds"] - 0.001 < last["report_share"] * last["seconds"] < event["seconds"] + 20
    assert re.search("^time: .+, report .+%$", printed, re.MULTILINE)
    events = read_events(folder)
    assert [event["job"] for event in events if event["event"] == "explain"] == list(JOBS)
    assert [event["event"] for event in events[-2:]] == ["end", "report"] or events[-1]["event"] == "report"
    for figure in (folder / "report/figures").glob("*.png"):
        with Image.open(figure) as picture:
            picture.load()


def test_the_other_ranks_leave_before_the_report_is_made(reported: tuple[Path, str, Path]) -> None:
    folder, _, seen = reported
    left = [(seen / f"left-{rank}").stat().st_mtime for rank in (0, 1)]
    first_job = (folder / "report/data/curves.json").stat().st_mtime
    assert left[1] < (folder / "report/index.html").stat().st_mtime < left[0]
    assert left[1] < first_job + 5, "rank 1 does not wait for the drawing"


def test_the_report_shows_the_very_scores_of_the_training(reported: tuple[Path, str, Path]) -> None:
    folder = reported[0]
    best = load(folder).description.epoch
    row = next(row for row in read_metrics(folder) if row["epoch"] == best)
    means = result(folder, "scores")["data"]["means"]["valid"]
    assert {name: means[name] for name in SCORES} == {name: row[f"val_{name}"] for name in SCORES}


def test_the_page_can_be_opened_before_the_slow_parts_are_done(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "report")
    opened: dict[str, str] = {}

    def slow(study: FinishedRun, job: str) -> Finding:
        opened[job] = (study.folder / "report/index.html").read_text()
        return Finding({"absent": "none"} if job == "truth" else {"attributes": []})

    slow_ones = [name for name, panel in PANELS.items() if panel.slow]
    for job in slow_ones:
        monkeypatch.setattr(maps, job, partial(slow, job=job))
    assert main([str(run), "--tracking.mode", "disabled"]) == 0
    assert list(JOBS) == [*(name for name in JOBS if name not in slow_ones and name != SUMMARY), *slow_ones, SUMMARY]
    assert "Still to come: Occlusion maps, The check against the truth" in opened["occlusion"]
    assert "Occlusion maps are still to come" in opened["occlusion"]
    assert "Still to come: The check against the truth" in opened["truth"]
    for page in opened.values():
        assert "are missing" not in page
        assert "is missing" not in page
        assert "at a mean ROC AUC of" in page
    assert "till to come" not in (run / "report/index.html").read_text()
    assert f"{run / 'report/index.html'} can be opened; still to come: occlusion, truth" in capsys.readouterr().out


def test_the_report_is_made_by_other_thresholds(run: Path) -> None:
    assert (
        main([str(run), "--only", "scores", "--checkpoint.thresholds", "accuracy", "--tracking.mode", "disabled"]) == 0
    )
    about, found = load(run).description, result(run, "scores")["data"]
    assert about.tuned_for == "f1"
    assert found["tuned_for"] == "accuracy"
    assert tuple(row["threshold"] for row in found["attributes"]) == about.other_thresholds["accuracy"]
    assert any(card["label"] == "Accuracy, tuned thresholds" for card in result(run, "overview")["data"]["cards"])


@pytest.mark.slow
def test_a_report_that_was_stopped_before_its_slow_parts_is_made_when_the_run_is_started_again(run: Path) -> None:
    """Its page was there already, and said what was to come."""
    events = [line for line in (run / "events.jsonl").read_text().splitlines() if '"event": "report"' not in line]
    (run / "events.jsonl").write_text("\n".join(events) + "\n")
    (run / "report/data/truth.json").unlink()
    again = ["--config", run / "config.yaml", "--run.folder", run, "--resume", "auto"]
    done = train_on_ranks(1, *again)
    assert done.returncode == 0, done.stderr
    assert result(run, "truth")["error"] is None
    page = (run / "report/index.html").stat().st_mtime_ns
    assert train_on_ranks(1, *again).returncode == 0
    assert (run / "report/index.html").stat().st_mtime_ns == page


def test_wandb_has_the_figures_the_tables_and_the_page(reported: tuple[Path, str, Path]) -> None:
    folder = reported[0]
    logged = {key: value for row in read_history(folder) for key, value in row.items() if isinstance(value, dict)}
    figures = {f"report/{file.stem}" for file in (folder / "report/figures").glob("*.png")}
    tables = {f"tables/{file.stem}" for file in (folder / "report/tables").glob("*.csv")}
    assert figures
    assert tables
    assert figures | tables | {"report/page"} == set(logged)
    assert logged["report/roc"]["_type"] == "image-file"
    assert logged["tables/scores"]["_type"] == "table-file"


def test_only_remakes_what_it_names_and_goes_on_with_the_same_wandb_run(run: Path) -> None:
    before = {job: (run / f"report/data/{job}.json").stat().st_mtime_ns for job in JOBS}
    (run / "report/index.html").unlink()
    assert main([str(run), "--only", "roc", "filters", "--tracking.mode", "offline"]) == 0
    after = {job: (run / f"report/data/{job}.json").stat().st_mtime_ns for job in JOBS}
    assert {job for job in JOBS if after[job] != before[job]} == {"roc", "filters", SUMMARY}
    assert (run / "report/index.html").exists()
    assert len(set(run_ids(run))) == 1


def test_what_nobody_has_is_left_out_of_a_guess_as_it_is_of_the_means(run: Path) -> None:
    file = run / "report/data/scores.json"
    scores = json.loads(file.read_text())
    counts = ((0, 5), (1, 5), (2, 5))
    for attribute, (positives, images) in zip(scores["data"]["attributes"], counts, strict=True):
        attribute["positives"]["test"], attribute["images"]["test"] = positives, images
    file.write_text(json.dumps(scores))
    assert main([str(run), "--only", "roc", "--tracking.mode", "disabled"]) == 0
    cards = {card["label"]: card for card in result(run, "overview")["data"]["cards"]}
    assert cards["Average precision"]["baseline"] == pytest.approx((1 / 5 + 2 / 5) / 2)
    always_yes = [2 * share / (1 + share) for share in (1 / 5, 2 / 5)]
    assert cards["F1, tuned thresholds"]["baseline"] == pytest.approx(sum(always_yes) / 2)


def test_a_run_that_is_at_work_is_not_reported_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = RunFolder(run)
    training.lock()
    arguments = [str(run), "--only", "roc", "--tracking.mode", "disabled"]
    assert main(arguments) == 2
    assert f"{run} is in use by" in capsys.readouterr().err
    training.unlock()
    assert main(arguments) == 0
    assert not (run / "run.lock").exists()


def test_a_report_that_cannot_be_written_is_a_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "report/figures")
    (run / "report/figures").touch()
    assert main([str(run), "--only", "roc", "--tracking.mode", "disabled"]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f"{run / 'report'} cannot be written (File exists): check the disk" in sentence


def test_other_images_under_the_same_names_are_scored_anew(
    run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(faces, tmp_path / "inverted")
    for file in (other / "img_align_celeba").iterdir():
        ImageOps.invert(Image.open(file)).save(file)
    kept = result(run, "scores")["data"]
    arguments = [str(run), "--only", "scores", "--tracking.mode", "disabled"]
    assert main([*arguments, "--data.root", str(other)]) == 0
    assert "validation is scored anew" in capsys.readouterr().err
    inverted = result(run, "scores")["data"]
    assert inverted != kept
    assert main(arguments) == 0
    assert result(run, "scores")["data"] == kept


def test_the_same_images_may_be_other_rows_of_the_table(run: Path, faces: Path, tmp_path: Path) -> None:
    """As where training images were left out of a packed data set."""
    table = read_table(faces).select(ATTRIBUTES)
    splits = make_splits(table, Config().replace("data", root=faces).data)
    (tmp_path / "less").mkdir()
    (tmp_path / "less/images").symlink_to(faces / "img_align_celeba")
    assert table.identity is not None
    lines = [",".join(["image", *ATTRIBUTES, "split", "group"])]
    for split in ("valid", "test"):
        for row in getattr(splits, split):
            values = map(str, (*table.targets[row], split, table.identity[row]))
            lines.append(",".join([table.names[row], *values]))
    (tmp_path / "less/table.csv").write_text("\n".join(lines) + "\n")
    jobs = [str(run), "--only", "scores", "mistakes", "--tracking.mode", "disabled"]
    assert main(jobs) == 0
    mistakes = result(run, "mistakes")
    assert main([*jobs, "--data.root", str(tmp_path / "less")]) == 0
    assert result(run, "scores")["error"] is None
    assert result(run, "mistakes")["data"] == mistakes["data"]


def test_options_of_the_configuration_are_taken(run: Path) -> None:
    options = ["--explain.modules", "layer2.1.conv2", "--explain.window", "8", "--explain.fill", "blur"]
    assert main([str(run), "--only", "activations", "occlusion", "--tracking.mode", "disabled", *options]) == 0
    assert [each["name"] for each in result(run, "activations")["data"]["modules"]] == ["layer2.1.conv2"]
    occlusion = result(run, "occlusion")["data"]
    assert occlusion["window"] == [8, 8]
    assert occlusion["fill"] == "blur"


@pytest.mark.slow
def test_other_data_with_a_test_split_alone_is_reported_on(
    run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is of one data set: what was found on the run's own is not left beside it."""
    root = Path(shutil.copytree(faces, tmp_path / "other"))
    partition = root / "list_eval_partition.txt"
    partition.write_text("".join(f"{line.split()[0]} 2\n" for line in partition.read_text().splitlines()))
    jobs = ["--only", "scores", "labels", "fairness", "--tracking.mode", "disabled"]
    assert main([str(run), *jobs]) == 0
    assert {path.stem for path in (run / "report/data").glob("*.json")} >= set(JOBS)
    assert main([str(run), *jobs, "--data.root", str(root)]) == 0
    assert {path.stem for path in (run / "report/data").glob("*.json")} == {
        "scores", "labels", "fairness", "overview"
    }  # fmt: skip
    scores = result(run, "scores")["data"]
    assert scores["splits"] == ["test"]
    assert scores["attributes"][0]["images"] == {"test": 200}
    overview = result(run, "overview")["data"]
    facts = dict(overview["facts"])
    assert facts["Scored on"] == f"{root}, split official: 200 test"
    assert str(faces) in facts["Data"]
    assert "on the test images of other" in overview["headline"]
    page = (run / "report/index.html").read_text()
    assert "validation</label>" not in page
    # The same data in another place is no other data, and neither is the run's own.
    moved = shutil.copytree(faces, tmp_path / "moved")
    for options in (["--data.root", str(moved)], []):
        assert main([str(run), *jobs, *options]) == 0
        assert result(run, "scores")["data"]["splits"] == ["valid", "test"]
        overview = result(run, "overview")["data"]
        assert "Scored on" not in dict(overview["facts"])
        assert "it has never seen" in overview["headline"]
    # A run that validated on a fold of its training split needs no training split elsewhere.
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("fold: none", "fold: 2/5"))
    assert "fold: 2/5" in config.read_text()
    assert main([str(run), *jobs, "--data.root", str(root)]) == 0
    assert result(run, "scores")["data"]["attributes"][0]["images"] == {"test": 200}


def test_the_training_images_are_not_asked_for_and_the_table_is_read_once(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(faces, tmp_path / "faces"))
    table = read_table(root).select(ATTRIBUTES)
    config = Config().replace("data", root=root, attributes=ATTRIBUTES, image_size=(40, 32), crop="full")
    splits = make_splits(table, config.data)
    known = digest(table, splits.train, splits.valid)
    write_model(tmp_path / "run/best", attributes=ATTRIBUTES, training={"data": known})
    (tmp_path / "run/config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    (tmp_path / "run/metrics.csv").write_text("epoch,step,seconds,images_per_second\n0,1,1,1\n")
    for row in splits.train:
        table.store.path(int(row)).unlink()
    read = []
    monkeypatch.setattr(annotations, "read_attributes", lambda file: read.append(file) or read_attributes(file))
    options = ["--only", "fairness", "--run.device", "cpu", "--tracking.mode", "disabled"]
    assert main([str(tmp_path / "run"), *options, "--explain.group", "Male"]) == 0
    assert len(read) == 1
    assert result(tmp_path / "run", "fairness")["error"] is None
    # It is known to be the data of the training all the same.
    assert "Scored on" not in dict(result(tmp_path / "run", "overview")["data"]["facts"])
    # A random split has test images anywhere.
    assert main([str(tmp_path / "run"), *options, "--data.split", "identity"]) == 2


@pytest.mark.parametrize(
    ("rows", "column", "part"),
    [
        (["{},1,0,1"], "", "has no split of its own (no list_eval_partition file, no column split): add one"),
        (["{},1,0,1,valid"], ",split", "the test split of"),
        (["{},1,0,1,train"], ",split", "set data.split to image"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of_training", ["official", "identity"])
def test_other_data_without_a_test_split_is_refused(
    of_training: str, rows: list[str], column: str, part: str,
    run: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("split: official", f"split: {of_training}"))
    table = read_table(faces)
    root = tmp_path / "other"
    root.mkdir()
    for name in table.names[:40]:
        shutil.copy(table.store.folder / name, root)
    lines = [row.format(name) for name in table.names[:40] for row in rows]
    (root / "table.csv").write_text("\n".join([f"file,{','.join(ATTRIBUTES)}{column}", *lines]) + "\n")
    assert main([str(run), "--only", "roc", "--data.root", str(root), "--tracking.mode", "disabled"]) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert part in sentence
    assert "identity" not in sentence.partition("set data.split to")[2]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["RUN", "--only", "rok"], ["rok", "did you mean roc"]),
        (["RUN", "--only"], ["--only needs the names"]),
        (["nowhere"], ["nowhere is not a run"]),
        ([], ["name the run first"]),
        (["RUN", "--explain.modules", "layer9"], ["layer9", "layer4.1.conv2"]),
        (["RUN", "--explain.group", "Mael"], ["Mael", "did you mean Male"]),
        (["RUN", "--explain.photograph", "no.jpg"], ["no.jpg is not a file"]),
        (["RUN", "--explain.window", "4", "--explain.stride", "8"], ["explain.stride 8 exceeds explain.window 4"]),
        (["RUN", "--data.root", "nowhere"], ["nowhere", "data.root"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    run: Path, arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = (run / "report/index.html").stat().st_mtime_ns
    assert main([str(run) if each == "RUN" else each for each in arguments]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()[-1:]
    for part in parts:
        assert part in sentence
    assert (run / "report/index.html").stat().st_mtime_ns == report


def test_a_module_that_is_not_there_costs_no_training(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*map(str, settings(faces, tmp_path / "run", "--explain.filters", "layer5.0.conv1"))]) == 2
    assert "layer5.0.conv1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_broken_test_picture_costs_neither_the_model_nor_the_other_jobs(faces: Path, tmp_path: Path) -> None:
    root, folder = Path(shutil.copytree(faces, tmp_path / "faces")), tmp_path / "run"
    config = read_yaml(Path("configs/demo.yaml"))
    table = read_table(root)
    broken = table.store.path(int(make_splits(table, config.data).test[3]))
    broken.write_bytes(broken.read_bytes()[:900])
    done = train_on_ranks(1, *settings(root, folder, "--train.epochs", 1, "--data.subset", 64))
    assert done.returncode == 0, done.stderr
    assert np.isfinite(load(folder).logits(np.zeros((1, 40, 32, 3), np.uint8))).all()
    for job in ("roc", "scores", "occlusion"):
        assert broken.name in str(result(folder, job)["error"])
    for job in ("curves", "filters"):
        assert result(folder, job)["error"] is None
    assert f"distrib explain {folder} --only" in done.stdout
    (report,) = read_events(folder, "report")
    assert "roc" in report["failed"]
    assert broken.name in (folder / "report/index.html").read_text()
    # Mended, the same jobs succeed.
    shutil.copy(faces / broken.relative_to(root), broken)
    assert main([str(folder), "--only", "roc"]) == 0
    assert result(folder, "roc")["error"] is None
