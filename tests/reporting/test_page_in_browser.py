"""The report page in a real browser: no error, no request, and its controls do what they say."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page
from report_data import EVIL_ATTRIBUTE, EVIL_FILE, JOBS, read_job, write_job, write_run

from distrib.reporting.page import render_report
from distrib.reporting.panels import SECTIONS

Open = Callable[..., Page]
DASH = "–"  # noqa: RUF001
PHONE, DESKTOP = 390, 1440


def index(run: Path) -> Path:
    return run / "report" / "index.html"


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def best_row(run: Path) -> int:
    scores = [float(row["val_roc_auc"]) for row in metrics(run)]
    return scores.index(max(scores))


def text(found: Locator) -> str:
    return found.inner_text().strip()


def shown_column(page: Page, place: int, table: str = "#attributes") -> list[str]:
    """What a column's cells show, from top to bottom."""
    cells = page.locator(f"{table} tbody tr:visible > :nth-child({place + 1})")
    return [each.strip() for each in cells.all_inner_texts()]


def as_numbers(column: list[str]) -> list[float | None]:
    return [None if each == DASH else float(each.removesuffix("%").replace("−", "-")) for each in column]  # noqa: RUF001


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_opens_without_an_error_and_fits(large_run: Path, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(index(large_run), width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for section in SECTIONS:
        assert page.locator(f"#{section.id} > h2").is_visible()
    assert page.locator(".absent").count() == 0
    assert page.locator("#curves svg").count() == page.locator("#curves .plot").count() > 0


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_one_attribute_and_one_epoch(small_run: Path, open_page: Open, width: int) -> None:
    page = open_page(index(small_run), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(".absent").count() == 0
    assert page.locator("[data-chooser]:visible").count() == 0  # there is nothing to choose
    assert text(page.locator("#epoch-now")) == "1"
    assert page.locator(".panel.chosen").count() == 3


def test_a_hundred_epochs(tmp_path: Path, open_page: Open) -> None:
    run = write_run(tmp_path / "long", attributes=("Smiling",), epochs=100, images=40)
    page = open_page(render_report(run))
    page.locator("#epoch").focus()
    page.keyboard.press("Home")
    assert text(page.locator("#epoch-now")) == "1"
    ticks = page.locator("[data-chart=f1] svg .tick").count()
    assert 4 <= ticks <= 20


@pytest.mark.parametrize("gone", [("scores",), ("operating", "curves"), ("calibration", "fairness"), JOBS])
def test_missing_jobs_stop_nothing_else(tmp_path: Path, open_page: Open, gone: tuple[str, ...]) -> None:
    run = write_run(tmp_path / "run", attributes=("Smiling", "Male"), epochs=2, images=40)
    for job in gone:
        (run / "report" / "data" / f"{job}.json").unlink()
    page = open_page(render_report(run))
    assert page.locator(".absent").count() == max(len(gone), 1) + (gone == JOBS)  # the overview is missed twice
    assert page.locator("[role=alert]").count() == 0


def test_the_best_epoch_is_that_of_metrics_csv(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    rows, best = metrics(run), best_row(run)
    assert text(page.locator("#epoch-now")) == str(best + 1)
    outputs = page.locator("#curves output")
    assert outputs.count() == 10
    for output in outputs.all():
        column = output.get_attribute("data-column") or ""
        digits = 5 if column == "lr" else 3
        assert text(output) == f"{float(rows[best][column]):.{digits}f}"


def test_epochs_by_keyboard_and_by_pointer(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    rows = metrics(run)
    output, now = page.locator("#curves output[data-column=val_f1]"), page.locator("#epoch-now")
    page.locator("#epoch").focus()
    for epoch in range(len(rows), 0, -1):
        assert text(now) == str(epoch)
        assert text(output) == f"{float(rows[epoch - 1]['val_f1']):.3f}"
        assert page.locator("#epoch-best").is_visible() == (epoch == best_row(run) + 1)
        page.keyboard.press("ArrowLeft")
    chart = page.locator("[data-chart=f1] svg")
    box = chart.bounding_box()
    assert box is not None
    chart.hover(position={"x": box["width"] - 12, "y": 40})  # waits until it has stopped scrolling
    assert text(now) == str(len(rows))
    assert text(output) == f"{float(rows[-1]['val_f1']):.3f}"
    page.mouse.move(5, 5)
    assert text(now) == "1"  # back to where the slider is


def test_every_column_sorts_both_ways(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    headings = page.locator("#attributes thead th")
    names = sorted(shown_column(page, 0), key=str.lower)
    assert headings.count() == 12
    for place, heading in enumerate(headings.all()):
        first, second = ("ascending", "descending") if place == 0 else ("descending", "ascending")
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == first
        down = shown_column(page, place)
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == second
        up = shown_column(page, place)
        assert page.locator("#attributes [aria-sort]").count() == 1
        if place == 0:
            assert down == names
            assert up == names[::-1]
        else:
            values = as_numbers(down)
            assert values == sorted(values, key=lambda value: -(value or 0))
            assert as_numbers(up) == sorted(values, key=lambda value: value or 0)
        assert sorted(shown_column(page, 0), key=str.lower) == names  # no row is lost


def test_rows_move_as_a_whole_and_undefined_values_come_last(tmp_path: Path, open_page: Open) -> None:
    folder = write_run(tmp_path / "run", attributes=("Bald", "Male", "Smiling", "Young"), epochs=1, images=60)
    scores = read_job(folder, "scores")
    scores["attributes"][1]["test"]["roc_auc"] = None
    write_job(folder, "scores", scores)
    page = open_page(render_report(folder), DESKTOP)
    place = page.locator("#attributes thead th").all_inner_texts().index("ROC AUC")
    heading = page.locator(f"#attributes thead th:nth-child({place + 1}) button")
    expected = {each["name"]: each["test"]["roc_auc"] for each in scores["attributes"]}
    for _ in range(2):
        heading.click()
        found = dict(zip(shown_column(page, 0), as_numbers(shown_column(page, place)), strict=True))
        assert shown_column(page, 0)[-1] == "Male"
        assert shown_column(page, place)[-1] == DASH
        assert found == {name: None if value is None else pytest.approx(value, abs=6e-4)
                         for name, value in expected.items()}  # fmt: skip


def test_sorting_by_keyboard(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    page.locator("#attributes thead button").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#attributes thead th:nth-child(2)").get_attribute("aria-sort") == "descending"
    page.keyboard.press(" ")
    assert page.locator("#attributes thead th:nth-child(2)").get_attribute("aria-sort") == "ascending"
    shares = as_numbers(shown_column(page, 1))
    assert shares == sorted(shares, key=lambda value: value or 0)


def test_the_filter_leaves_the_rows_that_have_its_text(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    everything = shown_column(page, 0)
    page.locator("#filter").fill("hAiR")
    assert shown_column(page, 0) == [name for name in everything if "hair" in name.lower()]
    assert text(page.locator("#shown")) == f"{len(shown_column(page, 0))} of {len(everything)} attributes"
    page.locator("#filter").fill("wearing_hat")
    assert shown_column(page, 0) == ["Wearing Hat"]
    page.locator("#filter").fill("no such thing")
    assert shown_column(page, 0) == []
    page.locator("#filter").fill("")
    assert shown_column(page, 0) == everything


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("tuned", [False, True])
def test_the_table_shows_the_scores_of_split_and_threshold(run: Path, open_page: Open, split: str, tuned: bool) -> None:
    page = open_page(index(run), DESKTOP)
    page.locator(f"input[name=split][value={split}]").check()
    page.locator(f"input[name=threshold][value={'tuned' if tuned else 'half'}]").check()
    scores = read_job(run, "scores")
    for row in scores["attributes"][::4]:
        shown = page.locator(f"#attributes tr[data-name='{row['name']}']")
        for name, value in row[split].items():
            expected = row["tuned"][split].get(name, value) if tuned else value
            assert text(shown.locator(f"[data-cell={name}]")) == f"{expected:.3f}"
        threshold = row["threshold"] if tuned else 0.5
        assert text(shown.locator("[data-cell=threshold]")) == f"{threshold:.3f}"
        assert text(shown.locator("[data-cell=baseline]")) == f"{row['baseline_accuracy'][split]:.3f}"
    mean = scores["means"]["tuned"][split]["f1"] if tuned else scores["means"][split]["f1"]
    assert text(page.locator("#attributes [data-means] [data-cell=f1]")) == f"{mean:.3f}"
    assert page.locator("#attributes tbody tr:first-child .whisker:visible").count() == (
        0 if split == "valid" else 2 if tuned else 5
    )


def counts_on(page: Page) -> dict[str, int]:
    return {name: int(text(page.locator(f"#{name} output"))) for name in ("tp", "fp", "fn", "tn")}


def expected_counts(attribute: dict[str, list[int]], i: int) -> dict[str, int]:
    tp, fp = attribute["tp"][i], attribute["fp"][i]
    return {"tp": tp, "fp": fp, "fn": attribute["positives"] - tp, "tn": attribute["negatives"] - fp}  # type: ignore[operator]


def dot_on(page: Page, chart: str) -> tuple[float, float]:
    """Where the chosen point stands, in units of the chart's axes."""
    x, y = page.evaluate(
        """chart => {
            const svg = document.querySelector(`#${chart} svg`), dot = svg.querySelector(".dot.chosen");
            const ticks = [...svg.querySelectorAll(".tick")];
            const at = (anchor, value, axis) => Number(ticks.find((tick) =>
                tick.getAttribute("text-anchor") === anchor && tick.textContent === value).getAttribute(axis));
            const [x0, x1] = ["0", "1"].map((value) => at("middle", value, "x"));
            const [y0, y1] = ["0", "1"].map((value) => at("end", value, "y") - 3.5);
            return [(dot.getAttribute("cx") - x0) / (x1 - x0), (dot.getAttribute("cy") - y0) / (y1 - y0)];
        }""",
        chart,
    )
    return x, y


@pytest.mark.parametrize("name", ["Smiling", "Bald", "Wearing_Hat"])
def test_the_threshold_moves_the_confusion_matrix_and_the_points(run: Path, open_page: Open, name: str) -> None:
    page = open_page(index(run), DESKTOP)
    page.locator("#decide-attribute").select_option(name)
    attribute = next(each for each in read_job(run, "operating")["attributes"] if each["name"] == name)
    slider = page.locator("#threshold")
    places = random.Random(0).sample(range(len(attribute["thresholds"])), 8)
    for i in [0, len(attribute["thresholds"]) - 1, *places]:
        threshold = attribute["thresholds"][i]
        slider.evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", threshold
        )
        counts = expected_counts(attribute, i)
        assert counts_on(page) == counts
        called, right = counts["tp"] + counts["fp"], counts["tp"] + counts["tn"]
        recall = counts["tp"] / attribute["positives"]
        precision = counts["tp"] / called if called else None
        assert text(page.locator("#recall")) == f"{recall:.3f}"
        assert text(page.locator("#precision")) == (DASH if precision is None else f"{precision:.3f}")
        assert text(page.locator("#accuracy")) == f"{right / 120:.3f}"
        assert dot_on(page, "roc") == pytest.approx((counts["fp"] / attribute["negatives"], recall), abs=2e-3)
        if precision is not None:
            assert dot_on(page, "pr") == pytest.approx((recall, precision), abs=2e-3)
        assert f"{called} of 120 test images" in text(page.locator("#verdict"))


def test_a_threshold_between_two_probabilities_counts_what_lies_above(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    page.locator("#decide-attribute").select_option("Smiling")
    attribute = next(each for each in read_job(run, "operating")["attributes"] if each["name"] == "Smiling")
    for i in (5, 40, 90):
        between = (attribute["thresholds"][i] + attribute["thresholds"][i + 1]) / 2
        page.locator("#threshold").fill(str(between))
        assert counts_on(page) == expected_counts(attribute, i)


def test_the_threshold_by_keyboard(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    page.locator("#decide-attribute").select_option("Smiling")
    slider = page.locator("#threshold")
    slider.focus()
    for key, higher in (("ArrowRight", True), ("ArrowUp", True), ("ArrowLeft", False), ("ArrowDown", False)):
        before, counts = float(slider.input_value()), counts_on(page)
        page.keyboard.press(key)
        assert (float(slider.input_value()) > before) == higher
        assert counts_on(page) != counts
        assert "recall" in (slider.get_attribute("aria-valuetext") or "")
    page.keyboard.press("Home")
    assert counts_on(page)["fn"] == counts_on(page)["tn"] == 0
    page.keyboard.press("End")
    assert counts_on(page)["tp"] == counts_on(page)["fp"] == 0


def test_the_two_marked_thresholds_give_the_confusion_matrices(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    for name, expected in list(read_job(run, "confusion")["attributes"].items())[::4]:
        page.locator("#decide-attribute").select_option(name)
        assert counts_on(page) == expected["tuned"]  # it opens at the tuned threshold
        page.locator("#to-default").click()
        assert counts_on(page) == expected["at_half"]
        page.locator("#to-tuned").click()
        assert counts_on(page) == expected["tuned"]
        assert text(page.locator("#threshold-now")) == f"{expected['threshold']:.3f}"


def test_an_attribute_is_chosen_for_all_sections(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    hardest = min(read_job(run, "scores")["attributes"], key=lambda each: each["test"]["roc_auc"])
    assert page.locator("#decide-attribute").input_value() == hardest["name"]
    page.locator("#attributes a[data-choose=Eyeglasses]").click()
    assert page.url.endswith("#decide")
    choosers = page.locator("[data-chooser]")
    assert choosers.count() == 5
    assert {each.input_value() for each in choosers.all()} == {"Eyeglasses"}
    assert {each.get_attribute("data-panel") for each in page.locator(".panel:visible").all()} == {"Eyeglasses"}
    maps = page.locator("#looks .panel:visible .picture")
    assert maps.count() == 4 * 3
    box = maps.first.bounding_box()
    assert box is not None
    assert box["height"] > box["width"] > 50
    ece = next(each for each in read_job(run, "calibration")["attributes"] if each["name"] == "Eyeglasses")
    assert text(page.locator("#ece-after")) == f"ECE {ece['ece_after']:.3f}"


def test_the_pictures_are_painted(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    picture = page.locator("#errs .picture").first
    picture.scroll_into_view_if_needed()
    painted = picture.screenshot()
    page.evaluate("document.querySelector('.album').remove()")
    assert picture.screenshot() != painted


def test_the_overlay_fades(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    heat = page.locator("#looks .panel:visible .heat").first
    page.locator("#heat").focus()
    page.keyboard.press("Home")
    assert heat.evaluate("each => getComputedStyle(each).opacity") == "0"
    page.keyboard.press("End")
    assert heat.evaluate("each => getComputedStyle(each).opacity") == "1"


def test_fairness_shows_the_chosen_score_widest_gap_first(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    fairness = read_job(run, "fairness")
    page.locator("#fair-score").select_option("recall")
    expected = sorted(each["gap"]["recall"] for each in fairness["attributes"] if each["gap"]["recall"] is not None)
    gaps = shown_column(page, 3, "#fair-table")
    assert gaps == [f"{gap:.3f}" for gap in expected[::-1]] + [DASH]
    widest = max(fairness["attributes"], key=lambda each: each["gap"]["recall"] or 0)
    assert widest["name"].replace("_", " ") in text(page.locator("#fair-verdict"))


def test_the_matrix_by_keyboard_and_by_pointer(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    correlation = read_job(run, "correlation")

    def told(row: int, column: int) -> str:
        a, b = (correlation["attributes"][i].replace("_", " ") for i in (row, column))
        values = [f"{correlation[key][row][column]:.2f}".replace("-", "−") for key in ("labels", "predictions")]  # noqa: RUF001
        return f"{a} and {b}: labels {values[0]}, answers {values[1]}"

    page.locator("#matrix svg").focus()
    page.keyboard.press("ArrowDown")
    assert text(page.locator("#matrix-now")) == told(2, 0)
    page.keyboard.press("ArrowRight")
    assert text(page.locator("#matrix-now")) == told(2, 1)
    page.locator("#matrix rect:not(.frame)").last.hover()
    assert text(page.locator("#matrix-now")) == told(8, 7)


def test_names_from_the_data_run_nothing(suspicious_run: Path, open_page: Open) -> None:
    page = open_page(index(suspicious_run), DESKTOP)
    assert page.locator("script").count() == 2
    assert page.locator("img[src=x]").count() == 0
    page.locator("#decide-attribute").select_option(EVIL_ATTRIBUTE)
    page.locator("#to-default").click()
    assert EVIL_ATTRIBUTE.replace("_", " ") in text(page.locator("#verdict"))
    assert EVIL_ATTRIBUTE in shown_column(page, 0)
    assert EVIL_FILE in text(page.locator("#looks"))
    assert EVIL_FILE in text(page.locator("#errs"))
    page.locator("#matrix svg").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert EVIL_ATTRIBUTE in text(page.locator("#matrix-now"))


def test_a_script_that_got_past_the_escaping_would_not_run(run: Path, browser: Browser, tmp_path: Path) -> None:
    html = index(run).read_text(encoding="utf-8")
    attacks = "<img src='data:,' onerror='window.hit=1'><script>window.hit=2</script><main "
    attacked = tmp_path / "attacked.html"
    attacked.write_text(html.replace("<main ", attacks, 1), encoding="utf-8")
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(attacked.as_uri())
    page.locator("#to-default").click()  # the page's own script runs
    assert page.evaluate("window.hit") is None
    assert len([each for each in complaints if "Content Security Policy" in each]) == 2
    page.close()


CONTRAST = """selector => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = ([r, g, b]) => [r, g, b].map((each) => each / 255)
        .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
        .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const colour = getComputedStyle(each).backgroundColor;
            if (rgb(colour)[3] === 255) return rgb(colour);
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility()).map((each) => {
        const style = getComputedStyle(each);
        const text = rgb(each instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [luminance(text), luminance(ground(each))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(run: Path, open_page: Open, scheme: str) -> None:
    page = open_page(index(run), DESKTOP, color_scheme=scheme)
    for selector in (
        "h1", "p", "dt", "dd", "th button", "caption", "td", "summary", ".contents a", ".file", "button", "select",
        ".toggle label", ".confusion td small", ".chart figcaption span", "svg .tick", "pre", "code", ".absent",
    ):  # fmt: skip
        found = page.evaluate(CONTRAST, selector)
        assert min(found, default=21) >= 4.5, selector


def test_dark_and_light_by_system_and_by_button(run: Path, open_page: Open) -> None:
    page = open_page(index(run), color_scheme="dark")
    button = page.locator("#theme")

    def background() -> int:
        return int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]"))

    assert background() < 64
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert background() > 192
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert background() < 64
    page.emulate_media(media="print")
    assert background() > 192


def test_the_first_tab_skips_to_the_content(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    box = page.locator(".skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_focus_is_visible(run: Path, open_page: Open) -> None:
    page = open_page(index(run), DESKTOP)
    for control in ("#theme", "#filter", "#threshold", "#attributes thead button", "#decide-attribute"):
        page.locator(control).first.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", control


def test_every_control_and_picture_has_a_name(run: Path, open_page: Open) -> None:
    page = open_page(index(run))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, svg, img, [tabindex='0']")]
            .filter((each) => each.checkVisibility() && !each.closest("[aria-hidden]"))
            .filter((each) => !each.ariaLabel && !each.alt && !each.labels?.length && !each.textContent.trim())
            .map((each) => each.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    assert page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((each) => each.id)).size"
    ) == page.evaluate("document.querySelectorAll('[id]').length")


def test_motion_is_reduced_on_request(run: Path, open_page: Open) -> None:
    page = open_page(index(run), reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_print_fits_the_paper_and_shows_whole_tables(large_run: Path, open_page: Open) -> None:
    page = open_page(index(large_run), 720)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert not page.locator(".contents").is_visible()
    assert not page.locator("#filter").is_visible()
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('.scroller')].every((each) => getComputedStyle(each).overflowY === 'visible')"
    )
    assert text(page.locator("#attributes tbody tr").last).startswith("Young")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert len(page.pdf(format="A4")) > 10_000


def test_without_scripts_the_content_is_there(large_run: Path, open_page: Open) -> None:
    page = open_page(index(large_run), java_script_enabled=False)
    assert page.locator("#attributes tbody tr:visible").count() == 40
    assert page.locator("#fair-table tbody tr:visible").count() == 40
    assert page.locator("#looks .panel:visible").count() == 40
    assert page.locator("button:visible", has_text="Dark").count() == 0
    assert page.locator("input:visible, select:visible").count() == 0
    page.locator("summary", has_text="All epochs").click()
    assert page.locator("#learnt table tbody tr:visible").count() == 1
    page.locator("summary", has_text="All confusion matrices").click()
    assert page.locator("#decide table tbody tr:visible").count() == 40
