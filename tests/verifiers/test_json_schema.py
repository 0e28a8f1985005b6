"""The JSON-schema verifier: four syntaxes, and what hostile data and schemas do to it (nothing)."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.rules.json_schema.read import NotData, read

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
STRING = {"properties": {"a": {"type": "string"}}, "required": ["a"]}
BILLION_LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><lolz>&c;</lolz>'
)
ALIAS_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]"

TABLE: dict[str, list[tuple[str, Any, Outcome]]] = {
    "json": [
        ('{"name": "Ada", "age": 36}', PERSON, Outcome.CORRECT),
        ('{"name": "Ada", "age": 36}', json.dumps(PERSON), Outcome.CORRECT),
        ('{"name": "Ada", "age": -1}', PERSON, Outcome.WRONG),
        ('{"age": 36}', PERSON, Outcome.WRONG),
        ('{"name": "Ada", "x": 1}', PERSON, Outcome.WRONG),
        ('Here:\n```json\n{"name": "A"}\n```\nnot\n```python\n1\n```', PERSON, Outcome.CORRECT),
        ('```json\n{"name": 1}\n```\nbetter:\n```\n{"name": "A"}\n```', PERSON, Outcome.CORRECT),
        ('<think>{"name": 1}</think>{"name": "A"}', PERSON, Outcome.CORRECT),
        ('{"name": "A", "name": "B"}', PERSON, Outcome.UNPARSABLE),
        ("I would say so.", PERSON, Outcome.UNPARSABLE),
        ('{"name": "A"', PERSON, Outcome.UNPARSABLE),
        ("[NaN]", {}, Outcome.UNPARSABLE),
        ("[1e999]", {}, Outcome.UNPARSABLE),
        ("9" * 5_000, {}, Outcome.UNPARSABLE),
        ("[" * 50_000, {}, Outcome.UNPARSABLE),
        ("[" * 100 + "]" * 100, {}, Outcome.UNPARSABLE),
        ("x" * 200_000, {}, Outcome.UNPARSABLE),
        ("", {}, Outcome.UNPARSABLE),
        ("1", {"type": "wat"}, Outcome.BAD_REFERENCE),
        ("1", {"pattern": "("}, Outcome.BAD_REFERENCE),
        ("1", {"$ref": "#"}, Outcome.BAD_REFERENCE),
        ("1", {"$ref": "#/nowhere"}, Outcome.BAD_REFERENCE),
        ("1", {"$ref": "http://127.0.0.1:9/schema"}, Outcome.BAD_REFERENCE),
        ("1", {"$ref": "file:///etc/hostname"}, Outcome.BAD_REFERENCE),
        ("1", "no JSON", Outcome.BAD_REFERENCE),
        ("1", [], Outcome.BAD_REFERENCE),
        ("1", 5, Outcome.BAD_REFERENCE),
        ('"' + "a" * 40 + '!"', {"pattern": "^(a+)+$"}, Outcome.TIMEOUT),
        (
            '{"a": {"b": 1}}',
            {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}},
            Outcome.WRONG,
        ),
    ],
    "yaml": [
        ("name: Ada\nage: 36", PERSON, Outcome.CORRECT),
        ("```yaml\nname: Ada\n```", PERSON, Outcome.CORRECT),
        ("name: Ada\nage: thirty", PERSON, Outcome.WRONG),
        ("a: 2020-01-01", STRING, Outcome.CORRECT),
        ("name: Ada\nname: Bob", PERSON, Outcome.UNPARSABLE),
        ("name: [", PERSON, Outcome.UNPARSABLE),
        (ALIAS_BOMB, {}, Outcome.UNPARSABLE),
        ("a: &a [*a]", {}, Outcome.UNPARSABLE),
        ("!!python/object/apply:os.system ['true']", {}, Outcome.UNPARSABLE),
        ("a: !!set {x}", {}, Outcome.UNPARSABLE),
        ("a: !!binary aGk=", {}, Outcome.UNPARSABLE),
        ("1: x", {}, Outcome.UNPARSABLE),
        ("a: .nan", {}, Outcome.UNPARSABLE),
        ("[" * 3_000, {}, Outcome.UNPARSABLE),
        ("a: 1\n---\nb: 2", {}, Outcome.UNPARSABLE),
        ("a: !!int x", {}, Outcome.UNPARSABLE),
    ],
    "toml": [
        ('name = "Ada"\nage = 36', PERSON, Outcome.CORRECT),
        ("name = 5", PERSON, Outcome.WRONG),
        ("a = 1979-05-27T07:32:00Z", STRING, Outcome.CORRECT),
        ("a = 1\na = 2", {}, Outcome.UNPARSABLE),
        ("a = inf", {}, Outcome.UNPARSABLE),
        ("a = " + "[" * 3_000, {}, Outcome.UNPARSABLE),
        ("name:", {}, Outcome.UNPARSABLE),
    ],
    "xml": [
        ("<p><name>Ada</name></p>", {"properties": {"p": PERSON}}, Outcome.CORRECT),
        ("<p><age>3</age></p>", {"properties": {"p": PERSON}}, Outcome.WRONG),
        ("<a b='1'>x<c/><c>2</c></a>", {"const": {"a": {"@b": "1", "c": ["", "2"], "#text": "x"}}}, Outcome.CORRECT),
        ("<?xml version='1.0' encoding='UTF-8'?><a>é</a>", {"const": {"a": "é"}}, Outcome.CORRECT),
        (BILLION_LAUGHS, {}, Outcome.UNPARSABLE),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a>x</a>', {}, Outcome.UNPARSABLE),
        ("<a>&nope;</a>", {}, Outcome.UNPARSABLE),
        ("<a><b></a>", {}, Outcome.UNPARSABLE),
        ("<a>" * 5_000, {}, Outcome.UNPARSABLE),
        ("<a/><b/>", {}, Outcome.UNPARSABLE),
    ],
}


@pytest.mark.parametrize("syntax", TABLE)
async def test_the_table(syntax: str) -> None:
    rows = TABLE[syntax]
    async with get_verifier("json_schema", syntax=syntax, deadline_s=2.0, workers=2) as verifier:
        verdicts = await verifier.verify([Item(answer, reference) for answer, reference, _ in rows])
    found = [(row[0][:60], verdict.outcome) for row, verdict in zip(rows, verdicts, strict=True)]
    assert found == [(answer[:60], outcome) for answer, _, outcome in rows]


async def test_the_detail_says_where_and_what_is_wrong() -> None:
    async with get_verifier("json_schema", check_formats=True) as verifier:
        items = [Item('{"name": 5}', PERSON), Item('"2020-13-01"', {"format": "date"})]
        wrong, day = await verifier.verify(items)
    assert wrong.detail["problems"] == [{"path": "$.name", "problem": "5 is not of type 'string'"}]
    assert day.outcome is Outcome.WRONG


async def test_only_a_fence_or_only_the_whole_answer_can_be_insisted_on() -> None:
    items = [Item('{"name": "A"}', PERSON), Item('```json\n{"name": "A"}\n```', PERSON)]
    outcomes = {}
    for extract in ("fence", "whole"):
        async with get_verifier("json_schema", extract=extract) as verifier:
            outcomes[extract] = [verdict.outcome for verdict in await verifier.verify(items)]
    assert outcomes == {
        "fence": [Outcome.UNPARSABLE, Outcome.CORRECT],
        "whole": [Outcome.CORRECT, Outcome.UNPARSABLE],
    }


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(categories=["Ll"]), min_size=1), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_what_json_and_yaml_write_is_read_again(value: Any) -> None:
    assert same(read(json.dumps(value), "json"), value)
    assert same(read(yaml.safe_dump(value), "yaml"), value)


@given(st.text(max_size=60), st.sampled_from(["json", "yaml", "toml", "xml"]))
def test_any_text_is_read_as_json_has_it_or_refused(text: str, syntax: str) -> None:
    with suppress(NotData):
        json.dumps(read(text, syntax), allow_nan=False)


@pytest.mark.parametrize("text", ["5", "-1.5e3", "true", "null"])
def test_scalars_in_xml_are_texts_unless_asked_otherwise(text: str) -> None:
    assert read(f"<a>{text}</a>", "xml") == {"a": text}
    assert read(f"<a>{text}</a>", "xml", xml_scalars="json") == {"a": json.loads(text)}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)) and not isinstance(other, bool):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=0.0) or one == other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("schema", "answer", "outcome"),
    [
        ({"multipleOf": 0.01}, "19.99", Outcome.CORRECT),
        ({"multipleOf": 0.1}, "0.35", Outcome.WRONG),
        ({"pattern": "^a$"}, '"a\\n"', Outcome.WRONG),
        ({"pattern": "^(?<n>\\d)$"}, '"٣"', Outcome.WRONG),
        ({"pattern": "^(?<n>\\d)$"}, '"3"', Outcome.CORRECT),
        ({"pattern": "\\p{L}"}, '"a"', Outcome.BAD_REFERENCE),
        ({"requierd": ["x"]}, "{}", Outcome.BAD_REFERENCE),
        ({"type": "string", "format": "no-such-format"}, '"x"', Outcome.BAD_REFERENCE),
        ({"type": "string", "format": "uri"}, '"no uri"', Outcome.WRONG),
        ({"type": "string", "format": "iri"}, '"https://例え.jp/ä?q=é"', Outcome.CORRECT),
        ({"type": "string", "format": "iri"}, '"ä/b"', Outcome.WRONG),
        ({"type": "string", "format": "iri"}, '"https://ä b"', Outcome.WRONG),
        ({"type": "string", "format": "iri-reference"}, '"ä/b"', Outcome.CORRECT),
        ({"type": "string", "format": "iri-reference"}, '"ä b"', Outcome.WRONG),
        ({"properties": {"requierd": {"const": {"requierd": 1}}}}, "{}", Outcome.CORRECT),
        ({"name": "f", "schema": {"required": ["y"]}}, "{}", Outcome.WRONG),
        ({"name": "f", "inputSchema": {"required": ["y"]}}, "{}", Outcome.WRONG),
        ({"type": "function", "function": {"name": "f", "parameters": {"required": ["y"]}}}, "{}", Outcome.WRONG),
    ],
)
async def test_nothing_in_a_schema_is_ignored(schema: dict[str, Any], answer: str, outcome: Outcome) -> None:
    async with get_verifier("json_schema", check_formats=True, workers=1) as verifier:
        [verdict] = await verifier.verify([Item(answer, schema)])
    assert verdict.outcome is outcome, verdict
