"""Check functions for the tests of the worker pool, run in its workers: each does what its item says."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def check(item: dict[str, Any]) -> dict[str, Any]:
    """Do what `item["do"]` says; answer `item["n"]` in the detail so that mixed-up verdicts show."""
    _DEEDS[item["do"]](item)
    outcome = "correct" if item.get("right", True) else "wrong"
    return {"outcome": outcome, "detail": {"n": item.get("n"), "pid": os.getpid()}}


def contract(item: dict[str, Any]) -> Any:
    """Answer exactly what the item holds."""
    if item["answer"] == "unsendable":
        return {"outcome": "correct", "detail": {"x": object()}}
    return item["answer"]


def warm_up() -> None:
    """Leave a trace that only a process forked after this call can see."""
    os.environ["POOL_CHECKS_WARMED_BY"] = str(os.getpid())


def warmed(item: dict[str, Any]) -> dict[str, Any]:
    """Say whether this process inherited what `warm_up` did, in another process."""
    by = os.environ.get("POOL_CHECKS_WARMED_BY")
    return {"outcome": "correct" if by == str(os.getppid()) else "wrong"}


def fail_to_warm_up() -> None:
    """A warm-up that fails."""
    raise ImportError("no module named 'left_out'")


def _spin(item: dict[str, Any]) -> None:
    while True:
        pass


def _hang_deaf(item: dict[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    _mark(item)
    while True:
        time.sleep(3600)


def _recurse(item: dict[str, Any]) -> None:
    _recurse(item)


def _overflow_the_stack(item: dict[str, Any]) -> None:
    ctypes.CDLL(None).alloca  # noqa: B018 - resolves ctypes before the stack is short
    sys.setrecursionlimit(1 << 30)
    nested: list[Any] = []
    for _ in range(2_000_000):
        nested = [nested]
    repr(nested)


def _raise(item: dict[str, Any]) -> None:
    raise ValueError("as told")


def _die_once(item: dict[str, Any]) -> None:
    if _mark(item):
        os.kill(os.getpid(), signal.SIGKILL)


def _mark(item: dict[str, Any]) -> bool:
    """Leave a mark in the file system; true where it is the first."""
    path = Path(item["mark"])
    first = not path.exists()
    path.write_text(str(os.getpid()))
    return first


_DEEDS = {
    "answer": lambda item: None,
    "spin": _spin,
    "hang deaf": _hang_deaf,
    "be killed": lambda item: os.kill(os.getpid(), signal.SIGKILL),
    "be killed once": _die_once,
    "segfault": lambda item: ctypes.string_at(0),
    "abort": lambda item: os.abort(),
    "exit": lambda item: os._exit(3),
    "leave": lambda item: sys.exit(4),
    "eat memory": lambda item: bytearray(1 << 40),
    "recurse": _recurse,
    "overflow the stack": _overflow_the_stack,
    "raise": _raise,
    "close its socket": lambda item: os.closerange(3, 256),
    "print": lambda item: print("x" * 100_000, file=sys.stderr),
    "nap": lambda item: time.sleep(item["s"]),
}
