"""A conversation: an environment whose observations are what a user says. Tools, where it has any, are between the two.

    class Greeting(ChatEnv):
        \"""Say hello in the user's language.\"""

        @classmethod
        def tasks(cls, split: str) -> TaskSource:
            return [Task("de", reference="Hallo"), Task("fr", reference="Bonjour")]

        def user(self, task: Task, *, seed: int) -> User:
            return ScriptedUser(f"{task.reference}!")

        def verdict(self, history: Sequence[Message]) -> float:
            return float(task.reference in history[-1].text)

A user is scripted (`ScriptedUser`), follows rules with a goal of its own (a subclass of `User`), or is a language model
behind an OpenAI-compatible URL (`ModelUser`; the option `user_model` puts one in the place of any user).

What always holds: a turn with calls is answered by the tools, any other by the user; an episode ends where the user's
goal is reached, where the user leaves, or, truncated, with the last turn or call there is, and is judged as a whole; a
user that does not answer is a failure, never a reward. What the user says is observed, so it is never trained on.
"""

from __future__ import annotations

import json
import os
import re
from abc import abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from quintain.calling.chat import ChatEndpoint
from quintain.closing import AsyncClosing
from quintain.envs.base import Observation, Step, invalid
from quintain.envs.single_turn import Score
from quintain.envs.tools import ToolEnv
from quintain.failure import QuintainError, Stage
from quintain.messages import Message, user
from quintain.task import Task
from quintain.thinking import text_after_thinking

End = Literal["goal", "left"]
MAX_REPLY_BYTES: Final = 1 << 20
OPENING: Final = "Hello, how can I help you?"
"""What a language model that plays a user is told before its first words: most models wait to be spoken to."""
MARKS: Final[Mapping[str, End]] = {"[GOAL]": "goal", "[LEAVE]": "left"}
_RULES: Final = (
    "You play a user who talks to an assistant. Say only what the user says, one short message at a time. Write [GOAL] "
    "and nothing else once the assistant has done what you want, or [LEAVE] once you see that it never will."
)
_STEERING: Final = re.compile("[<＜\\[◁\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class UserReply:
    """What a user says, and whether the conversation ends with it: the goal is reached, or the user leaves."""

    text: str = ""
    end: End | None = None


class User(AsyncClosing):
    """Whom the policy talks to, in one episode."""

    @abstractmethod
    async def reply(self, history: Sequence[Message]) -> UserReply:
        """The next words after `history`, which has what the two have said to each other: no system's prompts, and no
        turns that went to tools. Raises FailureError where there are none."""

    async def close(self) -> None:
        """Let go of what it holds."""


class ScriptedUser(User):
    """Says its `lines` one after the other, whatever it is told, and leaves after the answer to the last."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    async def reply(self, history: Sequence[Message]) -> UserReply:
        line = next(self._lines, None)
        return UserReply("", "left") if line is None else UserReply(line)


@dataclass(frozen=True, slots=True)
class UserModel:
    """A language model that plays users: its `url` up to and without `/chat/completions`, and its name there.

    `token_env` names the environment variable that has the bearer token.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    url: str
    model: str
    token_env: str | None = None
    temperature: float = 1.0
    max_tokens: int = 512
    timeout_s: float = 60.0
    retries: int = 3

    def endpoint(self, who: str) -> ChatEndpoint:
        """Where it is asked; `who` names it in messages. Raises QuintainError where its key is not set."""
        token = os.environ.get(self.token_env) if self.token_env else None
        if self.token_env and not token:
            raise QuintainError(f"{who}: the environment variable {self.token_env} is not set")
        return ChatEndpoint(
            self.url,
            {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens},
            who=who,
            stage=Stage.STEP,
            token=token,
            timeout_s=self.timeout_s,
            retries=self.retries,
            max_reply_bytes=MAX_REPLY_BYTES,
        )


class ModelUser(User):
    """The language model `model`, told by `persona` whom it plays and what that user wants."""

    def __init__(self, model: UserModel, persona: str) -> None:
        self._persona, self._endpoint = persona, model.endpoint("the user's model")

    async def reply(self, history: Sequence[Message]) -> UserReply:
        other = {"assistant": "user", "user": "assistant"}
        said = [(other[message.role], message.text) for message in history]
        messages = [("system", f"{_RULES}\n\n{self._persona}"), ("user", OPENING), *said]
        asked = [{"role": role, "content": text or "(says nothing)"} for role, text in messages]
        content = (await self._endpoint.complete(asked)).message.get("content")
        text = (text_after_thinking(content) or "").strip() if isinstance(content, str) else ""
        for mark, end in MARKS.items():
            if text.endswith(mark):
                return UserReply(text.removesuffix(mark).rstrip(), end)
        if not text:
            raise invalid(f"the user's model says nothing, but: {str(content)[:80]!r}")
        return UserReply(text)

    async def close(self) -> None:
        await self._endpoint.close()


class ChatEnv(ToolEnv):
    """A conversation of at most `max_turns` answers to the user: subclasses give `tasks` and `user`.

    The task's prompt begins it; where that does not end with a user's words, the user begins. The reward is 1 where the
    user's goal is reached and else 0; or what `verifier` says about the `transcript`; or what `verdict` says. `end` is
    "goal" or "left", once the user has ended it. The last step's info has it, or the limit that came first: "turns".
    """

    max_turns: int = 8
    end: End | None = None
    _user: User | None = None
    _turns: int = 0

    def __init__(
        self,
        *,
        system: str | None = None,
        max_turns: int | None = None,
        max_calls: int | None = None,
        max_calls_per_turn: int | None = None,
        user_model: UserModel | None = None,
    ) -> None:
        super().__init__(system=system, max_calls=max_calls, max_calls_per_turn=max_calls_per_turn)
        self.max_turns = self.max_turns if max_turns is None else max_turns
        self.user_model = user_model
        if self.max_turns < 1:
            raise QuintainError(f"{type(self).__name__}'s max_turns is at least 1")

    @abstractmethod
    def user(self, task: Task, *, seed: int) -> User:
        """Whom the policy talks to in an episode on `task`."""

    def persona(self, task: Task) -> str:
        """What a language model is told that plays the user of `task`: who that is, and what it wants."""
        raise QuintainError(f"{type(self).__name__} cannot take a user_model: it has no `persona`")

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show the task's prompt, the tools, and the user's first words. Raises FailureError where there are none."""
        await self._let_user_go()
        self.end, self._turns = None, self.max_turns
        if self.user_model is None:
            self._user = self.user(task, seed=seed)
        else:
            self._user = ModelUser(self.user_model, self.persona(task))
        shown = await super().reset(task, seed=seed)
        if shown.messages and shown.messages[-1].role == "user":
            return shown
        first = await self._reply(self._user)
        if not first.text or first.end:
            raise invalid("a user's first words are text, and end nothing", Stage.RESET)
        self._history.append(user(first.text))
        return Observation(tuple(self._history), shown.tools, shown.info)

    async def answered(self, info: Mapping[str, Any]) -> Step:
        """What the user says to a turn without calls."""
        assert self._user is not None  # there was a reset
        reply = await self._reply(self._user)
        said = (user(reply.text),) if reply.text else ()
        self._history += said
        self._turns -= 1
        self.end = reply.end
        if reply.end or not self._turns:
            return await self.finish(said, {**info, "end": reply.end or "turns"}, truncated=reply.end is None)
        if not said:
            raise invalid("a user says something, or ends the conversation")
        return Step(Observation(said), 0.0, False, info=info)

    def verdict(self, history: Sequence[Message]) -> Score | Awaitable[Score]:
        """What the whole conversation is worth; `async def` or not."""
        return self.score(transcript(history), self._playing().reference)

    def score(self, answer: str, reference: Any) -> Score | Awaitable[Score]:
        """What `answer`, the transcript, is worth: asks `verifier`; without one, whether the goal was reached."""
        return float(self.end == "goal") if self.verifier is None else super().score(answer, reference)

    async def close(self) -> None:
        """Let the user go, and the verifiers unless they are shared."""
        await self._let_user_go()
        await super().close()

    async def _reply(self, user: User) -> UserReply:
        return await user.reply([m for m in self._history if m.role in ("user", "assistant") and not m.tool_calls])

    async def _let_user_go(self) -> None:
        if self._user is not None:
            await self._user.close()


def transcript(history: Sequence[Message]) -> str:
    """`history` for a verifier: each message is one line of JSON, so that nobody can say a line of somebody else's.

    What could pass for a mark of thinking, after which alone verifiers read, is written as JSON's escapes.
    """
    lines = []
    for message in history:
        calls = [f"{call.function.name} {call.function.arguments}" for call in message.tool_calls]
        said = {"role": message.role, "content": message.text} | ({"calls": "; ".join(calls)} if calls else {})
        lines.append(_STEERING.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(said, ensure_ascii=False)))
    return "\n".join(lines)
