"""What a server's pages are, as OpenAPI 3.1 has it: made from the pages themselves, so that it cannot be out of date.

What always holds: a body or an answer that a page names is described by the type it is read or written with, and every
answer that is no success by `FailureBody`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from quintain import __version__
from quintain.serving.refusals import FailureBody

if TYPE_CHECKING:
    from quintain.serving.app import Page

_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
_REFERENCES: Final = "#/components/schemas/{model}"


def openapi(pages: Sequence[Page]) -> dict[str, Any]:
    """The document of `pages`."""
    from pydantic import TypeAdapter

    kinds = {kind for page in pages for kind in (page.body, page.answer, FailureBody) if kind is not None}
    asked: list[tuple[Any, Any, Any]] = [
        (kind, "validation", TypeAdapter(kind)) for kind in sorted(kinds, key=lambda kind: kind.__name__)
    ]
    found, definitions = TypeAdapter.json_schemas(asked, ref_template=_REFERENCES)
    schemas = {kind: schema for (kind, _), schema in found.items()}
    paths: dict[str, dict[str, Any]] = {}
    for page in pages:
        operation: dict[str, Any] = {
            "operationId": f"{page.method.lower()}{re.sub(r'[^a-z]+', '_', page.path)}",
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in _PARAMETER.findall(page.path)
            ],
            "responses": {
                "2XX": {"description": "done", **_content(schemas, page.answer)},
                "default": {"description": "refused or failed", **_content(schemas, FailureBody)},
            },
        }
        if page.body is not None:
            operation["requestBody"] = {"required": True, **_content(schemas, page.body)}
        paths.setdefault(_PARAMETER.sub(r"{\1}", page.path), {})[page.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "quintain", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", definitions)},
    }


def _content(schemas: dict[Any, Any], kind: type | None) -> dict[str, Any]:
    return {} if kind is None else {"content": {"application/json": {"schema": schemas[kind]}}}
