"""A server's tasks as a task source: a page is fetched when one of its tasks is first looked at, and kept a
while.

What always holds: the task at an index is the one the server has there, marked with its origin and without
its reference; a finite split is a `Sequence`, an endless one an `EndlessTasks`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import overload

from quintain.envs.serving.wire import TaskPage
from quintain.task import EndlessTasks, Task, TaskSource

PAGE = 256
PAGES_KEPT = 64

Fetch = Callable[[str, int, int], TaskPage]


def remote_tasks(split: str, fetch: Fetch) -> TaskSource:
    """The tasks of `split`, read with `fetch(split, start, count)`, which may raise FailureError."""
    pages = _Pages(split, fetch)
    size = pages.page(0).size
    return EndlessTasks(pages.task) if size is None else RemoteTasks(pages, size)


class _Pages:
    def __init__(self, split: str, fetch: Fetch) -> None:
        self._split = split
        self._fetch = fetch
        self._kept: OrderedDict[int, TaskPage] = OrderedDict()

    def page(self, number: int) -> TaskPage:
        if number not in self._kept:
            self._kept[number] = self._fetch(self._split, number * PAGE, PAGE)
            if len(self._kept) > PAGES_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        return self._kept[number]

    def task(self, index: int) -> Task:
        number, at = divmod(index, PAGE)
        return self.page(number).tasks[at].task()


class RemoteTasks(Sequence[Task]):
    """A finite split of a server."""

    def __init__(self, pages: _Pages, size: int) -> None:
        self._pages = pages
        self._size = size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self._pages.task(i) for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"there are {self._size} tasks: no index {index}")
        return self._pages.task(index % self._size)
