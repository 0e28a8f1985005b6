"""Projects with pytest tests: tests and solution share one process, so this isolation is weaker, and says so.

What always holds:
- the reference's files are there as they are, whatever the solution brings; what else could steer pytest or Python
  (further tests, conftest, ini files, sitecustomize, .pth) is left out and named in `detail["left_out"]`;
- it passes only where exactly the expected ids have each been reported as passed, in setup, call and teardown, and
  each of the canaries (tests that must fail, put under fresh names into the reference's test files) as failed;
- the report comes over a channel of its own, once, with a nonce.

Objects that are equal to everything, patches for chosen tests only, and a report that the solution writes itself can
still win: what can be asked as function or stdio tests should be.
"""

from __future__ import annotations

import json
import posixpath
import re
import secrets
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from quintain.failure import FailureError, FailureKind, Stage
from quintain.frames import FrameError
from quintain.verifiers.code.findings import OF_EXECUTION, CaseStatus, Finding, why
from quintain.verifiers.code.guest_process import GuestProcess, patience
from quintain.verifiers.code.reference import ProjectTask
from quintain.verifiers.code.sandboxes import Sandboxes
from quintain.verifiers.sandbox.interface import Execution, Limits, Status

ISOLATION: Final = {"isolation": "same_process"}
STEERING: Final = re.compile(
    r"(?:conftest|sitecustomize|usercustomize|test_.*|.*_test)\.pyc?|.*\.(?:pth|egg-link)|\.?pytest\.(?:ini|toml)|"
    r"pyproject\.toml|tox\.ini|setup\.cfg|setup\.py|__pycache__|\.coveragerc|.*\.(?:so|pyc|pyo)",
    re.IGNORECASE,
)
CONFIGURATION: Final = ("pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
CANARIES: Final = """

def test_{nonce}_a():
    value = {number}
    assert value == {number} + 1


def test_{nonce}_b():
    raise ValueError({number})
"""


@dataclass(frozen=True, slots=True)
class ProjectPlan:
    """What is run: the files, the canaries' ids, what of the solution was left out."""

    files: Mapping[str, bytes]
    canaries: tuple[str, ...]
    left_out: tuple[str, ...]
    configuration: str | None


def plan_of(task: ProjectTask, solution: Mapping[str, str]) -> ProjectPlan:
    """The project with `solution` in it, and canaries that no solution knows the names of."""
    left_out = sorted(
        path for path in solution if path in task.files or any(STEERING.fullmatch(part) for part in path.split("/"))
    )
    files = {path: text.encode("utf-8", "surrogatepass") for path, text in solution.items() if path not in left_out}
    files |= task.files
    canaries: list[str] = []
    for number, path in enumerate(sorted({test.partition("::")[0] for test in task.tests})):
        name = secrets.token_hex(6)
        files[path] = files[path].rstrip(b"\n") + CANARIES.format(nonce=name, number=number).encode()
        canaries += [f"{path}::test_{name}_a", f"{path}::test_{name}_b"]
    configuration = next((name for name in CONFIGURATION if name in task.files), None)
    return ProjectPlan(files, tuple(canaries), tuple(left_out), configuration)


async def judge_project(
    sandboxes: Sandboxes, task: ProjectTask, solution: Mapping[str, str], limits: Limits, *, group: Hashable
) -> Finding:
    """How `solution` (paths and texts) does. Raises FailureError where the sandbox breaks."""
    nonce, plan = secrets.token_hex(16), plan_of(task, solution)
    guest = await sandboxes.guest("pytest_run", pytest=True)
    half = len(plan.canaries) // 2
    job = {
        "ids": [*plan.canaries[:half], *task.tests, *plan.canaries[half:]],
        "own": sorted(path for path in task.files if path.endswith(".py")),
        "tests": list(task.tests),
        "configuration": plan.configuration,
        "nonce": nonce,
    }
    more: dict[str, Any] = dict(ISOLATION)
    if plan.left_out:
        more["left_out"] = list(plan.left_out)
    async with sandboxes.permit(group):
        process = await GuestProcess.begin(sandboxes.pytest, guest, limits, job, files=plan.files, group=group)
        try:
            async with patience(limits):
                return await _listen(process, task, plan, nonce, more)
        except FrameError as error:
            return Finding(CaseStatus.TAMPERING, f"it sent no frame: {error}", more=more)
        finally:
            await process.close()


async def _listen(
    process: GuestProcess, task: ProjectTask, plan: ProjectPlan, nonce: str, more: Mapping[str, Any]
) -> Finding:
    """What the runner says: first of the reference, before it has loaded the solution; then of the tests, once."""
    checked = await process.receive()
    if checked is None:
        return _ended(await process.wait(), more, begun=False)
    trouble = json.loads(checked)
    if "missing" in trouble:
        raise FailureError.of(FailureKind.REJECTED, Stage.VERIFY, trouble["missing"])
    if "bad_reference" in trouble:
        return Finding(CaseStatus.BAD_REFERENCE, trouble["bad_reference"])
    body = await process.receive()
    if body is None:
        return _ended(await process.wait(), more, begun=True)
    if await process.receive() is not None:
        return Finding(CaseStatus.TAMPERING, "there was more than one report", more=more)
    try:
        report = json.loads(body)
        if report["nonce"] != nonce:
            raise ValueError("another nonce")
        return finding_of(dict(report["outcomes"]), list(report["changed"]), task.tests, plan.canaries, more)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Finding(CaseStatus.TAMPERING, "what was reported is no report", more=more)


def finding_of(
    outcomes: Mapping[str, Any],
    changed: list[Any],
    tests: tuple[str, ...],
    canaries: tuple[str, ...],
    more: Mapping[str, Any],
) -> Finding:
    """What the outcomes of all tests, by id, amount to. Pure."""
    found = {test: _outcomes_of(test, outcomes) for test in tests}
    cases: list[dict[str, Any]] = [
        {"index": n, "id": test, **_worst(found[test].values())} for n, test in enumerate(tests)
    ]
    passed = sum(case["status"] == CaseStatus.PASSED for case in cases)
    if changed:
        message = f"it changed {', '.join(str(name)[:80] for name in changed[:3])}"
        return Finding(CaseStatus.TAMPERING, message, 0, len(cases), cases, more)
    awake = [canary for canary in canaries if (outcomes.get(canary) or {}).get("outcome") == "passed"]
    if awake:
        return Finding(CaseStatus.TAMPERING, "a test that must fail has passed", 0, len(cases), cases, more)
    first = next((case for case in cases if case["status"] != CaseStatus.PASSED), None)
    if first is not None:
        message = f"{first['id']}: {first.get('reason', 'was not run')}"
        return Finding(CaseStatus(first["status"]), message, passed, len(cases), cases, more)
    unseen = [canary for canary in canaries if (outcomes.get(canary) or {}).get("outcome") != "failed"]
    strange = sorted(set(outcomes) - {name for names in found.values() for name in names} - set(canaries))
    if unseen or strange:
        message = f"tests ran that nobody asked for: {strange[0][:80]}" if strange else "a test that must fail has not"
        return Finding(CaseStatus.TAMPERING, message, 0, len(cases), cases, more)
    return Finding(CaseStatus.PASSED, "", passed, len(cases), cases, more)


def _outcomes_of(test: str, outcomes: Mapping[str, Any]) -> dict[str, Any]:
    """The outcomes that an id stands for: its own, or those of a parametrised test that it names as a whole."""
    if test in outcomes or "[" in test:
        return {test: outcomes.get(test)}
    return {name: outcome for name, outcome in outcomes.items() if name.startswith(test + "[")} or {test: None}


def _worst(outcomes: Iterable[object]) -> dict[str, str]:
    """The status of tests together."""
    cases = [_case(outcome) for outcome in outcomes]
    return next((case for case in cases if case["status"] != CaseStatus.PASSED), cases[0])


def _case(outcome: object) -> dict[str, str]:
    """The status of a test."""
    if not isinstance(outcome, dict):
        return {"status": CaseStatus.RUNTIME_ERROR, "reason": "it was not run"}
    if outcome.get("outcome") == "passed":
        return {"status": CaseStatus.PASSED}
    failed_assertion = outcome.get("outcome") == "failed" and outcome.get("error") == "AssertionError"
    status = CaseStatus.WRONG_ANSWER if failed_assertion else CaseStatus.RUNTIME_ERROR
    return {"status": status, "reason": str(outcome.get("message", outcome.get("outcome")))[:300]}


def _ended(execution: Execution, more: Mapping[str, Any], *, begun: bool) -> Finding:
    """What the end of the runner without a report means."""
    execution.unbroken()
    if not begun:
        raise FailureError.of(FailureKind.CRASHED, Stage.VERIFY, f"the runner of tests died: {why(execution)}")
    if execution.status is Status.OK:
        return Finding(CaseStatus.RUNTIME_ERROR, "it ended before its tests did, with exit code 0", more=more)
    return Finding(OF_EXECUTION[execution.status], why(execution), more=more)


def solution_files(files: Mapping[str, str], code: str | None, path: str) -> dict[str, str]:
    """The solution as files: those that the answer names, else its code under `path`. Paths that lead out are gone."""
    found = dict(files) or ({path: code} if code is not None else {})
    return {name: text for name, text in found.items() if _inside(name)}


def _inside(path: str) -> bool:
    parts = path.split("/")
    return bool(path) and not path.startswith("/") and ".." not in parts and posixpath.normpath(path) == path
