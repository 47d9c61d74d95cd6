"""Several runs side by side: the program, the page as a file, and the page in a real browser."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page
from report_data import EVIL_FILE, read_job, write_run
from sentences import refusal

from distrib.cli.compare import main
from distrib.reporting.compare import labels, read_run, render_comparison

Open = Callable[..., Page]
FEW = ("Smiling", "Male", "Young", "Wearing_Hat")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that know the same attributes, and one that knows fewer and has no test scores."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"optim.lr": 0.01, "train.batch_size": 64}
    first = write_run(folder / "first", FEW, epochs=3, images=120, seed=1, skill=1.5, settings=settings)
    second = write_run(folder / "second", FEW, epochs=5, images=120, seed=1, skill=3.0)
    third = write_run(folder / "third", FEW[:2], epochs=2, images=120, seed=2)
    (third / "report" / "data" / "scores.json").unlink()
    return [first, second, third]


@pytest.fixture
def page_file(runs: list[Path], tmp_path: Path) -> Path:
    return render_comparison(runs, tmp_path / "compare.html")


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


def cells(page: Page, row: str) -> list[str]:
    return [each.strip() for each in page.locator(f"{row} td").all_inner_texts()]


def minus(text: str) -> str:
    return text.replace("-", "−")  # noqa: RUF001


def test_the_epoch_that_a_run_has_kept_is_its_best_one(runs: list[Path], tmp_path: Path) -> None:
    """With growing images it need not have the highest score, and the run says which it is."""
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    highest = read_run(run, "run").best
    for kept in (1, 4):
        with (run / "events.jsonl").open("a") as events:
            events.write(json.dumps({"event": "epoch", "epoch": 5, "best_epoch": kept}) + "\n")
        assert read_run(run, "run").best == kept - 1
    (run / "events.jsonl").write_text(json.dumps({"event": "epoch", "epoch": 1, "best_epoch": 0}) + "\n")
    assert read_run(run, "run").best == highest


@pytest.mark.parametrize(
    ("split", "fold", "noted"), [("official", "none", False), ("official", "1/5", True), ("image", "none", True)]
)
def test_the_seed_of_the_splits_is_noted_where_they_are_drawn(
    split: str, fold: str, noted: bool, tmp_path: Path
) -> None:
    runs = []
    for seed in (0, 1):
        settings = {"data.split": split, "data.fold": fold, "data.split_seed": seed}
        runs.append(write_run(tmp_path / f"run-{seed}", FEW[:2], epochs=2, images=60, seed=1, settings=settings))
    page = render_comparison(runs, tmp_path / "compare.html").read_text()
    assert ("The runs differ in data.split_seed" in page) == noted


def test_test_scores_of_different_pictures_are_noted(runs: list[Path], tmp_path: Path) -> None:
    """As after `distrib explain RUN --data.root OTHER`, of which the configuration says nothing."""
    note = "The reports of the runs are of different test images"
    copies = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs[:2]]
    for same in (True, False):
        for number, run in enumerate(copies):
            file = run / "report/data/scores.json"
            content = json.loads(file.read_text())
            content["data"]["test_images"] = "one" if same or not number else "other"
            file.write_text(json.dumps(content))
            # What the settings say of it is said as well.
            config = yaml.safe_load((run / "config.yaml").read_text())
            config["data"]["fold"] = f"{number}/5"
            (run / "config.yaml").write_text(yaml.safe_dump(config))
        page = render_comparison(copies, tmp_path / "compare.html").read_text(encoding="utf-8")
        assert (note in page) != same


def test_the_program_prints_the_page_that_it_wrote(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out == "compare.html\n"
    assert (tmp_path / "compare.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main([*map(str, runs[:2]), "--out", "other.html"]) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["compare.html", "other.html"]


def test_a_folder_that_is_no_run_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs[0]), str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distrib: error: {tmp_path} is not a run: it has no metrics.csv")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    refusal(lambda: render_comparison(runs[:1], out), "at least two runs")
    refusal(lambda: render_comparison([runs[0], runs[1], runs[0]], out), "named twice")
    refusal(lambda: render_comparison(runs, tmp_path / "nowhere" / "page.html"), "cannot be written")

    def broken(name: str, text: str) -> Path:
        folder = tmp_path / f"{name}-{len(text)}"
        folder.mkdir()
        for file in ("metrics.csv", "config.yaml"):
            (folder / file).write_bytes((runs[0] / file).read_bytes())
        (folder / name).write_text(text)
        return folder

    header = (runs[0] / "metrics.csv").read_text().partition("\n")[0]
    for name, text, part in (
        ("metrics.csv", f"{header}\n", "has no epoch yet"),
        ("metrics.csv", f"{header}\n1,2\n", "metrics.csv cannot be read"),
        ("metrics.csv", "", "metrics.csv cannot be read"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "just words", "config.yaml is not a configuration"),
    ):
        refusal(partial(render_comparison, [runs[0], broken(name, text)], out), part)
    assert not out.exists()


def test_labels_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    assert labels([tmp_path / "a" / "x", tmp_path / "a" / "y"]) == ["x", "y"]
    assert labels([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]


def test_the_best_epoch_follows_the_configuration(runs: list[Path], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", FEW[:1], epochs=4, images=40)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    rows = metrics(folder)
    for score, choose in (("f1", max), ("loss", min)):
        config["checkpoint"]["best_score"] = score
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        run = read_run(folder, "run")
        assert rows[run.best][f"val_{score}"] == choose(row[f"val_{score}"] for row in rows)


def test_undefined_scores_are_dashes(runs: list[Path], tmp_path: Path, open_page: Open) -> None:
    folder = write_run(tmp_path / "undefined", FEW, epochs=2, images=40)
    (folder / "report" / "data" / "scores.json").unlink()
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("val_roc_auc")
    rows = [line.split(",") for line in lines]
    for row in rows:
        row[column] = "nan"
    (folder / "metrics.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    page = open_page(render_comparison([runs[0], folder], tmp_path / "page.html"))
    row = cells(page, "[data-split=valid] tbody tr:has(th:text-is('ROC AUC'))")
    assert "–" in row[1]  # noqa: RUF001
    assert page.locator("h1").inner_text() == "2 runs side by side"
    assert "NaN" not in page.content().replace("isNaN", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_opens_without_an_error_and_fits(page_file: Path, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(page_file, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("[role=alert]").count() == 0
    assert page.locator("#curves svg").count() == page.locator("#curves .plot").count() == 10
    assert page.locator("[data-column=val_f1] svg path.stroke").count() == 3


def test_the_opening_says_which_run_is_best_and_what_to_be_careful_about(
    runs: list[Path], page_file: Path, open_page: Open
) -> None:
    page = open_page(page_file)
    best = [max(row["val_roc_auc"] for row in metrics(run)) for run in runs]
    ranked = sorted(zip(best, ("first", "second", "third"), strict=True), reverse=True)
    headline = page.locator("h1").inner_text()
    assert headline.startswith(f"{ranked[0][1]} has the highest mean ROC AUC on the validation images: ")
    assert headline.endswith(f"{ranked[0][0]:.3f}, which is {ranked[0][0] - ranked[1][0]:.3f} above {ranked[1][1]}")
    notes = " ".join(page.locator(".absent").all_inner_texts())
    assert "do not know the same attributes" in notes
    assert "third has no test scores yet" in notes


def test_mean_scores_and_differences(runs: list[Path], page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    means = [read_job(run, "scores")["means"]["test"]["f1"] for run in runs[:2]]
    row = cells(page, "[data-split=test] tbody tr:has(th:text-is('F1'))")
    assert row[0] == f"{means[0]:.3f}"
    assert row[1] == minus(f"{means[1] - means[0]:+.3f} {means[1]:.3f}")
    assert row[2] == "– –"  # noqa: RUF001
    assert page.locator("[data-split=test] tr:has(th:text-is('F1')) .best").inner_text() == f"{max(means):.3f}"
    losses = [min(metrics(run), key=lambda row: -row["val_roc_auc"])["val_loss"] for run in runs]
    best = page.locator("[data-split=valid] tr:has(th:text-is('Loss')) .best").inner_text()
    assert best == f"{min(losses):.3f}"


def test_curves_show_the_best_epochs_and_then_the_chosen_one(
    runs: list[Path], page_file: Path, open_page: Open
) -> None:
    page = open_page(page_file)
    outputs = page.locator("[data-column=val_f1] output")

    def expected(epoch: int | None) -> list[str]:
        values = []
        for run in runs:
            rows = metrics(run)
            chosen = max(rows, key=lambda row: row["val_roc_auc"])["epoch"] if epoch is None else epoch
            values.append(f"{rows[int(chosen) - 1]['val_f1']:.3f}" if chosen <= len(rows) else "–")  # noqa: RUF001
        return values

    assert outputs.all_inner_texts() == expected(None)
    page.locator("#epoch").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#epoch-now").inner_text() == "Epoch 4 of 5"
    assert outputs.all_inner_texts() == expected(4)
    page.keyboard.press("Home")
    assert outputs.all_inner_texts() == expected(1)


def test_the_attribute_table_by_score_and_split(runs: list[Path], page_file: Path, open_page: Open) -> None:
    page = open_page(page_file, 1440)
    page.locator("#score").select_option("loss")
    for split in ("test", "valid"):
        page.locator(f"input[name=split][value={split}]").check()
        scores = [{each["name"]: each for each in read_job(run, "scores")["attributes"]} for run in runs[:2]]
        for name in FEW:
            row = page.locator(f"#table tr[data-name={name}]")
            a, b = (each[name][split]["loss"] for each in scores)
            shown = [each.strip() for each in row.locator("td").all_inner_texts()]
            assert shown[:2] == [f"{a:.3f}", f"{b:.3f}"]
            assert shown[3] == minus(f"{b - a:+.3f}")
            better = "better" if b < a else "worse"  # a loss is better where it is lower
            assert better in (row.locator("td").nth(3).get_attribute("class") or "").split()
            known = split == "valid" and name in FEW[:2]
            assert (shown[2] != "–") == (shown[4] != "–") == known  # noqa: RUF001
    heading = page.locator("#table thead th").nth(4)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    differences = page.locator("#table tbody tr td:nth-child(5)").all_inner_texts()
    values = [float(each.replace("−", "-")) for each in differences]  # noqa: RUF001
    assert values == sorted(values, reverse=True)
    page.locator("#filter").fill("hat")
    assert page.locator("#table tbody tr:visible").count() == 1


def test_what_differs_in_the_configurations(runs: list[Path], page_file: Path, open_page: Open) -> None:
    page = open_page(page_file)
    shown = {
        row.locator("th").inner_text(): cells(page, f"#differ tbody tr:nth-child({i})")
        for i, row in enumerate(page.locator("#differ tbody tr").all(), 1)
    }
    assert shown["optim.lr"] == ["0.01", "0.002", "0.002"]
    assert shown["train.epochs"] == ["3", "5", "2"]
    assert shown["data.attributes"] == [", ".join(FEW)] * 2 + [", ".join(FEW[:2])]
    assert set(shown) == {"optim.lr", "train.epochs", "train.seed", "data.attributes"}


def test_equal_configurations_are_said_to_be_equal(runs: list[Path], tmp_path: Path, open_page: Open) -> None:
    twin = write_run(tmp_path / "twin", FEW, epochs=5, images=120, seed=1, skill=3.0)
    page = open_page(render_comparison([runs[1], twin], tmp_path / "page.html"))
    assert "the configurations are the same" in page.locator("#differ").inner_text()
    assert "are level" in page.locator("h1").inner_text()


def test_a_run_named_like_markup_is_text(runs: list[Path], tmp_path: Path, open_page: Open) -> None:
    name = EVIL_FILE.replace("/", "")
    evil = write_run(tmp_path / name, ("<script>alert(1)</script>",), epochs=1, images=40,
                     settings={"model.weights": "</script><script>alert(2)</script>"})  # fmt: skip
    page = open_page(render_comparison([runs[0], evil], tmp_path / "page.html"))
    assert page.locator("script").count() == 2
    assert name in page.locator(".cards").inner_text()
    assert "</script><script>alert(2)</script>" in page.locator("#differ").inner_text()
    assert page.locator("#table tbody tr").count() == len(FEW) + 1


def test_the_numbers_in_the_page_have_no_nan(page_file: Path) -> None:
    html = page_file.read_text(encoding="utf-8")
    text = html.split('<script type="application/json" id="data">')[1].partition("</script>")[0]
    numbers = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert all(math.isfinite(value) for run in numbers["runs"] for row in run["rows"] for value in row)
