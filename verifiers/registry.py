"""Verifiers by name: the built-in ones, and those that other packages offer as entry points.

A package offers its own with an entry point in the group `quintain.verifiers` whose value is a factory: a
callable that takes the options as keywords and gives a `Verifier`. Nothing is imported before it is asked
for, and a built-in name cannot be taken over by an entry point.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.verdict import Verdict
from quintain.verifiers.base import Item, Verifier

ENTRY_POINTS: Final = "quintain.verifiers"

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType({"math": "quintain.verifiers.math:make_math_verifier"})


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


def verify_sync(
    name: str,
    items: Sequence[Item],
    options: Mapping[str, Any] | None = None,
    *,
    deadline_s: float | None = None,
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
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    raise QuintainError(f"there is no verifier {name!r}: {hint}")
