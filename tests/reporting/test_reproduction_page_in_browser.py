"""The page of the reproduction in a browser: no error, no request, charts drawn, wide and narrow, dark and light."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FloatRect, Locator, Page
from reproduction_data import everything, finding, turning
from test_page_in_browser import CONTRAST

from distrib.reproduction.evidence import ClaimSection
from distrib.reproduction.page import render_reproduction

Open = Callable[..., Page]
PHONE, DESKTOP = 390, 1440
NOTES = ["This is a small version of the report: 6 epochs where it had 15, <b>and less</b>."]


@pytest.fixture
def sections(tmp_path: Path) -> list[ClaimSection]:
    return everything(tmp_path / "reproduction")


def opened(
    sections: list[ClaimSection], folder: Path, open_page: Open, width: int = DESKTOP, **options: object
) -> Page:
    file = folder / "page.html"
    render_reproduction(sections, NOTES, file)
    return open_page(file, width, **options)


def box_of(found: Locator) -> FloatRect:
    box = found.bounding_box()
    assert box is not None
    return box


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_opens_without_an_error_fits_and_can_be_read(
    width: int, scheme: str, sections: list[ClaimSection], tmp_path: Path, open_page: Open
) -> None:
    page = opened(sections, tmp_path, open_page, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("[role=alert]").count() == 0
    assert page.locator("main > section").count() == len(sections)
    assert page.locator("[role=note]").inner_text() == NOTES[0]
    for section in sections:
        place = page.locator(f"#{section.id}")
        assert section.verdict.sentence in place.locator(".verdict").inner_text()
        assert section.verdict.holds in page.locator(f"tr:has(a[href='#{section.id}'])").inner_text()
        assert place.locator("figure svg").count() == len(section.charts)
        assert place.locator(".stroke").count() == sum(len(chart.lines) for chart in section.charts)
        assert place.locator("table").count() == len(section.tables)
    drawn = page.locator("svg").evaluate_all("found => found.map((each) => each.outerHTML).join()")
    assert "NaN" not in drawn
    assert "Infinity" not in drawn
    for selector in ("h1", "p", "th", "td", "caption", "figcaption b", ".line", "svg .tick", ".links a", "code"):
        assert min(page.evaluate(CONTRAST, selector), default=21) >= 4.5, selector


def test_the_reports_lines_are_dashed_and_the_values_are_read_off(
    sections: list[ClaimSection], tmp_path: Path, open_page: Open
) -> None:
    page = opened(sections, tmp_path, open_page)
    figure = page.locator("#batch-size figure").nth(1)
    assert figure.locator(".stroke.dashed").count() == 3
    assert figure.locator(".stroke:not(.dashed)").count() == 3
    dashes = figure.locator(".stroke").evaluate_all(
        "found => found.map((each) => getComputedStyle(each).strokeDasharray)"
    )
    assert [each == "none" for each in dashes] == [False, True] * 3
    figure.locator("svg").hover(position={"x": box_of(figure.locator("svg"))["width"] - 2, "y": 60})
    seen = figure.locator("output").all_inner_texts()
    assert seen[:2] == ["0.8253", "0.8410"]  # accuracy after epoch 15: the report's, and what was measured

    first = page.locator("#batch-size figure").first
    before = box_of(first.locator("svg"))["y"] - box_of(first)["y"]
    first.locator("svg").hover()
    assert all(first.locator("output").all_inner_texts())
    assert box_of(first.locator("svg"))["y"] - box_of(first)["y"] == before, "what appears moves nothing"


def test_one_epoch_is_a_point(tmp_path: Path, open_page: Open) -> None:
    page = opened([finding(tmp_path, "epochs", {20: turning(0.8)}, epochs=1)], tmp_path, open_page)
    assert page.locator("#epochs figure").count() == 2
    assert page.locator("#epochs .ring").count() == 5


def test_nothing_measured_is_a_page_too(tmp_path: Path, open_page: Open) -> None:
    page = opened([finding(tmp_path, "learning-rate", {})], tmp_path, open_page)
    assert "Too few runs finished" in page.locator(".verdict").inner_text()
    assert page.locator("#learning-rate").is_visible()


def test_without_scripts_the_tables_are_there(sections: list[ClaimSection], tmp_path: Path, open_page: Open) -> None:
    page = opened(sections, tmp_path, open_page, java_script_enabled=False)
    assert page.locator("#batch-size table:visible").count() == 4
    assert page.locator("figure:visible").count() == 0


def test_print_fits_the_paper(sections: list[ClaimSection], tmp_path: Path, open_page: Open) -> None:
    page = opened(sections, tmp_path, open_page, 720)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate(
        "[...document.querySelectorAll('.scroller')].every((each) => each.scrollWidth <= each.clientWidth + 1)"
    )
