"""The page of a study in a real browser: no error, no request, and its charts and controls do what they say."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page
from report_data import EVIL_FILE
from study_data import AUC, LOSS, SPEED, searched, study, trial, variants
from test_page_in_browser import CONTRAST

from distrib.studies.page import render_study
from distrib.studies.record import Objective, Parameter, StudyRecord, TrialRecord

Open = Callable[..., Page]
DASH = "–"  # noqa: RUF001
PHONE, DESKTOP = 390, 1440
EVIL = "<script>alert(1)</script>"
AXIS_TOP, AXIS_BOTTOM = 44, 290


@pytest.fixture
def open_study(open_page: Open, tmp_path: Path) -> Open:
    """Opens the page of a study, which it makes."""

    def open_record(record: StudyRecord, width: int = DESKTOP, **options: object) -> Page:
        return open_page(render_study(record, tmp_path / "page" / "study" / "index.html"), width, **options)

    return open_record


@pytest.fixture(scope="module")
def one() -> StudyRecord:
    """A search with one objective and every state."""
    return searched(Path("studies/one"), 40, 3, (AUC,))


@pytest.fixture(scope="module")
def two() -> StudyRecord:
    """A search with two objectives."""
    return searched(Path("studies/two"))


def text(found: Locator) -> str:
    return found.inner_text().strip()


def column(page: Page, heading: str, table: str = "#every-table") -> list[str]:
    """What a column's cells show, from top to bottom."""
    headings = [each.strip() for each in page.locator(f"{table} thead th").all_inner_texts()]
    place = headings.index(heading) + 1
    cells = page.locator(f"{table} tbody tr:visible > :nth-child({place})")
    return [each.strip() for each in cells.all_inner_texts()]


def left(page: Page) -> list[int]:
    """The trials in the table of all."""
    return [int(each) for each in column(page, "Trial")]


def numbers(page: Page, selector: str) -> list[int]:
    """The trials of the shapes, lines or rows that a selector finds."""
    return sorted(page.locator(selector).evaluate_all("found => found.map((each) => Number(each.dataset.trial))"))


def ticks(page: Page, chart: str, side: str) -> list[tuple[float, float]]:
    """The ticks of a chart's axis: what they say, and where they are. `side` is x or y."""
    found = page.locator(f"{chart} svg .tick").evaluate_all(
        "found => found.map((each) => [each.textContent, each.getAttribute('text-anchor'), each.getAttribute('x'), "
        "each.getAttribute('y')])"
    )
    wanted = [(each[0], each[2 if side == "x" else 3]) for each in found if (each[1] == "middle") == (side == "x")]
    shift = 0 if side == "x" else 3.5
    return [(float(said.replace("−", "-")), float(at) - shift) for said, at in wanted if said != "none"]  # noqa: RUF001


def read_off(page: Page, chart: str, side: str, place: float, log: bool = False) -> float:
    """The value that a reader finds at a place of a chart, by its first and last tick."""
    (low, a), *_, (high, b) = ticks(page, chart, side)
    share = (place - a) / (b - a)
    return low * (high / low) ** share if log else low + (high - low) * share


def place_of(page: Page, chart: str, number: int) -> tuple[float, float]:
    """Where a trial's shape is in a chart."""
    use = page.locator(f"{chart} [data-trial='{number}'] use")
    return float(use.get_attribute("x") or ""), float(use.get_attribute("y") or "")


def finished(record: StudyRecord) -> list[TrialRecord]:
    return record.of_state("finished")


def value(trial: TrialRecord, place: int = 0) -> float:
    assert trial.values is not None
    return trial.values[place]


def best(record: StudyRecord) -> TrialRecord:
    return max(finished(record), key=value)


STUDIES = {
    "one": lambda: searched(Path("one"), 40, 3, (AUC,)),
    "two": lambda: searched(Path("two")),
    "three": lambda: searched(Path("three"), 20, 2, (AUC, SPEED, LOSS)),
    "variants": lambda: variants(Path("variants")),
    "nothing": lambda: study([], planned=4),
    "single": lambda: study([trial(0, {"optim.lr": 0.01}, [0.9], curve=((1, 0.9),))]),
    "failed": lambda: study([trial(i, {"optim.lr": 0.01 * (i + 1)}, state="failed", reason="of no memory " * 30)
                             for i in range(3)]),
    "running": lambda: study([trial(0, {"optim.lr": 0.01}, state="running", curve=((1, 0.7), (2, 0.8)))], planned=9),
    "undefined": lambda: study([trial(i, {"optim.lr": 0.01}, [math.nan], curve=((1, math.nan),)) for i in range(2)]),
    "no settings": lambda: study([trial(i, {}, [0.9 + i / 100]) for i in range(3)], ()),
    "equal": lambda: study([trial(i, {"optim.lr": 0.01}, [0.9]) for i in range(12)]),
    "long": lambda: study(
        [trial(i, {"data.attributes": text}, [0.8 + i / 50], reason="x" * 300) for i, text in enumerate(LONG)],
        [Parameter("data.attributes", choices=LONG)]),
}  # fmt: skip
LONG = (None, '["Smiling", "Male", "Young", "Wearing_Hat", "Eyeglasses"]', "y" * 200, "", "true")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", STUDIES)
def test_it_opens_without_an_error_and_fits(name: str, width: int, open_study: Open) -> None:
    page = open_study(STUDIES[name](), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("[role=alert]").count() == 0
    assert page.locator("#space > h2").is_visible()
    assert "NaN" not in page.locator("svg").evaluate_all("found => found.map((each) => each.outerHTML).join()")
    assert "Infinity" not in page.locator("svg").evaluate_all("found => found.map((each) => each.outerHTML).join()")


def test_the_opening_counts_the_states_and_the_time(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    cards = [
        [line.strip() for line in each.split("\n") if line.strip()] for each in page.locator(".card").all_inner_texts()
    ]
    winner = best(one)
    assert cards[0][0] == "Validation ROC AUC highest"
    assert cards[0][1] == f"{value(winner):.3f}"
    assert f"trial {winner.number}" in cards[0]
    assert cards[1][:2] == ["Trials finished of 50", str(len(finished(one)))]
    for state in ("pruned", "out of memory", "failed", "running"):
        assert f"{len(one.of_state(state))} {state}" in cards[1]
    assert "10 more planned" in cards[1]
    minutes = round(sum(each.seconds for each in one.trials)) // 60
    assert cards[2][:2] == ["Time of all runs together", f"{minutes // 60} h {minutes % 60} min"]
    assert f"{sum(each.epochs for each in one.trials)} epochs in 40 runs" in cards[2]
    assert page.locator("h1").inner_text().startswith(f"Trial {winner.number} has the highest validation ROC AUC: ")


def test_the_history_shows_each_state_in_its_shape_and_the_best_so_far(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    for each in one.trials:
        shape = page.locator(f"#history-plot [data-trial='{each.number}'] use").get_attribute("href")
        assert shape == f"#mark-{each.state.replace(' ', '-')}"
        x, y = place_of(page, "#history-plot", each.number)
        assert read_off(page, "#history-plot", "x", x) == pytest.approx(each.number, abs=0.1)
        known = value(each) if each.values else each.curve[-1][1] if each.curve else None
        lowest = max(at for _, at in ticks(page, "#history-plot", "y"))
        if known is None:
            assert y > lowest
        elif read_off(page, "#history-plot", "y", lowest) < known:
            assert read_off(page, "#history-plot", "y", y) == pytest.approx(known, abs=0.002)
    line = page.locator("#history-plot .so-far").get_attribute("d") or ""
    highest = min(place_of(page, "#history-plot", each.number)[1] for each in finished(one))
    assert float(line.split("V")[-1].split("H")[0]) == pytest.approx(highest, abs=0.1)
    legend = [each.strip() for each in page.locator("#history .shapes span").all_inner_texts()]
    assert legend == ["finished", "pruned", "out of memory", "failed", "running", "the best"]
    assert numbers(page, "#history-plot .front") == [best(one).number]


def test_the_page_opens_with_the_best_trial_marked_in_every_section(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    winner = best(one)
    for section in ("history", "curves", "together"):
        assert numbers(page, f"#{section}-plot .now") == [winner.number]
    for table in ("best", "every"):
        assert numbers(page, f"#{table}-table tr.now") == [winner.number]
    having = sum(each.name in winner.settings for each in one.parameters)
    assert numbers(page, "#slices .now") == [winner.number] * having
    for note in page.locator("[data-now]").all():
        assert text(note).startswith(f"Trial {winner.number}, finished: validation ROC AUC {value(winner):.3f}; lr ")


def test_a_trial_is_pointed_at_and_kept_by_a_press(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    other = min(finished(one), key=value)
    note = page.locator("#history [data-now]")
    page.locator(f"#history-plot [data-trial='{other.number}'] use").hover()
    assert text(note).startswith(f"Trial {other.number}, finished: ")
    assert numbers(page, "#together-plot .now") == [other.number]
    page.mouse.move(5, 5)
    assert text(note).startswith(f"Trial {best(one).number}, ")
    page.locator(f"#history-plot [data-trial='{other.number}'] use").click()
    page.mouse.move(5, 5)
    assert text(note).startswith(f"Trial {other.number}, ")
    page.locator("#every-table tr[data-trial='7'] td.state").hover()
    assert numbers(page, "#history-plot .now") == [7]
    page.locator("#every-table tr[data-trial='7'] a[data-choose]").click()
    assert page.url.endswith("#together")
    assert numbers(page, "#together-plot .now") == [7]


@pytest.mark.parametrize("chart", ["#history-plot", "#curves-plot", "#slices [data-steps]", "#together-plot"])
def test_trials_by_keyboard(chart: str, one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    note = page.locator(chart).locator("xpath=ancestor::section").locator("[data-now]")
    page.locator(chart).focus()
    for key, number in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 2),
        ("ArrowLeft", 1),
        ("ArrowUp", 0),
        ("End", 39),
    ):
        page.keyboard.press(key)
        assert text(note).startswith(f"Trial {number}, ")
        assert note.get_attribute("aria-live") == "polite"
        assert page.locator("[data-now][aria-live=polite]").count() == 1
    page.keyboard.press("Escape")
    assert text(note).startswith(f"Trial {best(one).number}, ")


def test_the_curves_end_where_the_trials_did(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    assert numbers(page, "#curves-plot .trace") == [each.number for each in one.trials if each.curve]
    for each in (*one.of_state("pruned")[:3], *finished(one)[:3]):
        line = page.locator(f"#curves-plot [data-trial='{each.number}'] > path").get_attribute("d") or ""
        x, y = (float(at) for at in line.split("L")[-1].split(" "))
        epoch, last = each.curve[-1]
        assert read_off(page, "#curves-plot", "x", x) == pytest.approx(epoch, abs=0.02)
        assert read_off(page, "#curves-plot", "y", y) == pytest.approx(last, abs=0.002)
    ends = page.locator("#curves-plot use[href='#mark-pruned']").count()
    assert ends == len(one.of_state("pruned"))


def test_the_importance_as_bars(two: StudyRecord, open_study: Open) -> None:
    page = open_study(two)
    tables = page.locator("#importance table")
    assert [text(each) for each in tables.locator("caption").all()] == [
        "Validation ROC AUC", "Speed",
    ]  # fmt: skip
    rows = [each.split() for each in tables.first.locator("tbody tr").all_inner_texts()]
    assert [" ".join(row) for row in rows] == ["lr 61 %", "batch size 22 %", "optim name 14 %", "momentum 3 %"]
    assert "fANOVA" in text(page.locator("#importance"))


def test_too_few_trials_for_importance_are_said_to_be_too_few(open_study: Open) -> None:
    page = open_study(variants(Path("variants")))
    assert "too few finished trials to tell what validation ROC AUC depends on" in text(page.locator("#importance"))


def test_slices_on_the_scale_of_each_setting(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    charts = [f"#slices [data-axis='{i}']" for i in range(4)]
    for chart, parameter in zip(charts, one.parameters, strict=True):
        having = [each for each in one.trials if parameter.name in each.settings]
        assert numbers(page, f"{chart} .shape") == [each.number for each in having]
        labels = page.locator(f"{chart} svg .tick[text-anchor=middle]").all_text_contents()
        if parameter.choices:
            assert labels == [str(choice) for choice in parameter.choices]
            continue
        for each in having:
            x, y = place_of(page, chart, each.number)
            setting = each.settings[parameter.name]
            assert read_off(page, chart, "x", x, log=parameter.log) == pytest.approx(setting, rel=0.03)
            if each.state == "finished":
                assert read_off(page, chart, "y", y) == pytest.approx(value(each), abs=0.002)
            else:
                assert y > max(at for _, at in ticks(page, chart, "y"))
    same = {place_of(page, charts[3], each.number)[0] for each in one.trials if each.settings["train.batch_size"] == 32}
    assert len(same) == 1  # no jitter


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_variants_by_name_lie_below_each_other_with_their_whiskers(width: int, open_study: Open) -> None:
    record = variants(Path("variants"))
    page = open_study(record, width)
    labels = page.locator("#slices svg .tick[text-anchor=end]").all_text_contents()
    assert [each[:8] for each in labels] == ["trained ", "ImageNet", "ImageNet"]
    for each in record.trials:
        x, _ = place_of(page, "#slices", each.number)
        whisker = page.locator(f"#slices [data-trial='{each.number}'] .whisker")
        ends = [float(whisker.get_attribute(name) or "") for name in ("x1", "x2")]
        assert each.spread is not None
        assert read_off(page, "#slices", "x", x) == pytest.approx(value(each), abs=0.002)
        reach = [read_off(page, "#slices", "x", end) - value(each) for end in ends]
        assert reach == pytest.approx([-each.spread[0], each.spread[0]], abs=0.001)


def test_a_value_far_off_stands_at_the_end_of_the_scale(open_study: Open) -> None:
    values = [0.3 + i / 100 for i in range(10)]
    trials = [trial(i, {"optim.lr": 0.001 * (i + 1)}, [each]) for i, each in enumerate([*values, 1e6])]
    page = open_study(study(trials, objectives=(LOSS,)))
    assert numbers(page, "#history-plot g:has(> .beyond)") == [10]
    assert max(said for said, _ in ticks(page, "#history-plot", "y")) < 1
    assert place_of(page, "#history-plot", 10)[1] == pytest.approx(
        min(at for _, at in ticks(page, "#history-plot", "y"))
    )
    assert column(page, "Validation loss")[-1] == "1,000,000.000"
    drag(page, 1, 0.6, 1.0)
    assert left(page)[-1] == 10
    assert page.locator("[data-field='1'] [data-end=to]").input_value() == ""


def axis_box(page: Page, place: int) -> tuple[float, float, float]:
    """Where an axis of the parallel coordinates is on the screen: x, its top and its bottom."""
    page.locator("#together-plot").evaluate("plot => plot.scrollIntoView({ block: 'center', behavior: 'instant' })")
    box = page.locator("#together-plot .grip").nth(place).bounding_box()
    assert box is not None
    scale = box["height"] / (330 - AXIS_TOP + 8)
    return box["x"] + box["width"] / 2, box["y"] + 8 * scale, box["y"] + (8 + AXIS_BOTTOM - AXIS_TOP) * scale


def drag(page: Page, place: int, start: float, end: float) -> None:
    """Drag along an axis, from one share of it to another; 0 is its lower end."""
    x, top, bottom = axis_box(page, place)
    page.mouse.move(x, bottom - start * (bottom - top))
    page.mouse.down()
    page.mouse.move(x, bottom - (start + end) / 2 * (bottom - top))
    page.mouse.move(x, bottom - end * (bottom - top))
    page.mouse.up()


def test_a_range_of_an_axis_keeps_the_lines_that_cross_it_there(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    drag(page, 0, 0.25, 0.75)
    field = page.locator("[data-field='0']")
    page.locator("summary", has_text="Filter without dragging").click()
    low, high = (float(field.locator(f"[data-end={end}]").input_value()) for end in ("from", "to"))
    # From 1e-4 to 1e-1, with room at both ends.
    assert math.log10(low) == pytest.approx(-4 - 0.15 + 0.25 * 3.3, abs=0.05)
    assert math.log10(high) == pytest.approx(-4 - 0.15 + 0.75 * 3.3, abs=0.05)
    expected = [each.number for each in one.trials if low <= float(str(each.settings["optim.lr"])) <= high]
    assert 0 < len(expected) < len(one.trials)
    assert left(page) == expected
    gone = sorted({each.number for each in one.trials} - set(expected))
    assert numbers(page, "#together-plot .out") == numbers(page, "#history-plot .out") == gone
    for note in page.locator("[data-left]").all():
        assert text(note) == f"{len(expected)} of 40 trials"
    x, top, bottom = axis_box(page, 0)
    page.mouse.click(x, (top + bottom) / 2)
    assert len(left(page)) == 40
    assert field.locator("[data-end=from]").input_value() == ""
    assert page.locator("#together-plot .kept").count() == 0


def test_choices_and_values_are_kept_by_dragging_too(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    drag(page, 3, 0.05, 0.4)  # the lower two of four
    kept = [each for each in one.trials if each.settings["train.batch_size"] in (32, 64)]
    assert left(page) == [each.number for each in kept]
    drag(page, 4, 0.6, 1.0)
    low = float(page.locator("[data-field='4'] [data-end=from]").input_value())
    assert left(page) == [each.number for each in kept if each.values and value(each) >= low]
    page.locator("#together [data-clear]").click()
    assert len(left(page)) == 40
    assert page.locator("[data-clear]:visible").count() == 0
    assert page.evaluate("document.activeElement.id") == "together-plot"
    drag(page, 2, 0.5, -0.12)  # over the lower end, to where those run that have no momentum
    high = float(page.locator("[data-field='2'] [data-end=to]").input_value())
    expected = [each for each in one.trials if float(str(each.settings.get("optim.momentum", 0.5))) <= high]
    assert left(page) == [each.number for each in expected]
    assert page.locator("[data-field='2'] [data-end=from]").input_value() == ""


def test_the_filter_without_dragging(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    page.locator("#together summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("0.001")
    expected = [each for each in one.trials if float(str(each.settings["optim.lr"])) >= 0.001]
    assert left(page) == [each.number for each in expected]
    assert page.locator("#together-plot .kept").count() == 1
    page.locator("[data-field='1'] label", has_text="adamw").locator("input").uncheck()
    expected = [each for each in expected if each.settings["optim.name"] == "sgd"]
    assert left(page) == [each.number for each in expected]
    page.locator("[data-field='2'] label", has_text="to").locator("[data-end=to]").fill("0.8")
    assert left(page) == [each.number for each in expected if float(str(each.settings["optim.momentum"])) <= 0.8]
    page.locator("#together [data-clear]").click()
    without = page.locator("[data-field='2'] label", has_text="those without").locator("input")
    assert without.is_checked()
    without.uncheck()
    assert left(page) == [each.number for each in one.trials if "optim.momentum" in each.settings]
    page.locator("[data-field='0'] [data-end=from]").fill("5")
    assert left(page) == []
    assert text(page.locator("#every [data-left]")) == "0 of 40 trials"


def test_the_keys_leave_out_what_the_filter_leaves_out(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    page.locator("#together summary").click()
    page.locator("[data-field='1'] label", has_text="adamw").locator("input").uncheck()
    page.locator("#history-plot").focus()
    page.keyboard.press("Home")
    seen = []
    for _ in left(page):
        seen.append(int(text(page.locator("#history [data-now]")).split(",")[0].removeprefix("Trial ")))
        page.keyboard.press("ArrowRight")
    assert seen == left(page)


def test_the_table_by_text_and_by_state(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    page.locator("#state").select_option("failed")
    failed = [each.number for each in one.of_state("failed")]
    assert left(page) == failed
    page.locator("#filter").fill("NOT FINITE")
    assert left(page) == failed
    page.locator("#filter").fill("no such text")
    assert left(page) == []
    page.locator("#every [data-clear]").click()
    assert len(left(page)) == 40
    assert page.locator("#filter").input_value() == page.locator("#state").input_value() == ""
    drag(page, 0, 0.0, 0.5)
    some = left(page)
    page.locator("#state").select_option("finished")
    assert left(page) == [number for number in some if one.trials[number].state == "finished"]


def test_the_table_of_all_trials_is_the_study(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    assert left(page) == [each.number for each in one.trials]
    assert column(page, "State") == [each.state for each in one.trials]
    shown = column(page, "Validation ROC AUC")
    assert shown == [f"{value(each):.3f}" if each.values else DASH for each in one.trials]
    momentum = column(page, "momentum")
    assert [each == DASH for each in momentum] == ["optim.momentum" not in each.settings for each in one.trials]
    assert column(page, "Epochs") == [str(each.epochs) for each in one.trials]
    assert column(page, "Reason") == [each.reason or DASH for each in one.trials]


def test_sorting_puts_what_is_not_known_last(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    for heading, key in (("Validation ROC AUC", None), ("lr", "optim.lr"), ("momentum", "optim.momentum")):
        button = page.locator("#every-table thead button", has_text=heading)
        known = {
            each.number: float(str(each.settings[key])) if key else value(each)
            for each in one.trials
            if (key in each.settings if key else each.values)
        }
        for sign in (-1, 1):
            button.click()
            order = sorted(known, key=lambda number: sign * known[number])
            assert left(page)[: len(order)] == order
    page.locator("#every-table thead button", has_text="optim name").click()
    names = column(page, "optim name")
    assert names == sorted(names)


def test_the_best_trials_with_their_runs(tmp_path: Path, open_page: Open) -> None:
    record = searched(tmp_path, 40, 3, (AUC,))
    ranked = sorted(finished(record), key=value, reverse=True)
    for each in ranked[:3]:
        (tmp_path / each.runs[0] / "report").mkdir(parents=True)
        (tmp_path / each.runs[0] / "report" / "index.html").write_text("a report")
    (tmp_path / ranked[3].runs[0]).mkdir()
    page = open_page(render_study(record, tmp_path / "study" / "index.html"), DESKTOP)
    assert column(page, "Trial", "#best-table") == [str(each.number) for each in ranked[:10]]
    assert f"The first 10 of {len(ranked)} finished trials" in text(page.locator("#best .lead"))
    rows = page.locator("#best-table tbody tr")
    for i in range(5):
        links = rows.nth(i).locator(".runs a").evaluate_all("found => found.map((each) => each.href)")
        folder = (tmp_path / ranked[i].runs[0]).as_uri()
        assert links == ([f"{folder}/report/index.html"] if i < 3 else []) + ([f"{folder}/"] if i < 4 else [])
        assert ranked[i].runs[0] in text(rows.nth(i))
    link = page.locator("#best-table .runs a").first
    assert Path(link.evaluate("each => new URL(each.href).pathname")).is_file()


def test_seeds_stand_beside_their_mean(open_study: Open) -> None:
    page = open_study(variants(Path("variants")))
    assert column(page, "Validation ROC AUC", "#best-table") == [
        "0.9123 ± 0.0032", "0.9104 ± 0.0019", "0.8712 ± 0.0041",
    ]  # fmt: skip
    assert "less than the standard deviation over the seeds" in text(page.locator(".opening [role=note]"))
    assert page.locator("#every-table tbody tr").first.locator(".runs span").count() == 3


def test_the_front_is_ringed_connected_and_listed(two: StudyRecord, open_study: Open) -> None:
    page = open_study(two)
    front = sorted(two.front)
    assert 1 < len(front) < len(finished(two))
    assert numbers(page, "#front-plot .shape.front") == front
    assert numbers(page, "#front tbody tr") == front
    assert numbers(page, "#best-table tbody tr") == front
    assert numbers(page, "#front-plot .shape") == [each.number for each in finished(two)]
    for each in finished(two):
        x, y = place_of(page, "#front-plot", each.number)
        assert read_off(page, "#front-plot", "x", x) == pytest.approx(value(each, 1), abs=4)
        assert read_off(page, "#front-plot", "y", y) == pytest.approx(value(each), abs=0.001)
    line = page.locator("#front-plot .so-far").get_attribute("d") or ""
    corners = [tuple(map(float, each.split(" "))) for each in line.removeprefix("M").split("L")]
    for corner, place in zip(corners[::2], sorted(place_of(page, "#front-plot", each) for each in front), strict=True):
        assert corner == pytest.approx(place, abs=0.06)
    assert len(corners) == 2 * len(front) - 1
    titles = page.locator("#front-plot .title").all_text_contents()
    assert titles == ["speed in images a second, higher is better", "validation ROC AUC, higher is better"]


def test_two_of_three_objectives_in_different_directions(open_study: Open) -> None:
    record = searched(Path("three"), 20, 2, (AUC, SPEED, LOSS))
    page = open_study(record)
    assert numbers(page, "#front-plot .shape.front") == sorted(record.front)
    page.locator("#front-up").select_option("2")
    titles = page.locator("#front-plot .title").all_text_contents()
    assert titles == ["speed in images a second, higher is better", "validation loss, lower is better"]
    line = page.locator("#front-plot .so-far").get_attribute("d") or ""
    corners = [tuple(map(float, each.split(" "))) for each in line.removeprefix("M").split("L")]
    # Lower losses are further down: the better in one, the worse in the other, to the right and up.
    assert corners == sorted(corners, key=lambda corner: (corner[0], -corner[1]))
    for a, b in itertools.pairwise(corners):
        assert b[1] <= a[1] + 0.1
    page.locator("#front-across").select_option("2")
    assert page.locator("#front-plot .shape").count() == len(finished(record))


def test_an_objective_is_chosen_for_all_charts(two: StudyRecord, open_study: Open) -> None:
    page = open_study(two)
    trace = page.locator(f"#together-plot .trace[data-trial='{best(two).number}']")
    assert "var(--accent) 100%" in (trace.get_attribute("style") or "")
    page.locator("#slices-goal").select_option("1")
    assert {each.input_value() for each in page.locator("[data-goal]").all()} == {"1"}
    assert page.locator("#history-plot .title").all_text_contents() == ["trial", "speed in images a second"]
    fastest = max(finished(two), key=lambda each: value(each, 1))
    _, y = place_of(page, "#slices [data-axis='0']", fastest.number)
    assert read_off(page, "#slices [data-axis='0']", "y", y) == pytest.approx(value(fastest, 1), abs=5)
    assert "var(--accent) 100%" not in (trace.get_attribute("style") or "")
    assert text(page.locator("#history [data-now]")).startswith("Point at a trial")


def test_with_one_objective_there_is_nothing_to_choose(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one)
    assert page.locator("[data-goal], #front").count() == 0


def test_five_hundred_trials(open_study: Open) -> None:
    record = searched(Path("many"), 500, 5, (AUC, SPEED))
    page = open_study(record)
    assert len(left(page)) == 500
    assert page.locator("#together-plot .trace").count() == 500
    assert page.locator("#history-plot .shape").count() == 500
    page.locator("#history-plot").focus()
    times = [
        page.evaluate(
            """() => {
                const start = performance.now();
                document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
                return performance.now() - start;
            }"""
        )
        for _ in range(9)
    ]
    assert statistics.median(times) < 100
    drag(page, 0, 0.2, 0.5)
    patience = time.monotonic() + 10  # on a busy machine the browser comes to the drag later
    while len(left(page)) == 500 and time.monotonic() < patience:
        page.wait_for_timeout(50)
    assert 0 < len(left(page)) < 500


def test_names_from_the_data_run_nothing(open_study: Open) -> None:
    parameters = (Parameter(EVIL, choices=(EVIL, EVIL_FILE)), Parameter("b", low=0.0, high=1.0))
    trials = [
        trial(0, {EVIL: EVIL, "b": 0.5}, [0.9, 0.1], runs=(EVIL_FILE,), curve=((1, 0.9),)),
        trial(1, {EVIL: EVIL_FILE, "b": 0.1}, [0.8, 0.2]),
        trial(2, {EVIL: EVIL_FILE}, state="failed", reason=EVIL_FILE),
    ]
    record = study(trials, parameters, (Objective(f"{EVIL}2", "maximize"), LOSS), Path(EVIL), name=EVIL)
    page = open_study(record)
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    assert EVIL_FILE in column(page, EVIL)
    assert EVIL_FILE in column(page, "Reason")
    page.locator("#together-plot").focus()
    page.keyboard.press("Home")
    assert text(page.locator("#together [data-now]")).startswith(f"Trial 0, finished: {EVIL}2 0.9")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(two: StudyRecord, scheme: str, open_study: Open) -> None:
    page = open_study(two, color_scheme=scheme)
    page.locator("#together summary").click()
    for selector in (
        "h1", "p", "dt", "dd", "th button", "caption", "td", "th", "summary", ".contents a", ".file", "button",
        "select", "legend", "label", ".shapes span", "svg .tick", "svg .name", "svg .title", "small", ".absent",
        "tr.now > *",
    ):  # fmt: skip
        assert min(page.evaluate(CONTRAST, selector), default=21) >= 4.5, selector


def test_marks_can_be_told_from_the_paper(one: StudyRecord, open_study: Open) -> None:
    for scheme in ("light", "dark"):
        page = open_study(one, color_scheme=scheme)
        for tone in ("--accent", "--warm", "--edge"):
            page.evaluate(f"document.querySelector('.kicker').style.color = 'var({tone})'")
            assert page.evaluate(CONTRAST, ".kicker")[0] >= 3, (scheme, tone)


def test_focus_is_visible_and_every_control_has_a_name(two: StudyRecord, open_study: Open) -> None:
    page = open_study(two)
    page.locator("#together summary").click()
    for control in ("#history-plot", "#together-plot", "#filter", "[data-end=from]", "[data-field] [type=checkbox]"):
        page.locator(control).first.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", control
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("a, button, select, input, svg, [tabindex='0']")]
            .filter((each) => each.checkVisibility() && !each.closest("[aria-hidden]"))
            .filter((each) => !each.ariaLabel && !each.labels?.length && !each.textContent.trim())
            .map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    assert page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((each) => each.id)).size"
    ) == page.evaluate("document.querySelectorAll('[id]').length")


def test_print_fits_the_paper(two: StudyRecord, open_study: Open) -> None:
    page = open_study(two, 720)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate(
        "[...document.querySelectorAll('.scroller')].every((each) => each.scrollWidth <= each.clientWidth + 1)"
    )
    assert not page.locator(".filters").is_visible()
    assert len(page.pdf(format="A4")) > 10_000


def test_without_scripts_the_tables_are_there(one: StudyRecord, open_study: Open) -> None:
    page = open_study(one, java_script_enabled=False)
    assert page.locator("#every-table tbody tr:visible").count() == 40
    assert page.locator("#best-table tbody tr:visible").count() == 10
    assert page.locator("#importance .track:visible").count() == 4
    assert page.locator("input:visible, select:visible, [data-steps]:visible, .shapes:visible").count() == 0
    assert "charts of this page need scripts" in page.content()
    assert page.locator("noscript p").is_visible()


def test_a_script_that_got_past_the_escaping_would_not_run(one: StudyRecord, browser: Browser, tmp_path: Path) -> None:
    file = render_study(one, tmp_path / "study" / "index.html")
    attacks = "<img src='data:,' onerror='window.hit=1'><script>window.hit=2</script><main "
    file.write_text(file.read_text(encoding="utf-8").replace("<main ", attacks, 1), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.locator("#history-plot svg").count() == 1  # the page's own script runs
    assert page.evaluate("window.hit") is None
    page.close()
