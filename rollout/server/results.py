"""What finished and has not been fetched: the packed groups of all runs, within a bound. Pure: no clock, no sockets.

Invariants:
- a group that no reader has acknowledged is forgotten only with its whole run;
- acknowledged groups are kept while there is room, so that a reader may go back, and go first when there is none;
- `room` is false exactly while what is not acknowledged is as large as the bound: then nothing new may be started,
  and memory grows by no more than what is already in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class Forgotten(Exception):
    """The group asked for was acknowledged and forgotten; the first that is kept is `kept_from`."""

    def __init__(self, kept_from: int) -> None:
        super().__init__(f"groups before {kept_from} are forgotten")
        self.kept_from = kept_from


@dataclass(slots=True)
class _Shelf:
    kept_from: int = 0
    acknowledged: int = 0
    groups: list[bytes] = field(default_factory=list)  # from `kept_from` on

    @property
    def count(self) -> int:
        return self.kept_from + len(self.groups)


class Results:
    """Groups by run and place, at most about `limit_bytes` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._shelves: dict[str, _Shelf] = {}
        self._unread_bytes = 0
        self.held_bytes = 0

    @property
    def room(self) -> bool:
        """Whether more groups may be started."""
        return self._unread_bytes < self._limit

    def open(self, run: str) -> None:
        """A run begins."""
        self._shelves[run] = _Shelf()

    def put(self, run: str, group: bytes) -> None:
        """The next group of `run` has finished."""
        self._shelves[run].groups.append(group)
        self._unread_bytes += len(group)
        self.held_bytes += len(group)
        self._tidy()

    def acknowledge(self, run: str, cursor: int) -> None:
        """A reader has the first `cursor` groups."""
        shelf = self._shelves[run]
        cursor = min(cursor, shelf.count)
        for place in range(shelf.acknowledged, cursor):
            self._unread_bytes -= len(shelf.groups[place - shelf.kept_from])
        shelf.acknowledged = max(shelf.acknowledged, cursor)
        self._tidy()

    def get(self, run: str, place: int) -> bytes:
        """The group at `place`, counted in the order of finishing. Raises Forgotten, or IndexError beyond the last."""
        shelf = self._shelves[run]
        if place < shelf.kept_from:
            raise Forgotten(shelf.kept_from)
        return shelf.groups[place - shelf.kept_from]

    def count(self, run: str) -> int:
        """How many groups of `run` have finished, forgotten ones too."""
        return self._shelves[run].count

    def kept_from(self, run: str) -> int:
        """The first place that is kept."""
        return self._shelves[run].kept_from

    def close(self, run: str) -> None:
        """Forget `run` and all of its groups."""
        shelf = self._shelves.pop(run)
        self.held_bytes -= sum(map(len, shelf.groups))
        self._unread_bytes -= sum(map(len, shelf.groups[max(0, shelf.acknowledged - shelf.kept_from) :]))

    def _tidy(self) -> None:
        for shelf in self._shelves.values():
            while self.held_bytes > self._limit and shelf.kept_from < shelf.acknowledged:
                self.held_bytes -= len(shelf.groups.pop(0))
                shelf.kept_from += 1
