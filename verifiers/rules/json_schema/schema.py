"""A schema made ready: nothing in it is ignored, and its patterns are Python's.

What always holds: a keyword that no draft knows, a format that cannot be checked and a pattern that Python cannot say
raise ValueError, since each would let pass what the schema refuses. `x-…` are remarks.
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import Any, Final
from urllib.parse import quote

from jsonschema import FormatChecker
from jsonschema_specifications import REGISTRY
from rfc3986_validator import validate_rfc3986

BY_NAME: Final = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
"""Keywords whose values are schemas by names that are no keywords."""
DATA: Final = frozenset({"enum", "const", "default", "examples", "required", "dependentRequired", "$vocabulary"})
"""Keywords whose values hold no schemas."""
FORMATS: Final = FormatChecker()
"""The formats that can be checked. IRIs are, as the URIs that RFC 3987 makes of them (section 3.1): the package that
jsonschema has for them builds 38 grammars at import, which takes seconds of every start."""
_ECMA = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?<(?![=!])|\$", re.DOTALL)
_CLASSES: Final = {r"\d": "0-9", r"\w": "A-Za-z0-9_"}


def _is_uri(data: object, rule: str) -> bool:
    mapped = re.sub(r"[^\x00-\x7f]", lambda char: quote(char[0]), data) if isinstance(data, str) else None
    return mapped is None or validate_rfc3986(mapped, rule=rule) is not None


FORMATS.checks("iri", ValueError)(partial(_is_uri, rule="URI"))
FORMATS.checks("iri-reference", ValueError)(partial(_is_uri, rule="URI_reference"))


def prepared(schema: Any, *, formats: bool) -> Any:
    """`schema`, checked, with patterns for `re`; `formats` says that they are checked too. Raises ValueError."""
    if isinstance(schema, list):
        return [prepared(part, formats=formats) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key not in keywords() and not key.startswith("x-"):
            raise ValueError(f"no draft has the keyword {key!r}")
        if key == "format" and formats and isinstance(value, str) and value not in FORMATS.checkers:
            raise ValueError(f"the format {value!r} cannot be checked")
        if key in BY_NAME and isinstance(value, dict):
            names = map(python_pattern, value) if key == "patternProperties" else value
            value = dict(zip(names, (prepared(part, formats=formats) for part in value.values()), strict=True))
        elif key == "pattern" and isinstance(value, str):
            value = python_pattern(value)
        elif key not in DATA:
            value = prepared(value, formats=formats)
        found[key] = value
    return found


@cache
def keywords() -> frozenset[str]:
    """All keywords of all drafts."""
    found: set[str] = set()
    for resource in REGISTRY:
        found |= set(REGISTRY.contents(resource).get("properties", {}))
    return frozenset(found)


def python_pattern(pattern: str) -> str:
    """The ECMA-262 regular expression `pattern` for Python. Raises ValueError where Python cannot say it."""
    said = _ECMA.sub(_python, pattern)
    try:
        re.compile(said)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is not one that Python can read: {error}") from None
    return said


def _python(found: re.Match[str]) -> str:
    part = found[0]
    if part == "$":
        return r"\Z"  # Python's also matches before a last line's end
    if part == "(?<":
        return "(?P<"
    if part[0] == "[":
        return re.sub(r"\\[dw]", lambda escape: _CLASSES[escape[0]], part)
    return f"[{_CLASSES[part]}]" if part in _CLASSES else part
