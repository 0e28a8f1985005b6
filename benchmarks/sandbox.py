"""How many isolated `print(1)` programs a second run, against plain subprocesses and against hardened bubblewrap.

Ours is the namespaces sandbox as it comes: fresh process, mount and message-queue namespaces, a file system of
its own, no capabilities, a system call filter and control groups for each run. A plain subprocess is `python -c
'print(1)'` with no protection at all. Bubblewrap unshares everything, drops all capabilities, clears the
environment, mounts the system folders read-only and a bounded /tmp, and runs as a user of its own. All sides run
the same Python, one program more at a time than there are processors, in turns; each ratio is the median over the
rounds. The aims are 2.5 for both.

    python benchmarks/sandbox.py [--rounds N] [--runs N] [--user]

`--user` measures the sandbox as an ordinary user has it. The last line is JSON: ratios `vs_subprocess` and
`vs_bubblewrap` (ours / theirs, programs per second), with the median and the 99th percentile of a run in detail.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _side import report

from quintain.verifiers.sandbox.interface import Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

AIM = 2.5
NOBODY = 65534
PYTHON = "/usr/bin/python3"
PROGRAM = "print(1)"
PROCESSORS = len(os.sched_getaffinity(0))
AT_ONCE = PROCESSORS + 1
BUBBLEWRAP = [
    *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
    *("--ro-bind", "/usr", "/usr"),
    *(part for name in ("bin", "lib", "lib64") for part in ("--symlink", f"usr/{name}", f"/{name}")),
    *("--proc", "/proc", "--dev", "/dev", "--size", f"{64 << 20}", "--tmpfs", "/tmp", "--chdir", "/tmp"),
]

Round = Callable[[int], Awaitable[list[float]]]
"""Runs so many programs; the seconds that each took."""


def spawning(command: list[str], executor: ThreadPoolExecutor, user: int | None) -> Round:
    """A round of `command` as subprocesses."""

    def once(_: int) -> float:
        began = time.perf_counter()
        groups = None if user is None else []
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, cwd="/", user=user, extra_groups=groups
        )
        assert done.stdout == b"1\n", done
        return time.perf_counter() - began

    async def run(count: int) -> list[float]:
        return await asyncio.to_thread(lambda: list(executor.map(once, range(count))))

    return run


def isolating(sandbox: NamespaceSandbox, at_once: int) -> Round:
    """A round of the sandbox."""
    program = Program.python(PROGRAM)

    async def run(count: int) -> list[float]:
        times: list[float] = []

        async def caller() -> None:
            while len(times) + at_once <= count or len(times) < count:
                began = time.perf_counter()
                done = await sandbox.run(program)
                assert (done.status, done.stdout) == (Status.OK, b"1\n"), done
                times.append(time.perf_counter() - began)

        await asyncio.gather(*(caller() for _ in range(at_once)))
        return times

    return run


async def measure(
    sides: dict[str, Round], rounds: int, runs: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Programs per second in each round, and the seconds of every run, of each side."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            taken = await side(runs)
            rate = len(taken) / (time.perf_counter() - began)
            if number:  # the first round warms up
                rates[name].append(rate)
                times[name] += taken
        if number:
            print(f"round {number}: " + ", ".join(f"{name} {rates[name][-1]:.0f}/s" for name in sides), flush=True)
    return rates, times


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=150, help="programs per side and round")
    parser.add_argument("--user", action="store_true", help="the sandbox without root's means")
    given = parser.parse_args()
    asyncio.run(compare(str(Path(PYTHON).resolve()), given.rounds, given.runs, ordinary=given.user))


async def compare(python: str, rounds: int, runs: int, *, ordinary: bool) -> None:
    """Run all sides in turns and print the ratios."""
    root = os.geteuid() == 0
    with ThreadPoolExecutor(AT_ONCE) as executor:
        async with NamespaceSandbox(python=python, user=NOBODY if ordinary and root else None) as sandbox:
            sides = {"subprocess": spawning([python, "-c", PROGRAM], executor, None)}
            if shutil.which("bwrap"):
                command = [*BUBBLEWRAP, python, "-c", PROGRAM]
                sides["bubblewrap"] = spawning(command, executor, NOBODY if root else None)
            sides["ours"] = isolating(sandbox, AT_ONCE)
            rates, times = await measure(sides, rounds, runs)
            held = {each.name: each.held for each in await sandbox.protections()}
    ratios = {
        f"vs_{name}": statistics.median(ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True))
        for name in sides
        if name != "ours"
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} (aim: {AIM})")
    p99_ms = {name: round(statistics.quantiles(values, n=100)[98] * 1000, 2) for name, values in times.items()}
    print("p99: " + ", ".join(f"{name} {value:.1f} ms" for name, value in p99_ms.items()))
    detail = {
        "per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "median_ms": {name: round(statistics.median(values) * 1000, 2) for name, values in times.items()},
        "p99_ms": p99_ms,
        "processors": PROCESSORS,
        "not_held": sorted(name for name, yes in held.items() if not yes),
        "load_average": os.getloadavg()[0],
        "aim": AIM,
    }
    report("sandbox", ratios, detail)


if __name__ == "__main__":
    main()
