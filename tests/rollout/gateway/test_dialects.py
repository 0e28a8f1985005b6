"""Anthropic's client and OpenAI's for responses against the gateway on a real socket: the same turns as in chat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import openai
import pytest

from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway import GatewayLimits
from quintain.trajectory import Ending, Trajectory, to_segments

from ...fake_engine import hang_on
from .stage import ADD, TOOL_CHAT, ByteTokenizer, Stage, calculates, scripted, staged

FUNCTION = ADD["function"]


class Thoughtful(ByteTokenizer):
    """Its template shows what was thought."""

    chat_template = "roles <think></think>"

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        thought = [m.get("reasoning_content") for m in messages]
        shown = [f"<think>{t}</think>" if t else "" for t in thought]
        said = [{**m, "content": t + m["content"]} for m, t in zip(messages, shown, strict=True)]
        return super().apply_chat_template(said, **options)


def thinks(last: str) -> str:
    """As `calculates`, with a thought first."""
    return "<think>Add them.</think>" + calculates(last)


def added(arguments: dict[str, Any]) -> str:
    return str(arguments["a"] + arguments["b"])


async def chats(stage: Stage, session: str, *, stream: bool) -> str:
    """An agent of OpenAI's chat completions."""
    async with openai.AsyncOpenAI(base_url=f"{stage.url}/sessions/{session}/v1", api_key="k", max_retries=0) as client:
        messages: list[Any] = [{"role": "system", "content": "Add."}, {"role": "user", "content": "What is 2 + 3?"}]
        while True:
            answer = await client.chat.completions.create(model="policy", messages=messages, tools=[ADD])
            said = answer.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                return said.content
            for call in said.tool_calls:
                content = added(json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})


async def responds(stage: Stage, session: str, *, stream: bool) -> str:
    """An agent of OpenAI's responses."""
    async with openai.AsyncOpenAI(base_url=f"{stage.url}/sessions/{session}/v1", api_key="k", max_retries=0) as client:
        items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "What is 2 + 3?"}]}]
        asked = {"model": "policy", "instructions": "Add.", "tools": [{"type": "function", **FUNCTION}], "input": items}
        while True:
            if stream:
                async with client.responses.stream(**asked) as events:
                    answer = await events.get_final_response()
            else:
                answer = await client.responses.create(**asked)
            items += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in answer.output]
            calls = [item for item in answer.output if item.type == "function_call"]
            if not calls:
                assert answer.status == "completed"
                return answer.output_text
            for call in calls:
                output = added(json.loads(call.arguments))
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})


async def sends(stage: Stage, session: str, *, stream: bool) -> str:
    """An agent of Anthropic's messages, which wants to see thoughts."""
    url = f"{stage.url}/sessions/{session}"
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        tool = {"name": "add", "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}
        messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}]
        thinking = {"type": "enabled", "budget_tokens": 1024}
        asked = {"model": "policy", "max_tokens": 2048, "system": "Add.", "tools": [tool], "messages": messages}
        while True:
            if stream:
                async with client.messages.stream(**asked, thinking=thinking) as events:
                    answer = await events.get_final_message()
            else:
                answer = await client.messages.create(**asked, thinking=thinking)
            messages.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
            calls = [block for block in answer.content if block.type == "tool_use"]
            assert answer.stop_reason == ("tool_use" if calls else "end_turn")
            if not calls:
                return "".join(block.text for block in answer.content if block.type == "text")
            results = [{"type": "tool_result", "tool_use_id": c.id, "content": added(c.input)} for c in calls]
            messages.append({"role": "user", "content": results})


Agent = Callable[..., Awaitable[str]]


async def run(agent: Agent, chat: Any, reply: Any, *, stream: bool) -> tuple[str, Trajectory]:
    async with staged(scripted(reply, max_length=2048), chat=chat) as stage:
        session, _ = await stage.open(id="the-session")
        return await agent(stage, session, stream=stream), await stage.reward(session)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("agent", [responds, sends])
@pytest.mark.parametrize("reply", [calculates, thinks])
@pytest.mark.parametrize("chat", [TemplateChat(Thoughtful()), TOOL_CHAT], ids=["written out", "template"])
async def test_an_agent_is_the_same_tokens_in_every_dialect(chat: Any, reply: Any, agent: Agent, stream: bool) -> None:
    expected, reference = await run(chats, chat, reply, stream=False)
    said, trajectory = await run(agent, chat, reply, stream=stream)
    assert said == expected
    assert "It is " in said
    assert ("<think>" in said) == (reply is thinks and chat is TOOL_CHAT)  # whose template knows no thoughts
    assert [turn.ids.tolist() for turn in trajectory.turns] == [turn.ids.tolist() for turn in reference.turns]
    assert [turn.logprobs.tolist() for turn in trajectory.turns] == [turn.logprobs.tolist() for turn in reference.turns]
    assert [turn.message for turn in trajectory.turns] == [turn.message for turn in reference.turns]
    assert len(to_segments(trajectory)) == len(to_segments(reference))
    assert (trajectory.ending, trajectory.failure) == (Ending.TERMINATED, None)


async def asked(client: Any, **more: Any) -> Any:
    return await client.messages.create(**{"model": "policy", "max_tokens": 99, **more})


def turns(*texts: str) -> list[Any]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


async def test_an_agent_that_compacts_its_history_and_starts_another_is_a_segment_for_each_branch() -> None:
    async with staged(scripted(lambda last: f"to {last[1:]}", max_length=512)) as stage:
        session, _ = await stage.open()
        async with anthropic.AsyncAnthropic(base_url=f"{stage.url}/sessions/{session}", api_key="k") as client:
            for system, said in (
                ("Main.", ("a",)),
                ("Main.", ("a", "to a", "b")),
                ("Sub.", ("x",)),  # a sub-agent, in between
                ("Main.", ("a", "to a", "b", "to b", "c")),
                ("Sub.", ("x", "to x", "y")),
                ("Main.", ("In short: a, b, c.",)),  # compacted
                ("Main.", ("In short: a, b, c.", "to In short: a, b, c.", "d")),
                ("Main.", ("a", "to a", "B")),  # back to an earlier place
            ):
                await asked(client, system=system, messages=turns(*said))
        trajectory = await stage.reward(session)
    texts = ["".join(chr(i) for i in segment.ids) for segment in to_segments(trajectory)]
    assert [text.count("ato ") for text in texts] == [3, 2, 2, 2]
    assert [turn.fork for turn in trajectory.turns if turn.fork] == [
        "agent_started_conversation",
        "agent_started_conversation",
        "agent_branched",
    ]
    assert sum(int(segment.mask.sum()) for segment in to_segments(trajectory)) == trajectory.output_tokens


@pytest.mark.parametrize("chat", [TemplateChat(Thoughtful()), TOOL_CHAT], ids=["written out", "template"])
async def test_a_count_is_of_the_tokens_that_the_same_call_is_sampled_after_and_records_nothing(chat: Any) -> None:
    async with staged(scripted(thinks, max_length=2048), chat=chat) as stage:
        session, client = await stage.open(max_turns=4)
        items: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
        asked_so: dict[str, Any] = {
            "model": "policy",
            "tools": [{"type": "function", **FUNCTION}],
            "instructions": "Add.",
        }
        for _ in range(2):
            counted = await client.responses.input_tokens.count(input=items, **asked_so)
            answer = await client.responses.create(input=items, **asked_so)
            assert (counted.object, counted.input_tokens) == ("response.input_tokens", answer.usage.input_tokens)
            items += [item.model_dump(exclude_none=True) for item in answer.output]
            items += [
                {"type": "function_call_output", "call_id": item.call_id, "output": "5"}
                for item in answer.output
                if item.type == "function_call"
            ]
        async with anthropic.AsyncAnthropic(base_url=f"{stage.url}/sessions/{session}", api_key="k") as other:
            tool = {"name": "add", "input_schema": FUNCTION["parameters"]}
            said: Any = {"model": "policy", "messages": turns("Hi"), "system": "Add.", "tools": [tool]}
            count = await other.messages.count_tokens(**said)
            assert (await other.messages.create(max_tokens=9, **said)).usage.input_tokens == count.input_tokens
            with pytest.raises(anthropic.NotFoundError, match="this session's model is 'policy'"):
                await other.messages.count_tokens(model="other", messages=turns("Hi"))
        assert stage.gateway.status(session).turns == 3
        assert not stage.gateway.status(session).truncated


async def test_both_clients_find_the_models_of_a_session() -> None:
    async with staged(scripted("yes")) as stage:
        session, client = await stage.open(models=["org/big"])
        assert [model.id async for model in client.models.list()] == ["policy", "org/big"]
        assert (await client.models.retrieve("org/big")).owned_by == "quintain"
        with pytest.raises(openai.NotFoundError, match="this session's model is 'policy'"):
            await client.models.retrieve("other")
        async with anthropic.AsyncAnthropic(base_url=f"{stage.url}/sessions/{session}", api_key="k") as other:
            assert [model.display_name async for model in other.models.list()] == ["policy", "org/big"]
            assert (await other.models.retrieve("policy")).type == "model"


async def test_what_is_kept_nowhere_is_told_in_one_line_to_who_asks_for_it() -> None:
    async with staged(scripted("yes")) as stage:
        _, client = await stage.open()
        first = await client.responses.create(model="policy", input="Hi")
        with pytest.raises(openai.BadRequestError, match="previous_response_id: no response is kept here"):
            await client.responses.create(model="policy", input="And?", previous_response_id=first.id)
        for call in (client.responses.retrieve(first.id), client.responses.delete(first.id)):
            with pytest.raises(openai.NotFoundError, match=r"(GET|DELETE) /v1/responses/.* is not supported: use POST"):
                await call
        with pytest.raises(openai.NotFoundError, match="GET /v1/chat/completions is not supported: use POST"):
            await client.chat.completions.list()


async def test_limits_and_stops_end_an_answer_as_each_api_says_it() -> None:
    async with staged(scripted("one two three"), sampling=Sampling(256)) as stage:
        session, client = await stage.open()
        cut = await client.responses.create(model="policy", input="Hi", max_output_tokens=4)
        assert (cut.status, cut.incomplete_details.reason, cut.output_text) == (
            "incomplete",
            "max_output_tokens",
            "one ",
        )
        assert (cut.usage.input_tokens, cut.usage.output_tokens, cut.usage.total_tokens) == (5, 4, 9)
        async with anthropic.AsyncAnthropic(base_url=f"{stage.url}/sessions/{session}", api_key="k") as other:
            short = await asked(other, max_tokens=4, messages=turns("Hi"))
            assert (short.stop_reason, short.content[0].text, short.usage.output_tokens) == ("max_tokens", "one ", 4)
            stopped = await asked(other, messages=turns("Hi"), stop_sequences=[" three"])
            assert stopped.content[0].text == "one two"


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("messages", {"max_tokens": 9, "temperature": 0.5}, "temperature=0.5 is not granted"),
        ("messages", {"max_tokens": 9, "tool_choice": {"type": "any"}}, "tool_choice='required' is not supported"),
        ("messages", {"max_tokens": 9, "tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools of a server's"),
        ("messages", {"max_tokens": 9, "no_such": 1}, "no_such=1 is not supported"),
        ("messages", {}, "max_tokens is required"),
        ("messages", {"max_tokens": 9, "n": 2}, "n is a field of chat completions, and not of messages"),
        ("responses", {"n": 2}, "n is a field of chat completions, and not of responses"),
        ("responses", {"messages": []}, "messages is a field of chat completions"),
        ("messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        ("messages", {"max_tokens": 9, "messages": [{"role": "tool"}]}, r"messages\[0\].role must be user, assistant"),
        ("messages", {"max_tokens": 9, "messages": turns("Hi", "It is")}, "the last message is an assistant's"),
        ("messages/count_tokens", {"messages": [{"role": "tool"}]}, r"messages\[0\].role must be user, assistant"),
        ("responses", {"previous_response_id": "resp_1"}, "^previous_response_id: no response is kept here: send the "),
        ("responses/input_tokens", {"conversation": "conv_1"}, "send the whole conversation as input"),
        ("responses", {"truncation": "auto"}, "truncation='auto' is not supported"),
        ("responses", {"include": ["message.output_text.logprobs"]}, "leave them out of include"),
        ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        ("responses", {"text": {"format": {"type": "json_object"}}}, "response_format="),
        ("responses", {"reasoning": {"effort": "high"}}, "reasoning_effort='high' is not supported"),
        ("responses", {"tools": [{"type": "web_search"}]}, "only functions are supported"),
        ("responses", {"input": []}, "at least one message"),
        ("responses", {"input": 5}, "input must be a list"),
    ],
)
async def test_what_a_dialect_asks_for_that_is_not_done_is_refused_by_name(
    path: str, body: dict[str, Any], complaint: str
) -> None:
    async with staged(scripted("yes")) as stage:
        session, _ = await stage.open()
        asks = {"input": "Hi"} if path.startswith("responses") else {"messages": turns("Hi")}
        answer = await stage.http.post(f"/sessions/{session}/v1/{path}", json={"model": "policy", **asks, **body})
    assert answer.status_code == 400
    told = answer.json()
    assert told["error"]["type"] == "invalid_request_error"
    assert (told.get("type") == "error") == path.startswith("messages")
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(told["error"]["message"])


async def test_what_is_ignored_is_said_and_counted_in_every_dialect() -> None:
    async with staged(scripted("yes")) as stage:
        session, client = await stage.open(overrides="ignore")
        answer = await client.responses.create(model="policy", input="Hi", temperature=0.1, reasoning={"effort": "low"})
        assert answer.quintain["ignored"] == ["temperature", "reasoning_effort"]
        async with anthropic.AsyncAnthropic(base_url=f"{stage.url}/sessions/{session}", api_key="k") as other:
            told = await asked(other, messages=turns("Hi"), extra_body={"top_k": 4})
            assert told.quintain["ignored"] == ["top_k"]
        assert stage.gateway.status(session).ignored == {"temperature": 1, "reasoning_effort": 1, "top_k": 1}


@pytest.mark.parametrize("api", ["responses", "messages"])
async def test_a_failure_in_the_middle_of_a_stream_is_an_error_to_the_client(api: str) -> None:
    going = asyncio.Event()

    async def fail(call: int, token: int) -> None:
        await going.wait()
        raise RuntimeError("no memory at 0xdeadbeef")

    async with staged(scripted("yes", fail=fail), limits=GatewayLimits(keep_alive_s=0.05)) as stage:
        session, client = await stage.open()
        async with anthropic.AsyncAnthropic(base_url=f"{stage.url}/sessions/{session}", api_key="k") as other:
            if api == "responses":
                stream: Any = await client.responses.create(model="policy", input="Hi", stream=True)
            else:
                stream = await asked(other, messages=turns("Hi"), stream=True)
            going.set()
            with pytest.raises((openai.APIError, anthropic.APIError), match="no memory"):
                _ = [event async for event in stream]


async def test_a_stream_of_messages_shows_signs_of_life_while_it_samples() -> None:
    going = asyncio.Event()
    async with staged(scripted("yes", fail=hang_on(1, going)), limits=GatewayLimits(keep_alive_s=0.05)) as stage:
        session, _ = await stage.open()
        body = {"model": "policy", "max_tokens": 9, "messages": turns("Hi"), "stream": True}
        lines = []
        async with stage.http.stream("POST", f"/sessions/{session}/v1/messages", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": sampling") == 2:
                    going.set()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", *block, "message_delta", "message_stop"]
