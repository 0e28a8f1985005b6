"""The part of a model's text that is its answer, and text that is fit to be shown. Pure, linear in the text."""

from __future__ import annotations

import re
from typing import Final

SHOWN_CHARS: Final = 200
MAX_ANSWER_CHARS: Final = 4 << 20
"""No verifier reads a longer answer: it is unparsable."""

_THINKING: Final = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad"
_THINKING_ENDS = re.compile(
    rf"<\s?/\s?(?:{_THINKING})\s?>|\[/THINK\]|<\|end_of_thought\|>|◁/think▷|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_THINKING_BEGINS = re.compile(
    rf"<\s?(?:{_THINKING})\s?>|\[THINK\]|<\|begin_of_thought\|>|◁think▷|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)


def text_after_thinking(text: str) -> str | None:
    """What follows the thinking, or None where the thinking never ended."""
    end = 0
    for mark in _THINKING_ENDS.finditer(text):
        end = mark.end()
    body = text[end:]
    return None if _THINKING_BEGINS.search(body) else body


def answer_in(text: str, *, after_thinking: bool = True, tag: str | None = None) -> str | None:
    """The answer in `text`, stripped: after the thinking, in the last `<tag>…</tag>`; None where there is none."""
    body: str | None = text_after_thinking(text) if after_thinking else text
    if body is not None and tag is not None:
        body = last_element(body, tag)
    return None if body is None else body.strip()


def last_element(text: str, tag: str) -> str | None:
    """What is in the last complete `<tag>…</tag>` of `text`, or None."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(tag) + 2 : end]


def shown(value: object, limit: int = SHOWN_CHARS) -> str:
    """`value` as text for a verdict's detail: at most `limit` characters, fit for UTF-8 and for one line of a log."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def texts_of(reference: object) -> list[str] | None:
    """The accepted answers that `reference` names: a text or a list of texts, none of them empty; else None."""
    texts = [reference] if isinstance(reference, str) else reference
    if not isinstance(texts, (list, tuple)) or not texts:
        return None
    return [text for text in texts] if all(isinstance(text, str) and text.strip() for text in texts) else None
