"""The tool-call verifier. What is expected of single calls is what BFCL's own checker says (bfcl-eval 2026.3.23)."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.call_syntax import Call
from quintain.tool_calls import UnreadableCall, read_calls
from quintain.verdict import Outcome
from quintain.verifiers import Item, verify_sync
from quintain.verifiers.rules.tool_call.match import matching

WEATHER = {
    "name": "weather.get",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "limit": {"type": "float"},
            "hourly": {"type": "boolean"},
            "fields": {"type": "array", "items": {"type": "string"}},
            "box": {"type": "dict"},
            "points": {"type": "array", "items": {"type": "dict"}},
            "span": {"type": "tuple", "items": {"type": "float"}},
        },
        "required": ["city"],
    },
}
STOP = {"name": "stop", "parameters": {"type": "dict", "properties": {}, "required": []}}


def truth(**allowed: list[Any]) -> dict[str, Any]:
    return {"function": [WEATHER, STOP], "ground_truth": [{"weather.get": {"city": ["Paris"], **allowed}}]}


def call(**arguments: Any) -> str:
    return json.dumps([{"name": "weather.get", "arguments": {"city": "Paris", **arguments}}])


# A call, what is allowed, and whether BFCL takes it
SINGLE: list[tuple[str, dict[str, Any], bool]] = [
    (call(), truth(), True),
    (call(city="paris"), truth(), True),
    (call(city="Pa-ris,"), truth(), True),
    (call(city="Rome"), truth(), False),
    (call(city=5), truth(), False),
    (call(city=None), truth(), False),
    (call(days=3), truth(days=[3]), True),
    (call(days=3.0), truth(days=[3]), False),
    (call(days="3"), truth(days=[3]), False),
    (call(days=True), truth(days=[1]), False),
    (call(days="n"), truth(days=["n"]), True),  # a variable
    (call(days=4), truth(days=[3, 4]), True),
    (call(), truth(days=[3]), False),
    (call(), truth(days=[3, ""]), True),
    (call(days=5), truth(days=[3, ""]), False),
    (call(limit=2), truth(limit=[2.0]), True),
    (call(limit=2.5), truth(limit=[2.5]), True),
    (call(limit="2.5"), truth(limit=[2.5]), False),
    (call(hourly=True), truth(hourly=[True]), True),
    (call(hourly=1), truth(hourly=[True]), False),
    (call(hourly="true"), truth(hourly=[True]), False),
    (call(fields=["Rain", "wind"]), truth(fields=[["rain", "wind"]]), True),
    (call(fields=["wind", "rain"]), truth(fields=[["rain", "wind"]]), False),
    (call(fields=["wind", "rain"]), truth(fields=[["rain", "wind"], ["wind", "rain"]]), True),
    (call(fields=["rain", 1]), truth(fields=[["rain", "1"]]), False),
    (call(fields="rain"), truth(fields=[["rain"]]), False),
    (call(fields=[]), truth(fields=[[]]), True),
    (call(box={"x": 1}), truth(box=[{"x": [1, 2]}]), True),
    (call(box={"x": 3}), truth(box=[{"x": [1, 2]}]), False),
    (call(box={"x": 1, "y": 2}), truth(box=[{"x": [1]}]), False),
    (call(box={}), truth(box=[{"x": [1, ""]}]), True),
    (call(box={}), truth(box=[{"x": [1]}]), False),
    (call(box={"name": "A-b"}), truth(box=[{"name": ["ab"]}]), True),
    (call(points=[{"x": 1}, {"x": 2}]), truth(points=[[{"x": [1]}, {"x": [2]}]]), True),
    (call(points=[{"x": 2}, {"x": 1}]), truth(points=[[{"x": [1]}, {"x": [2]}]]), False),
    (call(points=[{"x": 1}]), truth(points=[[{"x": [1]}, {"x": [2]}]]), False),
    (call(span=[1.0, 2.5]), truth(span=[[1.0, 2.5]]), True),
    (call(colour="red"), truth(), False),
    (call(colour="red"), truth(colour=["red"]), False),
    (json.dumps([{"name": "weather.get", "arguments": {}}]), truth(), False),
    (json.dumps([{"name": "weather", "arguments": {"city": "Paris"}}]), truth(), False),
    (json.dumps([{"name": "stop", "arguments": {}}]), truth(), False),
]


MCP_RECORD = {
    "function": [
        {"name": "get_weather", "inputSchema": {"properties": {"city": {"type": "string"}}, "required": ["city"]}}
    ],
    "ground_truth": [{"get_weather": {"city": ["Paris-1.25"]}}],
}


@pytest.mark.parametrize("char", " ,./-_*^")
def test_a_text_is_compared_by_every_character(char: str) -> None:
    """Unless BFCL's rule is asked for, which forgives punctuation, but not in what is a number."""
    answers = [f'get_weather(city="Paris{char}1{other}25")' for other in ".,/-"] + ['get_weather(city="Paris-1.2.5")']
    right = [char == "-" and answer == 'get_weather(city="Paris-1.25")' for answer in answers]
    assert [v.score == 1 for v in verify_sync("tool_call", [Item(a, MCP_RECORD) for a in answers])] == right
    assert all(
        v.score == 1 for v in verify_sync("tool_call", [Item(a, MCP_RECORD) for a in answers], {"texts": "bfcl"})
    )
    version = MCP_RECORD | {"ground_truth": [{"get_weather": {"city": ["1.25"]}}]}
    [verdict] = verify_sync("tool_call", [Item('get_weather(city="12.5")', version)], {"texts": "bfcl"})
    assert verdict.score == 0


@pytest.mark.parametrize(
    "answer",
    [
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris-1.25"}}',
        '{"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "Paris-1.25"}}',
        'Action: get_weather\nAction Input: {"city": "Paris-1.25"}',
        '{"tool": "get_weather", "args": {"city": "Paris-1.25"}}',
        'Sure: {"name": "get_weather", "arguments": {"city": "Paris-1.25"}}',
    ],
)
def test_a_call_is_read_in_every_format_and_is_a_call_where_none_is_right(answer: str) -> None:
    called, none = verify_sync("tool_call", [Item(answer, MCP_RECORD), Item(answer, MCP_RECORD | {"ground_truth": []})])
    assert (called.score, none.score) == (1.0, 0.0)


def test_a_single_call_is_judged_as_bfcl_does() -> None:
    verdicts = verify_sync("tool_call", [Item(answer, reference) for answer, reference, _ in SINGLE], {"texts": "bfcl"})
    assert [(answer, verdict.score == 1.0) for (answer, _, _), verdict in zip(SINGLE, verdicts, strict=True)] == [
        (answer, right) for answer, _, right in SINGLE
    ]


STRICTER = [
    (call(days=1, box={"x": 1}), truth(days=[1], box=[{"x": [True]}]), 0.0),  # BFCL: Python's 1 == True
    ('[{"name": "weather.get", "arguments": {"city": "."}}]', truth(city=["Paris", ""]), 0.0),  # BFCL: "." is ""
    (call(span=[1, 2.5]), truth(span=[[1.0, 2.5]]), 1.0),  # BFCL: 1 is no float inside a tuple
]


@pytest.mark.parametrize(("answer", "reference", "score"), STRICTER)
def test_where_it_differs_from_bfcl_it_does_so_as_documented(answer: str, reference: Any, score: float) -> None:
    [verdict] = verify_sync("tool_call", [Item(answer, reference)])
    assert verdict.score == score


PARIS = Call("get", {"city": "Paris", "n": [1, -2.5, None, True], "o": {"k": "v"}})
ARGUMENTS = json.dumps(PARIS.arguments)
WRITTEN = [
    f'[{{"name": "get", "arguments": {ARGUMENTS}}}]',
    f'{{"name": "get", "arguments": {ARGUMENTS}}}',
    f'{{"name": "get", "parameters": {ARGUMENTS}}}',
    f'{{"get": {ARGUMENTS}}}',
    json.dumps([{"id": "c1", "type": "function", "function": {"name": "get", "arguments": ARGUMENTS}}]),
    json.dumps({"role": "assistant", "tool_calls": [{"function": {"name": "get", "arguments": ARGUMENTS}}]}),
    f'<tool_call>\n{{"name": "get", "arguments": {ARGUMENTS}}}\n</tool_call>',
    f'I look it up.\n<tool_call>{{"name": "get", "arguments": {ARGUMENTS}}}</tool_call>',
    "get(city='Paris', n=[1, -2.5, None, True], o={'k': 'v'})",
    "[get(city='Paris', n=[1, -2.5, None, True], o={'k': 'v'})]",
    'get(city="Paris", n=(1, -2.5, null, true), o={"k": "v"})',
    f'Here:\n```json\n{{"name": "get", "arguments": {ARGUMENTS}}}\n```\nDone.',
    "Here:\n```python\nget(city='Paris', n=[1, -2.5, None, True], o={'k': 'v'})\n```",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_a_call_may_be_written_in_many_ways(text: str) -> None:
    assert read_calls(text, ["get"]) == [PARIS]


def test_several_calls_in_python_are_read_in_order() -> None:
    expected = [Call("f", {"a": 1}), Call("g.h", {"b": "x y"}), Call("f", {})]
    assert read_calls("[f(a=1), g.h(b='x y'), f()]") == expected
    assert read_calls("f(a=1)\ng.h(b='x y')\nf()") == expected


def test_names_subscripts_and_calls_stand_for_variables() -> None:
    assert read_calls("f(a=x, b=d['k'], c=now(), e=m.n)") == [
        Call("f", {"a": "x", "b": "d['k']", "c": "now()", "e": "m.n"})
    ]


NO_CALL = ["I cannot do that.", "", "f(x) is a function of x, says the book.", "(see above)"]
UNREADABLE = [
    "get(1)",
    "get(**x)",
    "get(a=1, a=2)",
    "get(a=1+1)",
    "get(a=lambda: 1)",
    "get(a=[x for x in y])",
    "x = get(a=1)",
    "import os",
    "__import__('os').system('true')",
    '{"name": "get", "arguments": {"a": 1, "a": 2}}',
    '{"name": "get", "arguments": {"a": NaN}}',
    '{"name": "get", "arguments": [1]}',
    '{"name": "get", "arguments": "[1]"}',
    '{"name": "get"',
    '[{"name": 5}]',
    "<tool_call>get(a=1)</tool_call>",
    "<tool_call>",
    "I call get(a=1) now.",
    "[" * 100_000,
    "get(a=" + "[" * 5_000 + "]" * 5_000 + ")",
    "get(a=" + "-" * 50_000 + "1)",
    "get(a=" + "x." * 30_000 + "y)",
    "get(a=" + "not " * 30_000 + "y)",
    "get(a=" + "1+" * 30_000 + "1)",
    "[" + "get(a=1)," * 200 + "]",
    '{"name": "get", "arguments": {"a": ' + "[" * 40 + "]" * 40 + "}}",
    "get(a=1e999)",
    "get(a='" + "x" * 200_000 + "')",
]


def test_prose_makes_no_call() -> None:
    assert [read_calls(text) for text in NO_CALL] == [[]] * len(NO_CALL)


@pytest.mark.parametrize("text", UNREADABLE, ids=[text[:30] for text in UNREADABLE])
def test_what_tries_to_call_and_fails_is_unreadable(text: str) -> None:
    found = read_calls(text, ["get"])
    assert isinstance(found, UnreadableCall) or (found == [] and text == "import os")


def test_nothing_is_right_where_nothing_is_to_be_called() -> None:
    reference = {"function": [WEATHER], "ground_truth": []}
    answers = ["I cannot help with that.", call(), "weather.get(", "", "<think>weather.get(city='x')</think>Sorry."]
    verdicts = verify_sync("tool_call", [Item(answer, reference) for answer in answers])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0, 1.0, 1.0]


TWO = {
    "function": [WEATHER],
    "ground_truth": [
        {"weather.get": {"city": ["Paris", "Rome"]}},  # the greedy choice for Rome
        {"weather.get": {"city": ["Rome"]}},
    ],
}


def test_parallel_calls_are_matched_as_a_whole_in_any_order() -> None:
    rome, paris = "weather.get(city='Rome')", "weather.get(city='Paris')"
    answers = [f"[{rome}, {paris}]", f"[{paris}, {rome}]", f"[{rome}, {rome}]", f"[{rome}]", f"[{paris}, {paris}]"]
    answers.append(f"[{rome}, {paris}, {paris}]")
    items = [Item(answer, TWO) for answer in answers]
    assert [v.score for v in verify_sync("tool_call", items)] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    partial = [v.score for v in verify_sync("tool_call", items, {"partial": True})]
    assert partial == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.5, 2 / 3])
    ordered = [v.score for v in verify_sync("tool_call", items, {"ordered": True})]
    assert ordered == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_matching_is_the_largest_of_all(fits: list[list[bool]]) -> None:
    best = max(sum(fits[i][j] for i, j in enumerate(order[: len(fits)])) for order in permutations(range(4)))
    assert matching(fits) == best


BAD = [
    None,
    [],
    {},
    {"function": [WEATHER]},
    {"function": [WEATHER], "ground_truth": [{"nope": {}}]},
    {"function": [WEATHER], "ground_truth": [{"weather.get": {"city": "Paris"}}]},
    {"function": [WEATHER], "ground_truth": ["weather.get"]},
    {"function": [{"name": "f", "parameters": {"properties": []}}], "ground_truth": []},
    {"function": [{"parameters": {}}], "ground_truth": []},
]


@pytest.mark.parametrize("reference", BAD)
def test_a_reference_that_is_no_bfcl_record_is_nobodys_zero(reference: Any) -> None:
    [verdict] = verify_sync("tool_call", [Item("weather.get(city='Paris')", reference)])
    assert verdict.outcome is Outcome.BAD_REFERENCE


def test_tools_may_be_described_as_openai_does() -> None:
    reference = {
        "function": [{"type": "function", "function": {**WEATHER, "name": "get"}}],
        "ground_truth": [{"get": {"city": ["Paris"]}}],
    }
    [verdict] = verify_sync("tool_call", [Item("get(city='Paris')", reference)])
    assert verdict.score == 1.0
