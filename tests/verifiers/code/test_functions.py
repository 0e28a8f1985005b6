"""Function tests: what crosses between solution and tests, and how each end of a solution is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.base import Verifier
from quintain.verifiers.code import functions
from quintain.verifiers.sandbox.interface import Execution, Limits, Status

from .conftest import Ask

pytestmark = pytest.mark.asyncio(loop_scope="module")


def checking(body: str, prompt: str = "", **more: Any) -> dict[str, Any]:
    """HumanEval's form, with these lines in `check`."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return {"kind": "function", "entry_point": "f", "prompt": prompt, "tests": f"def check(candidate):\n{lines}"} | more


ONE = checking("assert candidate(1) == 2")
STATUSES = [
    ("def f(x): return x + 1", "passed", Outcome.CORRECT),
    ("def f(x): return x", "wrong_answer", Outcome.WRONG),
    ("def f(x): return 2.5 - 0.5j", "wrong_answer", Outcome.WRONG),
    ("def f(x): return x +", "compile_error", Outcome.WRONG),
    ("def g(x): return x", "wrong_answer", Outcome.WRONG),
    ("f = 5", "wrong_answer", Outcome.WRONG),
    ("def f(): return 2", "runtime_error", Outcome.CRASHED),
    ("def f(x): return 1 // 0", "runtime_error", Outcome.CRASHED),
    ("def f(x): return f(x)", "runtime_error", Outcome.CRASHED),
    ("import no_such_module\ndef f(x): return 2", "runtime_error", Outcome.CRASHED),
    ("def f(x): import sys; sys.exit(0)", "runtime_error", Outcome.CRASHED),
    ("def f(x): import os; os._exit(0)", "runtime_error", Outcome.CRASHED),
    ("def f(x): return bytearray(1 << 40)", "memory_limit", Outcome.CRASHED),
    ("def f(x):\n while True: print('x' * 1000)", "output_limit", Outcome.CRASHED),
    (
        "import os\ndef f(x):\n for n in range(3, 200):\n  try: os.write(n, bytes(9))\n  except OSError: 0",
        "tampering",
        Outcome.WRONG,
    ),
]


@pytest.mark.parametrize(("code", "status", "outcome"), STATUSES, ids=[case[0][:40] for case in STATUSES])
async def test_each_end_of_a_solution_has_its_status(code: str, status: str, outcome: Outcome, ask: Ask) -> None:
    verdict = await ask(code, ONE)
    assert (verdict.detail["status"], verdict.outcome) == (status, outcome), verdict
    assert verdict.score == (1.0 if status == "passed" else 0.0)
    assert verdict.detail["isolation"] == "separate_process"


async def test_a_solution_that_never_ends_is_a_timeout_of_score_zero(ask: Ask) -> None:
    verdict = await ask("def f(x):\n while True: pass", ONE | {"limits": {"wall_s": 0.5}})
    assert (verdict.detail["status"], verdict.outcome, verdict.score) == ("timeout", Outcome.TIMEOUT, 0.0)


@pytest.mark.parametrize(
    "answer", ["I do not know.", "```\nno code either\n```\n```js\nlet\n```", "", "<think>def f(x): return 2"]
)
async def test_no_code_is_unparsable_and_prose_is_no_code(answer: str, verifier: Verifier) -> None:
    (verdict,) = await verifier.verify([Item(answer, ONE)])
    expected = Outcome.WRONG if "either" in answer else Outcome.UNPARSABLE
    assert verdict.outcome is expected
    assert verdict.score == 0.0


BAD = [
    ("assert candidate(1 == 2", "cannot be compiled"),
    ("assert undefined(1) == candidate(1)", "undefined"),
    ("assert 1 == 2", "before they call"),
    ("pass", "never call"),
    ("import no_such_module\nassert candidate(1) == 2", "no_such_module"),
    ("assert candidate(object()) == 2", "does not cross"),
    ("assert candidate(lambda: 0) == 2", "does not cross"),
    ("while True: pass", "before they call"),
]


@pytest.mark.parametrize(("body", "reason"), BAD, ids=[body for body, _ in BAD])
async def test_tests_that_fail_whatever_the_solution_are_a_bad_reference(body: str, reason: str, ask: Ask) -> None:
    verdict = await ask("def f(x): return 2", checking(body, limits={"wall_s": 0.5}))
    assert verdict.outcome is Outcome.BAD_REFERENCE, verdict
    assert verdict.failure is not None
    assert reason in verdict.failure.message


async def test_a_solution_cannot_make_its_reference_look_bad(ask: Ask) -> None:
    deep = "def f(x):\n v = []\n for _ in range(148): v = [v]\n return v"
    verdict = await ask(deep, checking("assert candidate([candidate(1)]) == 2"))
    assert verdict.score == 0.0, verdict


VALUES = [
    ("return x", "assert candidate([1, (2, {3}), {'a': None}]) == [1, (2, {3}), {'a': None}]"),
    ("return x", "assert type(candidate((1, 2))) is tuple"),
    ("return float('nan')", "import math\nassert math.isnan(candidate(1))"),
    ("return -0.0", "import math\nassert math.copysign(1, candidate(1)) == -1"),
    ("return x ** 1000", "assert candidate(7) == 7 ** 1000"),
    ("return '\\ud800'", "assert candidate(1) == '\\ud800'"),
    ("return b'\\xff'", "assert candidate(1) == b'\\xff'"),
    ("return {1: frozenset([2])}", "assert candidate(1) == {1: {2}}"),
    ("return (n for n in range(x))", "assert list(candidate(3)) == [0, 1, 2]"),
    ("return {'a': 1}.items()", "assert sorted(candidate(1)) == [('a', 1)]"),
    ("from collections import Counter; return Counter(x)", "assert candidate('aab') == {'a': 2, 'b': 1}"),
    ("from decimal import Decimal; return Decimal('1.10')", "assert str(candidate(1)) == '1.10'"),
    ("raise KeyError('k')", "try: candidate(1)\nexcept KeyError as e: assert e.args == ('k',)\nelse: assert False"),
    (
        "class Own(ValueError): pass\n    raise Own('m')",
        "try: candidate(1)\nexcept ValueError as e: assert str(e) == 'm'",
    ),
    ("return x + y", "assert candidate(1, y=2) == 3"),
]


@pytest.mark.parametrize(("code", "body"), VALUES, ids=[body.splitlines()[-1] for _, body in VALUES])
async def test_values_and_exceptions_cross(code: str, body: str, ask: Ask) -> None:
    verdict = await ask(f"def f(x, y=0):\n    {code}", checking(body))
    assert verdict.score == 1.0, verdict


async def test_what_a_call_changes_in_its_arguments_is_seen(ask: Ask) -> None:
    body = """
a = [3, [1, 2]]
inner = a[1]
assert candidate(a) is None
assert a == [[0], 3, [1, 2]] or a == [3, [1, 2, 9]]
assert inner == [1, 2, 9]
d, s = {'k': [1]}, {1}
candidate(d); candidate(s)
assert d == {'k': [1, 9], 'new': 1} and s == {2}
"""
    code = """
def f(x):
    if isinstance(x, list): x[1].append(9)
    elif isinstance(x, dict): x['k'].append(9); x['new'] = 1
    else: x.clear(); x.add(2)
"""
    assert (await ask(code, checking(body))).score == 1.0
    async with get_verifier("code", in_place="never") as copying:
        (verdict,) = await copying.verify([Item(f"```python\n{code}```", checking(body))])
    assert verdict.score == 0.0


EMPTYING = "def f(x):\n    found = list(x)[:0]\n    x.clear()\n    return found"
READS_AFTERWARDS = "a = [3, 1, 2]\nassert candidate(a) == sorted(a)"
POPPING = "def f(x):\n    return x.pop()"
FORGING = """
def f(x):
    import json, os, struct
    body = json.dumps([1, "ok", ["l"], [[0, ["l"]]]]).encode()
    for fd in range(64, 80):
        try: os.write(fd, struct.pack(">I", len(body)) + body)
        except OSError: pass
    return []
"""


@pytest.mark.parametrize(("in_place", "fooled"), [("procedures", 0.0), ("always", 1.0), ("never", 0.0)])
async def test_a_function_that_gives_a_value_does_not_change_what_its_tests_hold(in_place: str, fooled: float) -> None:
    body = "a = [1, 2]\nassert candidate(a) == 2 and a == [1]"
    async with get_verifier("code", in_place=in_place) as verifier:
        verdicts = await verifier.verify(
            [
                Item(f"```python\n{EMPTYING}\n```", checking(READS_AFTERWARDS)),
                Item(f"```python\n{POPPING}\n```", checking(body)),
                Item("```python\ndef f(x):\n    return sorted(x)\n```", checking(READS_AFTERWARDS)),
            ]
        )
        (forged,) = await verifier.verify([Item(f"```python\n{FORGING}\n```", checking(READS_AFTERWARDS))])
    assert [verdict.score for verdict in verdicts] == [fooled, fooled, 1.0]
    if in_place != "always":
        assert forged.score == 0.0
        assert forged.detail["status"] == "tampering", forged


PROMPT = '''
import math

def helper(x):
    """Twice."""
    return 2 * x

def stub(x):
    """To be written too."""

def f(x):
    """One more than helper."""
'''


async def test_helpers_of_the_prompt_are_the_prompts_own_and_stubs_are_the_solutions(ask: Ask) -> None:
    reference = checking(
        "assert candidate(2) == helper(2) + 1 == 5\nassert stub(1) == 'mine'\nassert math.pi > 3", PROMPT
    )
    right = "def stub(x): return 'mine'\ndef f(x): return helper(x) + 1"
    assert (await ask(right, reference)).score == 1.0
    cheat = "def helper(x): return 0\ndef stub(x): return 'mine'\ndef f(x): return helper(x) + 1"
    assert (await ask(cheat, reference)).score == 0.0


@pytest.mark.parametrize(
    "completion", ["    return x + 1\n", "return x + 1", "    y = x\n    return y + 1", "y = x\nreturn y + 1"]
)
async def test_a_completion_goes_on_where_the_prompt_ends(completion: str, verifier: Verifier) -> None:
    reference = checking("assert candidate(1) == 2", 'def f(x: int) -> int:\n    """One more."""\n')
    for answer in (completion, f"```python\n{completion}\n```"):
        (verdict,) = await verifier.verify([Item(answer, reference)])
        assert verdict.score == 1.0, (answer, verdict)


async def test_lists_of_tests_are_counted_and_partial_credit_is_their_share(ask: Ask) -> None:
    reference = {
        "kind": "function",
        "entry_point": "f",
        "setup": "import math",
        "tests": ["assert f(4) == 2", "assert f(9) == math.sqrt(9)", "assert f(1) == 5", "assert f(16) == 4"],
    }
    verdict = await ask("def f(x): return int(x ** 0.5)", reference)
    assert (verdict.score, verdict.detail["passed"], verdict.detail["total"]) == (0.0, 2, 4)
    async with get_verifier("code", partial_credit=True) as partial:
        root, crash = await partial.verify(
            [
                Item("```python\ndef f(x): return int(x ** 0.5)\n```", reference),
                Item("```python\nimport os\ndef f(x): return int(x ** 0.5) if x != 1 else os._exit(0)\n```", reference),
            ]
        )
        body = checking(
            "assert candidate(1) == 1\nassert candidate(2) == 0\nassert candidate(3) == 3\nassert candidate('') == 1"
        )
        (asserted,) = await partial.verify([Item("```python\ndef f(x): return x + 0\n```", body)])
    assert (root.score, root.outcome) == (0.75, Outcome.PARTIAL)
    assert [case["status"] for case in root.detail["cases"]] == ["passed", "passed", "wrong_answer", "passed"]
    assert crash.score == 0.0
    assert (asserted.score, asserted.detail["status"]) == (0.5, "wrong_answer")


async def test_livecodebench_functions_are_methods_and_tuples_are_lists(ask: Ask) -> None:
    record = {
        "kind": "livecodebench",
        "public_test_cases": [{"input": "[1, 2]\n3", "output": "[3, 6]", "testtype": "functional"}],
        "metadata": {"func_name": "scale"},
    }
    method = "def scale(self, xs: List[int], k: int) -> List[int]: return tuple(k * x for x in xs)"
    assert (await ask(f"class Solution:\n    {method}", record)).score == 1.0
    assert (await ask("def scale(xs, k): return [k * x for x in xs]", record)).score == 1.0
    assert (await ask("def scale(xs, k): return xs", record)).score == 0.0


async def test_a_verdict_does_not_depend_on_the_one_before(ask: Ask) -> None:
    """The tests of an item run in a fork of a grader that others use: nothing of theirs is there."""
    leaving = "import builtins, json, sys\nbuiltins.seen = json.seen = sys.seen = 1\nopen('seen', 'w').close()\n"
    leaving += "assert candidate(1) == 2"
    looking = "import builtins, json, os, sys\nassert not any(hasattr(m, 'seen') for m in (builtins, json, sys))\n"
    looking += "assert not os.path.exists('seen')\nassert candidate(1) == 2"
    for _ in range(6):
        assert (await ask("def f(x): return 2", checking(leaving))).score == 1.0
        assert (await ask("def f(x): return 2", checking(looking))).score == 1.0


class StubTalk:
    """Says nothing, and has ended like this once its time is up."""

    def __init__(self, end: Execution) -> None:
        self._end = end

    async def receive(self) -> bytes | None:
        await asyncio.Event().wait()
        return None

    async def wait(self) -> Execution:
        return self._end


async def test_time_that_a_stub_solution_takes_is_its_own_and_not_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb may keep its sandbox from ending it in time: the tests, which wait for it, are out of time with it."""
    late = Execution(Status.TIMEOUT, reason="it took its 0 s")
    monkeypatch.setattr(functions, "GRACE_S", 0.0)
    stubs = StubTalk(late), StubTalk(Execution(Status.OK))
    found = await functions._Relay("nonce").bounded(*stubs, Limits(wall_s=0.05))  # type: ignore[arg-type]
    assert (found.status, found.message) == (functions.CaseStatus.TIMEOUT, "it took its 0 s")
