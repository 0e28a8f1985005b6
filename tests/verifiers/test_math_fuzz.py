"""Fuzzers: references are mutated, answers are composed, and nothing gets past the three rules.

Each runs for `QUINTAIN_FUZZ_S` seconds (30 by default, a minute together; an hour by hand is `QUINTAIN_FUZZ_S=3600`)
with a seed that it prints and that `QUINTAIN_FUZZ_SEED` sets (0 by default, so that the suite does not change from run
to run).
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator

import pytest

from quintain.verdict import Outcome

from .math_pairs_judged import outcome

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("QUINTAIN_FUZZ_S", "30"))
SEED = int(os.environ.get("QUINTAIN_FUZZ_SEED", "0"))

ATOMS = (
    *("17", "3.25", "x", "y", r"\pi", r"\sqrt{7}", r"\frac{3}{8}", "ab", "mgh", "x^{3}", r"v_{\text{max}}"),
    *("2 a", "at"),
)
SENTENCES = (
    "min at x={0}, max at x={1}",
    "The slope is {0} and the sum is {1}.",
    "domain: ${0}$, range: $[-1, 9)$",
    "Solution is: $({0}, {1})$.",
    "for every n<{0}, else {1}",
    r"\text{{June }}{0} to \text{{July }}{1}",
)
SHAPES = (
    *("{0}", "-{0}", "{0} + {1}", "{0} - {1}", "({0}, {1})", "[{0}, {1})", "{0}, {1}", r"\frac{{{0}}}{{{1}+5}}"),
    *("z = {0}", "t < {0}"),
)
UNITS = ("", "", "", " cm", r" \text{ kg}", " (apples)", " km/h")
OTHERS = {"<": ">", ">": "<", "+": "-", "-": "+", "(": "[", "[": "(", ")": "]", "]": ")"}
WRAPPINGS = (r"\boxed{{{0}}}", "The answer is {0}", "{0}", "Answer: {0}", r"So $\boxed{{{0}}}$.")


def references(draw: random.Random) -> Iterator[str]:
    """References of all kinds, for ever: formulas, units, sentences."""
    while True:
        one, other = draw.sample(ATOMS, 2)
        shape = draw.choice(SHAPES + SENTENCES)
        text = shape.format(one, other)
        plain = re.fullmatch(r"-?[\d.]+", text) is not None
        yield text + draw.choice(UNITS) if plain else text


def mutated(reference: str, draw: random.Random) -> str | None:
    """`reference` with one digit, sign, comparison, bracket, variable or word changed; None where it has none."""
    places = list(re.finditer(r"\d|[-+<>()\[\]]|(?<![A-Za-z\\_{])[A-Za-z]+", reference))
    if not places:
        return None
    found = draw.choice(places)
    old = found[0]
    if old.isdigit():
        new = str((int(old) + draw.randint(1, 8)) % 9 + (int(old) == 9)) if old != "9" else "4"
        new = new if new != old else "9"
    else:
        new = OTHERS.get(old) or ("w" if len(old) == 1 else "purple")
    return reference[: found.start()] + new + reference[found.end() :]


@pytest.fixture(scope="module", autouse=True)
def seed() -> int:
    print(f"QUINTAIN_FUZZ_SEED={SEED}")
    return SEED


def test_every_reference_is_correct_for_itself_and_no_mutation_of_it_is() -> None:
    draw, until, judged = random.Random(SEED), time.monotonic() + SECONDS, 0
    for reference in references(draw):
        if time.monotonic() > until:
            break
        answer = draw.choice(WRAPPINGS).format(reference)
        assert outcome(answer, reference) is Outcome.CORRECT, (SEED, answer, reference)
        other = mutated(reference, draw)
        if other is not None and other != reference:
            answer = draw.choice(WRAPPINGS).format(other)
            assert outcome(answer, reference) is not Outcome.CORRECT, (SEED, answer, reference)
        judged += 1
    assert judged >= 20


HEDGES = ("or", "or maybe", "and also", "as well as", ", alternatively", "vs.", "; or", "ou", "或", "(also", "/")
SUFFIXES = ("", ".", " in total.", ". I hope this is right.")
SPOILERS = ["dozen", "tenths", "too few", "or so", "at most", "wrong", "hundredths", "purple", "upwards", "or more"]
SAID = (
    *(
        r"\boxed{{{0}}}",
        "The answer is ${0}$",
        "The answer is {0}",
        "Final answer: **{0}**",
        "答案是 ${0}$",
        "#### {0}",
    ),
)


def test_a_composed_answer_is_correct_only_where_it_says_the_value_and_no_other() -> None:
    draw, until, judged = random.Random(SEED + 1), time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        number = draw.randint(2, 8)
        right = draw.choice((str(number), str(number * 11), rf"\frac{{{number}}}{{9}}", rf"{number}\sqrt{{3}}"))
        wrong = draw.choice((str(draw.randint(100, 999)), rf"{draw.randint(10, 99)}\pi"))
        thinking = draw.choice(("", f"<think>Is it {wrong}? \\boxed{{{wrong}}}</think>"))
        said = draw.choice(SAID)
        suffix = draw.choice(SUFFIXES) if "####" not in said else ""
        unit = draw.choice(("", r" \text{ cm}", r"\text{ apples}")) if "**" not in said else ""
        for text, expected in (
            (thinking + said.format(right + unit) + suffix, True),
            (thinking + said.format(wrong + unit) + suffix, False),
            (f"<think>{said.format(right)}", False),
            (thinking + said.format(f"{right} {draw.choice(HEDGES)} {wrong}"), False),
            (thinking + said.format(f"{right} \\text{{ {draw.choice(SPOILERS)}}}"), False),
            (thinking + said.format(f"-{right}"), False),
        ):
            found = outcome(text, right)
            assert (found is Outcome.CORRECT) is expected, (SEED, text, right, found)
        judged += 1
    assert judged >= 5
