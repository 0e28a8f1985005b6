"""Verifiers by name: the built-in ones, and those that other packages offer as entry points.

A package offers its own with an entry point in the group `quintain.verifiers` whose value is a factory: a
callable that takes the options as keywords and gives a `Verifier`. Nothing is imported before it is asked
for, and a built-in name cannot be taken over by an entry point.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.nearest import one_of
from quintain.verdict import Verdict
from quintain.verifiers.base import Item, Verifier

ENTRY_POINTS: Final = "quintain.verifiers"

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "code": "quintain.verifiers.code.verifier:CodeVerifier",
        "exact": "quintain.verifiers.rules.exact:ExactVerifier",
        "format": "quintain.verifiers.rules.format:FormatVerifier",
        "instruction_following": "quintain.verifiers.rules.instruction_following.verifier:InstructionFollowingVerifier",
        "json_schema": "quintain.verifiers.rules.json_schema.verifier:JsonSchemaVerifier",
        "judge": "quintain.verifiers.models.judge.verifier:JudgeVerifier",
        "length": "quintain.verifiers.rules.length:LengthVerifier",
        "math": "quintain.verifiers.math.verifier:MathVerifier",
        "multiple_choice": "quintain.verifiers.rules.multiple_choice:MultipleChoiceVerifier",
        "reasoning_gym": "quintain.verifiers.rules.reasoning_gym.verifier:ReasoningGymVerifier",
        "regex": "quintain.verifiers.rules.regex:RegexVerifier",
        "remote": "quintain.verifiers.service.remote:RemoteVerifier",
        "reward_model": "quintain.verifiers.models.reward_model.verifier:RewardModelVerifier",
        "rubric": "quintain.verifiers.rubric.verifier:RubricVerifier",
        "sql": "quintain.verifiers.rules.sql.verifier:SqlVerifier",
        "token_f1": "quintain.verifiers.rules.token_f1:TokenF1Verifier",
        "tool_call": "quintain.verifiers.rules.tool_call.verifier:ToolCallVerifier",
    }
)


def available_verifiers() -> tuple[str, ...]:
    """The names that `get_verifier` knows, sorted."""
    from importlib.metadata import entry_points

    return tuple(sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def get_verifier(name: str, **options: Any) -> Verifier:
    """A new verifier called `name`; `QuintainError` for an unknown name or option, naming the nearest."""
    verifier = _factory(name)(**options)
    if not isinstance(verifier, Verifier):
        raise QuintainError(
            f"the factory of the verifier {name!r} gave a {type(verifier).__name__}: it must give a Verifier"
        )
    return verifier


def verifier_class(name: str) -> type[Verifier] | None:
    """The class of the verifier `name`, its dependencies not needed, or None where its factory declares none.

    It is the factory itself or what the factory is annotated to return; it has `options_schema()` and `cost`.
    """
    factory = _factory(name)
    found = getattr(factory, "__self__", factory)  # the class of a factory that is its class method
    found = found if isinstance(found, type) else typing.get_type_hints(factory).get("return")
    return found if isinstance(found, type) and issubclass(found, Verifier) else None


def verify_sync(
    name: str, items: Sequence[Item], options: Mapping[str, Any] | None = None, *, deadline_s: float | None = None
) -> list[Verdict]:
    """`verify` for scripts: makes the verifier, judges `items`, closes it. Not for an event loop."""

    async def judge() -> list[Verdict]:
        async with get_verifier(name, **(options or {})) as verifier:
            return await verifier.verify(items, deadline_s=deadline_s)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(judge())
    raise QuintainError("verify_sync is for scripts: in an event loop, await get_verifier(name).verify(items)")


def _factory(name: str) -> Callable[..., Verifier]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
        factory: Callable[..., Verifier] = getattr(found, "made", found)
        return factory

    from importlib.metadata import entry_points

    offered = tuple(entry_points(group=ENTRY_POINTS, name=name))
    if len(offered) > 1:
        raise QuintainError(
            f"the verifier {name!r} is offered by {len(offered)} packages "
            f"({', '.join(point.value for point in offered)}): uninstall all but one"
        )
    if offered:
        loaded: Callable[..., Verifier] = offered[0].load()
        return loaded
    known = available_verifiers()
    raise QuintainError(f"there is no verifier {name!r}{one_of(name, known)}")
