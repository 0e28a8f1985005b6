"""A `Chat` over the chat template of any transformers tokenizer, or over a family of the package `renderers`.

What always holds: a turn ends at the tokenizer's eos, at those of the model's generation config, and at whatever the
template puts after an assistant's words; a template after which no such token follows is refused when it is loaded.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from quintain.arrays import Ints, as_ints
from quintain.call_syntax import Call, calls_of_json
from quintain.failure import QuintainError
from quintain.messages import FunctionCall, Message, ToolCall, ToolSpec, assistant, user
from quintain.nearest import one_of
from quintain.rollout.chat.base import MessageSpan, Rendered
from quintain.rollout.chat.family import TEMPLATE, RendererFamily, family_of
from quintain.rollout.chat.shapes import ASKED, CALLED, PROBE_TOOL, SAID, VALUE, Template, described
from quintain.rollout.chat.tokens import TokenText, shared_start, why_it_forks
from quintain.thinking import text_after_thinking
from quintain.tool_calls import FORMATS, Split, split_calls

THINKING: Final = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
"""The marks around what a model thinks; a pair counts where the template itself has it."""
TOKENIZER: Final = "tokenizer"
"""`rollout.tool_calls` for the tokenizer's own response template. It loses what is said before a call and gives up on a
whole message for one call that is malformed, so it is taken where none of our formats is what the template writes."""
CALL_FORMATS: Final = ("auto", *FORMATS, "whole", TOKENIZER, "none")
CHANNELS: Final = "the template writes more before an assistant's words than its generation prompt ({head!r})"
TAIL: Final = 64
"""So many tokens of a prompt say how an answer begins."""
_DATE: Final = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
"""How templates write the date, which is the clock's, and nothing that may be given to them in its place."""
_THINK: Final = "enable_thinking"
_CHANGED: Final = "\ue000"  # no text has it: what differs where it stands is what a message gave


def date_of(tokenizer: Any, date: datetime.date | None) -> datetime.date | None:
    """`date` where `tokenizer`'s chat template writes one, else None."""
    return date if _DATE.search(str(getattr(tokenizer, "chat_template", None))) else None


def dated(template: str, date: datetime.date) -> str:
    """A chat template in which every date is `date`, whatever the clock says."""
    return _DATE.sub(lambda call: call[1] + date.strftime(call[2]) + call[1], template)


class TemplateChat(TokenText):
    """Renders with `tokenizer`'s template. The options are those of `rollout`; `eos` are the model's own ends.

    Without a `date` a template that writes one writes the day on which it renders.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        renderer: str = TEMPLATE,
        calls: str = "auto",
        thinking: bool | None = None,
        options: Mapping[str, Any] | None = None,
        date: datetime.date | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        eos: Sequence[int] = (),
    ) -> None:
        renderer = family_of(tokenizer) or TEMPLATE if renderer == "auto" else renderer
        own = getattr(tokenizer, "chat_template", None)
        if renderer == TEMPLATE and not own:
            raise QuintainError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use an instruct model, or add a"
                " chat_template to its tokenizer_config.json"
            )
        if calls not in CALL_FORMATS:
            raise QuintainError(f"rollout.tool_calls: there is no format {calls!r}{one_of(calls, CALL_FORMATS)}")
        super().__init__(tokenizer, stop)
        asked = {**(options or {}), **({} if thinking is None else {_THINK: thinking})}
        date = date_of(tokenizer, date) if renderer == TEMPLATE else None
        if date is not None:
            asked = {"chat_template": dated(str(own), date), **asked}
        writes = tokenizer if renderer == TEMPLATE else RendererFamily(renderer, tokenizer, asked)
        self._template = Template(writes, asked)
        thought = [user(ASKED), Message("assistant", SAID, reasoning=VALUE)]
        source = json.dumps(own, ensure_ascii=False) + self._template.tries(thought)
        self._marks = next((pair for pair in THINKING if pair[1] in source), None)
        ends = set(self._ends(needed=not stop and stop_ids is None))
        known = {i for i in (tokenizer.eos_token_id, *eos) if i is not None}
        self.stop_ids: tuple[int, ...] = tuple(sorted({*known, *ends} if stop_ids is None else stop_ids))
        parses = getattr(tokenizer, "response_template", None) is not None
        if calls == TOKENIZER and not parses:
            raise QuintainError("rollout.tool_calls: tokenizer: this tokenizer has no response_template: leave auto")
        found = TOKENIZER if parses and self._template.calls == "none" else self._template.calls
        self.calls = found if calls == "auto" else calls
        shown = "by the template" if self._template.shape.tools else "written into the messages"
        what = "chat template of the tokenizer" if renderer == TEMPLATE else f"renderer {renderer}"
        self.about = f"{what}, tools {shown}, calls read as {self.calls}"
        thinking = self._thinks() if thinking is None else thinking
        self.choices: Mapping[str, Any] = {
            "renderer": renderer,
            "tool_calls": self.calls,
            "thinking": thinking,
            "date": date,
            "stop_ids": list(self.stop_ids),
        }

    def first(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> Ints:
        """The prompt ids [P] of `messages`, from the beginning."""
        return self._prompt(self._template.text(messages, tools, generate=True))

    def extend(
        self,
        prompt_ids: Ints,
        output_ids: Ints,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
    ) -> Rendered:
        """The next prompt: all tokens so far, whose messages are `messages`, then `new`."""
        after = self._template.text([*messages, *new], tools, generate=True)
        extended = self._extended(prompt_ids, output_ids, after, messages[-1].text if messages else "")
        if extended is None:
            return Rendered(self._prompt(after), why_it_forks(messages))
        return Rendered(extended)

    def read(
        self, output_ids: Ints, *, prompt_ids: Ints, tools: Sequence[ToolSpec] = (), stop: Sequence[str] = ()
    ) -> Message:
        """The assistant message that sampled ids say. Unfinished thinking says nothing; `reasoning` has it."""
        (whole, closed), reasoning = self._said(output_ids, stop), None
        said = whole
        if self._marks is not None:
            begin, end = self._marks
            if said.lstrip().startswith(begin) or self._is_thinking(prompt_ids):
                reasoning, _, said = said.partition(end)
                reasoning, said = reasoning.strip().removeprefix(begin).strip(), said.lstrip("\n")
        calls: list[ToolCall] = []
        answer = text_after_thinking(said) if tools else None
        if answer:
            schemas = {tool.function.name: tool.function.parameters for tool in tools}
            if self.calls == TOKENIZER:
                split = self._split_by_tokenizer(whole, prompt_ids, tools) if closed else Split(answer)
            else:
                split = split_calls(answer, self.calls, schemas, closed=closed)
            calls = [_tool_call(call, number, prompt_ids, output_ids) for number, call in enumerate(split.calls)]
            if calls:
                said = (said[: len(said) - len(answer)] + self._without_marks(split.said)).strip()
        return Message("assistant", said or (None if calls else ""), tuple(calls), reasoning=reasoning)

    def spans(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[Ints, list[MessageSpan]]:
        """The ids [T] of a whole conversation, and which of them each message gave.

        A message gave what changes when it says something else; an assistant's goes on to the end of its turn. Raises
        FailureError where the template refuses the conversation.
        """
        whole = self._template.text(messages, tools, generate=False)
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        spans = []
        for number, message in enumerate(messages):
            start, end = self._chars_of(messages, tools, number, whole)
            first = next((i for i, (_, stop) in enumerate(offsets) if stop > start), len(ids))
            last = next((i for i, (begin, _) in enumerate(offsets) if begin >= end), len(ids))
            if message.role == "assistant":
                last = next((i + 1 for i in range(last, len(ids)) if ids[i] in self.stop_ids), len(ids))
            spans.append(MessageSpan(number, first, max(first, last)))
        return as_ints(ids), spans

    def _split_by_tokenizer(self, whole: str, prompt_ids: Ints, tools: Sequence[ToolSpec]) -> Split:
        """What the tokenizer's response template makes of a sample; no calls where it can make nothing of it."""
        prefix, shown = self._decode(prompt_ids[-TAIL:].tolist()), [described(tool, "function") for tool in tools]
        try:
            parsed = self._tokenizer.parse_response(whole, prefix=prefix, tools=shown)
            calls = tuple(calls_of_json(parsed.get("tool_calls") or []))
        except Exception:  # the boundary: it is a program too, and what it refuses is a text without calls
            return Split("")
        return Split(parsed.get("content") or "", calls)

    def _prompt(self, text: str) -> Ints:
        ids = self._encode(text)
        self._remember(ids, text)
        return ids

    def _without_marks(self, said: str) -> str:
        """What is said beside calls, without the tokens that frame them (`<｜tool▁calls▁begin｜>`)."""
        ids = self._tokenizer.encode(said, add_special_tokens=False)
        return self._decode([i for i in ids if i not in self._special]) if said else said

    def _is_thinking(self, prompt_ids: Ints) -> bool:
        """Whether the prompt ends in thought, as some generation prompts do."""
        if self._marks is None:
            return False
        begin, end = self._marks
        tail = self._decode(prompt_ids[-TAIL:].tolist()).rstrip()
        return tail.rfind(begin) > tail.rfind(end) and tail.endswith(begin)

    def _ends(self, *, needed: bool) -> Iterator[int]:
        """The tokens that the template puts after an assistant's words, and after its calls."""
        template, asked = self._template, user(ASKED)
        begun = template.text([asked], (), generate=True)
        going_on = template.text([asked, assistant(SAID), user(ASKED)], (), generate=True)
        whole = template.text([asked, assistant(SAID)], (), generate=False)
        behind = going_on.rpartition(SAID)[2] if SAID in going_on else whole.rpartition(SAID)[2]
        end = self._first_special(behind)
        if end is None and needed:
            raise QuintainError(
                "the chat template puts no special token after an assistant's words, so nothing would end a turn: give"
                " the model a chat_template that ends turns with one, or name texts that end one in rollout.stop"
            )
        head = whole[shared_start(begun, whole) :].partition(SAID)[0]
        for mark in self._marks or ():
            head = head.replace(mark, "")
        if head.strip():
            raise QuintainError(f"{CHANNELS.format(head=head)}: give the model a chat_template that does not")
        if end is not None:
            yield end
        if template.shape.tools:
            called = template.tries(CALLED[:2], [PROBE_TOOL])
            answered = template.tries(CALLED, [PROBE_TOOL], generate=True)
            mark = FORMATS[template.calls].end if template.calls in FORMATS else ""
            behind = called.rpartition(mark or VALUE)[2] + answered[shared_start(called, answered) :]
            more = self._first_special(behind)
            if more is not None:
                yield more

    def _thinks(self) -> bool | None:
        """Whether the template asks to think first; None where it has no such switch."""
        template = self._template
        plain, on, off = (template.prompt_with(options) for options in ({}, {_THINK: True}, {_THINK: False}))
        return None if on == off else plain == on if plain in (on, off) else None

    def _first_special(self, text: str) -> int | None:
        return next((int(i) for i in self._encode(text) if int(i) in self._special), None)

    def _chars_of(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], number: int, whole: str
    ) -> tuple[int, int]:
        """Where in the rendering `whole` stands what `messages[number]` says."""
        message, changed = messages[number], json.dumps({_CHANGED: _CHANGED}, ensure_ascii=False)
        names = [call.function.name for call in message.tool_calls]
        other = replace(message, content=_CHANGED, reasoning=None, tool_calls=())
        others = _called(message, [name + _CHANGED for name in names], changed)
        renamed = replace(message, content=_CHANGED, tool_calls=others)
        start, end = self._difference(messages, tools, number, whole, other)
        if names:  # a result may name its call, so that only the arguments say where the call ends
            same = replace(message, tool_calls=_called(message, names, changed))
            start = min(start, self._difference(messages, tools, number, whole, renamed)[0])
            end = self._difference(messages, tools, number, whole, same)[1]
        return start, end

    def _difference(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], number: int, whole: str, other: Message
    ) -> tuple[int, int]:
        """What of `whole` changes where `other` stands in place of a message; nothing where it is not shown."""
        text = self._template.tries([*messages[:number], other, *messages[number + 1 :]], tools)
        if _CHANGED not in text:
            return len(whole), len(whole)
        start = shared_start(whole, text)
        return start, len(whole) - shared_start(whole[start:][::-1], text[start:][::-1])


def _called(message: Message, names: Sequence[str], arguments: str) -> tuple[ToolCall, ...]:
    pairs = zip(message.tool_calls, names, strict=True)
    return tuple(replace(call, function=FunctionCall(name, arguments)) for call, name in pairs)


def _tool_call(call: Call, number: int, *ids: Ints) -> ToolCall:
    """`call` with an id of nine letters and digits, since some templates insist, that follows from where it stands."""
    digest = hashlib.blake2b(b"".join(part.tobytes() for part in ids) + number.to_bytes(2, "big"), digest_size=8)
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return ToolCall(digest.hexdigest()[:9], FunctionCall(call.name, arguments))
