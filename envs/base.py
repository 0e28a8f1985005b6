"""The environment: Gymnasium's vocabulary, asynchronous, speaking chat messages. This is all of it.

What always holds:
- an observation holds only the messages that are new; an action is one assistant message;
- a reward is a finite float: NaN and infinity are refused where a `Step` is made, with a `FailureError`;
- one object runs one episode at a time: `reset`, then `step` until a step says terminated or truncated, then
  `close`. Whoever holds it (the server, `LocalClient`) keeps that order and refuses everything else.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import FunctionCall, Message, Role, ToolCall, ToolSpec, assistant
from quintain.task import POLICY, Task, TaskSource, plain


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy gets to see: the new `messages` and the `tools` on offer.

    `info` is for people and logs. `agent` is the seat whose turn it is: an episode may have several, each sees what is
    new to it and nothing of what the others see, and all are played by the policy.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    agent: str = POLICY

    def __post_init__(self) -> None:
        object.__setattr__(self, "info", _plain(self.info, "an observation's info"))
        object.__setattr__(self, "messages", _tuple_of(Message, self.messages, "an observation's messages"))
        object.__setattr__(self, "tools", _tuple_of(ToolSpec, self.tools, "an observation's tools"))


@dataclass(frozen=True, slots=True)
class Action:
    """What the policy does: one assistant message."""

    message: Message

    def __post_init__(self) -> None:
        if self.message.role != "assistant":
            raise ValueError(f"an action is an assistant message, not one by {self.message.role!r}")

    @classmethod
    def text(cls, content: str) -> Action:
        """The action that says `content`."""
        return cls(assistant(content))

    @classmethod
    def call(cls, tool: str, arguments: Mapping[str, Any], *, id: str = "c0") -> Action:
        """The action that calls `tool` and says nothing."""
        return cls(Message("assistant", "", (ToolCall(id, FunctionCall(tool, json.dumps(arguments))),)))

    @property
    def content(self) -> str:
        """What the message says, empty where it only calls tools."""
        return self.message.text


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's answer to an action.

    `terminated`: the task has come to its end. `truncated`: a limit came first. `info["rewards"]`, where
    present, names the parts of the reward: a mapping of names to finite floats; `info["outcome"]` is a verdict's, and
    the trajectory keeps the last one. `reward` is for the seat that acted; `others` is what other seats are paid, for
    their last turns. Raises FailureError (invalid, at stage step) where a number is none or not finite.
    """

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", finite(self.reward, "the reward"))
        paid = {str(agent): finite(reward, f"the reward of {agent!r}") for agent, reward in self.others.items()}
        object.__setattr__(self, "others", paid)
        info = dict(self.info)
        if parts := info.pop("rewards", None):
            named = {"rewards": {str(name): finite(part, f"the reward {name!r}") for name, part in parts.items()}}
        object.__setattr__(self, "info", _plain(info, "a step's info") | (named if parts else {}))

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


class Environment(ABC):
    """One episode at a time of something to act in.

    Options are keyword parameters: those of `__init__` make the environment, those of `tasks` choose its
    tasks, and both come from the one `options` mapping of a configuration or a server. `splits` names the
    splits that `tasks` knows, `version` is raised when rewards or prompts change meaning.
    """

    version: ClassVar[str] = "1"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    task_id: str | None = None
    """The environment's own id of the task that is played, where it was asked for by its place (`RemoteEnv`)."""

    @abstractmethod
    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Begin an episode on `task`; the same task and seed begin the same episode."""

    @abstractmethod
    async def step(self, action: Action) -> Step:
        """Answer the policy's `action`."""

    async def close(self) -> None:  # noqa: B027  (most environments hold nothing that must be let go)
        """Let go of what the episode held. Called once or more often, after any ending."""

    async def fork(self) -> Environment | None:
        """Another environment where this one stands, which shares nothing with it that either changes.

        None, the default: whoever wants one plays the actions again. Called between two steps, and never after the end.
        """
        return None

    @classmethod
    @abstractmethod
    def tasks(cls, split: str) -> TaskSource:
        """The tasks of `split`: a sequence, or `EndlessTasks`.

        Subclasses add keyword options of their own.
        """

    @classmethod
    def places(cls) -> int | None:
        """How many episodes a process may play at a time; None where that has no bound.

        Subclasses add keyword options of their own.
        """
        return None

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action] | None:
        """Actions that earn the most on `task`, reference included, and end it; None where nobody knows.

        For `quintain env check` alone.
        """
        return None


def invalid(message: str, stage: Stage = Stage.STEP) -> FailureError:
    """The error that says an environment broke its contract."""
    return FailureError.of(FailureKind.INVALID, stage, message)


def out_of_turn(*, begun: bool) -> FailureError:
    """The error of a step before the first reset or, where it has `begun`, after the end of the episode."""
    when = "after the end of the episode" if begun else "before the first reset"
    return FailureError.of(FailureKind.REJECTED, Stage.STEP, f"a step {when}: reset first")


def _plain(info: Mapping[str, Any], what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = plain(info, what)
    except QuintainError as error:
        raise invalid(str(error)) from None
    return found


def finite(value: Any, what: str) -> float:
    """`value` as a finite float, or FailureError (invalid)."""
    number = float(value) if hasattr(value, "__float__") else math.nan
    if not math.isfinite(number):
        raise invalid(f"{what} must be a finite number, not {value!r}")
    return number


def _tuple_of(kind: type, values: Any, what: str) -> tuple[Any, ...]:
    if isinstance(values, kind):
        raise invalid(f"{what} must be a sequence of {kind.__name__}, not a single one")
    checked = tuple(values)
    for value in checked:
        if not isinstance(value, kind):
            raise invalid(f"{what} must each be a {kind.__name__}, not {value!r}")
        if isinstance(value, Message) and (fault := fault_in(value)):
            raise invalid(f"{what} must be well-formed: {fault}")
    return checked


def fault_in(message: Message) -> str | None:
    """What is wrong with `message`, or None: a known role, and text unless it is an assistant's tool call."""
    if message.role not in get_args(Role):
        return f"the role must be one of {', '.join(get_args(Role))}, not {message.role!r}"
    if isinstance(message.content, (str, tuple)) or (message.content is None and message.tool_calls):
        return None
    return f"the content of a {message.role} message must be text, not {message.content!r}"
