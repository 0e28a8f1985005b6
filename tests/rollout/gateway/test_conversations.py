"""Whatever an agent does with its history, every sampled token is in exactly one segment, as it was sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.arrays import as_floats, as_ints
from quintain.messages import FunctionCall, FunctionSpec, Message, ToolCall, ToolSpec, assistant, system, user
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Completion
from quintain.rollout.gateway.conversations import (
    BRANCHED,
    RESAMPLED,
    REWRITTEN,
    STARTED,
    TOOLS_CHANGED,
    Conversations,
    RecordedTurn,
)
from quintain.trajectory import Ending, Finish, Trajectory, VersionSpan, extends, to_segments

from ..chat_tokenizers import byte_level
from .stage import CHAT, END, ByteTokenizer

MODEL = Path(__file__).parents[3] / "models" / "SmolLM2-135M-Instruct"
TOOL = ToolSpec(FunctionSpec("add"))
KEEPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ForgetfulTokenizer(ByteTokenizer):
    """Its template cuts what assistants said before the last message: no prompt extends the one before."""

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        *before, last = messages
        cut = [{**m, "content": m["content"][:2]} if m["role"] == "assistant" else m for m in before]
        return super().apply_chat_template([*cut, last], **options)


def sample(ids: list[int], *, closed: bool = True, logprob: float = -0.5) -> Completion:
    out = as_ints([*ids, END] if closed else ids)
    logprobs = as_floats([logprob - i / 64 for i in range(len(out))])
    finish = Finish.STOP if closed else Finish.LENGTH
    return Completion(out, logprobs, finish, (VersionSpan(0, 0, len(out)),) if len(out) else ())


def speak(
    conversations: Conversations, messages: list[Message], said: str, tools: tuple[ToolSpec, ...] = ()
) -> RecordedTurn:
    prompt = conversations.prompt(messages, tools)
    return conversations.record(prompt, sample([ord(c) for c in said]), assistant(said))


def trajectory(conversations: Conversations) -> Trajectory:
    return Trajectory("t", "g", "task", 0, 0, 0, conversations.turns(1.0)[0], Ending.TERMINATED, 1.0)


def sound(conversations: Conversations) -> None:
    """What must hold of every session."""
    turns, order = trajectory(conversations).turns, conversations.turns()[1]
    assert sorted(order) == list(range(len(conversations.recorded)))
    for i, (turn, number) in enumerate(zip(turns, order, strict=True)):
        given_out = conversations.recorded[number].turn
        assert np.array_equal(turn.output_ids, given_out.output_ids)
        assert np.array_equal(turn.logprobs, given_out.logprobs)
        assert np.array_equal(turn.prompt_ids, given_out.prompt_ids)
        assert turn.before is (turns[i - 1] if i and turn.fork is None else None)
        assert (turn.fork is None) == (i == 0 or given_out.before is conversations.recorded[order[i - 1]].turn), (
            turn.fork
        )
    segments = to_segments(trajectory(conversations))
    spoken = [turn for turn in turns if len(turn.output_ids)]
    assert sum(int(segment.mask.sum()) for segment in segments) == sum(len(turn.output_ids) for turn in spoken)
    sampled = np.concatenate([segment.ids[segment.mask] for segment in segments] or [as_ints([])])
    logprobs = np.concatenate([segment.logprobs[segment.mask] for segment in segments] or [as_floats([])])
    assert np.array_equal(sampled, np.concatenate([turn.output_ids for turn in spoken] or [as_ints([])]))
    assert np.array_equal(logprobs, np.concatenate([turn.logprobs for turn in spoken] or [as_floats([])]))
    for segment in segments:
        assert np.all(segment.logprobs[~segment.mask] == 0)
        assert np.array_equal(segment.versions >= 0, segment.mask)


@pytest.fixture(scope="module")
def real_chat() -> TemplateChat:
    from transformers import AutoTokenizer

    return TemplateChat(AutoTokenizer.from_pretrained(MODEL))


def live_through(data: st.DataObject, chat: TemplateChat, draw_ids: Callable[[], list[int]], end: int) -> Conversations:
    """A session of an agent that does anything at all with what was said."""
    conversations = Conversations(chat)
    texts = st.sampled_from(["go on", "why", "x", "again"])
    histories: list[list[Message]] = [[user("begin")]]
    for _ in range(data.draw(st.integers(1, 8))):
        messages = list(data.draw(st.sampled_from(histories)))
        does = data.draw(
            st.sampled_from(["append", "again", "edit", "drop", "reorder", "inject", "new", "summarise", "append"])
        )
        place = data.draw(st.integers(0, len(messages) - 1))
        if does == "edit":
            messages[place] = replace(messages[place], content=data.draw(texts))
        elif does == "drop" and len(messages) > 1:
            del messages[place]
        elif does == "reorder":
            messages = [*messages[place:], *messages[:place]]
        elif does == "inject":
            messages.insert(place, assistant(data.draw(texts)))
        elif does == "new":
            messages = [system(data.draw(texts)), user(data.draw(texts))]
        elif does == "summarise":
            messages = [user("in short: " + data.draw(texts)), *messages[-1:]]
        if does == "append":
            messages.append(user(data.draw(texts)))
        tools = data.draw(st.sampled_from([(), (), (TOOL,)]))
        tips = {s.history: s for s in conversations.recorded if s.then is None and s.tools == tools}
        prompt = conversations.prompt(messages, tools)
        ids = [i for i in draw_ids() if i != end]
        closed = data.draw(st.booleans())
        out = sample(ids, closed=False)
        if closed:
            logprobs, spans = as_floats([-1.0] * (len(ids) + 1)), (VersionSpan(1, 0, len(ids) + 1),)
            out = Completion(as_ints([*ids, end]), logprobs, Finish.STOP, spans)
        said = conversations.record(prompt, out, chat.read(out.output_ids, prompt_ids=prompt.ids))
        if (tip := tips.get(tuple(messages[:-1]))) is not None and does == "append":
            assert said.turn.fork is None
            assert extends(said.turn.prompt_ids, tip.turn.ids)
        histories += [messages, [*messages, said.turn.message]]
    return conversations


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_history_leaves_every_sampled_token_in_one_segment(data: st.DataObject) -> None:
    ids = st.lists(st.integers(1, 127), max_size=3)
    sound(live_through(data, CHAT, lambda: data.draw(ids), END))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_tokens_that_no_text_encodes_to_are_never_encoded_again(data: st.DataObject, real_chat: TemplateChat) -> None:
    """Any ids of a real vocabulary: half of a character, or two tokens for what one would say."""
    ids = st.lists(st.integers(3, 49151), max_size=4)
    (end,) = real_chat.stop_ids
    sound(live_through(data, real_chat, lambda: data.draw(ids), end))


@settings(max_examples=100, deadline=None)
@given(said=st.lists(st.text("abcd", max_size=4), min_size=1, max_size=6))
def test_a_template_that_forgets_forks_at_every_turn_that_it_cuts(said: list[str]) -> None:
    conversations, messages = Conversations(TemplateChat(ForgetfulTokenizer())), [user("q")]
    for text in said:
        turn = speak(conversations, messages, text)
        messages = [*turn.history, user("more")]
    sound(conversations)
    cut = [len(text) > 2 for text in said[:-1]]
    assert [turn.fork == "template_rewrites_history" for turn in conversations.turns()[0]] == [False, *cut]


def test_a_conversation_that_goes_on_is_one_segment() -> None:
    conversations = Conversations(CHAT)
    one = speak(conversations, [system("s"), user("q")], "a")
    two = speak(conversations, [*one.history, user("r")], "b")
    three = speak(conversations, [*two.history, user("t"), assistant("mine"), user("u")], "c")
    turns, _ = conversations.turns(2.0)
    assert [turn.fork for turn in turns] == [None, None, None]
    assert [turn.reward for turn in turns] == [0.0, 0.0, 2.0]
    assert [turn.observation for turn in turns] == [(user("r"),), (user("t"), assistant("mine"), user("u")), ()]
    assert len(to_segments(trajectory(conversations))) == 1
    assert extends(three.turn.prompt_ids, two.turn.ids)


def test_sub_agents_that_take_turns_are_a_segment_each() -> None:
    conversations = Conversations(CHAT)
    main = speak(conversations, [system("main"), user("q")], "a")
    sub = speak(conversations, [system("sub"), user("part")], "x")
    main = speak(conversations, [*main.history, user("r")], "b")
    sub = speak(conversations, [*sub.history, user("more")], "y")
    main = speak(conversations, [*main.history, user("end")], "c")
    turns, order = conversations.turns()
    assert order == (0, 2, 4, 1, 3)
    assert [turn.fork for turn in turns] == [None, None, None, STARTED, None]
    assert [int(segment.mask.sum()) for segment in to_segments(trajectory(conversations))] == [6, 4]
    sound(conversations)


def test_of_several_beginnings_the_longest_is_extended() -> None:
    conversations = Conversations(CHAT)
    one = speak(conversations, [user("q")], "a")
    two = speak(conversations, [*one.history, user("r")], "b")
    three = speak(conversations, [*two.history, user("s")], "c")
    assert three.parent is two
    assert [int(s.mask.sum()) for s in to_segments(trajectory(conversations))] == [6]


@pytest.mark.parametrize(
    ("messages", "tools", "fork"),
    [
        ([user("q"), assistant("a"), user("other")], (), BRANCHED),
        ([user("q"), assistant("a"), user("r")], (), RESAMPLED),
        ([user("q")], (), RESAMPLED),
        ([user("q"), assistant("A"), user("r")], (), REWRITTEN),
        ([user("q"), assistant("a"), user("r"), assistant("B"), user("s")], (), REWRITTEN),
        ([user("q?"), assistant("a"), user("r")], (), REWRITTEN),
        ([user("r"), assistant("b"), user("s")], (), REWRITTEN),
        ([system("be brief"), user("something else")], (), STARTED),
        ([user("q"), assistant("a"), user("r"), assistant("b"), user("s")], (TOOL,), TOOLS_CHANGED),
    ],
)
def test_every_way_to_fork_has_its_name(messages: list[Message], tools: tuple[ToolSpec, ...], fork: str) -> None:
    conversations = Conversations(CHAT)
    one = speak(conversations, [user("q")], "a")
    speak(conversations, [*one.history, user("r")], "b")
    assert speak(conversations, messages, "c", tools).turn.fork == fork
    assert conversations.forks() == {fork: 1}
    sound(conversations)


ADDS = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'


def test_an_answer_is_found_again_however_a_client_writes_it() -> None:
    given = Message("assistant", None, (ToolCall("call00000", FunctionCall("add", '{"a": 1, "b": [2]}')),))
    result = Message("tool", "3", tool_call_id="call00000")
    for returned in (
        replace(given, content=""),
        replace(given, tool_calls=(ToolCall("call00000", FunctionCall("add", '{"b":[2],"a":1}')),)),
        replace(given, tool_calls=(ToolCall("renamed", FunctionCall("add", '{"a":1,"b":[2]}')),)),
    ):
        conversations = Conversations(CHAT)
        first = conversations.record(conversations.prompt([user("q")], (TOOL,)), sample([*map(ord, ADDS)]), given)
        then = conversations.prompt([user("q"), returned, result], (TOOL,))
        assert then.parent is first
        assert extends(then.ids, first.turn.ids)
    changed = replace(given, tool_calls=(ToolCall("call00000", FunctionCall("add", '{"a": 1, "b": [3]}')),))
    conversations = Conversations(CHAT)
    conversations.record(conversations.prompt([user("q")], (TOOL,)), sample([*map(ord, ADDS)]), given)
    assert conversations.prompt([user("q"), changed, result], (TOOL,)).parent is None


@pytest.mark.parametrize(
    "back",
    [
        assistant("5"),
        assistant(" 5\n"),
        assistant("<think>\nhm\n</think>\n\n5"),
        Message("assistant", "5", reasoning="hm, says the client"),
    ],
)
def test_reasoning_that_comes_back_otherwise_or_not_at_all_is_the_same_turn(back: Message) -> None:
    chat = TemplateChat(byte_level(KEEPS_REASONING))
    conversations = Conversations(chat)
    prompt = conversations.prompt([user("q")], ())
    ids = chat._encode("<think>hm</think>5<|im_end|>")
    message = chat.read(ids, prompt_ids=prompt.ids)
    assert (message.text, message.reasoning) == ("5", "hm")
    said = conversations.record(prompt, sample(ids.tolist()[:-1], closed=False), message)
    again = conversations.prompt([user("q"), back, user("r")], ())
    assert (again.parent, again.new) == (said, (user("r"),))
    assert extends(again.ids, said.turn.ids)


def test_of_answers_that_mean_the_same_the_one_that_came_back_is_extended() -> None:
    conversations = Conversations(CHAT)
    prompt = conversations.prompt([user("q")], ())
    first, _ = (conversations.record(prompt, sample([ord(c) for c in text]), assistant(text)) for text in ("5 ", "5"))
    assert conversations.prompt([user("q"), assistant("5 "), user("r")], ()).parent is first


def test_of_equal_answers_the_one_whose_calls_came_back_is_extended() -> None:
    conversations = Conversations(CHAT)
    prompt = conversations.prompt([user("q")], (TOOL,))
    made = [
        conversations.record(
            prompt,
            sample([*map(ord, '<tool_call>{"name": "add", "arguments": {}}</tool_call>')]),
            Message("assistant", None, (ToolCall(f"c{i}", FunctionCall("add", "{}")),)),
        )
        for i in range(3)
    ]
    for said in made:
        then = conversations.prompt(
            [*said.history, Message("tool", "1", tool_call_id=said.turn.message.tool_calls[0].id)], (TOOL,)
        )
        assert then.parent is said
