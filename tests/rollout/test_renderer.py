"""The renderer: the next prompt starts, exactly, with all tokens so far, or the fork is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.codec import as_ints
from quintain.failure import FailureError, QuintainError, Stage
from quintain.messages import Message, assistant, system, user
from quintain.rollout.chat.renderer import Renderer, load_renderer
from quintain.trajectory import extends

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"

DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_TURN_END = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)  # this tokenizer has no token for some other bytes
RAISES = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def with_template(tokenizer: Any, template: str) -> Renderer:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return Renderer(other)


def test_the_first_prompt_is_the_template_s_own(renderer: Renderer, tokenizer: Any) -> None:
    messages = [system("Be brief."), user("What is 2 + 2?")]
    expected = tokenizer.apply_chat_template(
        [m.to_openai() for m in messages], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert renderer.first(messages).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(said=st.text(PRINTABLE, max_size=40), closed=st.booleans(), told=st.text(PRINTABLE, max_size=40))
def test_the_next_prompt_starts_with_every_token_so_far(
    renderer: Renderer, tokenizer: Any, said: str, closed: bool, told: str
) -> None:
    messages = [user("What is 2 + 2?")]
    sampled = tokenizer.encode(said, add_special_tokens=False) + ([*renderer.stop_ids] if closed else [])
    so_far = as_ints([*renderer.first(messages).tolist(), *sampled])
    spoken = renderer.parse(as_ints(sampled))
    rendered = renderer.extend(so_far, [*messages, spoken], [user(told)])
    assert rendered.fork is None
    assert extends(rendered.ids, so_far)
    bridge = tokenizer.decode(rendered.ids[len(so_far) :].tolist())
    end = "" if closed else "<|im_end|>"
    assert bridge == f"{end}\n<|im_start|>user\n{told}<|im_end|>\n<|im_start|>assistant\n"


def test_tokens_that_text_would_encode_otherwise_are_kept(renderer: Renderer, tokenizer: Any) -> None:
    """' 4' and '2' as two odd tokens: decoding and encoding again would merge them."""
    odd = [tokenizer.encode(piece, add_special_tokens=False)[0] for piece in ("an", "sw", "er")]
    assert tokenizer.encode(tokenizer.decode(odd), add_special_tokens=False) != odd
    so_far = as_ints([*renderer.first([user("?")]).tolist(), *odd, *renderer.stop_ids])
    rendered = renderer.extend(so_far, [user("?"), assistant("answer")], [user("and?")])
    assert np.array_equal(rendered.ids[: len(so_far)], so_far)


def test_a_template_that_drops_earlier_reasoning_forks_and_says_so(tokenizer: Any) -> None:
    renderer = with_template(tokenizer, DROPS_REASONING)
    first = renderer.first([user("?")])
    spoken = assistant("<think>hm</think>4")
    so_far = as_ints([*first.tolist(), *tokenizer.encode(spoken.content), *renderer.stop_ids])
    rendered = renderer.extend(so_far, [user("?"), spoken], [user("sure?")])
    assert rendered.fork == "template_rewrites_history"
    assert not extends(rendered.ids, so_far)
    assert "hm" not in tokenizer.decode(rendered.ids.tolist())


def test_a_template_without_an_end_of_turn_forks_and_says_so(tokenizer: Any) -> None:
    renderer = with_template(tokenizer, NO_TURN_END)
    so_far = as_ints([*renderer.first([user("?")]).tolist(), 5])
    assert renderer.extend(so_far, [user("?"), assistant("4")], [user("ok")]).fork == "template_has_no_turn_end"


def test_a_template_that_raises_is_a_failure_of_this_episode(tokenizer: Any) -> None:
    with pytest.raises(FailureError, match="roles must alternate") as caught:
        with_template(tokenizer, RAISES).first([user("?")])
    assert caught.value.failure.stage is Stage.RENDER


def test_the_end_of_turn_is_not_part_of_what_was_said(renderer: Renderer, tokenizer: Any) -> None:
    ids = tokenizer.encode("25", add_special_tokens=False)
    assert renderer.parse(as_ints([*ids, *renderer.stop_ids])) == Message("assistant", "25")
    assert renderer.parse(as_ints(ids)) == Message("assistant", "25")
    assert renderer.parse(as_ints([])) == Message("assistant", "")


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (SimpleNamespace(chat_template=None, name_or_path="base"), "has no chat template"),
        (SimpleNamespace(chat_template="x", name_or_path="base", eos_token_id=None), "has no eos_token"),
    ],
)
def test_a_tokenizer_that_cannot_chat_is_refused(tokenizer: Any, says: str) -> None:
    with pytest.raises(QuintainError, match=says):
        Renderer(tokenizer)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuintainError, match=r"model\.path: no tokenizer in") as caught:
        load_renderer(str(tmp_path / "none"))
    assert "\n" not in str(caught.value)
