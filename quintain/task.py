"""Tasks: what episodes are about, and where they come from.

A task source is addressed by index, finite or endless, and always gives the same task for the same index: this is
what lets a journal say "every prompt exactly once" with integers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quintain.messages import Message


@dataclass(frozen=True, slots=True)
class TaskOrigin:
    """Where an environment server finds a task, hidden reference included."""

    split: str
    index: int


@dataclass(frozen=True, slots=True)
class Task:
    """What one episode is about.

    `reference` is what verifies the answer and is hidden from every client: `public()` strips it. `prompt` may be
    empty where the environment makes its own first observation from `seed` or `info`.
    """

    id: str
    prompt: tuple[Message, ...] = ()
    reference: Any = None
    seed: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    origin: TaskOrigin | None = None

    def public(self, origin: TaskOrigin | None = None) -> Task:
        """This task without its reference, marked with the place where the server finds it."""
        return replace(self, reference=None, origin=origin or self.origin)


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
