"""OpenAI's own client against the gateway on a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway import GatewayLimits
from quintain.trajectory import Ending, Finish, Trajectory, extends, to_segments

from ...fake_engine import hang_on
from .stage import ADD, CHAT, END, TOOL_CHAT, calculates, scripted, staged

QUESTION: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]


def one_segment(trajectory: Trajectory) -> str:
    """The text of the only segment."""
    (segment,) = to_segments(trajectory)
    assert int(segment.mask.sum()) == trajectory.output_tokens
    return "".join(chr(i) for i in segment.ids)


async def whole(client: openai.AsyncOpenAI, messages: list[Any], **options: Any) -> dict[str, Any]:
    """The assistant's message, not streamed."""
    answer = await client.chat.completions.create(model="policy", messages=messages, **options)
    return answer.choices[0].message.model_dump()


async def streamed(client: openai.AsyncOpenAI, messages: list[Any], **options: Any) -> dict[str, Any]:
    """The assistant's message, put together from a stream by the client's own helper."""
    async with client.chat.completions.stream(model="policy", messages=messages, **options) as stream:
        answer = await stream.get_final_completion()
    return answer.choices[0].message.model_dump(exclude={"parsed"})


async def calculate(client: openai.AsyncOpenAI, ask: Any) -> str:
    """An agent: call tools until the model answers."""
    messages = [{"role": "system", "content": "Add."}, *QUESTION]
    while True:
        message = await ask(client, messages, tools=[ADD])
        messages.append(message)
        if not message.get("tool_calls"):
            return str(message["content"])
        for call in message["tool_calls"]:
            call.get("function", {}).pop("parsed_arguments", None)
            numbers = json.loads(call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(numbers["a"] + numbers["b"])})


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize("chat", [CHAT, TOOL_CHAT], ids=["written out", "template"])
async def test_an_agent_with_a_calculator_is_one_segment(ask: Any, chat: Any) -> None:
    async with staged(scripted(calculates, max_length=2048), chat=chat) as stage:
        session, client = await stage.open(task="sum-1", group="g", index=7, member=2, metadata={"who": "me"})
        said = await calculate(client, ask)
        assert said.startswith("It is ")
        assert "5" in said
        trajectory = await stage.reward(session, 0.75, rewards={"right": 0.75}, info={"note": "x"})
    identity = (trajectory.id, trajectory.task, trajectory.group, trajectory.index, trajectory.member)
    assert identity == (session, "sum-1", "g", 7, 2)
    assert (trajectory.reward, trajectory.rewards, trajectory.ending) == (0.75, {"right": 0.75}, Ending.TERMINATED)
    assert (trajectory.info["note"], trajectory.info["metadata"]) == ("x", {"who": "me"})
    assert [turn.fork for turn in trajectory.turns] == [None, None]
    first, second = trajectory.turns
    assert first.message.tool_calls[0].function.name == "add"
    assert first.message.content == "Let me see."
    assert [message.role for message in first.observation] == ["tool"]
    assert "Let me see. <tool_call>" in one_segment(trajectory)
    assert extends(second.prompt_ids, first.ids)


async def test_a_stream_has_role_content_calls_end_and_usage() -> None:
    async with staged(scripted(calculates, max_length=2048)) as stage:
        _, client = await stage.open()
        stream = await client.chat.completions.create(
            model="policy", messages=QUESTION, tools=[ADD], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *spoken, end, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in spoken]
    assert [delta.role for delta in deltas] == ["assistant", None, None, None]
    assert [delta.content for delta in deltas[1:]] == ["Let me see.", None, None]
    named, called = deltas[2].tool_calls[0], deltas[3].tool_calls[0]
    assert (named.id, named.function.name, named.function.arguments) == ("call00000", "add", "")
    assert json.loads(called.function.arguments) == {"a": 2, "b": 3}
    assert end.choices[0].finish_reason == "tool_calls"
    assert usage.choices == []
    assert usage.usage.total_tokens == usage.usage.prompt_tokens + usage.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_shows_signs_of_life_while_it_samples_and_ends_with_done() -> None:
    going = asyncio.Event()
    engine = scripted("yes", fail=hang_on(1, going))
    async with staged(engine, limits=GatewayLimits(keep_alive_s=0.05)) as stage:
        session, _ = await stage.open()
        body = {"model": "policy", "messages": QUESTION, "stream": True}
        lines = []
        async with stage.http.stream("POST", f"/sessions/{session}/v1/chat/completions", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": sampling") == 2:
                    going.set()
    assert lines.count(": sampling") >= 2
    assert [line for line in lines if line][-1] == "data: [DONE]"


async def test_a_failure_in_the_middle_of_a_stream_is_an_error_to_the_client() -> None:
    going = asyncio.Event()

    async def fail(call: int, token: int) -> None:
        await going.wait()
        raise RuntimeError("no memory at 0xdeadbeef")

    async with staged(scripted("yes", fail=fail), limits=GatewayLimits(keep_alive_s=0.05)) as stage:
        _, client = await stage.open()
        stream = await client.chat.completions.create(model="policy", messages=QUESTION, stream=True)
        going.set()
        with pytest.raises(openai.APIError, match="no memory"):
            _ = [chunk async for chunk in stream]


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_hangs_up_ends_the_sampling_and_leaves_no_turn(streaming: bool) -> None:
    hung = asyncio.Event()
    started = asyncio.Event()

    async def fail(call: int, token: int) -> None:
        if call == 1:
            started.set()
            await hung.wait()

    engine = scripted("yes", fail=fail)
    async with staged(engine, limits=GatewayLimits(keep_alive_s=0.05)) as stage:
        session, client = await stage.open()
        asking = asyncio.create_task(
            client.chat.completions.create(model="policy", messages=QUESTION, stream=streaming)
        )
        await started.wait()
        if streaming:
            await (await asking).response.aclose()
        else:
            asking.cancel()
        async with asyncio.timeout(20):
            while engine.stats().running or stage.gateway.status(session).calls:  # noqa: ASYNC110 - its counters only
                await asyncio.sleep(0.01)
        await whole(client, QUESTION)
        trajectory = await stage.reward(session)
    assert len(trajectory.turns) == 1
    assert trajectory.failure is None


async def test_choices_are_branches_and_each_can_be_continued() -> None:
    async with staged(scripted(lambda last: f"to {last[1:]}", max_length=512)) as stage:
        session, client = await stage.open()
        answer = await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "a"}], n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3 * len("to a") + 3
        history = [{"role": "user", "content": "a"}, answer.choices[0].message, {"role": "user", "content": "b"}]
        await client.chat.completions.create(model="policy", messages=history)  # type: ignore[arg-type]
        trajectory = await stage.reward(session)
    assert len(trajectory.turns) == 4
    assert [turn.fork for turn in trajectory.turns].count("agent_resampled") == 2
    assert sum(int(s.mask.sum()) for s in to_segments(trajectory)) == trajectory.output_tokens


async def test_log_probabilities_are_the_engine_s() -> None:
    engine = scripted("hello")
    async with staged(engine) as stage:
        session, client = await stage.open()
        answer = await client.chat.completions.create(model="policy", messages=QUESTION, logprobs=True)
        trajectory = await stage.reward(session)
    (turn,) = trajectory.turns
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(each.token for each in logprobs.content) == "hello"
    assert [each.logprob for each in logprobs.content] == pytest.approx(turn.logprobs[:-1].tolist())
    expected = engine.model.score(turn.ids)[len(turn.prompt_ids) - 1 :]
    assert turn.logprobs.tolist() == pytest.approx(expected.tolist())


async def test_a_stop_string_ends_the_text_and_the_tokens() -> None:
    async with staged(scripted("Thought. Action: go\nObservation: made up")) as stage:
        session, client = await stage.open()
        answer = await client.chat.completions.create(model="policy", messages=QUESTION, stop=["\nObservation:"])
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Thought. Action: go", "stop")
        history = [*QUESTION, answer.choices[0].message, {"role": "user", "content": "Observation: gone"}]
        await client.chat.completions.create(model="policy", messages=history)
        trajectory = await stage.reward(session)
    assert trajectory.turns[0].finish is Finish.STOP
    text = one_segment(trajectory)
    assert f"Thought. Action: go\nObservation:{chr(END)}uObservation: gone" in text


async def test_the_smallest_limit_of_tokens_holds_and_is_told() -> None:
    async with staged(scripted("many words"), sampling=Sampling(6)) as stage:
        session, client = await stage.open(max_tokens=5)
        for asked, got in ((None, "many "), (3, "man"), (100, "many ")):
            answer = await client.chat.completions.create(model="policy", messages=QUESTION, max_tokens=asked)
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (got, "length")
        trajectory = await stage.reward(session)
    assert trajectory.truncated


async def test_the_run_s_sampling_is_authoritative_unless_the_session_says_otherwise() -> None:
    seen: list[Sampling] = []

    def policy(prompt: Any, sampling: Sampling) -> list[int]:
        seen.append(sampling)
        return [65, END]

    from ...fake_engine import FakeEngine

    async with staged(FakeEngine(policy, words=128), sampling=Sampling(9, temperature=0.8)) as stage:
        _, strict = await stage.open()
        with pytest.raises(openai.BadRequestError, match=r"the run samples with temperature 0\.8") as caught:
            await whole(strict, QUESTION, temperature=0)
        assert caught.value.param == "temperature"
        await whole(strict, QUESTION, temperature=0.8)
        session, deaf = await stage.open(overrides="ignore")
        answer = await deaf.chat.completions.create(
            model="policy", messages=QUESTION, temperature=0, seed=3, response_format={"type": "json_object"}
        )
        assert answer.model_extra is not None
        assert answer.model_extra["quintain"]["ignored"] == ["temperature", "seed", "response_format"]
        assert stage.gateway.status(session).ignored == {"temperature": 1, "seed": 1, "response_format": 1}
        _, free = await stage.open(overrides="allow")
        await whole(free, QUESTION, temperature=0.1, top_p=0.5, extra_body={"top_k": 7})
    assert [(s.temperature, s.top_p, s.top_k) for s in seen] == [(0.8, 1.0, 0), (0.8, 1.0, 0), (0.1, 0.5, 7)]
    assert all(s.stop_ids == (END,) for s in seen)


async def test_a_session_that_repeats_draws_alike_and_a_retry_draws_anew() -> None:
    from ...fake_engine import FakeEngine

    said = []
    for _ in range(2):
        async with staged(FakeEngine(words=128), seed=5) as stage:
            session, client = await stage.open(id="same")
            await asyncio.gather(*(whole(client, [{"role": "user", "content": f"q{i % 3}"}]) for i in range(6)))
            trajectory = await stage.reward(session)
            turns = [(t.prompt_ids.tolist(), t.output_ids.tolist()) for t in trajectory.turns]
            said.append(sorted(turns))
            assert len({str(turn) for turn in turns}) == 6
    assert said[0] == said[1]


async def test_a_model_that_is_not_the_session_s_is_not_found_unless_it_was_named() -> None:
    async with staged(scripted("yes")) as stage:
        _, client = await stage.open()
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
        assert caught.value.code == "model_not_found"
        _, client = await stage.open(models=["gpt-4o"])
        answer = await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
        assert answer.model == "gpt-4o"
        assert [model.id async for model in client.models.list()] == ["policy", "gpt-4o"]


async def test_a_full_context_is_openai_s_error_and_the_session_ends_truncated() -> None:
    async with staged(scripted("yes", max_length=64)) as stage:
        session, client = await stage.open(max_length=32)
        first = await whole(client, QUESTION)
        history = [*QUESTION, first, {"role": "user", "content": "x" * 60}]
        with pytest.raises(openai.BadRequestError, match="and with the answer they may be 32") as caught:
            await whole(client, history)
        assert caught.value.code == "context_length_exceeded"
        trajectory = await stage.reward(session, 0.5)
        assert (trajectory.ending, trajectory.reward, len(trajectory.turns)) == (Ending.TRUNCATED, 0.5, 1)
        session, client = await stage.open(max_length=4)
        with pytest.raises(openai.BadRequestError):
            await whole(client, QUESTION)
        trajectory = await stage.reward(session, 0.5)
        assert trajectory.failure is not None
        assert str(trajectory.failure.kind) == "too_long"


async def test_turns_are_limited_and_the_session_ends_truncated() -> None:
    async with staged(scripted("yes")) as stage:
        session, client = await stage.open(max_turns=2)
        answers = await asyncio.gather(*(whole(client, QUESTION) for _ in range(3)), return_exceptions=True)
        (refused,) = (answer for answer in answers if isinstance(answer, openai.BadRequestError))
        assert refused.code == "max_turns_exceeded"
        trajectory = await stage.reward(session)
    assert (trajectory.ending, len(trajectory.turns)) == (Ending.TRUNCATED, 2)


async def test_the_client_s_own_retries_outlive_an_engine_that_fails_once() -> None:
    from ...fake_engine import crash_on

    async with staged(scripted("yes", fail=crash_on(1))) as stage:
        session, client = await stage.open()
        assert (await whole(client.with_options(max_retries=2), QUESTION))["content"] == "yes"
        assert stage.gateway.status(session).failed_calls == 1
        trajectory = await stage.reward(session)
    assert (trajectory.failure, trajectory.reward) == (None, 1.0)
    assert trajectory.info["gateway"]["failed_calls"] == 1


@pytest.mark.parametrize("coped", [False, True])
async def test_a_call_that_was_never_answered_is_a_failure_and_no_reward(coped: bool) -> None:
    async def broken(call: int, token: int) -> None:
        if call != 2:
            raise RuntimeError("the engine is gone")

    async with staged(scripted("yes", fail=broken)) as stage:
        session, client = await stage.open()
        with pytest.raises(openai.InternalServerError, match="the engine is gone") as caught:
            await whole(client, QUESTION)
        assert caught.value.status_code == 503
        assert (await stage.http.get(f"/sessions/{session}")).json()["unanswered"]["kind"] == "crashed"
        history = [*QUESTION, await whole(client, QUESTION), {"role": "user", "content": "and?"}]
        assert stage.gateway.status(session).unanswered is None
        with pytest.raises(openai.InternalServerError):
            await whole(client, history)
        trajectory = await stage.reward(session, 0.0, despite_failures=coped)
        assert (trajectory.reward, trajectory.failure is None) == ((0.0, True) if coped else (None, False))
        session, client = await stage.open()
        with pytest.raises(openai.InternalServerError):
            await whole(client, QUESTION)
        trajectory = await stage.reward(session, 0.0, despite_failures=coped)
        assert (trajectory.reward, len(trajectory.turns)) == (None, 0)


@pytest.mark.parametrize("path", ["completions", "embeddings"])
async def test_other_pages_of_openai_s_are_named_and_refused(path: str) -> None:
    async with staged(scripted("yes")) as stage:
        session, _ = await stage.open()
        answer = await stage.http.post(f"/sessions/{session}/v1/{path}", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


async def test_every_refusal_can_be_read_by_openai_s_client_and_by_ours() -> None:
    async with staged(scripted("yes"), limits=GatewayLimits(body_bytes=100)) as stage:
        session, client = await stage.open()
        url = f"/sessions/{session}/v1/chat/completions"
        refusals: list[httpx.Response] = [
            await stage.http.post("/sessions/none/v1/chat/completions", json={"model": "policy", "messages": QUESTION}),
            await stage.http.post(url, content=b"x" * 101),
            await stage.http.post(url, content=b"{"),
            await stage.http.post("/sessions", json={"tsk": 1}),
            await stage.http.post(f"/sessions/{session}/reward", content=b'{"reward": NaN}'),
            await stage.http.post(f"/sessions/{session}/reward", json={"reward": 1}),
            await stage.http.get("/sessions/none"),
        ]
        with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
            await whole(client, QUESTION, extra_body={"temprature": 1})
    assert [answer.status_code for answer in refusals] == [404, 413, 400, 400, 400, 409, 404]
    for answer in refusals:
        assert set(answer.json()) == {"error", "failure"}
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in answer.text
