"""JSON as its standard has it, and no more: no key twice, no NaN, no number that is infinite."""

from __future__ import annotations

import json
import math
from typing import Any


class NotJson(ValueError):
    """The text is no strict JSON; the message says why, in a few words."""


def read_json(text: str) -> Any:
    """The value that `text` is. Raises NotJson, and RecursionError where it is nested too deeply."""
    try:
        return STRICT.decode(text)
    except NotJson:
        raise
    except ValueError as error:
        raise NotJson(f"it is no JSON: {error}") from None


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with the keys and values `pairs`. Raises NotJson for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotJson("a key is given twice")
    return found


def _no_constant(name: str) -> None:
    raise NotJson(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson("a number is infinite")
    return number


STRICT = json.JSONDecoder(object_pairs_hook=distinct, parse_constant=_no_constant, parse_float=_finite)
