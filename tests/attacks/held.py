"""What must hold around every attack."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil

from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Verifier

from .attacks import Attack, right_answer

AT_REST = 64
"""A verifier of three slots has a zygote, six keepers, and three graders with what keeps their namespaces."""
SETTLING_S = 5.0
FOLDERS = ("/tmp", "/dev/shm", "/var/tmp", "/etc", "/usr/lib/python3", "/usr/bin", "/")


async def attacked(attack: Attack, verifier: Verifier, port: int) -> Verdict:
    """The verdict on `attack`, once all that must hold during and after it has been seen to hold."""
    before = leavings()
    attacking = asyncio.create_task(verifier.verify([attack.item(port)]))
    neighbour, _ = await asyncio.gather(verifier.verify([right_answer(attack.kind)] * 2), attacking)
    (verdict,) = attacking.result()
    assert verdict.outcome is not Outcome.CORRECT, verdict
    assert verdict.score == 0.0, verdict  # and no failure: nothing of ours has broken
    assert [each.score for each in neighbour] == [1.0, 1.0], neighbour
    (after,) = await verifier.verify([right_answer(attack.kind)])
    assert after.score == 1.0, after
    await settled()
    assert leavings() == before
    return verdict


def leavings() -> tuple[set[str], set[str]]:
    """What an attack could leave on this machine: files whose names the attacks use, and mounts."""
    names = {
        "x",
        "x.py",
        "evil.pth",
        "answer",
        "sitecustomize.py",
        "usercustomize.py",
        "f0",
        "f1",
        "0",
        "1",
        "d",
        "disk",
    }
    files = {str(path) for folder in FOLDERS for path in map(Path(folder).joinpath, names) if os.path.lexists(path)}
    return files, set(Path("/proc/self/mountinfo").read_text().splitlines())


async def settled() -> None:
    """Wait until the verifier has no more processes than at rest, and none of them works."""
    async with asyncio.timeout(SETTLING_S):
        while True:
            processes = psutil.Process().children(recursive=True)
            try:
                busy = [each for each in processes if each.status() not in (psutil.STATUS_SLEEPING, psutil.STATUS_IDLE)]
            except psutil.NoSuchProcess:
                busy = processes
            if len(processes) <= AT_REST and not busy:
                return
            await asyncio.sleep(0.01)
