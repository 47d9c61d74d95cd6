"""The report page as a file: what is in it, and what it says where something is missing."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_data import EVIL_ATTRIBUTE, EVIL_FILE, JOBS, read_job, write_job, write_run
from sentences import refusal

from distrib.reporting.page import LARGEST_BYTES, TEMPLATES, curve_charts, render_report
from distrib.reporting.panels import PANELS, SECTIONS

# Elements that have no end.
VOID = {"meta", "link", "input", "img", "br"}


class Parsed(HTMLParser):
    """The elements of a page, and its text without scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.text += data


def parsed(run: Path) -> Parsed:
    return Parsed((run / "report" / "index.html").read_text(encoding="utf-8"))


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A run folder of one's own."""
    folder = tmp_path / "run"
    (folder / "report" / "data").mkdir(parents=True)
    for file in (small_run / "report" / "data").iterdir():
        (folder / "report" / "data" / file.name).write_bytes(file.read_bytes())
    return folder


def test_one_file_that_asks_for_nothing(large_run: Path) -> None:
    page = parsed(large_run)
    assert (large_run / "report" / "index.html").stat().st_size < LARGEST_BYTES
    assert not list((large_run / "report").glob(".*"))
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    policies = [a["content"] or "" for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:; ")
    assert "http" not in policies[0]


def test_every_section_is_there_and_none_is_missing(run: Path) -> None:
    page = parsed(run)
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [section.id for section in SECTIONS]
    assert not [a for _, a in page.elements if "absent" in (a.get("class") or "").split()]
    overview = read_job(run, "overview")
    assert overview["headline"] in page.text
    for label, text in overview["facts"]:
        assert label in page.text
        assert text in page.text
    for card in overview["cards"]:
        assert f"{card['value']:.3f}" in page.text
    assert "Arched Eyebrows" in page.text
    assert "Arched_Eyebrows" not in page.text.replace(overview["config"], "").partition("Configuration")[0]


def test_the_table_of_epochs_is_metrics_csv(run: Path) -> None:
    with (run / "metrics.csv").open() as stream:
        header, *rows = csv.reader(stream)
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    table = html[html.index('aria-label="All epochs"') :]
    table = table[: table.index("</table>")]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", table) == header
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert len(cells) == len(header) * len(rows)
    for cell, value in zip(cells, (value for row in rows for value in row), strict=True):
        decimals = len(cell.partition(".")[2])
        assert float(cell) == pytest.approx(float(value), abs=0.51 * 10**-decimals)


def test_accuracy_and_balanced_accuracy_stand_side_by_side_at_each_kind_of_thresholds(run: Path) -> None:
    scores = read_job(run, "scores")
    table = re.search('id="by-thresholds">.*?</table>', (run / "report/index.html").read_text(), re.DOTALL)[0]  # type: ignore[index]
    rows = [re.findall('<td class="number"[^>]*>([^<]*)</td>', row) for row in table.split("<tr>")]
    told = [
        [
            f"{value:.3f}"
            for name in ("accuracy", "balanced_accuracy")
            for value in (row["test"][name], *(each[name] for each in row["by_thresholds"]["test"].values()))
        ]
        for row in (*scores["attributes"], scores["means"])
    ]
    assert [row for row in rows if row] == told
    assert len(told[0]) == 8
    assert "validation for the best F1" in " ".join(parsed(run).text.split())


def test_scores_of_an_earlier_version_have_thresholds_for_f1_alone(copy: Path) -> None:
    scores = read_job(copy, "scores")
    del scores["tuned_for"], scores["means"]["by_thresholds"]
    for row in scores["attributes"]:
        del row["by_thresholds"]
    write_job(copy, "scores", scores)
    render_report(copy)
    page = (copy / "report/index.html").read_text()
    assert "by-thresholds" not in page.partition("<script")[0]
    assert "are missing" not in page
    assert "validation for the best F1" in parsed(copy).text


def test_names_from_the_data_are_text(suspicious_run: Path) -> None:
    page = parsed(suspicious_run)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == 2  # the numbers and the page's own script
    assert not [a for tag, a in page.elements if tag == "img" and a.get("src") == "x"]
    assert EVIL_ATTRIBUTE in page.text
    assert EVIL_FILE in page.text


@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_is_missing_is_named_with_its_remedy(job: str, copy: Path) -> None:
    (copy / "report" / "data" / f"{job}.json").unlink()
    render_report(copy)
    page = parsed(copy)
    title = PANELS[job].title
    assert title in page.text
    remedy = f"distrib explain {copy} --only {job}"
    assert f"not made yet. Make {'them' if title.endswith('s') else 'it'} with {remedy}" in page.text
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == [section.id for section in SECTIONS]


def test_a_section_shows_what_is_registered_for_it_and_everything_is_shown() -> None:
    assert set(JOBS) == set(PANELS)
    shown = {name for section in SECTIONS for name in section.panels}
    assert shown == set(PANELS)
    for section in SECTIONS:
        template = (TEMPLATES / "parts" / f"{section.id}.html.j2").read_text()
        assert set(re.findall(r"jobs\.(\w+)", template)) == set(section.panels)


@pytest.mark.parametrize("job", ["overview", "operating"])
def test_the_report_of_an_earlier_version_is_read(job: str, copy: Path) -> None:
    """These two were kept without what the jobs' files say beside their data."""
    (copy / "report" / "data" / f"{job}.json").write_text(json.dumps(read_job(copy, job)))
    render_report(copy)
    assert not [a for _, a in parsed(copy).elements if a.get("class") == "absent"]


def test_a_job_that_failed_says_why_and_leaves_the_others(copy: Path) -> None:
    write_job(copy, "occlusion", None, error="the window <b>exceeds</b> the image")
    render_report(copy)
    page = parsed(copy)
    assert "Occlusion maps are missing: the window <b>exceeds</b> the image. Make them with" in page.text
    assert "--only occlusion" in page.text
    assert page.text.count("Grad-CAM maps are missing") == 0
    absent = [a for _, a in page.elements if a.get("class") == "absent"]
    assert len(absent) == 1


def test_the_sample_that_the_truth_is_judged_on_is_stated(copy: Path) -> None:
    render_report(copy)
    assert "on 100 of the 240 test images." in parsed(copy).text
    found = read_job(copy, "truth")
    write_job(copy, "truth", {**found, "test_images": 100})
    render_report(copy)
    assert "on 100 test images." in parsed(copy).text
    del found["test_images"]  # a report of an earlier version
    write_job(copy, "truth", found)
    render_report(copy)
    assert "on 100 test images." in parsed(copy).text


def test_what_is_still_to_come_is_said_where_it_will_be(copy: Path) -> None:
    """What an earlier report has left of it is shown until then."""
    (copy / "report" / "data" / "occlusion.json").unlink()
    render_report(copy, to_come=("occlusion", "truth"))
    page = parsed(copy)
    assert "This report is being made. Still to come: Occlusion maps. Reload this page" in page.text
    assert "Occlusion maps are still to come: reload this page when the report is finished." in page.text
    assert f"make them with distrib explain {copy} --only occlusion" in page.text
    assert "missing" not in page.text
    assert "Is it true?" in page.text


def test_a_file_that_cannot_be_read_is_named(copy: Path) -> None:
    (copy / "report" / "data" / "curves.json").write_text('{"job": "curves", "err')
    render_report(copy)
    assert "Learning curves are missing: report/data/curves.json cannot be read" in parsed(copy).text


def test_data_of_another_shape_cost_their_section_alone(copy: Path) -> None:
    write_job(copy, "calibration", {"attributes": "none"})
    render_report(copy)
    page = parsed(copy)
    assert "This section could not be made: its data are not as expected" in page.text
    assert f"distrib explain {copy} --only calibration" in page.text
    assert len([a for _, a in page.elements if a.get("class") == "absent"]) == 1


def test_an_overview_of_another_shape_costs_the_opening_alone(copy: Path) -> None:
    write_job(copy, "overview", {"headline": "It learnt"})
    render_report(copy)
    page = parsed(copy)
    assert page.text.count("its data are not as expected") == 2  # the opening, and how it was made
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [section.id for section in SECTIONS]


def test_a_trained_network_has_a_line_beside_its_average() -> None:
    columns = ["epoch", "train_loss", "val_loss", "val_f1", "val_loss_raw"]
    lines = {chart["id"]: dict(chart["lines"]) for chart in curve_charts(columns)}
    assert lines == {
        "loss": {"training": "train_loss", "validation": "val_loss", "unaveraged": "val_loss_raw"},
        "f1": {"validation": "val_f1"},
    }


def test_nothing_but_the_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "report" / "data").mkdir(parents=True)
    page = Parsed(render_report(tmp_path).read_text(encoding="utf-8"))
    assert len([a for _, a in page.elements if a.get("class") == "absent"]) >= len(SECTIONS)


def test_undefined_values_are_dashes(copy: Path) -> None:
    scores = read_job(copy, "scores")
    scores["attributes"][0]["test"] = dict.fromkeys(scores["attributes"][0]["test"])
    scores["attributes"][0]["interval"] = {"roc_auc": [None, None], "f1": None}
    write_job(copy, "scores", scores)
    render_report(copy)
    html = (copy / "report" / "index.html").read_text(encoding="utf-8")
    row = html[html.index('<tr data-name="Arched_Eyebrows">') :]
    row = row[: row.index("</tr>")]
    assert row.count("<span>–</span>") == len(scores["attributes"][0]["test"])  # noqa: RUF001
    assert "nan" not in row.lower()
    assert "None" not in row


def test_a_page_that_would_be_too_large_shows_fewer_mistakes_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", attributes=("Smiling", "Male"), epochs=1, images=60)
    random = np.random.default_rng(0)
    mistakes = read_job(run, "mistakes")
    for attribute in mistakes["attributes"]:
        for kind in ("false_positives", "false_negatives"):
            attribute[kind] = [{"file": f"{i}.png", "image": noise(random), "label": 0, "probability": 0.9}
                               for i in range(6)]  # fmt: skip
    write_job(run, "mistakes", mistakes)
    page = render_report(run)
    assert 5e6 < page.stat().st_size < LARGEST_BYTES
    assert "at most 4 of each attribute's mistakes are shown" in Parsed(page.read_text(encoding="utf-8")).text


def noise(random: np.random.Generator) -> str:
    """An image of about 0.4 MB that no compression makes smaller."""
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (330, 330, 3), np.uint8)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def test_pictures_are_held_once(run: Path) -> None:
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    picture = next(iter(read_job(run, "occlusion")["pictures"].values()))
    assert html.count(picture) == 1
    numbers = html[html.index('<script type="application/json"') :]
    assert "data:image" not in numbers


def test_the_numbers_for_the_script_are_the_jobs_own(run: Path) -> None:
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert text is not None
    numbers = json.loads(text[1])
    for job in ("curves", "scores", "operating", "calibration", "fairness", "correlation"):
        assert numbers[job] == read_job(run, job)


def test_a_run_without_report_data_is_refused(tmp_path: Path) -> None:
    refusal(lambda: render_report(tmp_path), str(tmp_path), "report/data", "distrib explain")


def test_a_page_that_cannot_be_written_is_a_sentence(copy: Path) -> None:
    (copy / "report" / "index.html").mkdir()
    refusal(lambda: render_report(copy), "index.html cannot be written")
    assert not list((copy / "report").glob(".*"))
