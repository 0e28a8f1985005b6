"""The JSON-schema verifier: the reference is a JSON Schema (a mapping, or its JSON text), the answer is data.

A schema may stand in a tool or a response format, as OpenAI, Anthropic and MCP have them. One with a keyword that no
draft knows (`requierd`), or with a format that cannot be checked where formats are, is a `bad_reference`: it would let
pass what it should refuse. Patterns are read as ECMA-262 has them.

The data is the last fenced block of its language, or else the whole answer; it is read as JSON, YAML, TOML or XML
(see `read`) and validated by `jsonschema`, under the draft that the schema names, else
2020-12. Both happen in killable workers: a schema's `pattern` may take for ever on a hostile answer.

Score 1 where the data is valid, 0 where it is not; what cannot be read is `unparsable`, a schema that is none, or
refers to a schema elsewhere (nothing is ever fetched), a `bad_reference`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final, Literal

from quintain.fences import last_fence
from quintain.verdict import Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.options import Options, Positive, TextOptions, WorkerOptions
from quintain.verifiers.pure import bad_reference, unparsable
from quintain.verifiers.workers.verifier import PooledVerifier

WRAPPERS: Final = ("json_schema", "function", "schema", "parameters", "inputSchema", "input_schema")
KEYWORDS: Final = frozenset({"$ref", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf", "required"})
"""A mapping with one of these is a schema itself."""


class JsonSchemaOptions(WorkerOptions, TextOptions):
    """Options of the JSON-schema verifier."""

    syntax: Literal["json", "yaml", "toml", "xml"] = "json"
    """What the data is written in."""
    extract: Literal["fence_or_whole", "fence", "whole"] = "fence_or_whole"
    """Where the data is: in the last fenced block of its language, or the whole answer."""
    check_formats: bool = False
    """Whether the schema's `format` (date, email, ipv4, …) is checked; by default it is a remark, as in 2020-12."""
    xml_scalars: Literal["text", "json"] = "text"
    """Whether "5" and "true" in XML are texts, or the number and the truth value that they are in JSON."""
    max_chars: Positive = 100_000
    """Longer data is not read: it is `unparsable`."""


class JsonSchemaVerifier(PooledVerifier[JsonSchemaOptions]):
    """Judges whether an answer is valid data."""

    name: ClassVar[str] = "json_schema"
    options_type: ClassVar[type[Options]] = JsonSchemaOptions
    check: ClassVar[str] = "quintain.verifiers.rules.json_schema.check:check"
    needs: ClassVar[tuple[str, str] | None] = ("jsonschema", "schema")

    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """What the worker is asked."""
        schema = item.reference
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError):
                schema = None
        schema = unwrapped(schema)
        if not isinstance(schema, dict):
            return bad_reference("a JSON Schema: a mapping, or its JSON text", item.reference)
        options = self.options
        text = options.answer_in(item.answer)
        if text and options.extract != "whole":
            block = last_fence(text, frozenset({options.syntax, "yml" if options.syntax == "yaml" else "", ""}))
            text = block if block is not None else text if options.extract == "fence_or_whole" else None
        if not text or not text.strip():
            return unparsable("there is no data in the answer")
        if len(text) > options.max_chars:
            return unparsable(f"the data has {len(text):,} characters, and at most {options.max_chars:,} are read")
        return {
            "text": text,
            "syntax": options.syntax,
            "xml_scalars": options.xml_scalars,
            "schema": schema,
            "check_formats": options.check_formats,
        }


def unwrapped(schema: Any) -> Any:
    """The JSON Schema in what OpenAI, Anthropic and MCP wrap around one: a response format or a tool."""
    if not isinstance(schema, dict) or (schema.get("type") not in (None, "json_schema", "function")):
        return schema
    inner = next((schema[key] for key in WRAPPERS if isinstance(schema.get(key), dict)), None)
    return schema if inner is None or KEYWORDS & set(schema) else unwrapped(inner)
