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
        "code": "quintain.verifiers.code:make_code_verifier",
        "exact": "quintain.verifiers.rules.exact:make_exact_verifier",
        "format": "quintain.verifiers.rules.format:make_format_verifier",
        "instruction_following": "quintain.verifiers.rules.instruction_following:make_instruction_following_verifier",
        "json_schema": "quintain.verifiers.rules.json_schema:make_json_schema_verifier",
        "judge": "quintain.verifiers.models.judge:make_judge_verifier",
        "length": "quintain.verifiers.rules.length:make_length_verifier",
        "math": "quintain.verifiers.math:make_math_verifier",
        "multiple_choice": "quintain.verifiers.rules.multiple_choice:make_multiple_choice_verifier",
        "reasoning_gym": "quintain.verifiers.rules.reasoning_gym:make_reasoning_gym_verifier",
        "regex": "quintain.verifiers.rules.regex:make_regex_verifier",
        "remote": "quintain.verifiers.service.remote:make_remote_verifier",
        "reward_model": "quintain.verifiers.models.reward_model:make_reward_model_verifier",
        "rubric": "quintain.verifiers.rubric:make_rubric_verifier",
        "sql": "quintain.verifiers.rules.sql:make_sql_verifier",
        "token_f1": "quintain.verifiers.rules.token_f1:make_token_f1_verifier",
        "tool_call": "quintain.verifiers.rules.tool_call:make_tool_call_verifier",
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
    found = factory if isinstance(factory, type) else typing.get_type_hints(factory).get("return")
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
        factory: Callable[..., Verifier] = getattr(import_module(module), attribute)
        return factory

    from importlib.metadata import entry_points

    found = tuple(entry_points(group=ENTRY_POINTS, name=name))
    if len(found) > 1:
        raise QuintainError(
            f"the verifier {name!r} is offered by {len(found)} packages "
            f"({', '.join(point.value for point in found)}): uninstall all but one"
        )
    if found:
        loaded: Callable[..., Verifier] = found[0].load()
        return loaded
    known = available_verifiers()
    raise QuintainError(f"there is no verifier {name!r}{one_of(name, known)}")
