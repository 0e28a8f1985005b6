"""Names: what one may be, and what to say of one that nobody knows: the nearest right one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a client may call an episode, a session or a run, and an operator a token: safe in addresses and file names."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?` where something in `known` is like `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def one_of(name: str, known: Iterable[str]) -> str:
    """`did_you_mean`, or all of `known` where nothing is near."""
    names = list(known)
    return did_you_mean(name, names) or (f": expected one of {', '.join(names)}" if names else "")
