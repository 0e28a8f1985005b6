"""The chat layer over real templates: prompts extend every token so far or name the fork; reading inverts rendering."""

from __future__ import annotations

import datetime
import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintain.arrays import Ints, as_ints
from quintain.config import ExperimentConfig, dump_config, parse_config
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, FunctionSpec, Message, ToolCall, ToolSpec, assistant, system, user
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Sampling
from quintain.trajectory import extends

from .chat_tokenizers import byte_level, sentence_piece, templates

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
CHANNELS = {"gptoss", "muse_glimmer"}  # they write a channel before an assistant's words
FAMILIES = {name: text for name, text in templates().items() if name not in CHANNELS}
SENTENCE_PIECE = ("phi3", "phi3_5", "gemma", "gemma3", "llava_next")
TOOL = ToolSpec(
    FunctionSpec(
        "get", "gets", {"type": "object", "properties": {"text": {"type": "string"}, "count": {"type": "integer"}}}
    )
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_TURN_END = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
RAISES = "{{ raise_exception('roles must alternate') }}"
WORDS = st.text("abc .,5\né數<", max_size=12)
CALLS = st.lists(st.tuples(st.text("ab 5", max_size=4), st.integers(-9, 9)), min_size=1, max_size=2)


def chats() -> list[Any]:
    found = [pytest.param(byte_level, text, id=name) for name, text in FAMILIES.items()]
    found += [pytest.param(sentence_piece, FAMILIES[name], id=f"{name}-sentencepiece") for name in SENTENCE_PIECE]
    found += [pytest.param(sentence_piece, text, id=name) for name, text in (("zephyr", ZEPHYR), ("mistral", MISTRAL))]
    return found


@cache
def chat_of(made: Any, template: str) -> TemplateChat:
    return TemplateChat(made(template))


def encoded(chat: TemplateChat, text: str, *, closed: bool = True) -> Ints:
    """What a policy might sample to say `text`."""
    ids = chat._tokenizer.encode(text, add_special_tokens=False)
    return as_ints([*ids, turn_end(chat)] if closed else ids)


def turn_end(chat: TemplateChat) -> int:
    return next(i for i in chat.stop_ids if i != chat._tokenizer.eos_token_id or len(chat.stop_ids) == 1)


def together(*parts: Ints) -> Ints:
    return as_ints(np.concatenate(parts))


def test_at_least_twenty_families_are_tried() -> None:
    assert len(FAMILIES) >= 20


@pytest.mark.parametrize(("made", "template"), chats())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_conversation_extends_every_token_so_far_or_forks_with_a_reason(made: Any, template: str, data: Any) -> None:
    chat = chat_of(made, template)
    tools = [TOOL] if data.draw(st.booleans(), label="tools") else []
    messages: list[Message] = [system("s")] if data.draw(st.booleans(), label="system") else []
    messages.append(user(data.draw(WORDS, label="user") + "?"))
    ids = chat.first(messages, tools)
    for _ in range(data.draw(st.integers(1, 3), label="turns")):
        closed = data.draw(st.booleans(), label="closed")
        thought = data.draw(st.sampled_from(["", "<think>hm</think>", "<think>", "<tool_call>"]), label="thought")
        sampled = encoded(chat, thought + data.draw(WORDS, label="said"), closed=closed)
        said = chat.read(sampled, prompt_ids=ids, tools=tools)
        assert said.role == "assistant"
        so_far = together(ids, sampled)
        messages.append(said)
        new = [user(data.draw(WORDS, label="told") + "!")]
        rendered = chat.extend(ids, sampled, messages, new, tools)
        assert (rendered.fork is None) == extends(rendered.ids, so_far)
        chat._renderings.clear()  # what is remembered saves work and changes nothing
        again = chat.extend(ids, sampled, messages, new, tools)
        assert (again.ids.tolist(), again.fork) == (rendered.ids.tolist(), rendered.fork)
        assert rendered.fork in (None, "template_drops_reasoning", "template_rewrites_history")
        if said.reasoning is None and "<" not in said.text and not chat_writes_thoughts(chat):
            assert rendered.fork is None
        messages += new
        ids = rendered.ids


def chat_writes_thoughts(chat: TemplateChat) -> bool:
    """Whether the template writes empty thoughts, or words before an assistant's, that nobody sampled."""
    asked = [user("q")]
    begun = chat._template.text(asked, (), generate=True)
    going_on = chat._template.text([*asked, assistant("w"), user("q")], (), generate=True)
    return not going_on.startswith(f"{begun}w")


@pytest.mark.parametrize(("made", "template"), chats())
@settings(max_examples=6)
@given(calls=CALLS, words=st.sampled_from(["", "Let me see."]))
def test_what_the_template_renders_of_calls_is_read_back(made: Any, template: str, calls: Any, words: str) -> None:
    chat = chat_of(made, template)
    made_calls = tuple(
        ToolCall(f"abcdefgh{i}", FunctionCall("get", f'{{"text": "x{text}x", "count": {count}}}'))
        for i, (text, count) in enumerate(calls)
    )
    asked = [user("q?")]
    spoken = Message("assistant", words or None, made_calls)
    before = chat.first(asked, [TOOL])
    try:
        ids, spans = chat.spans(
            [*asked, spoken, *(Message("tool", "r", tool_call_id=c.id) for c in made_calls)], [TOOL]
        )
    except FailureError:
        assert len(made_calls) > 1  # one call at a time, says Llama's template
        return
    span = spans[1]
    if chat._is_thinking(before) and "</think>" not in chat._decode(ids[span.start : span.end].tolist()):
        return  # the prompt asks for thought first, and the template forgets it
    read = chat.read(ids[span.start : span.end], prompt_ids=before, tools=[TOOL])
    wanted = [(call.function.name, arguments_of(call)) for call in made_calls]
    assert [(call.function.name, arguments_of(call)) for call in read.tool_calls] == wanted
    assert (read.text or "").strip() in (words, "")


def arguments_of(call: ToolCall) -> Any:
    return json.loads(call.function.arguments)


@pytest.mark.parametrize(("made", "template"), chats())
def test_a_turn_ends_at_what_the_template_writes_after_an_assistant(made: Any, template: str) -> None:
    chat = TemplateChat(made(template), eos=[3])
    assert {3, chat._tokenizer.eos_token_id} < {*chat.stop_ids} | {-1}
    ids, (_, answer) = chat.spans([user("q"), assistant("w")])
    ending = ids[answer.start : answer.end].tolist()
    behind = chat._template.text([user("q"), assistant("w"), user("q")], (), generate=True).rpartition("w")[2]
    assert set(chat._encode(behind).tolist()) & set(chat.stop_ids)
    assert chat.text(as_ints(ending)).strip() == "w"


@pytest.mark.parametrize(("made", "template"), chats())
def test_spans_are_what_each_message_says_and_an_assistant_s_go_to_its_end(made: Any, template: str) -> None:
    chat = chat_of(made, template)
    messages = [user("one1"), assistant("two2"), user("three3"), assistant("four4")]
    ids, spans = chat.spans(messages)
    said = [chat.text(ids[span.start : span.end]).strip() for span in spans]
    assert said == ["one1", "two2", "three3", "four4"]
    assert all(left.end <= right.start for left, right in pairwise(spans))
    assert int(ids[spans[1].end - 1]) in chat.stop_ids


@pytest.mark.parametrize("name", SENTENCE_PIECE)
def test_no_border_of_a_turn_gets_a_mark_of_beginning(name: str) -> None:
    chat = TemplateChat(sentence_piece(FAMILIES[name]))
    asked = [user("q")]
    prompt, sampled = chat.first(asked), encoded(chat, "w")
    whole = chat.first([*asked, assistant("w"), user("r")])
    bridge = chat.extend(prompt, sampled, [*asked, assistant("w")], [user("r")]).ids[len(prompt) + len(sampled) :]
    assert bridge.tolist() == whole[len(whole) - len(bridge) :].tolist()


@pytest.mark.parametrize(
    "said", ["<think>I call <tool_call>{c}</tool_call>", "<think>no <tool_call>{c}</tool_call></think>5"]
)
def test_a_call_that_is_only_thought_of_is_not_made(said: str) -> None:
    chat = TemplateChat(byte_level(FAMILIES["qwen3"]))
    text = said.replace("{c}", '{"name": "get", "arguments": {"text": "a"}}')
    prompt = chat.first([user("q")], [TOOL])
    read = chat.read(encoded(chat, text), prompt_ids=prompt, tools=[TOOL])
    assert read.tool_calls == ()
    assert read.reasoning is not None
    assert read.text == ("5" if said.endswith("5") else "")


def test_reasoning_that_the_prompt_began_is_reasoning() -> None:
    chat = TemplateChat(byte_level(FAMILIES["qwen3_5_think"]))
    prompt = chat.first([user("q")])
    read = chat.read(encoded(chat, "hm\n</think>\n\n5"), prompt_ids=prompt)
    assert (read.reasoning, read.text) == ("hm", "5")
    unfinished = chat.read(encoded(chat, "hm 5", closed=False), prompt_ids=prompt)
    assert (unfinished.reasoning, unfinished.text) == ("hm 5", "")


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3", "nemotron_3_nano"])
def test_reasoning_that_a_template_drops_is_a_fork_with_that_reason(name: str) -> None:
    chat = TemplateChat(byte_level(FAMILIES[name]))
    asked = [user("q")]
    prompt = chat.first(asked)
    sampled = encoded(chat, "hm</think>5")
    said = chat.read(sampled, prompt_ids=prompt)
    assert said.reasoning == "hm"
    rendered = chat.extend(prompt, sampled, [*asked, said], [user("r")])
    assert rendered.fork == "template_drops_reasoning"
    assert "hm" not in chat._decode(rendered.ids.tolist())


def test_what_was_said_before_is_not_read_again_turn_after_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = TemplateChat(byte_level(FAMILIES["qwen2_5"]))
    decode, decoded = chat._decode, 0

    def counted(ids: Any) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    monkeypatch.setattr(chat, "_decode", counted)
    messages, ids = [user("q")], chat.first([user("q")])
    for turn in range(40):
        sampled = encoded(chat, f"the answer {turn}")
        messages.append(chat.read(sampled, prompt_ids=ids))
        ids = chat.extend(ids, sampled, messages, [user("and?")]).ids
        messages.append(user("and?"))
    assert decoded < 2 * len(ids)


def test_qwen3_without_reasoning_never_forks() -> None:
    chat = TemplateChat(byte_level(FAMILIES["qwen3"]))
    messages, ids = [user("q")], chat.first([user("q")])
    for _ in range(4):
        sampled = encoded(chat, "5")
        messages.append(chat.read(sampled, prompt_ids=ids))
        rendered = chat.extend(ids, sampled, messages, [user("r")])
        assert rendered.fork is None
        messages, ids = [*messages, user("r")], rendered.ids


@pytest.mark.parametrize("name", ["gemma", "cohere"])
def test_tools_are_written_out_for_templates_that_want_roles_to_alternate(name: str) -> None:
    chat = TemplateChat(byte_level(FAMILIES[name]))
    call = ToolCall("abcdefgh1", FunctionCall("get", '{"text": "a"}'))
    results = [Message("tool", f"r{i}", tool_call_id="abcdefgh1") for i in range(2)]
    history = [system("Be brief."), user("q"), Message("assistant", None, (call,)), *results, user("and?")]
    text = chat._decode(chat.first(history, [TOOL]).tolist())
    for part in ("Be brief.", '"name": "get"', "r0", "r1", "and?"):
        assert part in text


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_a_template_with_channels_is_refused_when_it_is_loaded(name: str) -> None:
    with pytest.raises(QuintainError, match="writes more before an assistant's words") as caught:
        TemplateChat(byte_level(templates()[name]))
    assert "\n" not in str(caught.value)


def test_a_template_after_which_nothing_ends_a_turn_is_refused() -> None:
    with pytest.raises(QuintainError, match="puts no special token after an assistant's words"):
        TemplateChat(byte_level(NO_TURN_END))


def test_a_call_format_that_does_not_exist_is_named() -> None:
    with pytest.raises(QuintainError, match="no format 'hermess': did you mean 'hermes'"):
        TemplateChat(byte_level(FAMILIES["qwen3"]), calls="hermess")


@pytest.fixture(scope="module")
def smol() -> TemplateChat:
    return TemplateChat(load_tokenizer(str(MODEL)))


def test_the_first_prompt_is_the_template_s_own(smol: TemplateChat) -> None:
    messages = [system("Be brief."), user("What is 2 + 2?")]
    expected = smol._tokenizer.apply_chat_template(
        [m.to_openai() for m in messages], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert smol.first(messages).tolist() == expected


def test_tokens_that_text_would_encode_otherwise_are_kept(smol: TemplateChat) -> None:
    """' 4' and '2' as odd tokens: decoding and encoding again would merge them."""
    tokenizer = smol._tokenizer
    odd = [tokenizer.encode(piece, add_special_tokens=False)[0] for piece in ("an", "sw", "er")]
    assert tokenizer.encode(tokenizer.decode(odd), add_special_tokens=False) != odd
    prompt, sampled = smol.first([user("?")]), as_ints([*odd, turn_end(smol)])
    so_far = together(prompt, sampled)
    rendered = smol.extend(prompt, sampled, [user("?"), assistant("answer")], [user("and?")])
    assert rendered.fork is None
    assert np.array_equal(rendered.ids[: len(so_far)], so_far)


def test_a_template_that_drops_what_was_said_forks_and_says_so() -> None:
    chat = TemplateChat(byte_level(DROPS_REASONING.replace("</think>", "</hm>")))
    first = chat.first([user("?")])
    sampled = encoded(chat, "hm</hm>4")
    said = chat.read(sampled, prompt_ids=first)
    rendered = chat.extend(first, sampled, [user("?"), said], [user("sure?")])
    assert rendered.fork == "template_rewrites_history"


def test_a_template_that_raises_is_a_failure_of_this_episode() -> None:
    chat = TemplateChat(byte_level(FAMILIES["gemma"]))
    with pytest.raises(FailureError) as caught:
        chat.first([user("q"), Message("assistant", "w"), Message("assistant", "w"), Message("assistant", "w")][1:])
    assert caught.value.failure.stage is Stage.RENDER
    with pytest.raises(FailureError, match="roles must alternate"):
        TemplateChat(byte_level(RAISES))


def test_the_end_of_turn_is_not_part_of_what_was_said(smol: TemplateChat) -> None:
    prompt = smol.first([user("q")])
    assert smol.read(encoded(smol, "25"), prompt_ids=prompt) == Message("assistant", "25")
    assert smol.read(encoded(smol, "25", closed=False), prompt_ids=prompt) == Message("assistant", "25")
    assert smol.read(as_ints([]), prompt_ids=prompt) == Message("assistant", "")


@pytest.mark.parametrize("made", [byte_level, sentence_piece])
@given(text=st.text("ab <|é数\n", max_size=20))
def test_the_bytes_of_tokens_are_those_of_their_text(made: Any, text: str) -> None:
    chat = TemplateChat(made(ZEPHYR))
    ids = chat._encode(f"x{text}</s>")
    said = b"".join(chat.token_bytes(int(i)) for i in ids).decode()
    assert said.lstrip(" ") == f"x{text}</s>"  # SentencePiece begins every text with a blank


def test_a_tokenizer_that_cannot_chat_is_refused() -> None:
    with pytest.raises(QuintainError, match="has no chat template"):
        TemplateChat(SimpleNamespace(chat_template=None, name_or_path="base"))


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuintainError, match=r"model\.path: no tokenizer in") as caught:
        load_tokenizer(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("made", [byte_level, sentence_piece])
@given(
    text=st.text("ab.\n 数é", max_size=40),
    stops=st.lists(st.text("ab.\n 数é", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_turn_ends_with_the_first_token_that_completes_a_stop_string(made: Any, text: str, stops: list[str]) -> None:
    chat = TemplateChat(made(ZEPHYR), stop=stops)
    ids = encoded(chat, text, closed=False)
    said = [chat.text(ids[:end]) for end in range(1, len(ids) + 1)]
    first = next((end for end, so_far in enumerate(said, 1) if any(stop in so_far for stop in stops)), None)
    sampling = chat.ends(Sampling(99))
    ended = next((end for end in range(1, len(ids) + 1) if sampling.ends(ids[:end].tolist())), None)
    assert ended == first
    if first is not None:
        read = chat.read(ids[:first], prompt_ids=as_ints([]))
        assert read.text == min((said[first - 1].partition(stop)[0] for stop in stops), key=len)


def test_a_stop_string_makes_a_base_model_s_template_fit_and_what_it_cut_stays_in_the_tokens() -> None:
    template = "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A:' }}{{ m.content }}\n\n{% endfor %}"
    template += "{% if add_generation_prompt %}A:{% endif %}"
    chat = TemplateChat(byte_level(template), stop=["\n\n", " I "])
    for said, between in (("5\n\n", ""), ("5\n\nQ:", ""), ("5 I ", "\n\n")):
        prompt = chat.first([user("2 + 3?")])
        sampled = encoded(chat, said, closed=False)
        message = chat.read(sampled, prompt_ids=prompt)
        assert message == Message("assistant", "5")
        rendered = chat.extend(prompt, sampled, [user("2 + 3?"), message], [user("more")])
        assert rendered.fork is None
        asked_again = " more" if "Q" in said else "Q: more"
        assert chat.text(rendered.ids) == f"Q: 2 + 3?\n\nA:{said}{between}{asked_again}\n\nA:"


@pytest.mark.parametrize(("name", "thinks"), [("qwen3", True), ("qwen3_5_nothink", False), ("gemma", None)])
def test_what_was_left_open_is_told_and_asking_for_it_changes_nothing(name: str, thinks: bool | None) -> None:
    chat = TemplateChat(byte_level(FAMILIES[name]))
    assert chat.choices["thinking"] is thinks
    again = TemplateChat(
        byte_level(FAMILIES[name]), thinking=thinks, calls=chat.choices["tool_calls"], stop_ids=chat.choices["stop_ids"]
    )
    assert (again.stop_ids, again.calls) == (chat.stop_ids, chat.calls)
    assert again.first([user("q")], [TOOL]).tolist() == chat.first([user("q")], [TOOL]).tolist()


def test_a_tool_that_the_template_cannot_show_is_one_line_and_a_failure() -> None:
    picky = (
        "{% for t in tools or [] %}{% if 'properties' not in t.function.parameters %}"
        "{{ raise_exception('a tool needs properties') }}{% endif %}{{ t | tojson }}{% endfor %}" + templates()["qwen3"]
    )
    chat = TemplateChat(byte_level(picky))
    assert len(chat.first([user("q")], [TOOL]))
    with pytest.raises(
        FailureError, match=r"the chat template refused these messages: .*a tool needs properties"
    ) as caught:
        chat.first([user("q")], [ToolSpec(FunctionSpec("f", "no schema"))])
    assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.REJECTED, Stage.RENDER)
    assert "\n" not in caught.value.failure.message


@pytest.mark.parametrize(("pinned", "forks"), [(datetime.date(2026, 1, 31), None), (None, "template_rewrites_history")])
def test_a_template_that_writes_the_date_writes_that_of_the_run_after_midnight_too(
    pinned: datetime.date | None, forks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [datetime.datetime(2026, 1, 31, 23, 59)]
    now = SimpleNamespace(now=lambda: clock[0])
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", now)
    chat = TemplateChat(byte_level(FAMILIES["llama3_2"]), date=pinned)
    first = chat.first([user("q")])
    assert "Today Date: 31 Jan 2026" in chat.text(first)
    clock[0] += datetime.timedelta(minutes=2)
    sampled = as_ints([*chat._encode("a"), chat.stop_ids[-1]])
    said = chat.read(sampled, prompt_ids=first)
    assert chat.extend(first, sampled, [user("q"), said], [user("r")]).fork == forks
    assert chat.choices["date"] == pinned


def test_a_run_has_a_date_only_where_its_template_writes_one() -> None:
    date = datetime.date(2026, 1, 31)
    assert TemplateChat(byte_level(FAMILIES["qwen3"]), date=date).choices["date"] is None
    config = parse_config("{model: {path: m}, environment: {name: math}, rollout: {date: 2026-01-31}}")
    assert parse_config(dump_config(config)).rollout.date == date
    with pytest.raises(QuintainError, match=r"rollout\.date: .*tomorrow"):
        parse_config("{model: {path: m}, environment: {name: math}, rollout: {date: tomorrow}}")


def test_the_options_of_the_layer_have_their_place_in_the_file() -> None:
    config = ExperimentConfig.model_validate(
        {
            "model": {"path": "m"},
            "environment": {"name": "math"},
            "rollout": {"tool_calls": "hermes", "thinking": False, "chat_template_kwargs": {"x": 1}},
        }
    )
    assert (config.rollout.tool_calls, config.rollout.thinking) == ("hermes", False)
