"""Messages to token ids and back, without ever tokenising a token twice.

Invariant: `extend(ids, ...)` returns ids that start, exactly, with the `ids` so far, or says in one word why it
cannot (`Rendered.fork`), and then starts again from the messages. What the policy sampled is never decoded and
encoded again within a segment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintain.codec import Ints, as_ints
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import Message, ToolSpec


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A prompt's ids [P] int32; `fork` says why they do not extend the ids before, None where they do."""

    ids: Ints
    fork: str | None = None


class Renderer:
    """Renders with the chat template of a transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise QuintainError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: use an instruct model, or add a"
                " chat_template to its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._end: int | None = tokenizer.eos_token_id
        if self._end is None:
            raise QuintainError(f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token: set one")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a turn."""
        assert self._end is not None
        return (self._end,)

    def first(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> Ints:
        """The prompt ids [P] of an episode's first turn."""
        return self._encode(self._text(messages, tools, generate=True))

    def extend(
        self, ids: Ints, messages: Sequence[Message], new: Sequence[Message], tools: Sequence[ToolSpec] = ()
    ) -> Rendered:
        """The next prompt: `ids` (prompt and sample so far, whose messages are `messages`), then `new`."""
        before = self._text(messages, tools, generate=False)
        after = self._text([*messages, *new], tools, generate=True)
        if not after.startswith(before):
            return Rendered(self._encode(after), "template_rewrites_history")
        end_text = self._tokenizer.convert_ids_to_tokens(self._end)
        _, found, tail = before.rpartition(end_text)
        if not found or tail.strip():
            return Rendered(self._encode(after), "template_has_no_turn_end")
        closed = len(ids) > 0 and int(ids[-1]) == self._end
        bridge = self._encode(("" if closed else end_text) + tail + after[len(before) :])
        return Rendered(as_ints(np.concatenate([ids, bridge])))

    def parse(self, output_ids: Ints) -> Message:
        """The assistant message that the sampled ids say, without the end-of-turn token."""
        body = output_ids[:-1] if len(output_ids) and int(output_ids[-1]) == self._end else output_ids
        return Message("assistant", self._tokenizer.decode(body.tolist(), skip_special_tokens=False))

    def _encode(self, text: str) -> Ints:
        return as_ints(self._tokenizer.encode(text, add_special_tokens=False))

    def _text(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, generate: bool) -> str:
        specs = [
            {
                "type": "function",
                "function": {
                    "name": t.function.name,
                    "description": t.function.description,
                    "parameters": dict(t.function.parameters),
                },
            }
            for t in tools
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_for_template(message) for message in messages],
                tools=specs or None,
                tokenize=False,
                add_generation_prompt=generate,
            )
        except Exception as error:  # a template is a program: whatever it raises is a failure of this episode
            message = f"the chat template refused these messages: {type(error).__name__}: {error}"
            raise FailureError(Failure.of(FailureKind.REJECTED, Stage.RENDER, message)) from error
        return text


def _for_template(message: Message) -> dict[str, Any]:
    """`message` as chat templates expect it: content as text, the arguments of a call as an object."""
    out = message.to_openai() | {"content": None if message.content is None else message.text}
    for call in out.get("tool_calls", ()):
        with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is shown as it is
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return out


def load_renderer(model_path: str) -> Renderer:
    """The renderer of the tokenizer in `model_path`. QuintainError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise QuintainError(f"model.path: no tokenizer in '{model_path}': {detail}") from None
    return Renderer(tokenizer)


def quiet_transformers() -> None:
    """Turn off the progress bars and the advice of transformers, in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
