"""Which sampling an agent gets that asks for another than the run's.

What always holds: the run's sampling is authoritative, because a trainer corrects for it and for no other. Nothing that
would change what is sampled is ignored silently: the session says (`Overrides`) whether such a wish is refused, ignored
and counted, or, where the engine can, granted. A limit of tokens is no wish: the smallest one holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway.errors import bad_request, unsupported
from quintain.rollout.gateway.wire import Overrides

NEUTRAL: Final[Mapping[str, Sequence[Any]]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True,),
    "reasoning_effort": (),
    "verbosity": (),
}
"""What would change the sampling in ways no engine of ours does, and the values that change nothing."""

GRANTED: Final = ("temperature", "top_p", "top_k", "seed")


@dataclass(frozen=True, slots=True)
class Settled:
    """How a call is sampled; `seed` is the agent's where granted; `ignored` are the wishes that are not met."""

    sampling: Sampling
    seed: int | None
    ignored: tuple[str, ...]


def wishes_of(body: Mapping[str, Any], strict_tools: bool) -> dict[str, Any]:
    """What `body` asks for beyond the neutral, by the parameter's name. Raises ApiError for what is malformed."""
    found = {name: body[name] for name in GRANTED if body.get(name) is not None}
    for name, value in found.items():
        _check(name, value)
    for name, neutral in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            found[name] = body[name]
    if strict_tools:
        found["tools.function.strict"] = True
    return found


def settle(wishes: Mapping[str, Any], base: Sampling, overrides: Overrides) -> Settled:
    """The sampling of a call. Raises ApiError (400) for a wish that is not met and may not be ignored."""
    own = {"temperature": base.temperature, "top_p": base.top_p, "top_k": base.top_k}
    differing = {name: value for name, value in wishes.items() if name not in own or own[name] != value}
    if overrides is Overrides.IGNORE:
        return Settled(base, None, tuple(differing))
    for name, value in differing.items():
        if name not in GRANTED:
            raise unsupported(name, f"{name}={value!r} is not supported; {_LEAVE_OUT}")
        if overrides is Overrides.REFUSE:
            runs = f"the run samples with {name} {own[name]:g}" if name in own else "the run draws its own seeds"
            raise unsupported(name, f"{name}={value!r} is not granted: {runs}; {_LEAVE_OUT}, or 'allow' to grant it")
    changed = {name: value for name, value in differing.items() if name in own}
    return Settled(replace(base, **changed), differing.get("seed"), ())


_LEAVE_OUT: Final = "leave it out, or open the session with overrides 'ignore' to have such wishes ignored and counted"


def _check(name: str, value: Any) -> None:
    whole = name in ("top_k", "seed")
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
        raise bad_request(f"{name} must be a number, not {value!r}", param=name)
    low, high = {"temperature": (0, 2), "top_p": (0, 1), "top_k": (0, 2**31), "seed": (-(2**63), 2**63)}[name]
    if not low <= value <= high or (name == "top_p" and value == 0):
        raise bad_request(f"{name} must be from {low} to {high}, not {value!r}", param=name)
