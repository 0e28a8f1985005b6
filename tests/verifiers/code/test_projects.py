"""pytest projects: which files count, which tests must pass, and how weaknesses are told."""

from __future__ import annotations

from typing import Any

import pytest

from quintain.verdict import Outcome
from quintain.verifiers.code.findings import CaseStatus
from quintain.verifiers.code.projects import finding_of, plan_of, solution_files
from quintain.verifiers.code.reference import ProjectTask

from .conftest import Ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

TESTS = """
import pytest
from shop.cart import total

def test_empty():
    assert total([]) == 0

@pytest.mark.parametrize("prices", [[1], [1, 2]])
def test_sum(prices):
    assert total(prices) == sum(prices)

class TestMore:
    def test_negative(self, given):
        assert total([-1]) == given
"""
CONFTEST = "import pytest\n\n@pytest.fixture\ndef given():\n    return -1\n"
REFERENCE: dict[str, Any] = {
    "kind": "pytest",
    "files": {"tests/test_cart.py": TESTS, "tests/conftest.py": CONFTEST, "pytest.ini": "[pytest]\n"},
    "tests": [
        "tests/test_cart.py::test_empty",
        "tests/test_cart.py::test_sum",
        "tests/test_cart.py::TestMore::test_negative",
    ],
    "path": "shop/cart.py",
}
RIGHT = "def total(prices):\n    return sum(prices)"


async def test_a_right_solution_passes_and_the_verdict_says_how_weak_it_is(ask: Ask) -> None:
    verdict = await ask(RIGHT, REFERENCE)
    assert verdict.outcome is Outcome.CORRECT, verdict
    assert verdict.detail["isolation"] == "same_process"
    assert (verdict.detail["passed"], verdict.detail["total"]) == (3, 3)


@pytest.mark.parametrize(
    ("code", "status", "passed"),
    [
        ("def total(prices):\n    return 0", "wrong_answer", 1),
        ("def total(prices):\n    return abs(sum(prices))", "wrong_answer", 2),
        ("def total(prices):\n    return prices[0]", "runtime_error", None),
        ("def total(prices:\n    return 0", "runtime_error", 0),
        ("def tally(prices):\n    return 0", "runtime_error", 0),
        ("import os\nos._exit(0)", "runtime_error", None),
        ("while True: pass", "timeout", None),
    ],
)
async def test_a_wrong_solution_fails_with_its_reason(code: str, status: str, passed: int | None, ask: Ask) -> None:
    verdict = await ask(code, REFERENCE | {"limits": {"wall_s": 3}})
    assert (verdict.detail["status"], verdict.score) == (status, 0.0), verdict
    assert passed is None or verdict.detail["passed"] == passed


async def test_a_solution_of_several_files_is_laid_out_as_its_fences_say(ask: Ask) -> None:
    answer = "```python shop/cart.py\nfrom shop.add import add\n\ndef total(prices):\n    return add(prices)\n```\n"
    answer += "```python shop/add.py\ndef add(xs):\n    return sum(xs)\n```\n```python tests/conftest.py\nboom\n```"
    verdict = await ask(answer, REFERENCE)
    assert verdict.outcome is Outcome.CORRECT, verdict
    assert verdict.detail["left_out"] == ["tests/conftest.py"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": {"test_a.py": "def test_a(: pass"}, "tests": ["test_a.py::test_a"]}, "cannot be compiled"),
        ({"files": {"test_a.py": "def test_a(): pass"}, "tests": ["test_a.py::test_b"]}, "no test"),
    ],
)
async def test_tests_that_cannot_be_run_are_a_bad_reference(change: dict[str, Any], said: str, ask: Ask) -> None:
    verdict = await ask(RIGHT, REFERENCE | change)
    assert verdict.outcome is Outcome.BAD_REFERENCE, verdict
    assert verdict.failure is not None
    assert said in verdict.failure.message


TASK = ProjectTask({"test_a.py": b"def test_a(): pass\n"}, ("test_a.py::test_a",))


async def test_files_that_steer_pytest_or_python_are_left_out() -> None:
    steering = ["test_a.py", "test_b.py", "conftest.py", "a/conftest.py", "pytest.ini", "pyproject.toml", "tox.ini"]
    steering += [
        "setup.cfg",
        "sitecustomize.py",
        "a/usercustomize.py",
        "x.pth",
        "b_test.py",
        "a.pyc",
        "__pycache__/a.py",
    ]
    plan = plan_of(TASK, dict.fromkeys([*steering, "solution.py", "a/b.py"], ""))
    assert list(plan.left_out) == sorted(steering)
    assert set(plan.files) == {"solution.py", "a/b.py", "test_a.py"}
    assert plan.files["test_a.py"].startswith(b"def test_a(): pass")


async def test_paths_that_lead_out_are_no_files() -> None:
    files = {"../a.py": "", "/etc/a.py": "", "a/../../b.py": "", "a//b.py": "", "ok.py": ""}
    assert set(solution_files(files, None, "solution.py")) == {"ok.py"}


PASSED, FAILED = {"outcome": "passed"}, {"outcome": "failed"}
CANARIES = ("t.py::test_x_a", "t.py::test_x_b")
ASLEEP = dict.fromkeys(CANARIES, FAILED)


@pytest.mark.parametrize(
    ("outcomes", "changed", "status"),
    [
        ({"t.py::a": PASSED} | ASLEEP, [], CaseStatus.PASSED),
        ({"t.py::a": FAILED} | ASLEEP, [], CaseStatus.RUNTIME_ERROR),
        ({"t.py::a": {"outcome": "skipped"}} | ASLEEP, [], CaseStatus.RUNTIME_ERROR),
        (ASLEEP, [], CaseStatus.RUNTIME_ERROR),
        ({"t.py::a": PASSED}, [], CaseStatus.TAMPERING),
        ({"t.py::a": PASSED, CANARIES[0]: PASSED, CANARIES[1]: FAILED}, [], CaseStatus.TAMPERING),
        ({"t.py::a": PASSED, CANARIES[0]: FAILED}, [], CaseStatus.TAMPERING),
        ({"t.py::a": PASSED, "t.py::b": PASSED} | ASLEEP, [], CaseStatus.TAMPERING),
        ({"t.py::a": PASSED} | ASLEEP, ["unittest.case.TestCase.run"], CaseStatus.TAMPERING),
        ({"t.py::a": "passed"} | ASLEEP, [], CaseStatus.RUNTIME_ERROR),
    ],
)
async def test_it_passes_only_where_every_expected_test_passed_and_every_canary_failed(
    outcomes: dict[str, Any], changed: list[str], status: CaseStatus
) -> None:
    assert finding_of(outcomes, changed, ("t.py::a",), CANARIES, {}).status is status
