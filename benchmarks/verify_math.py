"""How fast answers are judged, against math-verify in one process, and what catastrophic items may cost.

Both sides judge the same pairs, in turns: fresh ones (no pair is ever judged twice, so no cache helps) of which half
are equal, about fractions, roots, sets, tuples, intervals, matrices and algebra, each in a boxed sentence; and plain
numbers, which the fast path decides in this process. math-verify is called as its README says: `parse` both sides,
`verify`. The verifier here has two workers, and its start is not counted, as math-verify's import is not.

The third part is one batch of 1,000 with 20 catastrophic items among them, half of which the guards refuse and half of
which hang until their deadline. It must end within the time of the others alone plus 20 deadlines / 2 workers, or this
script fails.

    python benchmarks/verify_math.py [--pairs N] [--rounds N] [--deadline SECONDS]

The last line is JSON: ratios `vs_single` and `fast_path` (ours / theirs, pairs per second; more is better).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence

from _side import report

from quintain.verdict import Outcome
from quintain.verifiers import Item
from quintain.verifiers.math import MathOptions, MathVerifier

WORKERS = 2
BATCH, CATASTROPHES = 1_000, 20
HANGING = r"\int_0^{%d} \frac{\sin(\cos(x^3))}{x^7+x+1} dx"
REFUSED = r"9^{9^{9^{%d}}}"


def mixed(draw: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Fresh pairs (answer, reference, equal) for ever."""
    while True:
        a, b, c, d = (draw.randint(2, 9_999) for _ in range(4))
        e = 1 if draw.random() < 0.5 else 0  # what makes the answer a wrong one
        kinds = (
            (rf"{a}\sqrt{{{b}}} + {c}", rf"{c + e} + {a}\sqrt{{{b}}}"),
            (rf"\frac{{{a}\sqrt{{2}}}}{{{2 * b}}}", rf"\frac{{{a + e}}}{{{b}\sqrt{{2}}}}"),
            (rf"\{{{a}, {b}, {c}\}}", rf"\{{{c}, {a + e}, {b}\}}"),
            (rf"\left({a}, \frac{{{b}}}{{{c}}}\right)", rf"({a + e}, \frac{{{2 * b}}}{{{2 * c}}})"),
            (rf"[{a}, {a + b}) \cup ({a + b + c}, \infty)", rf"({a + b + c}, \infty) \cup [{a + e}, {a + b})"),
            (
                rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {d} \end{{pmatrix}}",
                rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {d + e} \end{{pmatrix}}",
            ),
            (rf"(x + {a})(x - {b})", rf"x^2 + {a - b + e}x - {a * b}".replace("+ -", "- ")),
            (rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a + e}}}{{{b}}} \pi"),
            (rf"y = {a}x + {b}", rf"y - {a}x = {b + e}"),
            (rf"2^{{{a % 60}}} \cdot {b} + \sqrt{{3}}", rf"\sqrt{{3}} + {2 ** (a % 60) * b + e}"),
        )
        answer, reference = kinds[draw.randrange(len(kinds))]
        yield rf"So the result is $\boxed{{{answer}}}$.", f"${reference}$", not e


def numbers(draw: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Fresh pairs of plain numbers for ever."""
    while True:
        a, e = draw.randint(-(10**9), 10**9), int(draw.random() < 0.5)
        answer = (f"{a}", f"{a:,}", f"{a}.0", rf"\frac{{{2 * a}}}{{2}}")[draw.randrange(4)]
        yield rf"So the result is $\boxed{{{answer}}}$.", f"${a + e}$", not e


def take(pairs: Iterator[tuple[str, str, bool]], count: int) -> list[tuple[str, str, bool]]:
    """The next `count` pairs."""
    return [next(pairs) for _ in range(count)]


def theirs(pairs: Sequence[tuple[str, str, bool]]) -> tuple[float, int]:
    """Seconds that math-verify takes, and how many of its judgements are right."""
    from math_verify import parse, verify

    start = time.perf_counter()
    found = [verify(parse(reference), parse(answer)) for answer, reference, _ in pairs]
    taken = time.perf_counter() - start
    return taken, sum(one is equal for one, (_, _, equal) in zip(found, pairs, strict=True))


async def ours(verifier: MathVerifier, pairs: Sequence[tuple[str, str, bool]]) -> tuple[float, int]:
    """Seconds that the verifier takes, and how many of its judgements are right."""
    start = time.perf_counter()
    verdicts = await verifier.verify([Item(answer, reference) for answer, reference, _ in pairs])
    taken = time.perf_counter() - start
    right = sum((one.outcome is Outcome.CORRECT) is equal for one, (_, _, equal) in zip(verdicts, pairs, strict=True))
    return taken, right


async def compare(count: int, rounds: int, pairs: Iterator[tuple[str, str, bool]]) -> dict[str, float]:
    """The best round of each side, in pairs per second, and the share of right judgements."""
    best = {"theirs": float("inf"), "ours": float("inf")}
    right = {"theirs": 0, "ours": 0}
    async with MathVerifier(MathOptions(workers=WORKERS)) as verifier:
        await verifier.verify([Item(rf"\sqrt{{{n}}}", rf"\sqrt{{{n + 1}}}") for n in range(2, 8)])
        theirs([(r"\frac{1}{2}", r"\sqrt{2}", False)])
        for turn in range(rounds):
            for name in ("theirs", "ours"):
                chosen = take(pairs, count)
                taken, agreed = theirs(chosen) if name == "theirs" else await ours(verifier, chosen)
                best[name] = min(best[name], taken)
                right[name] += agreed
            print(f"round {turn}: best seconds so far {best}", file=sys.stderr)
    rates = {f"{name}_per_s": round(count / taken, 1) for name, taken in best.items()}
    return rates | {f"{name}_right": round(found / (count * rounds), 4) for name, found in right.items()}


async def catastrophes(deadline_s: float, pairs: Iterator[tuple[str, str, bool]]) -> dict[str, float]:
    """Seconds of a batch with 20 catastrophic items, and what they may be at most."""
    sound = [Item(answer, reference) for answer, reference, _ in take(pairs, BATCH - CATASTROPHES)]
    batch = [Item(answer, reference) for answer, reference, _ in take(pairs, BATCH - CATASTROPHES)]
    hostile = [Item((HANGING if n % 2 else REFUSED) % (n + 2), r"\int_0^1 x dx") for n in range(CATASTROPHES)]
    for place, item in enumerate(hostile):
        batch.insert(place * (BATCH // CATASTROPHES), item)
    async with MathVerifier(MathOptions(workers=WORKERS, deadline_s=deadline_s)) as verifier:
        await verifier.verify([Item(r"\sqrt{2}", r"\sqrt{3}")] * 4)
        start = time.perf_counter()
        await verifier.verify(sound)
        alone_s = time.perf_counter() - start
        start = time.perf_counter()
        verdicts = await verifier.verify(batch)
        taken_s = time.perf_counter() - start
    timeouts = sum(verdict.outcome is Outcome.TIMEOUT for verdict in verdicts)
    assert timeouts == CATASTROPHES // 2, f"{timeouts} items took their deadline, not {CATASTROPHES // 2}"
    bound_s = alone_s + CATASTROPHES * deadline_s / WORKERS
    return {"alone_s": alone_s, "taken_s": taken_s, "bound_s": bound_s, "timeouts": timeouts}


def main() -> int:
    """Run the three parts and print the ratios; 1 where the batch with catastrophes took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deadline", type=float, default=1.0)
    given = parser.parse_args()
    draw = random.Random(0)
    found = asyncio.run(compare(given.pairs, given.rounds, mixed(draw)))
    plain = asyncio.run(compare(10 * given.pairs, given.rounds, numbers(draw)))
    hostile = asyncio.run(catastrophes(given.deadline, mixed(draw)))
    kept = hostile["taken_s"] <= hostile["bound_s"]
    print(f"with catastrophes: {hostile['taken_s']:.1f} s, at most {hostile['bound_s']:.1f} s allowed")
    report(
        "verify_math",
        {
            "vs_single": found["ours_per_s"] / found["theirs_per_s"],
            "fast_path": plain["ours_per_s"] / plain["theirs_per_s"],
        },
        {
            "mixed": found,
            "plain_numbers": plain,
            "catastrophes": {name: round(value, 2) for name, value in hostile.items()},
            "within_bound": kept,
            "load_average": os.getloadavg()[0],
        },
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
