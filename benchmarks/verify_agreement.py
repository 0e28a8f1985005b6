"""How often a reference is correct for itself, and a changed one is not: the math verifier and math-verify 0.9.

Both sides judge the same texts in one run. *Self*: `\\boxed{reference}` beside the reference, for every reference.
*Mutated*: the same with one digit or one sign changed, two a reference, drawn with a seed. *Published*: the 275 pairs
of math-verify's own tests, with their labels (tests/verifiers/math_pairs_published.jsonl). By default the references
are those of the published pairs; `--references` takes a file of lines `{"reference": "…"}`, such as a data set's.

    python benchmarks/verify_agreement.py [--references FILE.jsonl] [--limit N] [--verbose]

The last line is JSON: ratios `self` and `published` (share right, ours / theirs; more is better) and `mutated_passed`
(wrong texts judged correct, (ours + 1) / (theirs + 1); less is better).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from _side import report

from quintain.verdict import Outcome
from quintain.verifiers import Item
from quintain.verifiers.math import MathOptions, MathVerifier

PUBLISHED = Path(__file__).resolve().parents[1] / "tests/verifiers/math_pairs_published.jsonl"
CHANGED = re.compile(r"\d|(?<![\\a-zA-Z{(\[^_])-(?=\d)|(?<=[\w)}\]])\s*[+-]\s*(?=[\w({\\])")
DEADLINE_S = 10.0
BATCH = 200

Pair = tuple[str, str]


def mutations(reference: str, draw: random.Random) -> list[str]:
    """`reference` with one digit one more, or one sign the other, at two places."""
    found = list(CHANGED.finditer(reference))
    changed = []
    for one in draw.sample(found, min(2, len(found))):
        new = str((int(one[0]) + 1) % 10) if one[0].isdigit() else one[0].translate(str.maketrans("+-", "-+"))
        changed.append(reference[: one.start()] + new + reference[one.end() :])
    return changed


def theirs(pairs: Sequence[Pair]) -> list[bool]:
    """math-verify's judgements, as its README says; what raises is not correct."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = []
    for answer, reference in pairs:
        try:
            gold = parse(reference if "$" in reference or "\\boxed" in reference else f"${reference}$")
            found.append(bool(verify(gold, parse(answer))))
        except Exception:  # the boundary: whatever it raises is its judgement
            found.append(False)
    return found


async def ours(pairs: Sequence[Pair], options: MathOptions) -> list[bool]:
    """The verifier's judgements."""
    found: list[bool] = []
    async with MathVerifier(options) as verifier:
        for start in range(0, len(pairs), BATCH):
            batch = [Item(answer, reference) for answer, reference in pairs[start : start + BATCH]]
            found += [verdict.outcome is Outcome.CORRECT for verdict in await verifier.verify(batch)]
    return found


def main() -> int:
    """Judge the three sets on both sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path)
    parser.add_argument("--limit", type=int, default=10**9)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    draw = random.Random(0)
    rows = [json.loads(line) for line in PUBLISHED.read_text().splitlines()]
    lines = given.references.read_text().splitlines() if given.references else map(json.dumps, rows)
    references = list(dict.fromkeys(json.loads(line)["reference"] for line in lines))[: given.limit]
    mutated_references = [(reference, changed) for reference in references for changed in mutations(reference, draw)]
    labelled = {
        "self": [(rf"\boxed{{{reference}}}", reference, True) for reference in references],
        "mutated": [(rf"\boxed{{{changed}}}", reference, False) for reference, changed in mutated_references],
        "published": [(row["answer"], row["reference"], row["equal"]) for row in rows],
    }
    right: dict[str, dict[str, int]] = {}
    options = MathOptions(deadline_s=DEADLINE_S, allow_unevaluated=True)
    for name, cases in labelled.items():
        pairs = [(answer, reference) for answer, reference, _ in cases]
        judged = {"ours": asyncio.run(ours(pairs, options)), "theirs": theirs(pairs)}
        right[name] = {"cases": len(cases)}
        for side, verdicts in judged.items():
            agree = [verdict is label for verdict, (_, _, label) in zip(verdicts, cases, strict=True)]
            right[name][side] = sum(agree)
            if given.verbose and side == "ours":
                print(*(case for case, same in zip(cases, agree, strict=True) if not same), sep="\n", file=sys.stderr)
        print(f"{name}: {right[name]}", file=sys.stderr)
    mutated = right["mutated"]
    report(
        "verify_agreement",
        {
            "self": right["self"]["ours"] / max(1, right["self"]["theirs"]),
            "published": right["published"]["ours"] / max(1, right["published"]["theirs"]),
            "mutated_passed": (mutated["cases"] - mutated["ours"] + 1) / (mutated["cases"] - mutated["theirs"] + 1),
        },
        dict(right),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
