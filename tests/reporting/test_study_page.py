"""The page of a study as a file: what its sentences say, what it links to, and that whatever it is given is text."""

import json
import math
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report_data import EVIL_FILE
from sentences import refusal
from study_data import AUC, BATCH, LOSS, LR, MOMENTUM, NAME, SPEED, searched, study, trial, variants

from distrib.studies.page import duration, render_study, setting_text
from distrib.studies.record import Objective, Parameter, Setting, StudyRecord, TrialRecord

DASH, MINUS = "–", "−"  # noqa: RUF001
EVIL = "</script><script>alert(1)</script>"


def page_of(record: StudyRecord, folder: Path) -> str:
    return render_study(record, folder / "study" / "index.html").read_text(encoding="utf-8")


def headline(record: StudyRecord, folder: Path) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page_of(record, folder))
    assert found is not None
    return unescape(found[1])


def notes(html: str) -> list[str]:
    return [unescape(each) for each in re.findall(r'<p class="absent" role="note">(.*?)</p>', html)]


def numbers(html: str) -> Any:
    text = html.split('<script type="application/json" id="data">')[1].partition("</script>")[0]
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def finished(*values: float, spread: Sequence[float] | None = None) -> list[TrialRecord]:
    """Trials of one objective with these values."""
    return [
        trial(number, {"optim.lr": 0.001 * (number + 1)}, [value], None if spread is None else [spread[number]])
        for number, value in enumerate(values)
    ]


def test_it_is_one_file_in_a_folder_that_is_made(tmp_path: Path) -> None:
    file = render_study(searched(tmp_path), tmp_path / "study" / "index.html")
    assert file == tmp_path / "study" / "index.html"
    assert [each.name for each in file.parent.iterdir()] == ["index.html"]
    html = file.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "<title>celeba-search – study</title>" in html  # noqa: RUF001
    assert "default-src 'none'; img-src data:; " in html
    assert not re.findall(r"\b(?:src|action|poster|srcset)=", html.partition("<script")[0])


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("a file")
    refusal(lambda: render_study(searched(tmp_path), tmp_path / "study" / "index.html"), "study", "cannot be written")
    (tmp_path / "other" / "index.html").mkdir(parents=True)
    refusal(lambda: render_study(searched(tmp_path), tmp_path / "other" / "index.html"), "index.html cannot be written")
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    ("trials", "objectives", "expected"),
    [
        ([], (AUC,), "No trial has begun yet"),
        ([trial(0, state="running")], (AUC,), "The one trial has not finished yet"),
        ([trial(0, state="failed")], (AUC,), "The one trial has not finished"),
        ([trial(i, state="failed") for i in range(3)], (AUC,), "None of the 3 trials has finished"),
        ([trial(0, state="pruned"), trial(1, state="running")], (AUC,), "None of the 2 trials has finished yet"),
        (finished(math.nan, math.inf), (AUC,), "No finished trial has a value of validation ROC AUC"),
        (finished(0.912), (AUC,),
         "Trial 0 is the only one that has finished: validation ROC AUC 0.912 with lr 0.001"),
        (finished(0.85, 0.912, math.nan), (AUC,), "Trial 1 has the highest validation ROC AUC: 0.912 with lr 0.002"),
        (finished(0.85, 0.912), (LOSS,), "Trial 0 has the lowest validation loss: 0.850 with lr 0.001"),
        (finished(0.912, 0.85, 0.912), (AUC,), "Trials 0 and 2 are level at the highest validation ROC AUC: 0.912"),
        (finished(0.9, 0.9, 0.9, 0.9), (AUC,), "4 trials are level at the highest validation ROC AUC: 0.900"),
        (finished(0.85, 0.912, spread=(0.01, 0.02)), (AUC,),
         "Trial 1 has the highest mean validation ROC AUC: 0.912 ± 0.020 over its seeds, with lr 0.002"),
        (finished(1234.4, 987.2), (SPEED,), "Trial 0 has the highest speed: 1,234 images a second with lr 0.001"),
        ([trial(0, values=[0.9])], (AUC,),
         "Trial 0 is the only one that has finished: validation ROC AUC 0.900"),
        ([trial(0, values=[0.9, 0.3])], (AUC, LOSS), "Trial 0 is the only one that has finished"),
        ([trial(0, values=[0.9, 0.4]), trial(1, values=[0.8, 0.3]), trial(2, values=[0.7, 0.9])], (AUC, LOSS),
         "2 of 3 finished trials are on the Pareto front of validation ROC AUC and validation loss"),
        ([trial(0, values=[0.9, 0.3]), trial(1, values=[0.8, 0.4])], (AUC, LOSS),
         "Trial 0 is the best of 2 finished trials in validation ROC AUC and validation loss alike"),
        ([trial(i, values=[0.9, math.nan]) for i in range(2)], (AUC, LOSS),
         "No finished trial has a value of each of validation ROC AUC and validation loss"),
    ],
)  # fmt: skip
def test_the_headline_says_what_was_found(
    trials: list[TrialRecord], objectives: tuple[Objective, ...], expected: str, tmp_path: Path
) -> None:
    assert headline(study(trials, objectives=objectives), tmp_path) == expected


def test_the_headline_names_the_settings_that_matter_most(tmp_path: Path) -> None:
    names = [f"optim.setting_{letter}" for letter in "abcde"]
    parameters = [Parameter(name, choices=(1, 2)) for name in names]
    trials = [trial(i, dict.fromkeys(names, 1 + i), [0.9 - i / 10]) for i in range(2)]
    shares = {names[4]: 0.7, names[1]: 0.2, names[3]: 0.1}
    found = headline(study(trials, parameters, importance=[shares]), tmp_path)
    assert found.endswith("0.900 with setting b 1, setting d 1 and setting e 1")


@pytest.mark.parametrize(
    ("values", "spread", "expected"),
    [
        ((0.912, 0.910, 0.850), (0.003, 0.001, 0.001), ["Trial 0 leads trial 1 in validation ROC AUC by 0.0020, which "
         "is less than the standard deviation over the seeds of one trial, 0.0030. More seeds may turn the order "
         "around."]),
        ((0.912, 0.910, 0.911), (0.003, 0.001, 0.001), ["Trial 0 leads trial 2 in validation ROC AUC by 0.0010, which "
         "is less than the standard deviation over the seeds of one trial, 0.0030; 1 more is as near. More seeds may "
         "turn the order around."]),
        ((0.912, 0.901, 0.850), (0.003, 0.001, 0.001), []),
        ((0.912, 0.911, 0.850), (math.nan, math.nan, math.nan), []),
        ((0.912,), (0.2,), []),
    ],
)  # fmt: skip
def test_a_lead_within_the_spread_over_the_seeds_is_doubted(
    values: tuple[float, ...], spread: tuple[float, ...], expected: list[str], tmp_path: Path
) -> None:
    assert notes(page_of(study(finished(*values, spread=spread)), tmp_path)) == expected


def test_runs_are_linked_as_far_as_they_exist(tmp_path: Path) -> None:
    runs = ("trial-0000/seed 0", "trial-0000/seed#1", "trial-0000/gone", EVIL_FILE.replace("/", ""))
    for name in (*runs[:2], runs[3]):
        (tmp_path / name).mkdir(parents=True)
    for name in (runs[0], runs[3]):
        (tmp_path / name / "report").mkdir()
        (tmp_path / name / "report" / "index.html").write_text("a report")
    html = page_of(study([trial(0, {"optim.lr": 0.01}, [0.9], runs=runs)], folder=tmp_path), tmp_path)
    links = [unescape(each) for each in re.findall(r'href="(\.\./[^"]*)"', html)]
    reports = [each for each in links if each.endswith("report/index.html")]
    assert sorted(set(reports)) == [
        "../%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/report/index.html",
        "../trial-0000/seed%200/report/index.html",
    ]
    assert "../trial-0000/seed%231/" in links
    assert not [each for each in links if "gone" in each]
    assert ">trial-0000/gone" in html


@pytest.mark.parametrize("relative", [True, False])
def test_links_lead_from_the_page_to_the_runs_wherever_it_is_made(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("deep/study-1") if relative else tmp_path / "deep/study-1"
    (folder / "trial-0000" / "report").mkdir(parents=True)
    (folder / "trial-0000" / "report" / "index.html").write_text("a report")
    html = page_of(study([trial(0, {"optim.lr": 0.01}, [0.9])], folder=folder), folder)
    assert 'href="../trial-0000/report/index.html"' in html


def test_names_and_settings_are_text(tmp_path: Path) -> None:
    parameters = (Parameter(EVIL, choices=(EVIL, EVIL_FILE)), Parameter("b", low=0, high=1))
    trials = [
        trial(0, {EVIL: EVIL, "b": 0.5}, [0.9, 0.1], runs=(EVIL,), curve=((1, 0.9),)),
        trial(1, {EVIL: EVIL_FILE}, state="failed", reason=EVIL),
    ]
    objectives = (Objective(EVIL, "maximize"), LOSS)
    record = study(trials, parameters, objectives, Path(EVIL), importance=[{EVIL: 1.0}, {}], name=EVIL)
    html = page_of(record, tmp_path)
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert "<img" not in html
    assert "onerror=alert(1)&gt;" in html
    assert numbers(html)["axes"][0]["choices"] == [EVIL, EVIL_FILE]


def test_what_is_not_finite_is_no_number_in_the_page(tmp_path: Path) -> None:
    trials = [
        trial(0, {"optim.lr": math.nan}, [math.nan, 0.2], [math.nan, math.inf], curve=((1, math.nan), (2, 0.5))),
        trial(1, {"optim.lr": 0.01}, [0.9, math.inf], seconds=math.nan),
        trial(2, {}, [0.8, 0.3]),
    ]
    html = page_of(study(trials, objectives=(AUC, LOSS)), tmp_path)
    found = numbers(html)["trials"]
    assert [each["values"] for each in found] == [[None, 0.2], [0.9, None], [0.8, 0.3]]
    assert [each["places"] for each in found] == [[None], [0.01], [None]]
    assert found[0]["curve"] == [[1, None], [2, 0.5]]
    text = re.sub(r"<script.*?</script>|<style.*?</style>", "", html, flags=re.DOTALL)
    assert not re.search(r">[^<]*\b(nan|inf)\b", text)
    assert 'data-value="nan"' not in text


def test_a_choice_that_the_study_does_not_list_has_a_place_too(tmp_path: Path) -> None:
    parameter = Parameter("flag", choices=(None, 1, '["a", "b"]'))
    settings: tuple[Setting, ...] = (True, 1, None, '["a", "b"]', 1.5)
    trials = [trial(i, {"flag": value}, [0.9]) for i, value in enumerate(settings)]
    found = numbers(page_of(study(trials, (parameter,)), tmp_path))
    assert found["axes"][0]["choices"] == ["none", "1", '["a", "b"]', "true", "1.5"]
    assert [each["places"] for each in found["trials"]] == [[3], [1], [0], [2], [4]]


def test_settings_that_end_in_the_same_word_are_told_apart(tmp_path: Path) -> None:
    keys = ("optim.lr", "model.head.lr", "train.batch_size", "optim.name", "model.name")
    record = study([trial(0, dict.fromkeys(keys, 1), [0.9])], [Parameter(key, choices=(1,)) for key in keys])
    labels = [axis["label"] for axis in numbers(page_of(record, tmp_path))["axes"]]
    assert labels == ["optim.lr", "model.head.lr", "batch size", "optim name", "model name"]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "none"), (True, 3, "true"), (False, 3, "false"), (64, 3, "64"), (-1, 3, f"{MINUS}1"),
        (0.00123456, 3, "0.00123"), (1e-5, 3, f"1e{MINUS}5"), (3.0, 3, "3"), (1e20, 3, "1e20"),
        (0.123456, 6, "0.123456"), ("", 3, '""'), ("sgd", 3, "sgd"), ("x" * 120, 3, "x" * 120),
        ("x" * 121, 3, "x" * 119 + "…"),
    ],
)  # fmt: skip
def test_a_setting_as_people_write_it(value: Setting, digits: int, text: str) -> None:
    assert setting_text(value, digits) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (360000, "100 h 0 min"), (math.nan, DASH)],
)
def test_a_time_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("values", "objective", "shown"),
    [
        ([0.9123, 0.85], AUC, "0.912"),
        ([0.91234, 0.91229, 0.5], AUC, "0.912340"),
        ([0.3, 1e6, math.nan], LOSS, "0.300"),
        ([0.3, 0.31, 1e6, 1e7], LOSS, "0.300"),
        ([1234.56, 900.1], SPEED, "1,235"),
        ([12.34, 12.31], SPEED, "12.340"),
    ],
)
def test_values_have_as_many_decimals_as_tell_the_better_ones_apart(
    values: list[float], objective: Objective, shown: str, tmp_path: Path
) -> None:
    html = page_of(study(finished(*values), objectives=(objective,)), tmp_path)
    assert f'<p class="value">{shown}</p>' in html


def test_what_is_searched(tmp_path: Path) -> None:
    html = page_of(study([], (LR, NAME, MOMENTUM, BATCH), planned=9), tmp_path)
    cells = [unescape(each) for each in re.findall(r"<td>(.*?)</td>", html)]
    assert cells == ["0.0001 to 0.1", "logarithmic", "adamw, sgd", "choice", "0.5 to 0.99", "even",
                     "32, 64, 128, 256", "choice"]  # fmt: skip
    assert re.findall(r'<section id="(\w+)"', html) == ["space"]


def test_the_front_is_a_section_of_several_objectives(tmp_path: Path) -> None:
    sections = re.findall(r'<section id="(\w+)"', page_of(searched(tmp_path), tmp_path))
    assert sections == ["front", "best", "history", "curves", "importance", "slices", "together", "every", "space"]
    sections = re.findall(r'<section id="(\w+)"', page_of(variants(tmp_path), tmp_path))
    assert "front" not in sections
