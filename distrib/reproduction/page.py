"""The report reproduced: its findings beside what was measured, as one HTML file and as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distrib.reporting.page import compose, render, write_page
from distrib.reproduction.evidence import ClaimSection, ShownTable

# How a verdict is marked beside its words.
MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "no claim": "·"}


def render_reproduction(sections: Sequence[ClaimSection], notes: Sequence[str], file: Path) -> None:
    """Write the page.

    Args:
        sections: a finding each.
        notes: what was done differently from the report.
        file: to write; the links of the sections are relative to its folder.

    Raises:
        UserError: if it cannot be written.
    """
    numbers = {section.id: [asdict(chart) for chart in section.charts] for section in sections}
    parts = [
        {"id": section.id, "title": section.finding.title,
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


def to_markdown(sections: Sequence[ClaimSection], notes: Sequence[str]) -> str:
    """The same as Markdown, as it can be put into documentation: with no links to what is beside the page."""
    lines = ["# The report reproduced", "", headline(sections) + ".", ""]
    for note in notes:
        lines += [f"> {_escaped(note)}", ""]
    lines += ["| finding | of the report | its conclusion |", "|---|---|---|"]
    lines += [
        f"| [{each.finding.title}](#{_anchor(each.finding.title)}) | {each.finding.source} | "
        f"{MARKS[each.verdict.holds]} {each.verdict.holds} |"
        for each in sections
    ]
    for section in sections:
        finding, verdict = section.finding, section.verdict
        lines += ["", f"## {finding.title}", ""]
        lines += [f"**The report ({finding.source}):** {_escaped(finding.claim)}", ""]
        lines += [f"**{verdict.holds.capitalize()}.** {_escaped(verdict.sentence)}", ""]
        for note in section.notes:
            lines += [_escaped(note), ""]
        for table in section.tables:
            lines += [*_markdown_table(table), ""]
        lines += [f"Study: `configs/report/{section.id}.yaml`"]
    return "\n".join(lines) + "\n"


def headline(sections: Sequence[ClaimSection]) -> str:
    """How many of the report's conclusions hold."""
    claims = [section.verdict.holds for section in sections if section.verdict.holds != "no claim"]
    if not claims:
        return "What the report draws no conclusion on, made again"
    if len(claims) == 1:
        return f"The conclusion of the report {'is undecided' if claims[0] == 'undecided' else claims[0]}"
    held, failed, open_ = claims.count("holds"), claims.count("does not hold"), claims.count("undecided")
    return (
        f"Of {len(claims)} conclusions of the report {held} hold{'s' * (held == 1)}, "
        f"{failed} do{'es' * (failed == 1)} not, {open_} {'is' if open_ == 1 else 'are'} undecided"
    )


def _markdown_table(table: ShownTable) -> list[str]:
    rows = [f"| {' | '.join(map(_escaped, row))} |" for row in (table.header, *table.rows)]
    return [f"*{_escaped(table.caption)}*", "", rows[0], "|" + "---|" * len(table.header), *rows[1:]]


def _escaped(text: str) -> str:
    return re.sub(r"([|<])", r"\\\1", " ".join(text.split()))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
