"""Programs that read and write: each case is a run in a fresh sandbox of its own.

What always holds: what a program should write never enters a sandbox; a compiled program is compiled once, in a
sandbox of its own, and only the file that comes out of it goes into the sandboxes of the cases; the finding is that of
the first case that failed, whichever ended first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from quintain.verifiers.code.compare import Policy, same
from quintain.verifiers.code.findings import OF_EXECUTION, CaseStatus, Finding, excerpt, why
from quintain.verifiers.code.options import LanguageOptions
from quintain.verifiers.code.reference import Case, StdioTask
from quintain.verifiers.code.sandboxes import Sandboxes
from quintain.verifiers.sandbox.interface import MEBI, Execution, Limits, Program, Status

ISOLATION: Final = {"isolation": "separate_process"}
ARTIFACT_BYTES: Final = 64 * MEBI
SYNTAX_ERROR: Final = re.compile(
    rb'\A  File "[^"\n]*", line \d+\n(?:.*\n){0,3}(?:Syntax|Indentation|Tab)Error: .*\s*\Z'
)
RUN_ARTIFACT: Final = 'chmod 755 -- "$0" && exec "$@"'
KILLED: Final = -9
TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """What runs in each case."""

    program: Program
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How output is compared."""

    policy: Policy
    tolerance: float


async def judge_program(
    sandboxes: Sandboxes,
    task: StdioTask,
    source: str,
    name: str,
    language: LanguageOptions,
    limits: Limits,
    compile_limits: Limits,
    comparison: Comparison,
    *,
    partial_credit: bool,
    group: Hashable,
) -> Finding:
    """How the program `source` does. Raises FailureError where the sandbox breaks."""
    await sandboxes.need(name, language)
    launch = await prepare(sandboxes, source, language, compile_limits, group)
    if isinstance(launch, Finding):
        return launch

    async def run(number: int) -> dict[str, Any]:
        return await judge_case(sandboxes, launch, task.cases[number], number, limits, comparison, group)

    count = len(task.cases)
    cases = await run_cases(run, count, at_once=sandboxes.slots, go_on=partial_credit)
    passed = sum(case["status"] == CaseStatus.PASSED for case in cases)
    first = next((case for case in cases if case["status"] != CaseStatus.PASSED), None)
    if first is None:
        return Finding(CaseStatus.PASSED, "", passed, count, cases, ISOLATION)
    message = f"case {first['index']}: {first.get('reason') or first['status'].replace('_', ' ')}"
    return Finding(CaseStatus(first["status"]), message, passed, count, cases, ISOLATION)


async def prepare(
    sandboxes: Sandboxes, source: str, language: LanguageOptions, limits: Limits, group: Hashable
) -> Launch | Finding:
    """The program, ready to be run, or why it cannot be."""
    text = source.encode("utf-8", "surrogatepass")
    if not language.run:
        return Launch(Program.python(text, name=language.file), {})
    if not language.compile:
        return Launch(Program.command(*language.run), {language.file: text})
    artifact = language.artifact or language.file
    fetching = replace(limits, output_bytes=ARTIFACT_BYTES)
    async with (
        sandboxes.permit(group),
        await sandboxes.main.open({language.file: text}, limits, group=group) as session,
    ):
        done = (await session.run(Program.command(*language.compile), limits=limits)).unbroken()
        if done.status is not Status.OK:
            return Finding(CaseStatus.COMPILE_ERROR, f"{done.reason}: {excerpt(done.stderr)}", more=ISOLATION)
        # `head` and not `cat`: what the compiler left may be a pipe, or endless.
        fetched = await session.run(Program.command("head", "-c", f"{ARTIFACT_BYTES}", artifact), limits=fetching)
    if fetched.unbroken().status is not Status.OK:
        return Finding(CaseStatus.COMPILE_ERROR, f"the compiler left no {artifact}: {why(fetched)}", more=ISOLATION)
    program = Program.command("sh", "-c", RUN_ARTIFACT, artifact, *language.run)
    return Launch(program, {artifact: fetched.stdout})


async def judge_case(
    sandboxes: Sandboxes,
    launch: Launch,
    case: Case,
    number: int,
    limits: Limits,
    comparison: Comparison,
    group: Hashable,
) -> dict[str, Any]:
    """How the program does on one case, as plain data."""
    for _ in range(TRIES):
        async with sandboxes.permit(group):
            done = await sandboxes.main.run(
                launch.program, stdin=case.stdin, files=launch.files, limits=limits, group=group
            )
        if not (done.status is Status.RUNTIME_ERROR and done.exit == KILLED):
            break  # else it may have been killed from outside: once that is forgiven
    status = status_of(done.unbroken(), case, comparison)
    told: dict[str, Any] = {
        "index": number,
        "status": str(status),
        "wall_s": round(done.wall_s, 4),
        "peak_bytes": done.peak_bytes,
    }
    if status is CaseStatus.PASSED:
        return told
    told |= {"exit": done.exit, "stdout": excerpt(done.stdout)}
    if done.stderr:
        told["stderr"] = excerpt(done.stderr)
    if done.reason:
        told["reason"] = why(done)
    return told


def status_of(done: Execution, case: Case, comparison: Comparison) -> CaseStatus:
    """The status of a run that the sandbox did not fail."""
    status = OF_EXECUTION[done.status]
    if status is CaseStatus.PASSED:
        right = same(done.stdout, case.stdout, comparison.policy, comparison.tolerance)
        return CaseStatus.PASSED if right else CaseStatus.WRONG_ANSWER
    if status is CaseStatus.RUNTIME_ERROR and done.exit == 1 and SYNTAX_ERROR.match(done.stderr):
        return CaseStatus.COMPILE_ERROR
    return status


async def run_cases(
    run: Callable[[int], Awaitable[dict[str, Any]]], count: int, *, at_once: int, go_on: bool
) -> Sequence[dict[str, Any]]:
    """What `run` says of the cases 0 to `count` - 1, in order: of all of them where they are to `go_on`, else up to
    the first that failed. The first runs alone, since most wrong programs fail it; of the others `at_once` together.
    """
    results = {0: await run(0)}
    if results[0]["status"] != CaseStatus.PASSED and not go_on:
        return [results[0]]
    running: dict[int, asyncio.Task[dict[str, Any]]] = {}
    following, last = 1, count - 1
    try:
        while running or following <= last:
            while len(running) < at_once and following <= last:
                running[following] = asyncio.ensure_future(run(following))
                following += 1
            await asyncio.wait(running.values(), return_when=asyncio.FIRST_COMPLETED)
            for number in [number for number, task in running.items() if task.done()]:
                results[number] = running.pop(number).result()
                if results[number]["status"] != CaseStatus.PASSED and not go_on:
                    last = min(last, number)
            for number in [number for number in running if number > last]:
                await _cancel(running.pop(number))
    finally:
        for task in running.values():
            await _cancel(task)
    return [results[number] for number in range(last + 1)]


async def _cancel(task: asyncio.Task[dict[str, Any]]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # it ended by itself; nobody asks any more
