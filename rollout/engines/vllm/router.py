"""Which replica samples a session's next turn: the one that did the last, else the least loaded.

A session stays where its prefix is cached. Invariants:
- `pick` only names replicas that are up, and None exactly where none is;
- a session keeps its replica as long as that is up and the session is not forgotten;
- a new session, or one whose replica went down, goes to a replica with the fewest requests, then with the fewest
  sessions; so do all sessions of a replica that went down, one by one as they ask;
- at most `memory` sessions are remembered: the longest silent is forgotten first, which costs it a cached prefix.

Pure: the caller says what happens, and asks.
"""

from __future__ import annotations

from collections import OrderedDict

MEMORY = 65_536


class Router:
    """Knows which replicas are up, how many requests each has, and who went where. Replicas are integers."""

    def __init__(self, *, memory: int = MEMORY) -> None:
        self._memory = memory
        self._load: dict[int, int] = {}  # of the replicas that are up
        self._home: OrderedDict[str, int] = OrderedDict()  # the longest silent first
        self._residents: dict[int, int] = {}

    def up(self, replica: int) -> None:
        """`replica` may be picked from now on. Saying so again changes nothing."""
        self._load.setdefault(replica, 0)
        self._residents.setdefault(replica, 0)

    def down(self, replica: int) -> None:
        """`replica` is gone, and what it had with it."""
        if self._load.pop(replica, None) is None:
            return
        del self._residents[replica]
        for session in [session for session, home in self._home.items() if home == replica]:
            del self._home[session]

    def pick(self, session: str) -> int | None:
        """Where the session's next request goes, which is counted there until `done`. None where no replica is up."""
        if not self._load:
            return None
        home = self._home.pop(session, None)
        if home is None:
            home = min(self._load, key=lambda replica: (self._load[replica], self._residents[replica], replica))
            self._residents[home] += 1
        self._home[session] = home
        if len(self._home) > self._memory:
            _, left = self._home.popitem(last=False)
            self._residents[left] -= 1
        self._load[home] += 1
        return home

    def done(self, replica: int) -> None:
        """A request that `pick` sent to `replica` has ended. Of a replica that went down meanwhile it need not be said,
        and must not be once it is up again."""
        if self._load.get(replica, 0) > 0:
            self._load[replica] -= 1
