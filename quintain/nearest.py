"""What to say of a name that nobody knows: the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?` where something in `known` is like `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def one_of(name: str, known: Iterable[str]) -> str:
    """`did_you_mean`, or all of `known` where nothing is near."""
    names = list(known)
    return did_you_mean(name, names) or (f": expected one of {', '.join(names)}" if names else "")
