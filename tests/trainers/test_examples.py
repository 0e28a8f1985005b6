"""What rows of a data set become: which columns are read, which tokens are trained on, and what is refused."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import extract_prompt

from quintain.failure import QuintainError
from quintain.messages import assistant, user
from quintain.records import messages_in, tools_in
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.trainers.data_items import Form, items_of
from quintain.trainers.examples import Example, RenderedExamples, Renderer, RenderOptions, mask_of

from ..rollout.chat_tokenizers import byte_level

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
CHAT = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]
LONG = [*CHAT, {"role": "user", "content": "and three?"}, {"role": "assistant", "content": "seven"}]


def rendered(rows: list[dict[str, Any]], kind: Form, tokenizer: Any = None, **options: Any) -> RenderedExamples:
    tokenizer = tokenizer or smol()
    items = items_of([(f"data.jsonl row {n}", row) for n, row in enumerate(rows, 1)], kind)
    return Renderer(tokenizer, lambda: TemplateChat(tokenizer), RenderOptions(**options)).render(items)


@cache
def smol() -> Any:
    return load_tokenizer(str(MODEL))


def trained_text(example: Example, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(ids[mask_of(ids, spans)]) for ids, spans in zip(example.ids, example.trained, strict=True)]


def test_a_text_is_trained_on_from_its_second_token_to_its_end_of_text() -> None:
    tokenizer = smol()
    (example,) = rendered([{"text": "all of this"}], Form.TEXT).examples
    assert tokenizer.decode(example.ids[0]) == "all of this" + tokenizer.eos_token
    assert example.trained == (((1, len(example.ids[0])),),)


def test_of_prompt_and_completion_only_the_completion_is_trained_on_unless_asked() -> None:
    tokenizer, row = smol(), {"prompt": "the sky is", "completion": " blue"}
    (example,) = rendered([row], Form.TEXT).examples
    assert trained_text(example, tokenizer) == [" blue" + tokenizer.eos_token]
    (whole,) = rendered([row], Form.TEXT, completion_only_loss=False).examples
    assert whole.trained == (((1, len(whole.ids[0])),),)


def test_a_chat_of_prompt_and_completion_is_the_template_s_and_begins_after_the_generation_prompt() -> None:
    tokenizer = smol()
    (example,) = rendered([{"prompt": CHAT[:1], "completion": CHAT[1:]}], Form.TEXT).examples
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokenizer.decode(example.ids[0]) == text
    assert trained_text(example, tokenizer) == [text.partition("assistant\n")[2]]
    asked = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.ids[0][: example.prompt]) == asked


def test_a_chat_is_trained_on_whole_or_on_what_assistants_say() -> None:
    tokenizer = smol()
    (whole,) = rendered([{"messages": LONG}], Form.TEXT).examples
    assert whole.trained == (((1, len(whole.ids[0])),),)
    (said,) = rendered([{"messages": LONG}], Form.TEXT, assistant_only_loss=True).examples
    assert trained_text(said, tokenizer) == ["four<|im_end|>seven<|im_end|>"]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3_instruct_2507", "llama3", "gemma", "phi3", "lfm2"])
def test_what_assistants_say_is_what_trl_s_templates_for_training_mark(family: str) -> None:
    folder = files("trl") / "chat_templates"
    template = (folder / f"{family}.jinja").read_text()
    tokenizer = byte_level(template)
    (example,) = rendered([{"messages": LONG}], Form.TEXT, tokenizer, assistant_only_loss=True).examples
    theirs = tokenizer.apply_chat_template(
        LONG,
        chat_template=(folder / f"{family}_training.jinja").read_text(),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert example.ids[0].tolist() == theirs["input_ids"]
    ours, marked = mask_of(example.ids[0], example.trained[0]), np.array(theirs["assistant_masks"], bool)
    ends = [i for i in np.flatnonzero(ours != marked)]
    blank = [tokenizer.decode([example.ids[0][i]]).strip() for i in ends]
    assert all(text == "" or text in tokenizer.all_special_tokens for text in blank), (family, blank)


def test_tools_and_their_calls_are_in_the_prompt_and_an_assistant_s_call_is_trained_on() -> None:
    template = (files("trl") / "chat_templates" / "qwen2_5.jinja").read_text()
    tokenizer = byte_level(template)
    tools = [{"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": None}}}
    messages = [CHAT[0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "4"}, CHAT[1]]
    (example,) = rendered(
        [{"messages": messages, "tools": tools}], Form.TEXT, tokenizer, assistant_only_loss=True
    ).examples
    (said,) = trained_text(example, tokenizer)
    assert '{"name": "add", "arguments": {"a": 2}}' in said.replace('"b": null', "")
    assert "tool_response" not in said
    assert '"name": "add"' in tokenizer.decode(example.ids[0][: example.trained[0][0][0]])


def test_a_pair_shares_its_prompt_whether_it_is_a_column_or_what_both_begin_with() -> None:
    tokenizer = smol()
    explicit = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "five"}]}
    implicit = {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "five"}], "margin": 2}
    (one,), (other,) = (rendered([row], Form.PAIR).examples for row in (explicit, implicit))
    assert [ids.tolist() for ids in one.ids] == [ids.tolist() for ids in other.ids]
    assert one.trained == other.trained
    assert other.margin == 2.0
    assert trained_text(one, tokenizer) == ["four<|im_end|>\n", "five<|im_end|>\n"]
    assert np.array_equal(one.ids[0][: one.prompt], one.ids[1][: one.prompt])


@given(prompt=st.text("ab ", max_size=6), chosen=st.text("ab ", max_size=5), rejected=st.text("ab ", max_size=5))
def test_an_implicit_prompt_is_the_one_that_trl_finds(prompt: str, chosen: str, rejected: str) -> None:
    row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    try:
        (item,) = items_of([("row 1", row)], Form.PAIR)
    except QuintainError:
        return
    theirs = extract_prompt(row)
    assert (item.prompt, *item.answers) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])


def test_labels_come_one_by_one_or_from_pairs() -> None:
    tokenizer = smol()
    pairs = rendered([{"prompt": "a", "chosen": " b", "rejected": " c"}], Form.LABELLED).examples
    single = rendered(
        [{"prompt": "a", "completion": " b", "label": True}, {"prompt": "a", "completion": " c", "label": "false"}],
        Form.LABELLED,
    ).examples
    for one, other in zip(pairs, single, strict=True):
        assert (one.ids[0].tolist(), one.label) == (other.ids[0].tolist(), other.label)
    assert [trained_text(example, tokenizer)[0] for example in single] == [" b<|im_end|>", " c<|im_end|>"]


def test_steps_are_labelled_at_the_separator_behind_each_as_trl_1_12_did() -> None:
    tokenizer = smol()
    row = {"prompt": "9.8 or 9.11?", "completions": ["11 > 8.", "Hence 9.11."], "labels": [True, False]}
    (example,) = rendered([row], Form.STEPS).examples
    ids = [tokenizer.bos_token_id, *tokenizer("9.8 or 9.11?")["input_ids"]]
    ends = []
    for step in row["completions"]:
        ids += [*tokenizer(step)["input_ids"], *tokenizer("\n")["input_ids"]]
        ends.append((len(ids) - 1, len(ids)))
    assert (example.ids[0].tolist(), example.trained[0], example.labels) == (ids, tuple(ends), (True, False))
    (last,) = rendered([row], Form.STEPS, train_on_last_step_only=True).examples
    assert (last.trained[0], last.labels) == (tuple(ends[1:]), (False,))


@given(limit=st.integers(2, 40))
def test_what_is_cut_keeps_its_beginning_and_what_has_nothing_left_is_counted(limit: int) -> None:
    rows = [{"prompt": "one two three", "completion": f" four {'five ' * n}"} for n in range(8)]
    full, short = rendered(rows, Form.TEXT).examples, rendered(rows, Form.TEXT, max_length=limit)
    assert len(short.examples) + short.dropped == len(rows)
    assert short.cut == sum(len(example.ids[0]) > limit for example in full)
    kept = [example for example in full if example.prompt < limit]
    for one, other in zip(short.examples, kept, strict=True):
        assert one.ids[0].tolist() == other.ids[0][:limit].tolist()
        assert one.trained == (((other.prompt, min(limit, len(other.ids[0]))),),)


REFUSED = [
    (Form.PAIR, {"prompt": "p", "chosn": "a", "rejected": "b"}, "did you mean 'chosen'"),
    (
        Form.PAIR,
        {"prompt": "p", "chosen": "a"},
        "expected 'chosen' and 'rejected', with 'prompt' unless they begin alike; its",
    ),
    (Form.PAIR, {"prompt": "p", "chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are the same"),
    (Form.PAIR, {"chosen": "a", "rejected": "b"}, "begin differently, so there is no prompt: add 'prompt'"),
    (Form.PAIR, {"prompt": "p", "chosen": CHAT, "rejected": "b"}, "'chosen' is messages"),
    (
        Form.PAIR,
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"},
        "'margin' is a number, not 'much'",
    ),
    (Form.TEXT, {"text": "  "}, "'text' is empty"),
    (Form.TEXT, {"text": None}, "expected 'messages', 'text', or 'prompt' and 'completion'; its columns are none"),
    (Form.TEXT, {"messages": []}, "'messages': expected a list of messages {role, content}, got []"),
    (
        Form.TEXT,
        {"messages": [{"role": "human", "content": "x"}]},
        "message 0: the role must be one of system, user",
    ),
    (Form.TEXT, {"messages": [{"role": "user", "content": 5}]}, "message 0: the content must be text, not 5"),
    (Form.TEXT, {"messages": CHAT, "tools": "no"}, "'tools': expected a list of function schemas, got 'no'"),
    (Form.LABELLED, {"prompt": "p", "completion": "c", "label": "maybe"}, "'label' is true or false, not 'maybe'"),
    (
        Form.LABELLED,
        {"prompt": "p", "completion": "c", "label": True},
        "every 'label' is True: nothing can be learned",
    ),
    (Form.STEPS, {"prompt": "p", "completions": ["a"], "labels": [True, True]}, "one label for each of 1 steps"),
    (
        Form.STEPS,
        {"prompt": "p", "completions": [], "labels": []},
        "'completions' is a list of steps, each text, not []",
    ),
]


@pytest.mark.parametrize(("kind", "row", "complaint"), REFUSED)
def test_a_row_that_cannot_be_used_is_told_with_its_place_in_one_line(
    kind: Form, row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(QuintainError) as error:
        items_of([("data.jsonl row 7", row)], kind)
    assert str(error.value).startswith("data.jsonl row 7")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "options", "complaint"),
    [
        ({"messages": CHAT[:1]}, {"assistant_only_loss": True}, "row 1: assistant_only_loss, and no assistant says"),
        ({"text": "x"}, {"completion_only_loss": True}, "row 1: completion_only_loss needs 'prompt' and 'completion'"),
    ],
    ids=str,
)
def test_an_option_that_a_row_cannot_follow_is_told(
    row: dict[str, Any], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(QuintainError, match=complaint):
        rendered([row], Form.TEXT, **options)


def test_a_tokenizer_without_an_end_of_text_or_a_chat_template_is_told() -> None:
    tokenizer = load_tokenizer(str(MODEL))
    tokenizer.eos_token = None
    with pytest.raises(QuintainError, match="has no eos token, so nothing would end a text"):
        rendered([{"text": "x"}], Form.TEXT, tokenizer)
    tokenizer = load_tokenizer(str(MODEL))
    tokenizer.chat_template = None
    with pytest.raises(QuintainError, match="has no chat template"):
        rendered([{"messages": CHAT}], Form.TEXT, tokenizer)


def test_a_template_that_refuses_a_chat_is_told_with_the_row() -> None:
    refuses = "{% if messages|length > 3 %}{{ raise_exception('too long') }}{% endif %}"
    says = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = byte_level(f"{refuses}{says}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}")
    with pytest.raises(QuintainError, match=r"data.jsonl row 2: the chat template refused these messages: .*too long"):
        rendered([{"messages": CHAT}, {"messages": LONG}], Form.TEXT, tokenizer)


def test_messages_and_tools_are_read_as_json_text_too() -> None:
    assert messages_in('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]') == (
        user("a"),
        assistant("b"),
    )
    assert tools_in('[{"name": "f", "parameters": {}}]')[0].function.name == "f"
