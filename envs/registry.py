"""Environments by name: the built-in ones, those other packages offer, and anybody's own.

A spec is a name ("math"), a class in a module ("package.module:Class") or a class in a file
("path/file.py:Class"). Other packages offer theirs with an entry point in the group `quintain.envs`; a
built-in name cannot be taken over. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Final

from quintain.envs.base import Environment
from quintain.failure import QuintainError, one_line
from quintain.loading import load_module
from quintain.nearest import did_you_mean

ENTRY_POINTS: Final = "quintain.envs"

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "calculator": "quintain.envs.builtin.calculator:CalculatorEnv",
        "code": "quintain.envs.builtin.code:CodeEnv",
        "data": "quintain.envs.builtin.data:DataEnv",
        "gymnasium": "quintain.envs.builtin.gymnasium:GymnasiumEnv",
        "harbor": "quintain.envs.builtin.harbor:HarborEnv",
        "math": "quintain.envs.builtin.math:MathEnv",
        "reasoning_gym": "quintain.envs.builtin.reasoning_gym:ReasoningGymEnv",
        "shell": "quintain.envs.builtin.shell:ShellTasksEnv",
        "shop": "quintain.envs.builtin.shop:ShopEnv",
        "textarena": "quintain.envs.builtin.textarena:TextArenaEnv",
        "twenty_questions": "quintain.envs.builtin.twenty_questions:TwentyQuestionsEnv",
    }
)


def list_envs() -> dict[str, str]:
    """The environments that `resolve` knows by name, sorted, and what they are. One that cannot be imported says so."""
    return {name: _description(spec) for name, spec in sorted(_named().items())}


def resolve(spec: str) -> type[Environment]:
    """The environment class that `spec` names. Raises QuintainError, one line, where there is none."""
    if ":" not in spec:
        named = _named()
        if spec not in named:
            raise QuintainError(
                f"there is no environment {spec!r}{did_you_mean(spec, named)}"
                f" (known: {', '.join(sorted(named))}; or give module:Class or path/file.py:Class)"
            )
        spec = named[spec]
    place, _, name = spec.rpartition(":")
    return _class_in(load_module(place), name, spec)


def _named() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | dict(BUILT_IN)


def _description(spec: str) -> str:
    try:
        return one_line((resolve(spec).__doc__ or "").strip().partition("\n\n")[0])
    except QuintainError as error:
        return f"not usable: {error}"


def _class_in(module: ModuleType, name: str, spec: str) -> type[Environment]:
    classes = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Environment)]
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        here = [n for n in classes if getattr(module, n).__module__ == module.__name__]
        known = f" (its environments: {', '.join(here)})" if here else " (it has no environment)"
        raise QuintainError(f"{spec!r}: no {name!r} there{did_you_mean(name, classes)}{known}")
    if not (isinstance(found, type) and issubclass(found, Environment)):
        raise QuintainError(f"{spec!r} is no environment: it must be a subclass of quintain.envs.Environment")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise QuintainError(f"{spec!r} is not finished: it lacks {', '.join(missing)}")
    if inspect.iscoroutinefunction(found.tasks):
        raise QuintainError(f"{spec!r}: `tasks` must be a plain classmethod, not `async`")
    return found
