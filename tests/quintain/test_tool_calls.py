"""Calls in text: each format reads what it writes; what is cut off, or only looks like a call, is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.call_syntax import Call
from quintain.tool_calls import FORMATS, UnreadableCall, looks_like_a_call, read_calls, split_calls

SCHEMAS = {"get": {"properties": {"text": {"type": "string"}, "count": {"type": "integer"}}}}
CALL = Call("get", {"text": "5", "count": 5})
WRITTEN = {
    "hermes": [
        '<tool_call>\n{"name": "get", "arguments": {"text": "5", "count": 5}}\n</tool_call>',
        "<tool_call>\n<function=get>\n<parameter=text>\n5\n</parameter>\n<parameter=count>\n5\n</parameter>\n</function>\n"
        "</tool_call>",
        "<tool_call>get\n<arg_key>text</arg_key>\n<arg_value>5</arg_value>\n<arg_key>count</arg_key>\n"
        "<arg_value>5</arg_value>\n</tool_call>",
    ],
    "minimax": [
        '<minimax:tool_call>\n<invoke name="get">\n<parameter name="text">5</parameter>\n'
        '<parameter name="count">5</parameter>\n</invoke>\n</minimax:tool_call>'
    ],
    "invoke": [
        '<function_calls><invoke name="get"><parameter name="text">5</parameter>'
        '<parameter name="count">5</parameter></invoke></function_calls>'
    ],
    "muse": [
        '<atem:function_calls><atem:invoke name="get"><atem:parameter name="text">5</atem:parameter>'
        '<atem:parameter name="count">5</atem:parameter></atem:invoke></atem:function_calls>'
    ],
    "deepseek": [
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{"text": "5", "count": 5}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        '<｜tool▁call▁begin｜>get<｜tool▁sep｜>{"text": "5", "count": 5}<｜tool▁call▁end｜>',
    ],
    "kimi": [
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>"
        '{"text": "5", "count": 5}<|tool_call_end|><|tool_calls_section_end|>'
    ],
    "mistral": [
        '[TOOL_CALLS][{"name": "get", "arguments": {"text": "5", "count": 5}}]',
        '[TOOL_CALLS]get[CALL_ID]123456789[ARGS]{"text": "5", "count": 5}',
        '[TOOL_CALLS]get{"text": "5", "count": 5}',
    ],
    "cohere": [
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get", "parameters": {"text": "5", "count": 5}}]'
        "<|END_ACTION|>"
    ],
    "gemma": ['<|tool_call>call:get{text:<|"|>5<|"|>,count:5}<tool_call|>'],
    "lfm": ["<|tool_call_start|>[get(text='5', count=5)]<|tool_call_end|>"],
    "phi": ['<|tool_call|>[{"name": "get", "arguments": {"text": "5", "count": 5}}]<|/tool_call|>'],
    "jamba": ['<tool_calls>[{"name": "get", "arguments": {"text": "5", "count": 5}}]</tool_calls>'],
}
CASES = [(name, text) for name, texts in WRITTEN.items() for text in texts]


def test_every_format_has_its_samples() -> None:
    assert set(WRITTEN) == set(FORMATS)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_call_is_read_by_its_own_format_and_by_whoever_reads_any(name: str, text: str) -> None:
    assert split_calls(text, name, SCHEMAS).calls == (CALL,)
    assert read_calls(text, SCHEMAS) == [CALL]
    assert read_calls(f"I will look it up.\n{text}", SCHEMAS) == [CALL]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_what_is_said_beside_a_call_is_kept(name: str, text: str) -> None:
    split = split_calls(f"Let me see.\n{text}", name, SCHEMAS)
    assert split.calls == (CALL,)
    assert split.said.startswith("Let me see.")
    assert "get" not in split.said


@pytest.mark.parametrize(("name", "text"), [case for case in CASES if FORMATS[case[0]].end])
def test_a_call_that_was_cut_off_is_no_call(name: str, text: str) -> None:
    begin, end = FORMATS[name].begin, FORMATS[name].end
    start, stop = text.find(begin) + len(begin), text.rfind(end)
    for length in range(start, stop + 1):
        assert split_calls(text[:length], name, SCHEMAS, closed=False).calls == ()
        assert split_calls(text[:length], name, SCHEMAS, closed=False).said == text[:length]


@pytest.mark.parametrize("body", ["{bad json}", "[1]", "", '{"name": "get", "arguments": {"x": 1e999}}'])
def test_a_malformed_call_is_text_and_for_the_judge_unreadable(body: str) -> None:
    text = f"<tool_call>{body}</tool_call>"
    assert split_calls(text, "hermes", SCHEMAS).said == text
    assert not split_calls(text, "hermes", SCHEMAS).calls
    assert isinstance(read_calls(text, SCHEMAS), UnreadableCall)


@pytest.mark.parametrize(
    "text",
    [
        "<unknown_tool_call>get</unknown_tool_call>",
        "<|newmodel_function_begin|>get",
        "<action>get</action>",
        "assistant to=functions.get json {}",
    ],
)
def test_a_call_in_no_known_format_is_unreadable_and_not_an_answer_without_calls(text: str) -> None:
    assert looks_like_a_call(text)
    assert isinstance(read_calls(text, SCHEMAS), UnreadableCall)


def test_prose_and_formulas_do_not_look_like_calls() -> None:
    for text in ("It is 5.", "so f(x) < 3 and g(x) > 2", "a <b> tag", "The function is continuous.", ""):
        assert not looks_like_a_call(text)
        assert read_calls(text, SCHEMAS) == []


def test_the_whole_text_is_calls_or_none_of_it_is() -> None:
    text = json.dumps({"name": "get", "parameters": {"text": "5", "count": 5}})
    assert split_calls(text, "whole", SCHEMAS).calls == (CALL,)
    assert split_calls(f"<|python_tag|>{text}", "whole", SCHEMAS).calls == (CALL,)
    assert split_calls(f"Look: {text}", "whole", SCHEMAS).calls == ()
    assert split_calls(text, "none", SCHEMAS).said == text


@given(st.text(), st.sampled_from([*FORMATS, "whole", "none"]), st.booleans())
def test_nothing_that_a_model_writes_raises(text: str, name: str, closed: bool) -> None:
    form = FORMATS.get(name)
    for shown in (text, f"{form.begin}{text}{form.end}" if form else text):
        split = split_calls(shown, name, SCHEMAS, closed=closed)
        assert split.calls or split.said == shown
        read_calls(shown, SCHEMAS)
