"""Numbers, names and lists as people read them."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from distrib.base.errors import printable

DASH, MINUS = "–", "−"  # noqa: RUF001
SPACE = "\N{NO-BREAK SPACE}"


def nearest(word: str, valid: Sequence[str] | Mapping[str, str]) -> str:
    """` (did you mean X?)` for the valid word nearest to this one, or nothing where none is near.

    A mapping goes from the spellings that are compared to the word that is suggested.
    """
    spellings = valid if isinstance(valid, Mapping) else {each: each for each in valid}
    lowered = {each.lower(): target for each, target in spellings.items()}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f" (did you mean {lowered[close[0]]}?)" if close else ""


def few(names: Sequence[str]) -> str:
    """The first three of these names for a sentence."""
    # Names on disk may hold line ends and bytes that are no text.
    shown = ", ".join(printable(name) for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def listed(names: Sequence[str]) -> str:
    """The first three of these names for a sentence, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def words(attribute: str, present: bool = True) -> str:
    """An attribute, or its absence, as people read it: "Not Arched Eyebrows"."""
    return f"{'' if present else 'Not '}{attribute.replace('_', ' ')}"


def number(value: Any, digits: int = 3) -> str:
    """A number with this many decimals, a dash for what is none; text stays as it is."""
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    """A difference with its sign, a dash for what is none."""
    text = number(value, digits)
    return f"+{text}" if text != DASH and value > 0 else text


def percent(value: Any, digits: int = 0) -> str:
    """A share as a percentage, a dash for what is none; what is not 0 or 1 is not written as 0 or 100 %."""
    if number(value) == DASH:
        return DASH
    text, least = f"{100 * value:.{digits}f}", 10.0**-digits
    if value > 0 and float(text) == 0:
        return f"<{SPACE}{least:.{digits}f}{SPACE}%"
    if value < 1 and float(text) == 100:
        return f">{SPACE}{100 - least:.{digits}f}{SPACE}%"
    return f"{text}{SPACE}%"


def whole(value: Any) -> str:
    """A count with its thousands apart, a dash for what is none."""
    return DASH if number(value) == DASH else f"{round(value):,}"


def duration(seconds: float) -> str:
    """A time in its two largest units, a dash for what is none."""
    if not math.isfinite(seconds):
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(count: int, word: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def data_size(size: int) -> str:
    """A number of bytes as people read it: "18.9 GB", "23.1 MB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
