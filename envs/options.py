"""Options: one mapping from a configuration serves an environment's `__init__` and its `tasks`.

An option goes wherever a keyword parameter of its name is; one that nobody takes is an error that names the
nearest right one, and so is a value that its annotation does not allow.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quintain.envs.base import Environment
from quintain.failure import QuintainError
from quintain.nearest import did_you_mean
from quintain.task import TaskSource

OPTIONS_ENV = "QUINTAIN_ENV_OPTIONS"
"""The variable in which options travel to a server and its workers, as JSON: they may hold keys, and a command line is
there for everybody to see."""


@dataclass(frozen=True, slots=True)
class Bound:
    """An environment class with its options: calling it makes an environment, `tasks(split)` its tasks.

    `places` is how many a process may play at a time.
    """

    cls: type[Environment]
    making: Mapping[str, Any]
    choosing: Mapping[str, Any]
    places: int | None

    def __call__(self) -> Environment:
        return self.cls(**self.making)

    def tasks(self, split: str) -> TaskSource:
        """The tasks of `split`. Raises QuintainError where there is no such split."""
        if split not in self.cls.splits:
            raise QuintainError(
                f"{self.cls.__name__} has no split {split!r}{did_you_mean(split, self.cls.splits)} (its splits:"
                f" {', '.join(self.cls.splits)})"
            )
        return self.cls.tasks(split, **self.choosing)


def bind(cls: type[Environment], options: Mapping[str, Any] | None = None) -> Bound:
    """`cls` with `options` checked.

    Raises QuintainError, one line, for an unknown, missing or mistyped option.
    """
    options = dict(options or {})
    making, choosing = _keywords(cls.__init__, {"self"}), _keywords(cls.tasks, {"split"})
    known = {**making, **choosing}
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise QuintainError(
                f"{cls.__name__} has no option {name!r}{did_you_mean(name, known)} (its options: {listed})"
            )
        options[name] = _checked(cls, name, value, known[name].annotation)
    for name in known:
        if name not in options and _required(name, making, choosing):
            raise QuintainError(f"{cls.__name__} needs the option {name!r}")
    making, choosing, bounding = (
        {name: value for name, value in options.items() if name in taken}
        for taken in (making, choosing, _keywords(cls.places, set()))
    )
    return Bound(cls, making, choosing, cls.places(**bounding))


def _required(name: str, *places: Mapping[str, inspect.Parameter]) -> bool:
    return any(name in place and place[name].default is inspect.Parameter.empty for place in places)


def _keywords(function: Callable[..., Any], skip: set[str]) -> dict[str, inspect.Parameter]:
    if function is object.__init__:
        return {}
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that exist for type checkers only: not checked then
        hints = {}
    taken = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in skip and parameter.kind in taken
    }


def _checked(cls: type[Environment], name: str, value: Any, annotation: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(annotation).validate_python(value)
    except PydanticUserError:  # a type of the author's own, which only the author can check
        return value
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, (name, *problem["loc"])))
        raise QuintainError(f"{cls.__name__}'s option {place!r}: {problem['msg']} (got {problem['input']!r})") from None
