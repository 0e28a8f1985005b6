"""Bombs where the service is in a container as they come: control groups cannot be written, capabilities are few."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from quintain.verifiers.sandbox.handle import ZygoteFacts
from quintain.verifiers.sandbox.protections import process_count, walls

KEPT = {"SETUID": 7, "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETPCAP": 8}
KEPT |= {"NET_BIND_SERVICE": 10, "NET_RAW": 13, "SYS_CHROOT": 18, "SYS_ADMIN": 21, "MKNOD": 27, "SETFCAP": 31}
"""What Docker gives root, and SYS_ADMIN."""
DROP = """
import ctypes, json, os, sys
for number in range(64):
    if number not in json.loads(sys.argv[1]):
        ctypes.CDLL(None).prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[2:]])
"""
JUDGE = """
import asyncio, json, sys, time
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.sandbox import cgroups

cgroups.own = lambda: []
BOMB = "```python\\nimport os\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass\\n```"
RIGHT = "```python\\nprint(input())\\n```"
CASES = {"kind": "stdio", "cases": [{"stdin": "7\\n", "stdout": "7\\n"}]}
FUNCTION = {"kind": "function", "entry_point": "f", "tests": "def check(f):\\n    assert f(1) == 1"}

async def main():
    limits = {"wall_s": 3.0, "cpu_s": 2.0}
    async with get_verifier("code", slots=2, limits=limits) as verifier:
        await verifier.verify([Item(RIGHT, CASES), Item("def f(x): return x", FUNCTION)])
        facts = await verifier._sandboxes.main._starting.done()
        found = []
        for reference in (CASES, FUNCTION):
            began = time.monotonic()
            attack = asyncio.create_task(verifier.verify([Item(BOMB, reference)]))
            neighbours = await verifier.verify([Item(RIGHT, CASES)] * 3)
            (verdict,) = await attack
            took = time.monotonic() - began
            scores = [each.score for each in neighbours]
            found.append([verdict.score, str(verdict.failure or ""), verdict.detail, took, scores])
    print(json.dumps([facts.privileged, facts.counted, found], default=str))

asyncio.run(main())
"""
STARVED = "crashed in sandbox: the sandbox process died"
DEADLINE_S = 3.0
SLACK_S = 6.0
"""For a machine of two processors on which a bomb and its neighbours run."""

RETRIES_S = 40.0
"""Where it takes its keeper with it, and is tried again."""


async def judged(kept: list[int] | None) -> Any:
    """What JUDGE says, with no more than these capabilities."""
    first = ["-c", JUDGE] if kept is None else ["-c", DROP, json.dumps(kept), JUDGE]
    process = await asyncio.create_subprocess_exec(sys.executable, *first, stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 2 * RETRIES_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return json.loads(said)


def kept_without(*missing: str) -> list[int] | None:
    """The capabilities that are left; None where this user has none anyway."""
    return [number for name, number in KEPT.items() if name not in missing] if os.geteuid() == 0 else None


async def test_a_fork_bomb_is_its_own_fault_without_control_groups() -> None:
    privileged, counted, found = await judged(kept_without())
    assert (privileged, counted) == (os.geteuid() == 0, True)
    for score, failure, detail, took, neighbours in found:
        assert (score, failure) == (0.0, ""), (score, failure, detail)
        assert detail["status"] in ("timeout", "runtime_error"), detail
        assert took < DEADLINE_S + SLACK_S, detail
        assert neighbours == [1.0] * 3


async def test_a_fork_bomb_wins_nothing_where_the_kernel_does_not_count_processes() -> None:
    """Without SETUID programs are root in the eyes of the host, whom no bound on processes binds: their numbers are
    few, or they are looked at; on a busy machine the keeper may be starved, which is a failure and no verdict."""
    privileged, counted, found = await judged(kept_without("SETUID"))
    assert (privileged, counted) == (False, os.geteuid() != 0)
    for score, failure, detail, took, neighbours in found:
        if failure:
            assert (score, failure[: len(STARVED)]) == (None, STARVED)
        else:
            assert (score, detail["status"] in ("timeout", "runtime_error")) == (0.0, True), detail
        assert took < RETRIES_S, detail
        assert neighbours == [1.0] * 3


@pytest.mark.parametrize(
    ("counted", "few", "controls", "held"),
    [
        (True, False, set(), True),
        (False, False, {"pids"}, True),
        (False, True, set(), True),
        (False, False, {"memory"}, False),
    ],
)
def test_who_asks_is_told_whether_processes_are_counted(
    counted: bool, few: bool, controls: set[str], held: bool
) -> None:
    facts = ZygoteFacts(privileged=counted, python="3.11.2", machine="x86_64", seccomp=True, counted=counted, few=few)
    assert process_count(facts, controls).held is held
    assert process_count(facts, controls) in walls(facts, controls)
