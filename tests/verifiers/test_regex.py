"""The regex verifier, and what it does with patterns that never end."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier

CAPTURE = {"pattern": r"x = (\d+)"}
TABLE: list[tuple[str, Any, dict[str, Any], Outcome]] = [
    ("abc", "b", {}, Outcome.CORRECT),
    ("abc", "^b", {}, Outcome.WRONG),
    ("abc", "b", {"where": "whole"}, Outcome.WRONG),
    ("abc", "[a-c]+", {"where": "whole"}, Outcome.CORRECT),
    ("ABC", "b", {"flags": "i"}, Outcome.CORRECT),
    ("<think>b</think>a", "b", {}, Outcome.WRONG),
    ("abc", "(", {}, Outcome.BAD_REFERENCE),
    ("abc", "a{99999999999999}", {}, Outcome.BAD_REFERENCE),
    ("abc", "", {}, Outcome.BAD_REFERENCE),
    ("abc", 5, {}, Outcome.BAD_REFERENCE),
    ("abc", "x" * 10_001, {}, Outcome.BAD_REFERENCE),
    ("", "b", {}, Outcome.UNPARSABLE),
    ("x = 3, so x = 4", "4", CAPTURE, Outcome.CORRECT),
    ("x = 3, so x = 4", "3", CAPTURE, Outcome.WRONG),
    ("x = 3, so x = 4", "3", {**CAPTURE, "take": "first"}, Outcome.CORRECT),
    ("x = 3", ["2", "3"], CAPTURE, Outcome.CORRECT),
    ("y = 3", "3", CAPTURE, Outcome.UNPARSABLE),
    ("y = 3", None, CAPTURE, Outcome.BAD_REFERENCE),
    ("12 apples", "12", {"pattern": r"\d+"}, Outcome.CORRECT),
    ("a" * 40 + "!", "^(a+)+$", {"deadline_s": 0.5}, Outcome.TIMEOUT),
    ("aab", "^(a+)+b$", {"deadline_s": 0.5}, Outcome.CORRECT),
]


async def test_the_table() -> None:
    rows = defaultdict(list)
    for row in TABLE:
        rows[tuple(row[2].items())].append(row)
    for options, group in rows.items():
        async with get_verifier("regex", workers=2, **dict(options)) as verifier:
            verdicts = await verifier.verify([Item(answer, reference) for answer, reference, _, _ in group])
            assert [verdict.outcome for verdict in verdicts] == [row[3] for row in group], group


async def test_a_pattern_that_never_ends_costs_nobody_else_a_verdict() -> None:
    items = [Item("a" * 40 + "!", "^(a+)+$"), *(Item(f"n{n}", rf"^n{n}$") for n in range(20))]
    async with get_verifier("regex", deadline_s=0.5, workers=1) as verifier:
        verdicts = await verifier.verify(items)
    assert verdicts[0].outcome is Outcome.TIMEOUT
    assert {verdict.outcome for verdict in verdicts[1:]} == {Outcome.CORRECT}


@pytest.mark.parametrize("options", [{"pattern": "("}, {"pattern": ""}, {"flags": "z"}, {"where": "there"}])
def test_an_option_that_makes_no_sense_is_refused_at_once(options: dict[str, str]) -> None:
    with pytest.raises(QuintainError, match="the regex verifier: "):
        get_verifier("regex", **options)
