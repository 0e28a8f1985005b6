"""A verifier service under mixed and hostile load, with kills: its verdicts stay right, its memory constant.

A real service (`quintain verify serve`) and two clients, each a process. The clients send batches of items whose
verdicts are known: right and wrong answers in mathematics, texts, regular expressions and programs, and hostile ones
(catastrophic expressions, endless loops, fork and memory bombs, forged results). Meanwhile worker processes, and now
and then one of the clients in the middle of a batch, are killed with SIGKILL.

It fails (exit code 1) where a verdict is wrong; where more items failed than kills and catastrophes explain; where the
service's memory grows, between the end of the warm-up and the end, by more than `GROWTH_BYTES`; or where a process is
left when the service has stopped.

    python benchmarks/soak_verify.py [--seconds 600] [--seed 0]

The last line is JSON: ratio `memory` (the service's own memory at the end / after the warm-up), and what was counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from _side import report

from quintain.lifeline import Lifeline, hold_lifeline
from quintain.verdict import Verdict
from quintain.verifiers import Item
from quintain.verifiers.client import AsyncVerifierClient

CLIENTS, WORKERS = 2, 2
BATCHES_AT_ONCE = 3
WARM_UP = 0.2
"""The share of the time after which memory must not grow any more: caches are full, every kind of process is there."""
GROWTH_BYTES = 48 << 20
CACHE_MB = 4
KILL_EVERY_S = 2.0
CLIENT_KILL_EVERY_S = 7.0
LEAVE_S = 20.0
FAILED_SHARE = 0.05
"""Of the items that are no catastrophes, so many may fail: each kill may cost the item at hand, if it comes twice."""
DEADLINES = {"math": 5.0, "regex": 1.0, "exact": 5.0, "code": 10.0}
MARK = "QUINTAIN_SOAK"


@dataclass(frozen=True, slots=True)
class Known:
    """An item, and its right score; None: any score but 1 is right, and so is a failure."""

    item: Item
    score: float | None


def math_items(draw: random.Random) -> list[Known]:
    """Mathematics: equal, not equal, and what no computer can finish."""
    a, b, c = (draw.randint(2, 10**6) for _ in range(3))
    return [
        Known(Item(f"It is $\\boxed{{{a}}}$.", str(a)), 1.0),
        Known(Item(f"It is $\\boxed{{{a + 1}}}$.", str(a)), 0.0),
        Known(Item(rf"$\frac{{{a}}}{{{b}}} x^2 + {c}$", rf"{c} + \frac{{{a} x^2}}{{{b}}}"), 1.0),
        Known(Item(rf"$\frac{{{a}}}{{{b}}} x^2 + {c}$", rf"{c + 1} + \frac{{{a} x^2}}{{{b}}}"), 0.0),
        Known(Item("9**9**9**9", str(a)), None),
        Known(Item("$" + "(" * 3000 + str(a) + ")" * 3000 + "$", str(b)), None),
    ]


def exact_items(draw: random.Random) -> list[Known]:
    """Texts."""
    word = "".join(draw.choices("abcdefgh", k=12))
    return [Known(Item(word, word), 1.0), Known(Item(word, word + "!"), 0.0), Known(Item("\0" * 5000, word), None)]


def regex_items(draw: random.Random) -> list[Known]:
    """Patterns, and a catastrophe."""
    number = str(draw.randint(0, 10**9))
    known = [Known(Item(f"x{number}y", number), 1.0), Known(Item(f"x{number}y", f"{number}z"), 0.0)]
    if draw.random() < 0.02:
        known.append(Known(Item("a" * 50 + number + "!", "(a+)+$"), None))
    return known


HOSTILE = (
    "import os\nwhile True: os.fork()",
    "x = []\nwhile True: x.append(bytearray(10 << 20))",
    "while True: print('x' * 100_000)",
    "import os; os._exit(0)",
    "import sys; sys.exit(0)",
    "import os, signal; os.kill(-1, signal.SIGKILL)",
    "open('big', 'wb').truncate(1 << 40); f = open('b2', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
    "import os\nwhile True: os.kill(os.getppid(), 9)",
    "while True: pass",
    "import os\nif os.fork(): os._exit(0)\nos.setsid()\nwhile True: pass",
)


def code_items(draw: random.Random) -> list[Known]:
    """Programs: right, wrong, hostile."""
    a, b = draw.randint(0, 10**6), draw.randint(1, 10**6)
    stdio = {"kind": "stdio", "cases": [{"stdin": f"{n}\n", "stdout": f"{n * b + a}\n"} for n in (a, b)]}
    tests = f"def check(candidate):\n    assert candidate({a}) == {a + b}\n    assert candidate(0) == {b}\n"
    function = {"kind": "function", "entry_point": "f", "tests": tests, "limits": {"wall_s": 2.0}}
    hostile = draw.choice(HOSTILE)
    return [
        Known(Item(fenced(f"print(int(input()) * {b} + {a})"), stdio), 1.0),
        Known(Item(fenced(f"print(int(input()) * {b} - {a + 1})"), stdio), 0.0),
        Known(Item(fenced(f"def f(n):\n    return n + {b}"), function), 1.0),
        Known(Item(fenced(f"def f(n):\n    return {a + b}"), function), 0.0 if a else None),
        Known(Item(fenced(hostile), {**stdio, "limits": {"wall_s": 1.0, "memory_bytes": 64 << 20}}), None),
        Known(Item(fenced(f"{hostile}\ndef f(n):\n    return n + {b}"), function), None),
    ]


def fenced(code: str) -> str:
    """`code` as a model would write it."""
    return f"```python\n{code}\n```"


KINDS = {"math": math_items, "exact": exact_items, "regex": regex_items, "code": code_items}
SIZES = {"math": 8, "exact": 20, "regex": 8, "code": 1}
"""How often a kind's items are drawn for one batch."""


def batch(draw: random.Random, verifier: str) -> list[Known]:
    """A batch for `verifier`, in any order, some items twice."""
    known = [one for _ in range(draw.randint(1, SIZES[verifier])) for one in KINDS[verifier](draw)]
    known += draw.sample(known, k=len(known) // 4)
    draw.shuffle(known)
    return known


# A client


async def client(url: str, seed: int, until: float) -> None:
    """Send batches until `until` (a reading of the monotonic clock), and print what came of each as a line of JSON."""
    draw = random.Random(seed)
    async with AsyncVerifierClient(url, batch_items=200, seed=seed) as verifiers:

        async def send() -> None:
            while time.monotonic() < until:
                name = draw.choice(list(KINDS))
                known = batch(draw, name)
                verdicts = await ask(verifiers, name, known, stream=draw.random() < 0.5)
                print(json.dumps(judged(name, known, verdicts)), flush=True)

        await asyncio.gather(*(send() for _ in range(BATCHES_AT_ONCE)))


async def ask(verifiers: AsyncVerifierClient, name: str, known: Sequence[Known], *, stream: bool) -> list[Verdict]:
    """The verdicts on `known`, asked for in one of the two ways."""
    items, deadline_s = [one.item for one in known], DEADLINES[name]
    if not stream:
        return await verifiers.verify(name, items, deadline_s=deadline_s)
    found = {index: verdict async for index, verdict in verifiers.stream(name, items, deadline_s=deadline_s)}
    return [found[index] for index in range(len(items))]


def judged(name: str, known: Sequence[Known], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How many verdicts there were, which are wrong, and how many items failed that should not have."""
    wrong, failed, outcomes = [], 0, Counter[str]()
    for one, verdict in zip(known, verdicts, strict=True):
        outcomes[f"{name} {verdict.outcome}"] += 1
        if verdict.failure is not None:
            failed += one.score is not None
        elif verdict.score == 1.0 if one.score is None else verdict.score != one.score:
            wrong.append(f"{name}: {one.item.answer[:200]!r} got {verdict.score}, not {one.score}: {verdict.detail}")
    plain = sum(one.score is not None for one in known)
    return {"items": len(known), "plain": plain, "wrong": wrong, "failed": failed, "outcomes": outcomes}


# The service, and what happens to it


@dataclass
class Soak:
    """All that is counted."""

    items: int = 0
    plain: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Count what a client has said."""
        told = json.loads(line)
        self.items += told["items"]
        self.plain += told["plain"]
        self.failed += told["failed"]
        self.wrong += told["wrong"]
        self.outcomes.update(told["outcomes"])


def start_service(lifeline: Lifeline, mark: str) -> tuple[subprocess.Popen[str], str]:
    """A real one; its address."""
    command = [sys.executable, "-m", "quintain", "verify", "serve", "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", str(WORKERS), "--cache-mb", str(CACHE_MB)],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(lifeline.fd,),
        env=os.environ | lifeline.environ() | {MARK: mark},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit("the service did not start: see above")
    return process, json.loads(line)["url"]


def start_client(
    url: str, seed: int, until: float, lines: queue.Queue[str], lifeline: Lifeline
) -> subprocess.Popen[str]:
    """A client process; what it says comes in `lines`."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--client", url, "--seed", str(seed), "--until", str(until)],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(lifeline.fd,),
        env=os.environ | lifeline.environ(),
    )
    assert process.stdout is not None
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            if line.endswith("\n"):  # a killed client leaves half a line
                lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    return process


def workers_of(service: psutil.Process) -> list[psutil.Process]:
    """The processes that check items, and those that hold the walls of a sandbox; not those within the walls."""
    found = []
    for child in service.children():
        with contextlib.suppress(psutil.Error):
            if any("_zygote" in part or "jail.zygote" in part for part in child.cmdline()):
                found += child.children()
    return found


def watch(service: psutil.Process, soak: Soak, began: float) -> None:
    """Note the service's memory, and every process below it."""
    soak.memory.append((time.monotonic() - began, service.memory_info().rss))
    for process in service.children(recursive=True):
        soak.seen[process.pid] = process


def run(seconds: float, seed: int) -> int:
    """The soak; the exit code."""
    draw, soak, lines = random.Random(seed), Soak(), queue.Queue[str]()
    lifeline, mark = Lifeline(), f"{os.getpid()}-{time.time_ns()}"
    server, url = start_service(lifeline, mark)
    service = psutil.Process(server.pid)
    began = time.monotonic()
    until = began + seconds
    clients = [start_client(url, seed + number, until, lines, lifeline) for number in range(CLIENTS)]
    kill_at, client_kill_at = began + KILL_EVERY_S, began + CLIENT_KILL_EVERY_S
    seeds = iter(range(seed + CLIENTS, seed + 10**9))
    while (now := time.monotonic()) < until and server.poll() is None:
        with contextlib.suppress(queue.Empty):
            soak.take(lines.get(timeout=0.2))
        watch(service, soak, began)
        if now > kill_at:
            kill_at = now + draw.uniform(0.5, 1.5) * KILL_EVERY_S
            if candidates := workers_of(service):
                with contextlib.suppress(psutil.NoSuchProcess):
                    draw.choice(candidates).kill()
                    soak.kills["worker"] += 1
        if now > client_kill_at:
            client_kill_at = now + draw.uniform(0.5, 1.5) * CLIENT_KILL_EVERY_S
            clients[-1].kill()  # the first lives through it all
            clients[-1].wait()
            clients[-1] = start_client(url, next(seeds), until, lines, lifeline)
            soak.kills["client"] += 1
        if clients[0].poll() not in (None, 0):
            break
    ends = [one.wait(120) for one in clients]
    while not lines.empty():
        soak.take(lines.get())
    watch(service, soak, began)
    server.terminate()
    code = server.wait(60)
    left, patient_until = list(soak.seen.values()), time.monotonic() + LEAVE_S
    while (left := [process for process in left if lives(process)]) and time.monotonic() < patient_until:
        time.sleep(0.1)
    lifeline.close()
    return judge(soak, seconds, [process.pid for process in left] + marked(mark), code, ends)


def lives(process: psutil.Process) -> bool:
    """Whether the process runs, still the one that it was."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marked(mark: str) -> list[int]:
    """Processes that have the mark of this run in their environment, wherever they have gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process.pid)
    return found


def judge(soak: Soak, seconds: float, left: list[int], code: int, ends: list[int]) -> int:
    """Print what was found; 0 where all of it is as it should be."""
    warm = [rss for when, rss in soak.memory if WARM_UP * seconds <= when < 2 * WARM_UP * seconds]
    end = [rss for when, rss in soak.memory if when >= (1 - WARM_UP) * seconds]
    before, after = statistics.median(warm), statistics.median(end)
    violations = [
        *(f"wrong verdict: {wrong}" for wrong in soak.wrong[:20]),
        *([f"memory grew from {before:,.0f} to {after:,.0f} bytes"] if after - before > GROWTH_BYTES else []),
        *([f"processes are left: {sorted(set(left))}"] if left else []),
        *([f"the service ended with exit code {code}"] if code else []),
        *([f"the clients ended with exit codes {ends}"] if any(ends) else []),
        *([f"{soak.failed} of {soak.plain} items failed"] if soak.failed > FAILED_SHARE * soak.plain else []),
        *([] if soak.items else ["nothing was judged"]),
    ]
    for violation in violations:
        print(violation, file=sys.stderr)
    report(
        "soak_verify",
        {"memory": after / before},
        {
            "seconds": seconds,
            "items": soak.items,
            "items_per_s": round(soak.items / seconds, 1),
            "outcomes": dict(sorted(soak.outcomes.items())),
            "kills": dict(soak.kills),
            "wrong": len(soak.wrong),
            "failed": soak.failed,
            "processes_seen": len(soak.seen),
            "processes_left": len(left),
            "rss_bytes": {"warm": int(before), "end": int(after)},
            "violations": violations,
        },
    )
    return 1 if violations else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        hold_lifeline(grace_s=0)
        asyncio.run(client(arguments.client, arguments.seed, arguments.until))
        return 0
    return run(arguments.seconds, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
