"""An environment with tools: each method marked `@tool` is one, described to the policy by its hints and docstring.

    class Library(ToolEnv):
        \"""Answer questions about books.\"""

        @classmethod
        def tasks(cls, split: str) -> TaskSource:
            return [Task("emma", (user("Who wrote Emma?"),), "Jane Austen")]

        @tool
        def look_up(self, title: str) -> str:
            \"""Say who wrote a book.

            Args:
                title: The book's title.
            \"""
            return BOOKS[title]

        def score(self, answer: str, reference: str) -> float:
            return float(reference in answer)

What always holds: a turn with calls gets a tool message for every call, in their order, and one without calls is the
answer and ends the episode; calls run one after the other, so that the same actions give the same episode; a call that
is wrong in any way is answered with what is wrong, counted, and never a failure of the episode; only a `FailureError`
that a tool raises is one. Of any other error the policy is shown the line that it says, and no stack trace.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from quintain.envs.base import Action, Observation, Step
from quintain.envs.single_turn import Score, SingleTurnEnv, scored
from quintain.failure import FailureError, QuintainError, one_line
from quintain.messages import FunctionSpec, Message, ToolCall, ToolSpec
from quintain.nearest import did_you_mean
from quintain.strict_json import STRICT
from quintain.task import Task
from quintain.tool_calls import looks_like_a_call

if TYPE_CHECKING:
    from pydantic import BaseModel

Method = TypeVar("Method", bound=Callable[..., Any])

_MARK: Final = "_is_a_tool"


def tool(method: Method) -> Method:
    """Offer `method`, `async` or not, to the policy. Every parameter has a type hint that pydantic knows.

    The docstring describes it, and its section "Args:" the parameters. A result that is no text is shown as JSON.
    """
    setattr(method, _MARK, True)
    return method


class ToolError(Exception):
    """A call that comes to nothing; its text is what the policy is told, `kind` what it is counted as."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Toolbox(Protocol):
    """Where tools come from: the methods of an environment, or something else that has them."""

    async def specs(self) -> Sequence[ToolSpec]:
        """The tools on offer."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What the tool `name` says. Raises ToolError where the policy is to be told what is wrong."""
        ...

    async def close(self) -> None:
        """Let go of what it holds. Called once or more often."""
        ...


def unknown_tool(name: str, known: Collection[str]) -> ToolError:
    """The error of a call of a tool that there is not."""
    listed = ", ".join(known) or "none"
    return ToolError("unknown_tool", f"there is no tool {name!r}{did_you_mean(name, known)} (tools: {listed})")


class MethodTools:
    """The methods of `owner` that are marked `@tool`, those of its base classes first.

    Raises QuintainError, one line, for a method that cannot be described.
    """

    def __init__(self, owner: object) -> None:
        names = dict.fromkeys(name for cls in reversed(type(owner).__mro__) for name in vars(cls))
        marked = (name for name in names if getattr(inspect.getattr_static(owner, name, None), _MARK, False))
        self._tools = {name: _Described(getattr(owner, name)) for name in marked}

    async def specs(self) -> Sequence[ToolSpec]:
        """The tools on offer, in the order of their definition."""
        return [described.spec for described in self._tools.values()]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What the method `name` returns. Raises ToolError (unknown_tool, invalid_arguments, raised)."""
        if name not in self._tools:
            raise unknown_tool(name, self._tools)
        checked = self._tools[name].checked(arguments)
        try:
            said = self._tools[name].method(**checked)
            said = await said if inspect.isawaitable(said) else said
        except (FailureError, ToolError):
            raise
        except Exception as error:  # a boundary: what a tool cannot do is for the policy to know
            raise ToolError("raised", one_line(f"{name}: {type(error).__name__}: {error}".rstrip(": "))) from error
        if isinstance(said, str):
            return said
        from quintain.codec import to_json

        return to_json(said)

    async def close(self) -> None:
        """Nothing: the methods are their owner's."""


class _Described:
    """A bound method as a tool: what the policy is told of it, and the check of what it is given."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.name = method, method.__name__
        about, parameters = _documented(inspect.getdoc(method) or "")
        self._model, schema = self._modelled(parameters)
        self.spec = ToolSpec(FunctionSpec(self.name, about, schema))

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments. Raises ToolError (invalid_arguments) where they are not what the hints say."""
        from pydantic import ValidationError

        try:  # as JSON: a list may be a tuple, a text a date, and "5" is still no number
            model = self._model.model_validate_json(json.dumps(arguments), strict=True)
        except ValidationError as error:
            from quintain.codec import describe

            raise ToolError("invalid_arguments", f"{self.name}: {one_line(describe(error))}") from None
        aliases = {field: str(info.alias) for field, info in type(model).model_fields.items()}
        return {aliases[field]: getattr(model, field) for field in model.model_fields_set}

    def _modelled(self, about: Mapping[str, str]) -> tuple[type[BaseModel], dict[str, Any]]:
        """The parameters as a model, and its JSON schema; `about` describes them."""
        from pydantic import ConfigDict, Field, create_model
        from pydantic.errors import PydanticUserError

        where = f"the tool {self.method.__qualname__!r}"
        try:
            hints = typing.get_type_hints(self.method, include_extras=True)
        except (NameError, TypeError, AttributeError) as error:
            raise QuintainError(f"{where}: its type hints cannot be read: {error}") from None
        fields: dict[str, Any] = {}
        for number, parameter in enumerate(inspect.signature(self.method).parameters.values()):
            name = parameter.name
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise QuintainError(f"{where}: the parameter {name!r} can have no name in a call: use named parameters")
            if name not in hints:
                raise QuintainError(f"{where}: the parameter {name!r} has no type hint")
            default = ... if parameter.default is parameter.empty else parameter.default
            field = Field(default, alias=name, description=about.get(name))
            fields[f"parameter_{number}"] = (hints[name], field)  # their own names may be pydantic's, such as "copy"
        try:
            model: type[BaseModel] = create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
            schema = {"properties": {}} | model.model_json_schema()
        except PydanticUserError as error:
            raise QuintainError(f"{where}: {one_line(str(error))}") from None
        for titled in (schema, *schema["properties"].values()):
            titled.pop("title", None)  # it is the name again
        return model, schema


_ARGS: Final = re.compile(r"^Args:[^\S\n]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)*)", re.MULTILINE)
_ARG: Final = re.compile(r"(\w+)(?:\s*\([^)\n]*\))?:\s*(.*)")


def _documented(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring without its section "Args:", and what that says of each parameter."""
    section = _ARGS.search(docstring)
    if section is None:
        return docstring.strip(), {}
    lines = inspect.cleandoc("\n" + section[1]).split("\n")
    about: dict[str, list[str]] = {}
    for line in filter(str.strip, lines):
        named = None if line[0].isspace() else _ARG.fullmatch(line)
        if named:
            about[named[1]] = [named[2]]
        elif about:
            about[next(reversed(about))].append(line.strip())
    rest = docstring[: section.start()].rstrip() + "\n\n" + docstring[section.end() :]
    return rest.strip(), {name: " ".join(filter(None, words)) for name, words in about.items()}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of one call: the text that the policy is shown, and what kind of error it is, None where it is none."""

    call: ToolCall
    content: str
    error: str | None = None


class ToolEnv(SingleTurnEnv):
    """A task's prompt, turns with tools, an answer and a score: subclasses give `tasks`, `@tool` methods and `score`.

    `max_calls` is how many calls an episode has, wrong ones too, and `max_calls_per_turn` one turn; both are options.
    A call beyond a turn's is refused; one beyond the episode's is refused and ends it, truncated. Each step's info has
    the turn's `calls` and its `errors` by kind: unknown_tool, invalid_arguments, broken_json, raised, too_many_calls.
    """

    max_calls: int = 16
    max_calls_per_turn: int = 8
    _toolbox: Toolbox | None = None
    _history: list[Message]
    _left: int

    def __init__(
        self, *, system: str | None = None, max_calls: int | None = None, max_calls_per_turn: int | None = None
    ) -> None:
        super().__init__(system=system)
        self.max_calls = self.max_calls if max_calls is None else max_calls
        self.max_calls_per_turn = self.max_calls_per_turn if max_calls_per_turn is None else max_calls_per_turn
        if min(self.max_calls, self.max_calls_per_turn) < 1:
            raise QuintainError(f"{type(self).__name__}'s max_calls and max_calls_per_turn are at least 1")

    def toolbox(self) -> Toolbox:
        """Where an episode's tools come from: the `@tool` methods, unless a subclass says otherwise."""
        return MethodTools(self)

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show the task's prompt and the tools. A subclass with state of its own sets it up here first."""
        await self._put_tools_away()
        self._toolbox, self._left = self.toolbox(), self.max_calls
        observation = await super().reset(task, seed=seed)
        self._history = list(observation.messages)
        return Observation(observation.messages, tuple(await self._toolbox.specs()))

    async def step(self, action: Action) -> Step:
        """Answer the turn's calls, or score the answer and end. Raises FailureError where a tool or verifier fails."""
        self._playing()
        self._history.append(action.message)
        calls = action.message.tool_calls
        if not calls:
            return await self.answered({"unread_calls": 1} if looks_like_a_call(action.content) else {})
        left = self._left
        results = [await self._result(call, place) for place, call in enumerate(calls)]
        info = {"calls": len(calls), "errors": dict(Counter(result.error for result in results if result.error))}
        said = tuple(Message("tool", r.content, tool_call_id=r.call.id, name=r.call.function.name) for r in results)
        self._history += said
        reward = self.turn_reward(results)
        if len(calls) <= left:
            return Step(Observation(said), reward, False, info=info)
        return await self.finish(said, info, reward, truncated=True)

    async def answered(self, info: Mapping[str, Any]) -> Step:
        """The step of a turn without calls, which is the answer. `info` has what is to be told of the turn."""
        return await self.finish((), info)

    def turn_reward(self, results: Sequence[ToolResult]) -> float:
        """What a turn with calls is worth by itself: nothing, unless a subclass says otherwise."""
        return 0.0

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action] | None:
        """As for a single turn, where the last words are what is judged; nobody knows where `verdict` is another."""
        return super().solution(task) if cls.verdict is ToolEnv.verdict else None

    def verdict(self, history: Sequence[Message]) -> Score | Awaitable[Score]:
        """What the whole episode is worth, at its end; `async def` or not. Asks `score` about the last words.

        `history` has every message from the prompt on; its last is the answer, or a tool's where the calls ran out.
        """
        last = history[-1]
        return self.score(last.text if last.role == "assistant" else "", self._playing().reference)

    async def finish(
        self, said: tuple[Message, ...], info: Mapping[str, Any], reward: float = 0.0, *, truncated: bool = False
    ) -> Step:
        """The last step, with the verdict on the episode: `said` is what is still to be said."""
        verdict = self.verdict(tuple(self._history))
        step = scored(await verdict if inspect.isawaitable(verdict) else verdict)
        self._asked = True
        told = {**step.info, **info}
        return Step(Observation(said), reward + step.reward, not truncated, truncated=truncated, info=told)

    async def close(self) -> None:
        """Put the tools away, and close the verifiers unless they are shared."""
        await self._put_tools_away()
        await super().close()

    async def _put_tools_away(self) -> None:
        if self._toolbox is not None:
            await self._toolbox.close()

    async def _result(self, call: ToolCall, place: int) -> ToolResult:
        """What comes of the turn's call number `place`."""
        self._left -= 1
        try:
            if self._left < 0:
                raise ToolError("too_many_calls", f"no calls are left: an episode has {self.max_calls}")
            if place >= self.max_calls_per_turn:
                raise ToolError("too_many_calls", f"a turn has at most {self.max_calls_per_turn} calls")
            arguments = _arguments(call.function.arguments)
            assert self._toolbox is not None  # there was a reset
            return ToolResult(call, await self._toolbox.call(call.function.name, arguments))
        except ToolError as error:
            return ToolResult(call, f"error: {error}", error.kind)


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; no text at all is none. Raises ToolError (broken_json)."""
    try:
        found = STRICT.decode(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ToolError("broken_json", f"the arguments are no JSON: {one_line(str(error))}") from None
    if not isinstance(found, dict):
        raise ToolError("broken_json", "the arguments must be a JSON object, such as {}")
    return found
