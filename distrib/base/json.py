"""JSON as this project writes it: with null for every number that JSON does not have."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def to_json(value: Any, ascii_only: bool = False) -> str:
    """JSON for people and programs, with null for every NaN."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=ascii_only)
    return text.encode("utf-8", "backslashreplace").decode()  # bytes of a file's name that are no text


def finite(value: Any) -> Any:
    """The same value with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
