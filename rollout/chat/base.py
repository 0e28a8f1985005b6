"""What stands between messages and token ids, for episodes, gateway, evaluation and supervised training alike.

Invariants of every `Chat`:
- `extend` gives ids that start, exactly, with the tokens so far, or says in one word why it cannot
  (`Rendered.fork`) and starts again from the messages: what the policy sampled is never decoded and encoded again
  within a segment;
- `read` never makes a call that the model did not write: what is malformed, cut off or still being thought is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quintain.arrays import Ints
from quintain.messages import Message, ToolSpec
from quintain.rollout.engines.base import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A prompt's ids [P] int32; `fork` says why they do not extend the ids before, None where they do."""

    ids: Ints
    fork: str | None = None


@dataclass(frozen=True, slots=True)
class MessageSpan:
    """The tokens `start` to `end` of a rendering are what `messages[message]` gave, with an assistant's end of turn."""

    message: int
    start: int
    end: int


class Chat(Protocol):
    """Renders and reads the messages of one model."""

    stop_ids: tuple[int, ...]
    """The ids that end a turn, smallest first."""
    about: str
    """One line: what renders and what reads calls."""
    choices: Mapping[str, Any]
    """What the options of `rollout` that were left open have become."""

    def first(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> Ints:
        """The prompt ids [P] of `messages`, from the beginning. Raises FailureError where they cannot be rendered."""
        ...

    def extend(
        self,
        prompt_ids: Ints,
        output_ids: Ints,
        messages: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
    ) -> Rendered:
        """The next prompt: that of the last turn, what was sampled, all of which is `messages`, and then `new`."""
        ...

    def read(
        self, output_ids: Ints, *, prompt_ids: Ints, tools: Sequence[ToolSpec] = (), stop: Sequence[str] = ()
    ) -> Message:
        """The assistant message that sampled ids say: its content, its reasoning, its calls of `tools`.

        It ends before the first of the stop strings, the run's or the caller's own `stop`.
        """
        ...

    def ends(self, sampling: Sampling, stop: Sequence[str] = ()) -> Sampling:
        """`sampling` with the ends of a turn: the model's, the run's stop strings, and the caller's own `stop`."""
        ...

    def text(self, ids: Ints) -> str:
        """What sampled ids say, as it stands, without the end of the turn."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, in UTF-8; it may be half a letter."""
        ...

    def spans(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[Ints, list[MessageSpan]]:
        """The ids [T] of a whole conversation, and which of them each message gave."""
        ...
