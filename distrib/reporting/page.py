"""The report page of a run: what the jobs found out, as one HTML file that needs nothing else.

Styles, script, data and images are all in the file, and its Content-Security-Policy forbids every request. Whatever
comes from the data is escaped by Jinja2, or set as text by the script; should that ever fail, the policy lets no script
run but the page's own, which it knows by its SHA-256.

A section whose data are missing, or which cannot be made of them, says so and leaves the others alone.
"""

import base64
import binascii
import hashlib
import io
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from distrib.base.errors import UserError
from distrib.base.files import write_whole
from distrib.base.json import finite
from distrib.base.words import DASH, number, percent, signed, whole, words
from distrib.config import SCORES
from distrib.reporting.panels import OPENING, PANELS, SECTIONS, Section
from distrib.scoring.metrics import TITLES

TEMPLATES = Path(__file__).parent / "templates"
# A page that is larger shows fewer of each attribute's mistakes, and says so.
LARGEST_BYTES = 10_000_000
MISTAKES = (6, 4, 2, 1)

# A line in a chart of scores, and how its column is named after the score; unaveraged: where `train.ema` is set.
LINES = (("training", "train_{}"), ("validation", "val_{}"), ("unaveraged", "val_{}_raw"), ("", "{}"))
SCORE_MEANINGS = {
    "accuracy": "the share of images that are answered rightly",
    "balanced_accuracy": "the mean of two shares: of images with the attribute that are found, and of those without "
    "it that are left alone; guessing gets 0.5 however rare the attribute is",
    "precision": "of the images that the model says have the attribute, the share that have it",
    "recall": "of the images that have the attribute, the share that the model finds",
    "f1": "precision and recall in one number, their harmonic mean",
    "roc_auc": "how often an image with the attribute gets a higher probability than one without it; guessing gets "
    "0.5; no threshold is involved",
    "average_precision": "the mean precision over all levels of recall; guessing gets the share of positives; no "
    "threshold is involved",
    "loss": "binary cross-entropy, what training makes small: 0 is certain and right, 0.69 is a coin",
}  # fmt: skip


@dataclass(frozen=True)
class PanelResult:
    """What a job left behind.

    Attributes:
        name: of the job, which is also its file's.
        data: what it found; None where there is nothing to show.
        problem: why there is nothing, as the end of a sentence; empty where there is something.
        remedy: the command that makes it.
        to_come: whether the report that is being made has not come to it yet.
    """

    name: str
    data: Mapping[str, Any] | None
    problem: str
    remedy: str
    to_come: bool = False

    @property
    def title(self) -> str:
        """What it makes."""
        return PANELS[self.name].title


@dataclass(frozen=True)
class Picture:
    """An image that the page holds once, however often it shows it.

    Attributes:
        id: of the `<image>` that `<use>` refers to.
        uri: its data.
        width: in pixels.
        height: in pixels.
    """

    id: str
    uri: str
    width: int
    height: int


class Album(dict[str, Picture]):
    """The images of a page by their data URIs; one that is new is added.

    Raises:
        ValueError: if it is not an image in a data URI.
    """

    def __missing__(self, uri: str) -> Picture:
        head, _, body = uri.partition(";base64,")
        if not head.startswith("data:image/"):
            raise ValueError(f"expected an image as a data URI, and found {uri[:40]!r}")
        try:
            with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
                width, height = image.size
        except (binascii.Error, OSError) as error:
            raise ValueError(f"an image cannot be read: {error}") from None
        self[uri] = Picture(f"picture-{len(self)}", uri, width, height)
        return self[uri]


def render_report(folder: Path, to_come: Collection[str] = ()) -> Path:
    """Write RUN/report/index.html from RUN/report/data/*.json.

    Args:
        folder: of the run.
        to_come: jobs that are still to be done, whose files may not be there yet.

    Returns:
        The page.

    Raises:
        UserError: if the run has no report data, or the page cannot be written.
    """
    if not (folder / "report" / "data").is_dir():
        raise UserError(
            f"{folder} has no report/data to make a page of: make it with `distrib explain {shlex.quote(str(folder))}`"
        )
    jobs = {name: read_job(folder, name) for name in PANELS}
    for name in to_come:
        if jobs[name].data is None:
            jobs[name] = replace(jobs[name], to_come=True)
    for shown in MISTAKES:
        page = report_html(folder, jobs, shown)
        if len(page.encode()) < LARGEST_BYTES:
            break
    file = folder / "report" / "index.html"
    write_page(file, page)
    return file


def read_job(folder: Path, name: str) -> PanelResult:
    """What a job left in RUN/report/data, or why there is nothing."""
    remedy = f"distrib explain {shlex.quote(str(folder))} --only {name}"
    file = folder / "report" / "data" / f"{name}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        # Reports of earlier versions have their overview and operating points as they are.
        error, data = (content["error"], content["data"]) if "job" in content else (None, content)
        if error is None and not isinstance(data, dict):
            raise TypeError(f"expected an object, and found {type(data).__name__}")
    except FileNotFoundError:
        return PanelResult(name, None, "not made yet", remedy)
    except (OSError, ValueError, KeyError, TypeError) as failure:
        return PanelResult(name, None, f"report/data/{name}.json cannot be read ({failure})", remedy)
    if error is not None:
        return PanelResult(name, None, str(error), remedy)
    return PanelResult(name, data, "", remedy)


def report_html(folder: Path, jobs: Mapping[str, PanelResult], mistakes: int) -> str:
    """The whole page.

    Args:
        folder: of the run.
        jobs: every job by its name.
        mistakes: cards of each kind and attribute that are shown at most.
    """
    album = Album()
    attributes = _attributes(jobs)
    context = {
        "name": folder.resolve().name,
        "jobs": jobs,
        "attributes": attributes,
        "album": album,
        "figure": lambda name: _figure(folder, name),
        "mistakes_shown": mistakes,
        "command": f"distrib explain {shlex.quote(str(folder))}",
    }
    parts = [_render_part(section, context) for section in SECTIONS]
    # The script gets the numbers it moves, not the images, and nothing of a section that could not be made.
    made = {name for section, part in zip(SECTIONS, parts, strict=True) if part["made"] for name in section.panels}
    numbers = {
        name: jobs[name].data
        for name, panel in PANELS.items()
        if panel.moves and name in made and jobs[name].data is not None
    }
    return compose(
        "report.html.j2",
        "report.js",
        {"attributes": attributes, **numbers},
        {
            "title": context["name"],
            "opening": _render_part(OPENING, context),
            "to_come": [job.title for job in jobs.values() if job.to_come],
            "parts": parts,
            "pictures": album.values(),
        },
    )


def _render_part(section: Section, context: Mapping[str, Any]) -> dict[str, Any]:
    """A section's anchor, title and HTML, and whether it could be made; if not, the HTML says why."""
    try:
        html, made = render(f"parts/{section.id}.html.j2", context), True
    except Exception as error:
        # The data may be of an older version or half edited; whatever is wrong with them is this section's alone.
        problem = f"its data are not as expected ({type(error).__name__}: {error})"
        remedy = " ".join([context["command"], "--only", *section.panels])
        html, made = render("parts/broken.html.j2", {"problem": problem, "remedy": remedy}), False
    return {"id": section.id, "title": section.title, "html": html, "made": made}


def _attributes(jobs: Mapping[str, PanelResult]) -> list[str]:
    """The names of the attributes, from the first job that has them."""
    for name in ("scores", "operating", "calibration", "occlusion", "mistakes"):
        data = jobs[name].data
        if data and isinstance(data.get("attributes"), list):
            return [str(each["name"]) for each in data["attributes"] if isinstance(each, dict) and "name" in each]
    return []


def _figure(folder: Path, name: str) -> str | None:
    """RUN/report/figures/NAME.png as a data URI, for readers without scripts; None where there is none."""
    try:
        content = (folder / "report" / "figures" / f"{name}.png").read_bytes()
    except OSError:
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def compose(template: str, script: str, numbers: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """A page from its template, with styles, scripts and data inlined.

    Args:
        template: the page's file in templates/.
        script: its own script there, beside those of all pages.
        numbers: what the script reads as JSON.
        context: what the template reads.
    """
    code = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("charts.js", "page.js", script))
    code = f'"use strict";\n(() => {{\n{code}}})();\n'
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    style = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return render(
        template,
        {**context, "numbers": finite(numbers), "style": style, "script": Markup(code), "script_digest": digest},
    )


def render(template: str, context: Mapping[str, Any]) -> Markup:
    """The HTML of a template.

    Args:
        template: its file in templates/.
        context: what it reads; all text in it is escaped.
    """
    return Markup(_environment().get_template(template).render(context))


def write_page(file: Path, page: str) -> None:
    """Write a page whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_whole(file, page)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another place, or make room") from None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters.update(
        words=words,
        number=number,
        signed=signed,
        percent=percent,
        whole=whole,
        score=score_name,
        score_in_text=score_in_text,
    )
    environment.globals.update(SCORES=SCORES, SCORE_MEANINGS=SCORE_MEANINGS, curve_charts=curve_charts, DASH=DASH)
    return environment


def score_name(name: str) -> str:
    """A score, or another column of metrics.csv, as people write it."""
    title = score_in_text(name)
    return title[:1].upper() + title[1:]


def score_in_text(name: str) -> str:
    """The same within a sentence."""
    return "learning rate" if name == "lr" else TITLES.get(name, words(name))


def curve_charts(columns: Sequence[str]) -> list[dict[str, Any]]:
    """The charts of metrics.csv: one for each score, with training and validation in it where both are known.

    Args:
        columns: the header.

    Returns:
        For each chart its id, its title, its lines with the column of each, and the decimals of its values.
    """
    charts = []
    for name in (*SCORES, "lr"):
        lines = [(line, named.format(name)) for line, named in LINES if named.format(name) in columns]
        if lines:
            charts.append({"id": name, "title": score_name(name), "lines": lines, "digits": 5 if name == "lr" else 3})
    return charts
