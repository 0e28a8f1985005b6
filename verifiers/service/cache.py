"""Verdicts that need not be found again.

What always holds: a verdict is remembered under the verifier's name and version, the options, and the whole item;
never a failure, and never an outcome that another time, or a less busy machine, might change; the bytes of all
that is remembered stay within the bound, the least recently used going first.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Item

ENTRY_BYTES: Final = 200
"""What an entry takes beside its verdict: the key, and its place in the table."""
_PASSING: Final = frozenset({Outcome.TIMEOUT, Outcome.CRASHED})


def key_prefix(verifier: str, version: str, options: Mapping[str, Any]) -> bytes:
    """What the keys of all items under one verifier and its options have in common."""
    return json.dumps([verifier, version, dict(options)], sort_keys=True).encode()


def key_of(prefix: bytes, item: Item) -> bytes:
    """The key of `item`. Two items have the same key only if they are the same."""
    text = json.dumps([item.answer, item.reference], sort_keys=True)
    return blake2b(len(prefix).to_bytes(8, "big") + prefix + text.encode(), digest_size=20).digest()


class VerdictCache:
    """Verdicts, as JSON text, by key. At most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Outcome, bytes]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[Outcome, str] | None:
        """The outcome and the JSON text of the verdict under `key`."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0], found[1].decode()

    def put(self, key: bytes, verdict: Verdict, text: str) -> None:
        """Remember `verdict`, whose JSON is `text`, if it is one that stays true."""
        if verdict.failure is not None or verdict.outcome in _PASSING or key in self._entries:
            return
        encoded = text.encode()
        if len(encoded) + ENTRY_BYTES > self._max_bytes:
            return
        self._entries[key] = (verdict.outcome, encoded)
        self.bytes += len(encoded) + ENTRY_BYTES
        while self.bytes > self._max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.bytes -= len(dropped) + ENTRY_BYTES
