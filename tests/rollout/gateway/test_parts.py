"""The gateway's small parts: tool calls read, tools shown, samples cut, sampling settled, requests read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quintain.arrays import as_ints
from quintain.failure import QuintainError
from quintain.messages import FunctionCall, FunctionSpec, Message, ToolCall, ToolSpec, system, user
from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway.chat import read_chat, settle
from quintain.rollout.gateway.errors import ApiError
from quintain.rollout.gateway.gateway import GatewayLimits
from quintain.rollout.gateway.wire import Overrides
from quintain.trajectory import extends

from .stage import ADD, CHAT, TOOL_CHAT

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
CALLED = FunctionCall("add", '{"a": 1}')
TOOL = ToolSpec(FunctionSpec("add", "sums", {"type": "object"}))


def test_a_template_that_shows_tools_is_left_to_do_it() -> None:
    assert TOOL_CHAT.text(TOOL_CHAT.first([user("?")], [TOOL])) == "Tadd\0u?\0a"


def test_tools_calls_and_results_are_written_out_for_a_template_that_does_not_know_them() -> None:
    calls = Message("assistant", None, (ToolCall("c", CALLED),))
    history = [system("Be brief."), user("1 + 1?"), calls, Message("tool", "2", tool_call_id="c")]
    shown = CHAT.text(CHAT.first(history, [TOOL]))
    told, asked, called, result, _ = shown.split("\0")
    assert told.startswith("sBe brief.\n\nYou can call these functions")
    assert '{"name": "add", "description": "sums", "parameters": {"type": "object"}}' in told
    assert (asked, called, result) == ("u1 + 1?", f"a{CALL}", "u<tool_response>2</tool_response>")
    before = CHAT.first(history[:2], [TOOL])
    rendered = CHAT.extend(before, as_ints([]), [*history[:2], calls], history[3:], [TOOL])
    assert rendered.fork is None
    assert extends(rendered.ids, before)


BASE = Sampling(64, temperature=1.0)


def test_asking_for_what_the_run_does_overrides_nothing() -> None:
    settled = settle({"temperature": 1, "top_p": 1.0, "top_k": 0}, BASE, Overrides.REFUSE)
    assert (settled.sampling, settled.seed, settled.ignored) == (BASE, None, ())


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "seed", "frequency_penalty"])
def test_an_override_is_refused_ignored_or_granted_as_the_session_says(name: str) -> None:
    value = 3 if name in ("top_k", "seed") else 0.5
    with pytest.raises(ApiError, match=rf"{name}={value}.* overrides 'ignore'") as caught:
        settle({name: value}, BASE, Overrides.REFUSE)
    assert (caught.value.status, caught.value.param) == (400, name)
    ignored = settle({name: value}, BASE, Overrides.IGNORE)
    assert (ignored.sampling, ignored.ignored) == (BASE, (name,))
    if name == "frequency_penalty":
        with pytest.raises(ApiError, match="is not supported"):
            settle({name: value}, BASE, Overrides.ALLOW)
    else:
        granted = settle({name: value}, BASE, Overrides.ALLOW)
        assert (granted.seed if name == "seed" else getattr(granted.sampling, name)) == value
        assert granted.ignored == ()


def body(**changes: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "q"}], **changes}).encode()


def test_fields_that_change_nothing_are_taken() -> None:
    asked = read_chat(
        body(
            user="me", metadata={"a": "b"}, store=True, temperature=None, n=None, tool_choice="auto", logit_bias={},
            response_format={"type": "text"}, parallel_tool_calls=True, stop=None, frequency_penalty=0, audio=None,
            stream_options={"include_usage": True}, max_tokens=7, max_completion_tokens=5,
        )
    )  # fmt: skip
    assert (dict(asked.overrides), asked.max_tokens, asked.include_usage, asked.choices) == ({}, 5, True, 1)


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"temprature": 0.5}, "temprature", "did you mean 'temperature'"),
        ({"audio": {"voice": "x"}}, "audio", "audio=.* is not supported"),
        ({"functions": [{}]}, "functions", "functions=.* is not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "only the log-probability of the sampled token"),
        ({"n": 0}, "n", "at least 1"),
        ({"n": True}, "n", "at least 1"),
        ({"max_tokens": "many"}, "max_tokens", "whole number"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": -1}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "from 0 to 1"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role", "must be one of"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a text"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "messages[0].tool_call_id", "must be a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "only text is supported",
        ),
        ({"messages": [{"role": "user", "content": "x", "thoughts": "y"}]}, "messages.thoughts", "not supported"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
         "messages[0].tool_calls", "only an assistant calls tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "only functions"),
        ({"model": None}, "model", "must be a text"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_name(changes: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        settle(read_chat(body(**changes)).overrides, BASE, Overrides.REFUSE)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_fields_that_nobody_knows_are_ignored_and_named_where_the_session_says_so() -> None:
    known = {"role": "assistant", "content": "5", "reasoning": "hm", "refusal": None}
    messages = [{"role": "user", "content": "q", "cache_control": {"type": "ephemeral"}}, known]
    asked = read_chat(body(messages=messages, chat_template_kwargs={"x": 1}, top_k=-1, repetition_penalty=1.0, min_p=0))
    settled = settle(asked.overrides, BASE, Overrides.IGNORE)
    assert settled.sampling == BASE
    assert settled.ignored == ("chat_template_kwargs", "messages.cache_control")
    assert asked.messages == (user("q"), Message("assistant", "5", reasoning="hm"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"model": "\\ud800"}', b'{"temperature": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(ApiError, match="the request must be") as caught:
        read_chat(text)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"tools": [{**ADD, "function": {**ADD["function"], "strict": True}}]}, "tools.function.strict"),
    ],
)
def test_what_would_change_the_sampling_is_an_override(changes: dict[str, Any], name: str) -> None:
    assert list(read_chat(body(**changes)).overrides) == [name]


def test_parts_of_text_are_one_text_and_developers_are_systems() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_chat(body(messages=[{"role": "developer", "content": parts}, {"role": "user", "content": "q"}]))
    assert asked.messages == (system("ab"), user("q"))


def test_a_limit_that_allows_nothing_is_refused() -> None:
    with pytest.raises(QuintainError, match="lease_s must be more than 0"):
        GatewayLimits(lease_s=0)
