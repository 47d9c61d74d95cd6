"""The report reproduced: its findings beside what was measured, as one HTML file and as Markdown."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrib.reporting.page import compose, render, write_page
from distrib.studies.evidence import Section, Table

# How a verdict is marked beside its words.
MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "no claim": "·"}


def render_reproduction(sections: Sequence[Section], notes: Sequence[str], file: Path) -> None:
    """Write the page.

    Args:
        sections: a finding each.
        notes: what was done otherwise than in the report.
        file: to write; the links of the sections are relative to its folder.

    Raises:
        UserError: if it cannot be written.
    """
    numbers = {
        section.id: [
            {
                "title": chart.title,
                "lines": [{"label": label, "values": values} for label, values in chart.lines.items()],
            }
            for chart in section.charts
        ]
        for section in sections
    }
    parts = [
        {"id": section.id, "title": section.title,
         "html": render("reproduction/section.html.j2", {"section": section, "marks": MARKS})}
        for section in sections
    ]  # fmt: skip
    context: dict[str, Any] = {
        "title": "The report reproduced",
        "headline": headline(sections),
        "sections": sections,
        "marks": MARKS,
        "notes": notes,
        "parts": parts,
    }
    write_page(file, compose("reproduction.html.j2", "reproduction.js", numbers, context))


def to_markdown(sections: Sequence[Section], notes: Sequence[str]) -> str:
    """The same as Markdown, as it can be put into documentation."""
    lines = ["# The report reproduced", "", headline(sections) + ".", ""]
    for note in notes:
        lines += [f"> {_escaped(note)}", ""]
    lines += ["| finding | of the report | its conclusion |", "|---|---|---|"]
    lines += [
        f"| [{each.title}](#{_anchor(each.title)}) | {each.source} | {MARKS[each.holds]} {each.holds} |"
        for each in sections
    ]
    for section in sections:
        lines += ["", f"## {section.title}", "", f"**The report ({section.source}):** {_escaped(section.claim)}", ""]
        lines += [f"**{section.holds.capitalize()}.** {_escaped(section.verdict)}", ""]
        for note in section.notes:
            lines += [_escaped(note), ""]
        for table in section.tables:
            lines += [*_markdown_table(table), ""]
        lines += [", ".join(f"[{label}]({link})" for label, link in section.links.items())]
    return "\n".join(lines) + "\n"


def headline(sections: Sequence[Section]) -> str:
    """How many of the report's conclusions hold."""
    claims = [section for section in sections if section.holds != "no claim"]
    held, failed, open_ = (
        sum(section.holds == verdict for section in claims) for verdict in ("holds", "does not hold", "undecided")
    )
    if not claims:
        return "The report's figures, made again"
    count = f"{len(claims)} conclusions" if len(claims) > 1 else "one conclusion"
    return (
        f"Of {count} of the report {held} hold{'s' * (held == 1)}, {failed} do{'es' * (failed == 1)} not, {open_} "
        + ("is undecided" if open_ == 1 else "are undecided")
    )


def _markdown_table(table: Table) -> list[str]:
    rows = [f"| {' | '.join(map(_escaped, row))} |" for row in (table.header, *table.rows)]
    return [f"*{_escaped(table.caption)}*", "", rows[0], "|" + "---|" * len(table.header), *rows[1:]]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace(os.linesep, " ")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
