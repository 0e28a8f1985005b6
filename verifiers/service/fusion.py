"""SandboxFusion's pages over our sandbox: `/run_code`, `/submit` and `/v1/ping`.

What always holds: code runs in a sandbox and nowhere else; output comes back whole up to the limit, however long;
files are written to, and fetched from, the run's own folder alone. Where the sandbox broke, the status is
`SandboxError`, never one that the code could be blamed for.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from quintain.codec import from_json, to_json
from quintain.failure import FailureError, QuintainError, Stage
from quintain.nearest import one_of
from quintain.serving.app import Page, attended, json_answer
from quintain.serving.refusals import Refused, read, refused
from quintain.verdict import Verdict
from quintain.verifiers.sandbox.interface import Execution, Limits, Program, Sandbox, Session, Status, check_path
from quintain.verifiers.service.fusion_submit import FUSION_LANGUAGES, result_of, verify_request
from quintain.verifiers.service.fusion_wire import (
    CommandStatus,
    RunCodeRequest,
    RunStatus,
    SubmitRequest,
    command_result,
    run_result,
)
from quintain.verifiers.service.jobs import Jobs
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.pages import VerifyPages

OUTPUT_BYTES: Final = 8 << 20
FETCHED_BYTES: Final = 16 << 20
FETCH_S: Final = 10.0
COMPILE_MEMORY_BYTES: Final = 1 << 30

_FETCH: Final = f"""
import os, sys
here, left = os.getcwd() + "/", {FETCHED_BYTES}
for index, path in enumerate(sys.argv[1:]):
    try:
        if not os.path.realpath(path).startswith(here) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            data = file.read(left + 1)
    except OSError:
        continue
    if len(data) <= left:
        left -= len(data)
        sys.stdout.buffer.write(b"%d %d\\n" % (index, len(data)) + data)
"""


@dataclass(frozen=True, slots=True)
class Steps:
    """A request as commands: `compile` where the language has one, `run`, and the files they need."""

    compile: Program | None
    run: Program
    files: Mapping[str, bytes]


class FusionPages:
    """The pages. The sandbox starts when code is first run."""

    def __init__(self, jobs: Jobs, verify: VerifyPages, sandbox: Sandbox | None = None) -> None:
        self._jobs, self._verify, self._sandbox = jobs, verify, sandbox

    def pages(self) -> tuple[Page, ...]:
        """What to add to a server's."""
        return (
            Page("POST", "/run_code", Stage.SANDBOX, self._run_code),
            Page("POST", "/submit", Stage.VERIFY, self._submit),
            Page("GET", "/v1/ping", Stage.REQUEST, self._ping, open=True),
        )

    async def close(self) -> None:
        """Close the sandbox."""
        if self._sandbox is not None:
            await self._sandbox.close()

    async def _ping(self, request: Request) -> Response:
        return json_answer('"pong"')

    async def _run_code(self, request: Request) -> Response:
        with self._verify.weighing() as taken:
            asked = read(await self._verify.read(request, taken), RunCodeRequest, Stage.SANDBOX, lenient=True)
            steps, limits = steps_of(asked), limits_of(asked, self._jobs.limits)
            for path in asked.fetch_files:
                _checked(path, "fetch_files")
            with self._jobs.admitted(request.state.holder, 1):
                answer = await attended(request.receive, self._run(asked, steps, limits, request.state.holder))
        return json_answer(to_json(answer))

    async def _run(self, asked: RunCodeRequest, steps: Steps, limits: Limits, holder: str) -> dict[str, Any]:
        try:
            if self._sandbox is None:
                from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

                self._sandbox = NamespaceSandbox()
            await self._sandbox.start()
            async with await self._sandbox.open(steps.files, limits, group=holder) as session:
                return await _run_in(session, asked, steps, limits)
        except (QuintainError, FailureError) as error:
            message = error.failure.message if isinstance(error, FailureError) else str(error)
            return run_result(RunStatus.SANDBOX_ERROR, message)

    async def _submit(self, request: Request) -> Response:
        async with AsyncExitStack() as stack:
            body = await self._verify.read(request, stack.enter_context(self._verify.weighing()))
            asked = read(body, SubmitRequest, Stage.VERIFY, lenient=True)
            job = await stack.enter_async_context(self._jobs.job(verify_request(asked), request.state.holder))
            (encoded,) = await attended(request.receive, job.all())
            return json_answer(to_json(result_of(asked, from_json(encoded.text, Verdict))))


def steps_of(asked: RunCodeRequest) -> Steps:
    """The commands that `asked` stands for. Raises Refused, with the field that is wrong."""
    from quintain.verifiers.code.options import LANGUAGES

    name = FUSION_LANGUAGES.get(asked.language, asked.language)
    if name not in LANGUAGES:
        known = [*FUSION_LANGUAGES, *(set(LANGUAGES) - set(FUSION_LANGUAGES.values()))]
        raise _wrong(f"the language {asked.language!r} is not run here{one_of(asked.language, known)}")
    files = {_checked(path, "files"): _decoded(path, text) for path, text in asked.files.items() if text is not None}
    if "\0" in "".join(asked.args):
        raise _wrong("args: an argument holds a NUL character")
    language = LANGUAGES[name]
    if not language.run:
        return Steps(None, Program.python(asked.code, *asked.args, name=language.file), files)
    files[language.file] = asked.code.encode()
    compiling = Program.command(*language.compile) if language.compile else None
    return Steps(compiling, Program.command(*language.run, *asked.args), files)


def limits_of(asked: RunCodeRequest, service: ServiceLimits) -> Limits:
    """The limits of the run. Raises Refused for what the server does not allow."""
    for name, value in (("compile_timeout", asked.compile_timeout), ("run_timeout", asked.run_timeout)):
        if not 0 < value <= service.deadline_s:
            raise _wrong(f"{name} must be more than 0 and at most {service.deadline_s:g} seconds, not {value:g}")
    memory = asked.memory_limit_MB << 20 if asked.memory_limit_MB > 0 else service.memory_bytes
    if asked.memory_limit_MB == 0 or memory > service.memory_bytes:
        raise _wrong(f"memory_limit_MB must be more than 0 and at most {service.memory_bytes >> 20}, or -1")
    return _timed(Limits(memory_bytes=memory, output_bytes=OUTPUT_BYTES), asked.run_timeout)


async def _run_in(session: Session, asked: RunCodeRequest, steps: Steps, limits: Limits) -> dict[str, Any]:
    done: list[Execution] = []
    if steps.compile is not None:
        memory = max(limits.memory_bytes, COMPILE_MEMORY_BYTES)
        compiling = replace(_timed(limits, asked.compile_timeout), memory_bytes=memory)
        done.append(await session.run(steps.compile, limits=compiling))
    compiled = not done or done[0].status is Status.OK
    if compiled:
        stdin = (asked.stdin or "").encode("utf-8", "surrogatepass")
        done.append(await session.run(steps.run, stdin=stdin, limits=limits))
    results = [_result_of(execution) for execution in done]
    broken = any(execution.status is Status.INFRA_ERROR for execution in done)
    failed = any(execution.status is not Status.OK for execution in done)
    return run_result(
        RunStatus.SANDBOX_ERROR if broken else RunStatus.FAILED if failed else RunStatus.SUCCESS,
        "; ".join(execution.reason for execution in done if execution.reason),
        compile_result=results[0] if steps.compile is not None else None,
        run_result=results[-1] if compiled else None,
        files={} if broken or not compiled else await _fetched(session, asked.fetch_files, limits),
    )


async def _fetched(session: Session, paths: Sequence[str], limits: Limits) -> dict[str, str]:
    """Those of the files `paths` that there are, as base64. They are read inside the sandbox: a path leads nowhere
    that the code could not have gone itself."""
    if not paths:
        return {}
    reader = Program.python(_FETCH, *paths, name=f".fetch-{secrets.token_hex(8)}.py")
    own = replace(_timed(limits, FETCH_S), output_bytes=FETCHED_BYTES + (1 << 20), memory_bytes=1 << 30)
    output = (await session.run(reader, limits=own)).stdout
    found: dict[str, str] = {}
    while output:
        head, _, output = output.partition(b"\n")
        index, _, size = head.partition(b" ")
        if not (index.isdigit() and size.isdigit() and int(index) < len(paths) and int(size) <= len(output)):
            break
        found[paths[int(index)]] = base64.b64encode(output[: int(size)]).decode()
        output = output[int(size) :]
    return found


def _result_of(execution: Execution) -> dict[str, Any]:
    """A command's end in SandboxFusion's words. One that hit a limit of memory or output was killed: -9."""
    status, code = {
        Status.OK: (CommandStatus.FINISHED, 0),
        Status.RUNTIME_ERROR: (CommandStatus.FINISHED, execution.exit),
        Status.TIMEOUT: (CommandStatus.TIME_LIMIT_EXCEEDED, None),
        Status.MEMORY_LIMIT: (CommandStatus.FINISHED, -9),
        Status.OUTPUT_LIMIT: (CommandStatus.FINISHED, -9),
        Status.INFRA_ERROR: (CommandStatus.ERROR, None),
    }[execution.status]
    stdout, stderr = (text.decode(errors="replace") for text in (execution.stdout, execution.stderr))
    return command_result(status, execution.wall_s, code, stdout, stderr)


def _timed(limits: Limits, wall_s: float) -> Limits:
    cores = len(os.sched_getaffinity(0))  # a program of several threads uses their time together
    return replace(limits, wall_s=wall_s, cpu_s=wall_s * cores)


def _decoded(path: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(f"files: the content of {path[:80]!r} is not base64") from None


def _checked(path: str, name: str) -> str:
    try:
        return check_path(path)
    except QuintainError as error:
        raise _wrong(f"{name}: {error}") from None


def _wrong(message: str) -> Refused:
    return refused(message, Stage.SANDBOX, status=400)
