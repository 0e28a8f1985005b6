"""Our environments for TRL's `GRPOTrainer(environment_factory=...)`.

    trainer = GRPOTrainer(model, environment_factory=environment_factory("calculator"), ...)

What always holds: what is made is a class, as TRL finds tools by the functions of one; its tools are the environment's
and `answer`, since TRL tells an environment nothing but calls; the reward is all that the episode was paid, an episode
that was never answered ends with an empty answer, and one that broke has no reward (None), which TRL leaves out.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any, Final

from quintain.envs.base import Action, Environment, Step
from quintain.envs.local import LocalClient
from quintain.envs.registry import resolve
from quintain.failure import FailureError, QuintainError
from quintain.loop_thread import LoopThread
from quintain.messages import FunctionSpec
from quintain.task import size_of

_TYPES: Final = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
_ANSWER: Final = FunctionSpec(
    "answer",
    "Give the final answer.",
    {"properties": {"text": {"type": "string", "description": "The answer."}}, "required": ["text"]},
)


def environment_factory(
    env: str | type[Environment], options: Mapping[str, Any] | None = None, *, split: str = "train"
) -> type:
    """A class for TRL that plays `env`, a spec or a class, on the tasks of `split`, each instance one at a time.

    `reset` takes a task's `index`, where the data set has such a column, and else the next; what the environment says
    first is added to the prompt. Raises QuintainError for a wrong spec, option or split, or a tool called `answer`.
    """
    cls = resolve(env) if isinstance(env, str) else env
    client, loop, counter = LocalClient(cls, options), LoopThread("quintain-trl"), itertools.count()
    tasks = client.tasks(split)
    size = size_of(tasks)
    first = client.episode()
    specs = [spec.function for spec in loop.run(first.reset(tasks[0], seed=0)).tools]
    loop.run(first.close())
    if any(spec.name in ("answer", "reset", "get_reward") for spec in specs):
        raise QuintainError(f"{cls.__name__} has a tool called answer, reset or get_reward: TRL cannot call it")

    class TrlEnvironment:
        """One episode at a time."""

        def __init__(self) -> None:
            self._env = client.episode()
            self._paid: float | None = 0.0
            self._ended = True

        def reset(self, index: int | None = None, **columns: Any) -> str:
            """Begin an episode; what the environment says."""
            at = next(counter) if index is None else index
            task = tasks[at if size is None else at % size]
            observation = loop.run(self._env.reset(task, seed=at))
            self._paid, self._ended = 0.0, False
            return "\n\n".join(message.text for message in observation.messages)

        def get_reward(self) -> float | None:
            """All that the episode was paid."""
            if not self._ended:
                self._said(Action.text(""))
            return self._paid

        def _said(self, action: Action) -> str:
            if self._ended:
                return "The episode has ended."
            try:
                step: Step = loop.run(self._env.step(action))
            except FailureError as error:
                self._paid, self._ended = None, True
                return f"The environment failed: {error.failure.message}"
            assert self._paid is not None  # an episode that broke has ended
            self._paid, self._ended = self._paid + step.reward, step.ended
            return "\n\n".join(message.text for message in step.observation.messages) or "Done."

    def tool_of(spec: FunctionSpec) -> Any:
        def call(self: TrlEnvironment, **arguments: Any) -> str:
            if spec is _ANSWER:
                return self._said(Action.text(str(arguments.get("text", ""))))
            return self._said(Action.call(spec.name, arguments))

        return _described(call, spec)

    for spec in (*specs, _ANSWER):
        setattr(TrlEnvironment, spec.name, tool_of(spec))
    TrlEnvironment.__name__ = TrlEnvironment.__qualname__ = cls.__name__
    return TrlEnvironment


def _described(call: Any, spec: FunctionSpec) -> Any:
    """`call` with the signature and the docstring, in Google's style, that `transformers` reads a schema from."""
    properties: Mapping[str, Any] = spec.parameters.get("properties", {})
    required = spec.parameters.get("required", ())
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    about = []
    for name, schema in sorted(properties.items(), key=lambda item: item[0] not in required):
        kind = _TYPES.get(schema.get("type", "string"), str)
        default = inspect.Parameter.empty if name in required else schema.get("default")
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
        about.append(f"    {name}: {schema.get('description') or name}")
    call.__name__ = call.__qualname__ = spec.name
    call.__doc__ = "\n".join([spec.description or spec.name, "", *(["Args:", *about, ""] if about else [])])
    call.__doc__ += "\nReturns:\n    What the environment says."
    call.__signature__ = inspect.Signature(parameters, return_annotation=str)
    call.__annotations__ = {p.name: p.annotation for p in parameters[1:]} | {"return": str}
    return call
