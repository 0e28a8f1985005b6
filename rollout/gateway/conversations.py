"""The turns of one session, token-exact, whatever the agent does with its history.

An agent may hold several conversations at once (sub-agents), try again from any earlier place, and edit, drop or
summarise what was said. The turns form chains: in a chain each prompt starts, exactly, with all the tokens of the turn
before. Invariants:
- a request whose messages begin with all those of an earlier turn, as the gateway gave them, is rendered by
  extending that turn's tokens: what was sampled is never tokenised again;
- of several such turns the longest is extended;
- every turn is in exactly one chain, and a chain's first turn says why it extends nothing (`Turn.fork`), but for the
  first turn of all;
- `turns()` has the chains one after the other, so that `to_segments` finds each of them whole.

Messages are compared by what they mean (`meaning`), so an assistant message that comes back as it was given is found
again, whichever way a client writes it. Pure but for the chat layer, which is a function of its arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from quintain.arrays import Ints, as_ints
from quintain.messages import Message, ToolSpec
from quintain.rollout.chat.base import Chat
from quintain.rollout.engines.base import Completion
from quintain.thinking import text_after_thinking
from quintain.trajectory import Turn, extends

BRANCHED = "agent_branched"  # the turn that it extends has been extended before
RESAMPLED = "agent_resampled"  # the same prompt has been sampled before: a retry, or `n` choices
REWRITTEN = "agent_rewrote_history"  # edited, dropped, reordered or summarised messages
STARTED = "agent_started_conversation"  # nothing in it was said before: a sub-agent
TOOLS_CHANGED = "agent_changed_tools"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A request's ids [P]. `parent` is the turn whose tokens they start with, `new` are the messages after that."""

    ids: Ints
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    parent: RecordedTurn | None
    new: tuple[Message, ...]
    why: str | None  # where known while rendering: why no turn could be extended


@dataclass(slots=True, eq=False)
class RecordedTurn:
    """One turn, the messages that it answered, and its place in its chain. Times in seconds.

    `turn` holds what is new in it; `new` are the messages after those of `parent`, whose tokens its prompt starts with.
    """

    number: int
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    parent: RecordedTurn | None
    new: tuple[Message, ...]
    turn: Turn
    began_s: float
    ended_s: float
    then: RecordedTurn | None = None  # the turn after it in its chain

    @property
    def history(self) -> tuple[Message, ...]:
        """All messages so far, the sampled one included."""
        return (*self.messages, self.turn.message)


class Conversations:
    """All turns of a session, in the order in which they were answered."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.recorded: list[RecordedTurn] = []
        self._by_history: dict[bytes, list[RecordedTurn]] = defaultdict(list)
        self._prompts: set[bytes] = set()  # their digests
        self._sampled: set[str] = set()  # the meanings of what was sampled
        self._roots: set[bytes] = set()  # what conversations begin with

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Prompt:
        """The ids to sample from. Raises FailureError where the template refuses the messages."""
        messages, tools = tuple(messages), tuple(tools)
        longest = self._longest(messages)
        same = [said for said in longest if said.tools == tools]
        why = None
        if same:
            said = _best(same, messages)
            new = messages[len(said.history) :]
            rendered = self.chat.extend(said.turn.prompt_ids, said.turn.output_ids, said.history, new, tools)
            if rendered.fork is None:
                return Prompt(rendered.ids, messages, tools, said, new, None)
            ids, why = rendered.ids, rendered.fork
        else:
            ids = self.chat.first(messages, tools)
            why = TOOLS_CHANGED if longest else None
        tip = self._tip_before(ids)  # other messages may still be the same tokens
        new = messages[_common(messages, tip.history) :] if tip else ()
        return Prompt(ids, messages, tools, tip, new, None if tip else why)

    def record(
        self, prompt: Prompt, completion: Completion, message: Message, *, began_s: float = 0.0, ended_s: float = 0.0
    ) -> RecordedTurn:
        """Add the turn that was sampled from `prompt` and given to the agent as `message`."""
        fork = self._fork(prompt)
        after = prompt.parent if fork is None else None
        before = after.turn if after else None
        turn = Turn(
            as_ints(prompt.ids[len(before.ids) if before else 0 :].copy()),  # a view would keep all that is before it
            completion.output_ids,
            completion.logprobs,
            completion.finish,
            completion.versions,
            message,
            fork=fork,
            generate_s=ended_s - began_s,
            before=before,
        )
        said = RecordedTurn(
            len(self.recorded), prompt.messages, prompt.tools, prompt.parent, prompt.new, turn, began_s, ended_s
        )
        if after is not None:
            after.then = said
        self.recorded.append(said)
        self._prompts.add(digest_of(prompt.ids))
        self._by_history[_digests(said.history)[-1]].append(said)
        self._sampled.add(meaning(message))
        self._roots |= _beginnings(prompt.messages)
        return said

    def turns(self, reward: float = 0.0) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
        """The turns, chain after chain, with `reward` on the last; and each one's number in order of time."""
        ordered = [said for first in self.recorded if first.turn.before is None for said in _chain(first)]
        turns = [_answered(said) for said in ordered]
        if turns:
            turns[-1] = replace(turns[-1], reward=reward)
        return tuple(turns), tuple(said.number for said in ordered)

    def forks(self) -> Counter[str]:
        """How many chains began, by reason; the first is none of them."""
        return Counter(said.turn.fork for said in self.recorded if said.turn.fork is not None)

    def _longest(self, messages: tuple[Message, ...]) -> list[RecordedTurn]:
        for digest in reversed(_digests(messages)):
            if digest in self._by_history:
                return self._by_history[digest]
        return []

    def _tip_before(self, ids: Ints) -> RecordedTurn | None:
        tips = [
            (len(said.turn.ids), said) for said in self.recorded if said.then is None and extends(ids, said.turn.ids)
        ]
        return max(tips, key=itemgetter(0), default=(0, None))[1]

    def _fork(self, prompt: Prompt) -> str | None:
        if not self.recorded or (prompt.parent is not None and prompt.parent.then is None):
            return None
        if digest_of(prompt.ids) in self._prompts:
            return RESAMPLED
        if prompt.why is not None:
            return prompt.why
        if prompt.parent is not None:
            return REWRITTEN if any(message.role == "assistant" for message in prompt.new) else BRANCHED
        known = any(message.role == "assistant" and meaning(message) in self._sampled for message in prompt.messages)
        return REWRITTEN if known or _beginnings(prompt.messages) & self._roots else STARTED


def digest_of(ids: Ints) -> bytes:
    """The same for the same tokens."""
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def meaning(message: Message) -> str:
    """What `message` says, as text to compare: no content is the empty one, arguments are equal as JSON.

    Left out are the ids of tool calls, since some frameworks give their own, and what an assistant thought, with the
    blanks around what it said: it comes back in a field, within the text, trimmed, or not at all.
    """
    text = message.text
    if message.role == "assistant":
        text = (text_after_thinking(text) or text).strip()
    calls = [(call.function.name, _normal(call.function.arguments)) for call in message.tool_calls]
    answers = message.tool_call_id if message.role == "tool" else None
    return json.dumps([message.role, text, calls, answers, message.name])


def _normal(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _digests(messages: Sequence[Message]) -> list[bytes]:
    """A digest of the first 1, 2, ... of `messages`."""
    found, so_far = [], hashlib.blake2b(digest_size=16)
    for message in messages:
        so_far.update(meaning(message).encode() + b"\n")
        found.append(so_far.digest())
    return found


def _beginnings(messages: Sequence[Message]) -> set[bytes]:
    """The digest of the messages up to the first that is no system message."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), None)
    return set() if first is None else {_digests(messages[: first + 1])[-1]}


def _best(same: Sequence[RecordedTurn], messages: Sequence[Message]) -> RecordedTurn:
    """Of turns that mean the same: one that came back as it was given, that nothing follows, the newest."""
    back = messages[len(same[0].history) - 1]

    def likeness(said: RecordedTurn) -> tuple[bool, bool, bool, bool, int]:
        given = said.turn.message
        same_ids = [call.id for call in given.tool_calls] == [call.id for call in back.tool_calls]
        same_thoughts = given.reasoning == back.reasoning
        return same_ids, given.text == back.text, same_thoughts, said.then is None, said.number

    return max(same, key=likeness)


def _common(left: Sequence[Message], right: Sequence[Message]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if meaning(a) != meaning(b)), min(len(left), len(right)))


def _chain(first: RecordedTurn) -> list[RecordedTurn]:
    chain = [first]
    while (then := chain[-1].then) is not None:
        chain.append(then)
    return chain


def _answered(said: RecordedTurn) -> Turn:
    """The turn, with what came next."""
    if (then := said.then) is None:
        return said.turn
    return replace(said.turn, observation=then.new, env_s=max(0.0, then.began_s - said.ended_s))
