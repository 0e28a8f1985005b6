"""The math verifier as a whole: outcomes, catastrophes, the base install, concurrency."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.failure import FailureKind, QuintainError, Stage
from quintain.verdict import Outcome, Verdict
from quintain.verifiers import Item, get_verifier, verify_sync
from quintain.verifiers.math import MathOptions, MathVerifier
from quintain.verifiers.math.compare.fast import decide
from quintain.verifiers.math.verifier import POLICY_VERSION
from quintain.verifiers.text import MAX_ANSWER_CHARS

HANGING = r"\int_0^{\pi} \frac{\sin(\cos(x^3))}{x^7+x+1} dx"
"""What no guard can see: sympy looks for an antiderivative for minutes."""

CATASTROPHES = [
    ("9**9**9**9", "5"),
    ("9^{9^{9^{9}}}", "5"),
    (r"\frac{1}{10^{10^{10}}}", "0"),
    (r"\frac{1}{10^{10^{10}}}", r"\sqrt{2}"),
    ("9" * 100_000, "5"),
    ("9" * 100_000, r"\sqrt{2}"),
    ("(" * 400 + "1" + ")" * 400, "2"),
    ("{" * 900 + "x" + "}" * 900, r"\sqrt{2}"),
    (r"\sqrt{" * 200 + "2" + "}" * 200, r"\sqrt{2}"),
    ("1e999999999", "5"),
    ("1e999999999", r"\sqrt{2}"),
    ("99999999!", "5"),
    (r"\boxed{" * 2_000, "5"),
    ("x" + "^x" * 300, "x"),
    ("1/" * 2_000 + "3", r"\sqrt{2}"),
    ("10^{10^{10}}", r"\sqrt{2}"),
    ("2004!^{2004!}", "5"),
    (r"\sin(10^{10^{10}})", r"\sqrt{2}"),
    (r"\sqrt" * 1_000 + "2", r"\sqrt{2}"),
    ("-" * 3_000 + "x", r"x"),
    ("x" * 1_400, "y"),
    ("(x+1)^{1000000}", "(x+2)^{1000000}"),
    (r"\binom{10^{12}}{10^{11}}", r"\sqrt{2}"),
    (r"\begin{pmatrix}" + r"1 & 2 \\" * 400 + r"\end{pmatrix}", "x"),
    (r"\int_0^{9^{9^{9}}} x dx", r"\sqrt{2}"),
    (r"\sum_{k=1}^{10^{10}} k", r"\sqrt{2}"),
]


@pytest.fixture
async def fresh() -> AsyncIterator[MathVerifier]:
    """A verifier that has not been asked anything."""
    async with MathVerifier(MathOptions(workers=2, deadline_s=60.0)) as verifier:
        yield verifier


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def verifier() -> AsyncIterator[MathVerifier]:
    """The verifier of those tests that are marked `together`."""
    async with MathVerifier(MathOptions(workers=2, deadline_s=60.0)) as verifier:
        yield verifier


together = pytest.mark.asyncio(loop_scope="module")


@together
async def test_catastrophes_are_never_correct_and_change_no_other_verdict(verifier: MathVerifier) -> None:
    sound = [Item(rf"\sqrt{{{n}}} + 1", rf"1 + \sqrt{{{n + n % 2}}}") for n in range(2, 42)]
    for place, (answer, reference) in enumerate(CATASTROPHES):
        sound.insert(place * 2, Item(answer, reference))
    sound.append(Item(HANGING, r"\int_0^1 x dx"))
    verdicts = await verifier.verify(sound, deadline_s=2.0)
    assert verdicts.pop().outcome is Outcome.TIMEOUT
    bad = [verdicts.pop(place * 2) for place in reversed(range(len(CATASTROPHES)))]
    assert all(verdict.score == 0.0 for verdict in bad)  # the guards see them, and no deadline is needed
    assert [verdict.outcome for verdict in verdicts] == [
        Outcome.CORRECT if n % 2 == 0 else Outcome.WRONG for n in range(2, 42)
    ]


@together
async def test_a_timeout_is_a_failure_and_no_score(verifier: MathVerifier) -> None:
    [verdict] = await verifier.verify([Item(HANGING, r"\int_0^1 x dx")], deadline_s=0.5)
    assert verdict.outcome is Outcome.TIMEOUT
    assert verdict.score is None
    assert verdict.failure is not None
    assert (verdict.failure.kind, verdict.failure.stage) == (FailureKind.TIMEOUT, Stage.VERIFY)
    assert verdict.detail["answer"] == HANGING


async def test_plain_numbers_start_no_process(fresh: MathVerifier) -> None:
    before = psutil.Process().children()
    items = [Item(f"17 + {n} = {17 + n}.", 17 + n) for n in range(1000)]
    verdicts = await fresh.verify(items)
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}
    assert psutil.Process().children() == before


@together
async def test_concurrent_batches_get_their_own_verdicts(verifier: MathVerifier) -> None:
    async def judge(n: int) -> list[Outcome]:
        items = [Item(rf"\sqrt{{{n}}}", rf"\sqrt{{{m}}}") for m in range(2, 12)]
        return [verdict.outcome for verdict in await verifier.verify(items)]

    found = await asyncio.gather(*(judge(n) for n in range(2, 12)))
    assert found == [[Outcome.CORRECT if n == m else Outcome.WRONG for m in range(2, 12)] for n in range(2, 12)]


async def test_closing_twice_and_leaving_nothing(fresh: MathVerifier) -> None:
    others = set(psutil.Process().children(recursive=True))
    await fresh.verify([Item(r"\sqrt{2}", r"\sqrt{3}")])
    family = set(psutil.Process().children(recursive=True)) - others
    assert family
    await fresh.close()
    await fresh.close()
    assert not [process for process in family if process.is_running()]


def test_the_version_names_what_takes_part_in_the_judgement() -> None:
    assert MathVerifier(MathOptions(full=False)).version == POLICY_VERSION == "3"
    assert MathVerifier(MathOptions(full=True)).version.startswith("3+math-verify-")


def test_an_unworked_sum_is_wrong_unless_it_is_allowed() -> None:
    items = [Item("17 + 8", 25), Item("17 + 8 = 25", 25)]
    assert [v.outcome for v in verify_sync("math", items)] == [Outcome.WRONG, Outcome.CORRECT]
    allowed = verify_sync("math", items, {"allow_unevaluated": True})
    assert [v.outcome for v in allowed] == [Outcome.CORRECT, Outcome.CORRECT]


@pytest.mark.parametrize(("places", "outcome"), [(6, Outcome.CORRECT), (3, Outcome.CORRECT), (0, Outcome.WRONG)])
def test_places_say_how_far_a_decimal_must_agree(places: int, outcome: Outcome) -> None:
    [verdict] = verify_sync("math", [Item("0.333333", "1/3")], {"places": places})
    assert verdict.outcome is outcome


def test_what_a_reference_asks_for_reaches_the_full_check() -> None:
    items = [
        Item(r"\frac{22}{7}", {"answer": r"\pi", "rel_tol": 1e-3}),
        Item(r"\frac{22}{7}", {"answer": r"\pi", "rel_tol": 1e-4}),
        Item(r"\sqrt{2} \text{ m}", {"answer": r"100\sqrt{2}", "unit": "cm"}),
        Item(r"\sqrt{2} \text{ m}", {"answer": r"\sqrt{2}", "unit": "cm"}),
        Item("3", {"answer": "3", "rel_tl": 0.1}),
    ]
    verdicts = verify_sync("math", items, {"deadline_s": 60.0, "workers": 1})
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, None]
    assert verdicts[4].failure is not None
    assert "did you mean 'rel_tol'" in verdicts[4].failure.message


@pytest.mark.parametrize("option", [{"units": "metric"}, {"percent": "maybe"}, {"places": -1}, {"extraction": "all"}])
def test_an_option_that_there_is_not_is_an_error(option: dict[str, Any]) -> None:
    with pytest.raises(QuintainError, match=next(iter(option))):
        get_verifier("math", **option)


def test_a_box_can_be_insisted_on() -> None:
    items = [Item("The answer is 25.", 25), Item(r"\boxed{25}", 25)]
    verdicts = verify_sync("math", items, {"extraction": "boxed"})
    assert [v.outcome for v in verdicts] == [Outcome.UNPARSABLE, Outcome.CORRECT]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("25", "25"), (r"\boxed{25}", "25"), (r"\sqrt{2}", r"\sqrt2"), ("even", "even"), ("B", "B")],
)
def test_what_stands_between_marks_that_are_named_is_thinking_whatever_is_compared(answer: str, reference: str) -> None:
    items = [Item(f"<plan>{thought}</plan>{answer}", reference) for thought in (r"\boxed{24}", "The answer is A")]
    items += [Item(f"<plan>{answer}", reference), Item(f"<plan>{answer}</plan>", reference)]
    verdicts = verify_sync("math", items, {"thinking": [["<plan>", "</plan>"]], "workers": 1, "deadline_s": 60.0})
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0]


def test_thinking_counts_where_that_is_asked_for() -> None:
    items = [Item(r"<think>\boxed{25}", 25)]
    assert [verify_sync("math", items, {"after_thinking": after})[0].score for after in (True, False)] == [0.0, 1.0]


def test_what_is_no_text_or_too_long_for_any_verifier_is_unparsable() -> None:
    answers: list[Any] = [None, 25, b"25", "x" * MAX_ANSWER_CHARS + "25"]
    verdicts = verify_sync("math", [Item(answer, 25) for answer in answers])
    assert {verdict.outcome for verdict in verdicts} == {Outcome.UNPARSABLE}


def test_the_detail_says_what_was_compared() -> None:
    [verdict] = verify_sync("math", [Item("So the answer is $24$.", 25)])
    assert verdict.detail == {"answer": "24", "rule": "answer"}
    assert verdict.elapsed_s > 0


# The base install: no math-verify


@pytest.fixture
def no_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "math_verify" else importlib.util.find_spec(name, *rest)

    monkeypatch.setattr("quintain.verifiers.options.find_spec", find_spec)


@pytest.mark.usefixtures("no_math_verify")
def test_the_base_install_judges_plain_numbers_and_says_what_needs_more() -> None:
    items = [
        Item("The sum is 25.", 25),
        Item("24", 25),
        Item("0.5", r"\frac{1}{2}"),
        Item(r"\sqrt{625}", 25),
        Item("5", r"\sqrt{25}"),
    ]
    verdicts = verify_sync("math", items)
    assert [verdict.outcome for verdict in verdicts] == [
        Outcome.CORRECT,
        Outcome.WRONG,
        Outcome.CORRECT,
        Outcome.UNPARSABLE,
        Outcome.BAD_REFERENCE,
    ]
    assert "quintain[math]" in verdicts[3].detail["reason"]
    assert verdicts[4].failure is not None
    assert "quintain[math]" in verdicts[4].failure.message


@pytest.mark.usefixtures("no_math_verify")
def test_insisting_on_the_full_check_without_math_verify_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(QuintainError, match=r"pip install 'quintain\[math\]'"):
        get_verifier("math", full=True)


def test_the_fast_path_needs_no_third_party_mathematics() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("sympy", "math_verify", "numpy", "latex2sympy2_extended")))
from quintain.verifiers import Item, verify_sync
[verdict] = verify_sync("math", [Item("The sum is 25.", 25)], {"full": False})
sys.exit(0 if verdict.score == 1.0 else 1)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Whatever models write


@given(st.text(max_size=300), st.sampled_from(["25", r"\frac{1}{2}", r"\sqrt{2}", "Tuesday", "5 km"]))
def test_any_text_gets_a_verdict_or_a_question(answer: str, reference: str) -> None:
    found = decide(answer, reference, MathOptions())
    if isinstance(found, Verdict):
        assert found.score in (0.0, 1.0)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_a_sum_in_a_sentence_is_judged_by_its_result(a: int, b: int) -> None:
    for text in (
        f"{a} + {b} = {a + b}.",
        f"The sum is {a + b}.",
        f"The answer is **{a + b}**",
        rf"$\boxed{{{a + b}}}$",
    ):
        for reference, outcome in ((a + b, Outcome.CORRECT), (a + b + 1, Outcome.WRONG)):
            found = decide(text, reference, MathOptions())
            assert isinstance(found, Verdict)
            assert found.outcome is outcome, (text, reference)


@together
async def test_broken_unicode_costs_nothing_but_its_verdict(verifier: MathVerifier) -> None:
    broken = ["\ud800", "\\sqrt{\ud800}", "25\x00", "\\sqrt{2}\x00"]
    verdicts = await verifier.verify([*(Item(answer, r"\sqrt{2}") for answer in broken), Item("25", "25")])
    assert {verdict.outcome for verdict in verdicts[:-1]} <= {Outcome.UNPARSABLE, Outcome.WRONG, Outcome.CORRECT}
    assert verdicts[-1].outcome is Outcome.CORRECT


REFERENCES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=60),
    st.lists(st.integers(), max_size=2),
    st.fixed_dictionaries(
        {"answer": st.sampled_from(["25", r"\sqrt{2}", "0.002, 7 \\times 10^{35}", "Tuesday"])},
        optional={
            "abs_tol": st.one_of(st.floats(), st.sampled_from([10**35, 1e34, 2**64, 10**900, 10**5000])),
            "rel_tol": st.floats(),
            "unit": st.text(max_size=5),
        },
    ),
)
ANSWERS = st.one_of(
    st.text(max_size=60), st.sampled_from([r"\sqrt{3}", "0.001, 7.1 \\cdot 10^{35}", r"\boxed{x^2}", "25 m"])
)


@together
async def test_no_input_raises_out_of_verify_or_takes_the_batch_with_it(verifier: MathVerifier) -> None:
    items: list[Item] = []

    @settings(max_examples=150, database=None)
    @given(ANSWERS, REFERENCES)
    def collect(answer: str, reference: Any) -> None:
        items.append(Item(answer, reference))

    collect()
    verdicts = await verifier.verify([*items, Item(r"\sqrt{8}", r"2\sqrt{2}")])
    assert len(verdicts) == len(items) + 1
    lost = (Outcome.CRASHED, Outcome.TIMEOUT)
    crashed = [item for item, verdict in zip(items, verdicts, strict=False) if verdict.outcome in lost]
    assert not crashed
    assert verdicts[-1].outcome is Outcome.CORRECT


@together
async def test_a_tolerance_beyond_64_bits_is_one(verifier: MathVerifier) -> None:
    reference = {"answer": r"7 \times 10^{35}, 0.002", "abs_tol": 1e34}
    [verdict] = await verifier.verify([Item(r"0.001, 7.1 \cdot 10^{35}", reference)])
    assert verdict.outcome is Outcome.CORRECT
