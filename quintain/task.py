"""Tasks: what episodes are about, and where they come from.

A task source is addressed by index, finite or endless, and always gives the same task for the same index: this is
what lets a journal say "every prompt exactly once" with integers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.messages import Message

POLICY: Final = "policy"
"""The seat of an episode that has one."""


def plain(value: Any, what: str, *, opaque: bool = False) -> Any:
    """`value` as JSON has it: numpy's scalars and arrays become Python's own, so that it is the same here and behind a
    URL. What JSON cannot say is left alone where it may be `opaque`; else QuintainError names its place and type.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float) and not (opaque or math.isfinite(value)):
        raise QuintainError(f"{what} is {value}, which JSON has no number for: leave it out, or give None")
    if isinstance(value, (int, float, str)):
        return value.tolist() if hasattr(value, "tolist") else value  # numpy's float64 is a float too
    if isinstance(value, Mapping):
        return {name: plain(part, f"{what}[{name!r}]", opaque=opaque) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(part, f"{what}[{place}]", opaque=opaque) for place, part in enumerate(value))
    if hasattr(value, "tolist"):
        return plain(value.tolist(), what, opaque=opaque)
    if opaque:
        return value
    raise QuintainError(f"{what} is of type {type(value).__name__}: give text, numbers, lists and mappings of them")


@dataclass(frozen=True, slots=True)
class TaskOrigin:
    """Where an environment server finds a task, hidden reference included."""

    split: str
    index: int


@dataclass(frozen=True, slots=True)
class Task:
    """What one episode is about. `info` is plain data, and so is a `reference` that a client sends (see `plain`).

    `reference` is what verifies the answer and is hidden from every client. `prompt` may be empty where the environment
    makes its own first observation from `seed` or `info`.
    """

    id: str
    prompt: tuple[Message, ...] = ()
    reference: Any = None
    seed: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    origin: TaskOrigin | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise QuintainError(f"a task's id is text, not of type {type(self.id).__name__}: {self.id!r}")
        seed = plain(self.seed, "a task's seed")
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise QuintainError(f"a task's seed has at most 64 bits, not {seed.bit_length()}")
        object.__setattr__(self, "id", str(self.id))
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "info", plain(self.info, "a task's info"))
        object.__setattr__(self, "reference", plain(self.reference, "a task's reference", opaque=True))


class EndlessTasks:
    """An endless task source: `make(index)` gives the task of that index, the same one every time."""

    def __init__(self, make: Callable[[int], Task]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> Task:
        if index < 0:
            raise IndexError(f"an endless task source has no index {index}: give one >= 0")
        return self._make(index)

    def __iter__(self) -> Iterator[Task]:
        index = 0
        while True:
            yield self._make(index)
            index += 1


TaskSource = Sequence[Task] | EndlessTasks
"""Where tasks come from: any sequence of tasks, or an endless generator addressed by index."""


def size_of(source: TaskSource) -> int | None:
    """The number of tasks in `source`, or None where it is endless."""
    return None if isinstance(source, EndlessTasks) else len(source)
