"""What every reader of files owes its user: what it has read, or one sentence."""

import unicodedata
from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from distrib.base.errors import UserError

T = TypeVar("T")


def read_or_told(call: Callable[[], T], *names: object, refusal: type[Exception] = UserError) -> T | None:
    """What a call returns; None where it is refused, by one sentence that has all these names in it."""
    try:
        return call()
    except refusal as error:
        check_sentence(str(error), *names)
        return None


def check_sentence(sentence: str, *names: object) -> None:
    """It is one line on any terminal, and says no more than a person reads."""
    assert sentence.strip()
    steering = [character for character in sentence if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")]
    assert steering == [], sentence
    for name in names:
        assert str(name) in sentence


@st.composite
def edited(draw: st.DrawFn, content: bytes, junk: list[bytes]) -> bytes:
    """A file after up to three edits: of bytes, of words, or of lines."""
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["bytes", "word", "line"]))
        if kind == "bytes":
            start = draw(st.integers(0, len(content)))
            end = min(len(content), start + draw(st.sampled_from([0, 1, 2, 9, 1000])))
            content = content[:start] + draw(st.binary(max_size=3) | st.sampled_from(junk)) + content[end:]
            continue
        separator = b"\n" if kind == "line" else draw(st.sampled_from([b" ", b",", b":", b'"']))
        parts = content.split(separator)
        place = draw(st.integers(0, len(parts) - 1))
        parts[place : place + 1] = draw(
            st.sampled_from([[], [parts[place]] * 2, [parts[-1]], [draw(st.sampled_from(junk))]])
        )
        content = separator.join(parts)
    return content
