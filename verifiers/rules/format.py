"""The format verifier: is the answer laid out as it was asked to be?

It looks at the layout only and needs no reference. The rules, each of which holds or does not:
- `thinking`: `<think>` and `</think>` come at most once each, the closing one behind the opening one, and nothing
  but white space before the opening one. Where `thinking` is "required" there must be one, with something in it;
  where "forbidden", none. With `prefilled` the chat template has written `<think>` already: only the closing tag
  is expected. Thinking that is never closed breaks the rule always.
- `tags`: behind the thinking, each named tag is opened once and closed once, with something between, in the given
  order, none within another.
- `nothing_outside`: behind the thinking there is nothing but white space outside those tags.
- `one_answer`: behind the thinking there is exactly one `\\boxed{…}`, or one line that begins with `####`, and it is
  not empty.

The score is 1 where all the rules asked for hold, else 0; with `partial`, the share of them that hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from quintain.verdict import Verdict
from quintain.verifiers.math.read.spelling import closing_brace
from quintain.verifiers.options import Options
from quintain.verifiers.pure import PureVerifier

Tag = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]{0,63}$")]

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,2}\{")
_HASHES = re.compile(r"^####[^\n]*", re.MULTILINE)


class FormatOptions(Options):
    """Options of the format verifier."""

    thinking: Literal["optional", "required", "forbidden"] = "optional"
    """Whether the answer must, may or must not begin with `<think>…</think>`."""
    prefilled: bool = False
    """Whether the chat template has opened the thinking, so that the answer begins inside it."""
    tags: Annotated[tuple[Tag, ...], Field(max_length=16)] = ()
    """Tags that must each occur exactly once behind the thinking, in this order: `answer` for `<answer>…`."""
    nothing_outside: bool = False
    """Whether text outside the thinking and the tags breaks a rule."""
    one_answer: Literal["boxed", "hashes"] | None = None
    """The mark of a final answer, of which there must be exactly one: `\\boxed{…}` or a line `#### …`."""
    partial: bool = False
    """Whether the score is the share of the rules that hold, in place of all or nothing."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nothing_outside and not self.tags:
            raise ValueError("nothing_outside needs tags: without them all text is outside")
        if len(set(self.tags)) < len(self.tags) or "think" in self.tags:
            raise ValueError("tags are different from each other and from think, which has the option thinking")
        if self.prefilled and self.thinking == "forbidden":
            raise ValueError("thinking that is prefilled cannot be forbidden")
        return self


class FormatVerifier(PureVerifier[FormatOptions]):
    """Scores the layout of an answer; the reference is not looked at."""

    name: ClassVar[str] = "format"
    options_type: ClassVar[type[Options]] = FormatOptions

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The score, with each rule and whether it held in the detail."""
        options = self.options
        thought, body = split_thinking(answer, prefilled=options.prefilled)
        rules = {"thinking": _thinking_holds(thought, body, options)}
        rest = answer if body is None else body
        if options.tags:
            rules["tags"] = tags_hold(rest, options.tags)
        if options.nothing_outside:
            rules["nothing_outside"] = _outside(rest, options.tags) == ""
        if options.one_answer == "boxed":
            boxed = [rest[box.end() : closing_brace(rest, box.end()) or box.end()] for box in _BOX.finditer(rest)]
            rules["one_answer"] = len(boxed) == 1 and bool(boxed[0].strip())
        elif options.one_answer == "hashes":
            lines = _HASHES.findall(rest)
            rules["one_answer"] = len(lines) == 1 and bool(lines[0].strip("# \t\r"))
        held = sum(rules.values()) / len(rules)
        return Verdict.scored(held if options.partial else float(held == 1.0), rules=rules)


def split_thinking(text: str, *, prefilled: bool) -> tuple[str | None, str | None]:
    """What is inside the thinking (None: there is none) and what follows it (None: the thinking is malformed)."""
    opened, closed = text.count("<think>"), text.count("</think>")
    if opened == closed == 0 and not prefilled:
        return None, text
    if closed != 1 or opened > 1 or (opened == 0 and not prefilled):
        return None, None
    before, _, body = text.partition("</think>")
    if opened:
        head, tag, before = before.partition("<think>")
        if head.strip() or not tag:
            return None, None
    return before, body


def tags_hold(text: str, tags: Sequence[str]) -> bool:
    """Whether each of `tags` is opened and closed exactly once, filled, in order and none within another."""
    at = 0
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        start, end = text.index(opening), text.index(closing)
        if start < at or end < start or not text[start + len(opening) : end].strip():
            return False
        at = end + len(closing)
    return True


def _thinking_holds(inside: str | None, body: str | None, options: FormatOptions) -> bool:
    if body is None:
        return False
    if options.thinking == "required":
        return bool(inside and inside.strip())
    return options.thinking == "optional" or inside is None


def _outside(text: str, tags: Sequence[str]) -> str:
    """`text` without the first element of each of `tags`, stripped."""
    for tag in tags:
        before, opening, rest = text.partition(f"<{tag}>")
        _, closing, after = rest.partition(f"</{tag}>")
        if opening and closing:
            text = before + after
    return text.strip()
