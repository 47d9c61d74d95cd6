"""Checks of what the user is told."""

from collections.abc import Callable

import pytest

from distrib.base.errors import UserError


def refusal(call: Callable[[], object], *parts: str) -> str:
    """The one sentence with which a call is refused; it has all these parts."""
    with pytest.raises(UserError) as error:
        call()
    sentence = str(error.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence
    return sentence
