"""The `distrib` command and the programs as scripts."""

import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, clean_environment, launch, read_events, read_metrics
from PIL import Image
from small_run import settings

from distrib.__main__ import check, run, train
from distrib.config.section import keys
from distrib.ranks.waiting import MEASURED


def distrib(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distrib", *map(str, arguments)],
        cwd=ROOT, env=clean_environment(**environment), capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_help_names_the_commands() -> None:
    done = distrib("--help")
    assert done.returncode == 0
    assert "train" in done.stdout
    assert "prepare" in done.stdout


@pytest.mark.parametrize("usage", ["train [CONFIG] [--launch FILE]", "check [CONFIG] [--here | --gpu]"])
def test_help_shows_how_a_program_is_called(usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run([usage.partition(" ")[0], "--help"])
    assert not stop.value.code
    assert capsys.readouterr().out.startswith(f"usage: distrib {usage} [-h]")


def test_an_unknown_command_is_refused() -> None:
    done = distrib("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("distrib: error: there is no command trian")


def test_the_script_itself_explains_every_option() -> None:
    done = launch("--help", ranks=1)
    assert done.returncode == 0
    missing = [key for key in keys() if f"--{key.replace('_', '-')}" not in done.stdout]
    assert not missing


def test_train_says_what_is_wrong_before_it_launches(tmp_path: Path) -> None:
    done = distrib("train", "configs/arched_eyebrows.yaml", "--data.root", tmp_path / "nowhere")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "data.root" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--train.batch-size", 33], "train.batch_size 33 cannot be shared out evenly over 2 ranks"),
        (["--run.folder", "HERE"], "holds a run already"),
    ],
)
def test_train_checks_ranks_and_folder_before_it_launches(
    options: list[object],
    sentence: str,
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(MEASURED, "0")  # else it would be left for other tests
    (tmp_path / "best").mkdir()
    options = [tmp_path if each == "HERE" else each for each in options]
    asked = ["configs/arched_eyebrows.yaml", "--data.root", faces, "--run.device", "cpu", *options]
    assert train([str(each) for each in asked]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert sentence in said


def test_check_tells_what_would_be_trained_and_writes_nothing(faces: Path, tmp_path: Path) -> None:
    done = distrib("check", "configs/arched_eyebrows.yaml", "--data.root", faces, "--run.folder", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"data:    {faces}\n" in done.stdout
    assert "attributes: Arched_Eyebrows\n" in done.stdout
    assert f"folder:  {tmp_path / 'run'}\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--run.ranks", 3], "train.batch_size 16 cannot be shared out evenly over 3 ranks"),
        (["--train.seed", 1, "--resume", "auto"], "train.seed is 1, and "),
        ([], "holds a run already"),
    ],
)
def test_check_refuses_what_train_would(
    options: list[object],
    sentence: str,
    faces: Path,
    finished: tuple[Path, str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished[0].rglob("*")}
    assert check([str(each) for each in settings(faces, finished[0], *options)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in finished[0].rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.weights", "missing.pt"], "model.weights missing.pt is not a file"),
        (["--tracking.mode", "online"], "no W&B key is configured"),
        (["--train.precision", "fp16", "--here"], "train.precision fp16 needs a GPU"),
    ],
)
def test_check_refuses_what_a_job_would_only_learn_when_it_is_launched(
    options: list[object],
    sentence: str,
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where no key is
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert check([str(each) for each in settings(faces, tmp_path / "run", *options)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def faces_of_others(faces: Path, root: Path) -> list[str]:
    """A data set as other people have it: columns of all kinds, images in another format and folder; and options."""
    images = sorted((faces / "img_align_celeba").iterdir())[:60]
    (root / "fairface").mkdir(parents=True)
    rows = ["file;Age;smiling;Split"]
    for row, image in enumerate(images):
        Image.open(image).save(root / "fairface" / f"{row}.PNG")
        part = "Train" if row < 40 else "Val" if row < 50 else "Test"
        rows.append(f"faces\\{row}.jpg;{row + 20};{row % 2 == 0};{part}")
    (root / "table.csv").write_text("\n".join(rows), encoding="utf-16")
    return ["--data.root", str(root), "--train.batch-size", "8"]


def test_check_takes_the_data_set_of_others(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = faces_of_others(faces, tmp_path / "data")
    assert check(options) == 2
    said = capsys.readouterr().err
    assert "has '20' for Age" in said
    choice = said.partition("which may be: ")[2].split()  # what it says to do helps
    assert check([*options, *choice]) == 0
    told = capsys.readouterr()
    assert "40 train, 10 valid, 10 test" in told.out
    assert "0.PNG for faces\\0.jpg" in told.err
    assert check([*options, *choice, "--explain.group", "Age"]) == 2
    said = capsys.readouterr().err
    assert "explain.group Age" in said
    assert "has '20' for Age" in said
    assert "choose one of smiling" in said


def test_check_warns_of_the_splits_as_train_does(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.root", faces, "--data.split", "image", "--data.image-size", 32, 32, "--train.batch-size", 8]
    assert check([*map(str, options), "--run.folder", str(tmp_path / "run"), "--data.attributes", "Smiling"]) == 0
    assert "Identities in more than one split" in capsys.readouterr().err


def test_train_launches_two_ranks_on_a_cpu(faces: Path, tmp_path: Path) -> None:
    done = distrib(
        "train", "configs/arched_eyebrows.yaml", "--data.root", faces, "--data.image-size", 32, 32, "--train.epochs", 1,
        "--run.folder", tmp_path / "run", "--run.device", "cpu", "--tracking.mode", "disabled",
        "--explain.after-training", False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_events(tmp_path / "run", "start")[0]["ranks"] == 2


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_learns_and_tells(demo: Path) -> None:
    """A mean ROC AUC over the visible attributes of at least 0.95, and a report in which nothing is missing."""
    assert max(row["val_roc_auc"] for row in read_metrics(demo)) >= 0.95
    (report,) = read_events(demo, "report")
    assert report["failed"] == []
    assert (demo / "report/index.html").stat().st_size < 10_000_000
