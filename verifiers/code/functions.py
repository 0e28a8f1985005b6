"""Function tests: a solution in one sandbox, its tests in another, and this process between them.

What always holds: the solution's process is given nothing but its own text and the arguments of calls; the finding
comes from the tests' process, with the nonce that it alone was told; this process hands frames over unread, whole,
one for each call, and reads of the solution's process only why it could not begin.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from quintain.failure import FailureError, FailureKind, Stage
from quintain.frames import FrameError
from quintain.verifiers.code.findings import OF_EXECUTION, CaseStatus, Finding, why
from quintain.verifiers.code.graders import Graders
from quintain.verifiers.code.guest_process import GuestProcess, patience
from quintain.verifiers.code.reference import FunctionTask
from quintain.verifiers.code.sandboxes import Sandboxes
from quintain.verifiers.sandbox.interface import Execution, Limits, Status
from quintain.verifiers.sandbox.outcome import how_it_ended

ISOLATION: Final = {"isolation": "separate_process"}
GRACE_S: Final = 2.0
"""The tests may go on so long after the solution's time is up: then it is never they who are out of time first."""
BEGUN: Final[Mapping[str, CaseStatus]] = {
    "compile_error": CaseStatus.COMPILE_ERROR,
    "missing": CaseStatus.WRONG_ANSWER,
    "raised": CaseStatus.RUNTIME_ERROR,
}
KILLED: Final = -signal.SIGKILL


class MaybeKilled(Exception):
    """The program was killed, perhaps by somebody outside; the finding if it was not."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


async def judge_function(
    sandboxes: Sandboxes,
    graders: Graders,
    task: FunctionTask,
    sources: Sequence[str],
    limits: Limits,
    *,
    partial_credit: bool,
    in_place: str,
    group: Hashable,
) -> Finding:
    """How the first of `sources` that compiles does. Raises FailureError where the sandbox breaks, MaybeKilled where
    the solution's process was killed without reaching a limit."""
    guest = await sandboxes.guest("worker")
    relay = _Relay(secrets.token_hex(8))
    worker_job = {"sources": list(sources), "prelude": task.prelude, "entry": [task.entry_point], "in_place": in_place}
    grader_job = {
        "entry": task.entry_point,
        "prompt": task.prompt,
        "setup": task.setup,
        "tests": list(task.tests),
        "cases": list(task.cases),
        "listed": task.listed,
        "partial": partial_credit,
        "in_place": in_place,
        "nonce": relay.nonce,
        "cpu_s": limits.cpu_s,
    }
    async with sandboxes.permit(group):
        worker = await GuestProcess.begin(sandboxes.main, guest, limits, worker_job, group=group)
        try:
            grader = await graders.take()
            try:
                await grader.process.send(json.dumps(grader_job).encode())
                return await relay.bounded(worker, grader.process, limits)
            finally:
                if relay.complete:
                    graders.give_back(grader)
                else:
                    await grader.process.close()
        finally:
            await worker.close()


class _Relay:
    """Hands calls and their answers over until there is a finding. `complete` says that the tests have given one."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.complete = False
        self._calls = 0
        self._waits_for_solution = False

    async def bounded(self, worker: GuestProcess, grader: GuestProcess, limits: Limits) -> Finding:
        """The finding. Raises FailureError where the sandbox breaks."""
        try:
            async with asyncio.timeout(limits.wall_s + GRACE_S):
                return await self._run(worker, grader)
        except TimeoutError:
            if self._waits_for_solution:  # which should be dead by now
                async with patience(limits):
                    return _of_solution(await worker.wait())
        message = f"the tests took more than {limits.wall_s:g} s"
        if not self._calls:
            return Finding(CaseStatus.BAD_REFERENCE, f"{message} before they called the solution")
        return Finding(CaseStatus.TIMEOUT, f"{message} with the values they were given", more=ISOLATION)

    async def _run(self, worker: GuestProcess, grader: GuestProcess) -> Finding:
        begun = _begun(await self._ask(worker))
        if begun is not None:
            return begun
        while True:
            try:
                frame = await grader.receive()
            except FrameError:
                frame = None
            if frame is None or frame[:1] == b"D":
                return await self._of_tests(grader, frame)
            if frame[:1] == b"V":
                self.complete = True
                return _finding(frame[1:], self.nonce)
            self._calls += 1
            await worker.send(frame[1:])
            answer = await self._ask(worker)
            if isinstance(answer, Finding):
                return answer
            await grader.send(answer)

    async def _ask(self, worker: GuestProcess) -> bytes | Finding:
        """The next frame of the solution's process, or what its end means."""
        self._waits_for_solution = True  # and still does where time runs out in here
        try:
            frame = await worker.receive()
            answer = _of_solution(await worker.wait()) if frame is None else frame
        except FrameError as error:
            answer = _tampering(f"the solution's process sent no frame: {error}")
        self._waits_for_solution = False
        return answer

    async def _of_tests(self, grader: GuestProcess, frame: bytes | None) -> Finding:
        """What the end of the tests' process without a finding means: the values it was given may be the cause."""
        if frame is None:
            execution = (await grader.wait()).unbroken()
            status: CaseStatus | None = OF_EXECUTION[execution.status]
            message = why(execution)
        else:
            code = int(frame[1:])
            out_of_time = code == -signal.SIGXCPU
            status = CaseStatus.TIMEOUT if out_of_time else CaseStatus.MEMORY_LIMIT if code == KILLED else None
            message = how_it_ended(code)
        if not self._calls:
            return Finding(CaseStatus.BAD_REFERENCE, f"the tests end before they call the solution: {message}")
        if status not in (CaseStatus.TIMEOUT, CaseStatus.MEMORY_LIMIT):
            raise FailureError.of(FailureKind.CRASHED, Stage.VERIFY, f"the tests' process died: {message}")
        finding = Finding(status, f"the tests, given its values: {message}", more=ISOLATION)
        if frame is not None and int(frame[1:]) == KILLED:
            raise MaybeKilled(finding)
        return finding


def _begun(frame: bytes | Finding) -> Finding | None:
    """Why there is no solution to call, or None."""
    if isinstance(frame, Finding):
        return frame
    try:
        status, message = json.loads(frame[:65536])
        return None if status == "ready" else Finding(BEGUN[status], str(message), more=ISOLATION)
    except (ValueError, TypeError, KeyError, RecursionError):
        return _tampering("the solution's process sent what it never sends")


def _finding(body: bytes, nonce: str) -> Finding:
    """What the tests have found."""
    try:
        found: dict[str, Any] = json.loads(body)
        if found["nonce"] != nonce:
            raise ValueError("another nonce")
        status = CaseStatus(found["status"])
        passed = int(found.get("passed", 0))
        total = passed + int(found.get("failed", 0))
        return Finding(status, found["message"], passed, total, found.get("cases", ()), ISOLATION)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"the tests' process sent what it never sends: {type(error).__name__}"
        raise FailureError.of(FailureKind.CRASHED, Stage.VERIFY, message) from None


def _of_solution(execution: Execution) -> Finding:
    """What the end of the solution's process means."""
    if execution.unbroken().status is Status.OK:
        message = "the program ended before its tests did, with exit code 0"
        return Finding(CaseStatus.RUNTIME_ERROR, message, more=ISOLATION)
    finding = Finding(OF_EXECUTION[execution.status], why(execution), more=ISOLATION)
    if execution.status is Status.RUNTIME_ERROR and execution.exit == KILLED:
        raise MaybeKilled(finding)
    return finding


def _tampering(message: str) -> Finding:
    return Finding(CaseStatus.TAMPERING, message, more=ISOLATION)
