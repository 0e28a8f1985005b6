"""The code verifier: programs judged by their tests, in a sandbox; `quintain.verifiers.code` says how.

What always holds, beyond what holds for every verifier: nothing of an answer is parsed, compiled or run outside of the
sandbox; tested code is never in the process that judges it, but for pytest projects, whose verdicts say so; a program
that is slow, large or loud gets score 0, and only what broke on our side is a failure; nothing starts before an item
needs it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from quintain.failure import FailureError, QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item
from quintain.verifiers.code import functions, programs, projects
from quintain.verifiers.code.extract import Code, assemblies, code_in, files_in
from quintain.verifiers.code.findings import CaseStatus, Finding, verdict_of
from quintain.verifiers.code.graders import Graders
from quintain.verifiers.code.options import CodeOptions, LanguageOptions
from quintain.verifiers.code.reference import (
    BadReference,
    FunctionTask,
    ProjectTask,
    StdioTask,
    Task,
    task_of,
    tightened,
)
from quintain.verifiers.code.sandboxes import Sandboxes
from quintain.verifiers.options import Options, OptionsVerifier
from quintain.verifiers.pure import crashed, unparsable, unreadable
from quintain.verifiers.sandbox.interface import Limits, Sandbox

KINDS: Final = {FunctionTask: "function", StdioTask: "stdio", ProjectTask: "pytest"}
ITEMS_PER_SLOT: Final = 2
"""So many items of a batch are begun for each slot: what waits for its turn costs memory."""
PYTHON: Final = "python"
VERSION_TIMEOUT_S: Final = 30


class CodeVerifier(OptionsVerifier[CodeOptions]):
    """Judges programs by their tests."""

    name: ClassVar[str] = "code"
    options_type: ClassVar[type[Options]] = CodeOptions
    cost: Cost = Cost.SANDBOX

    def __init__(self, options: CodeOptions | None = None) -> None:
        super().__init__(options)
        _check(self.options)
        self._sandboxes = Sandboxes(self.options)
        self._graders = Graders(self._sandboxes, self.options.limits.limits())
        self._closed = False

    @property
    def version(self) -> str:
        """Our own version of the judgement, and that of what runs the programs."""
        options = self.options
        if options.backend == "docker":
            return f"2+image-{options.image}"
        return f"2+{python_version(options.python, options.backend)}"

    @property
    def sandbox(self) -> Sandbox:
        """Where programs run, two for each slot, for who wants more than a verdict: the verifier closes it."""
        return self._sandboxes.main

    async def start(self) -> None:
        """Get ready, so that the first item does not pay for it. Raises QuintainError where this machine cannot."""
        try:
            await asyncio.gather(self._sandboxes.guest("worker"), self._sandboxes.guest("grader_host"))
        except FailureError as error:
            raise QuintainError(f"the code verifier's sandbox: {error.failure.message}") from None

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order.

        `deadline_s` bounds what each program may take, where that is less than the limits of the options: a program
        that is too slow has score 0. Raises QuintainError where this machine cannot isolate programs.
        """
        if self._closed:
            raise QuintainError("this verifier is closed: make a new one")
        if deadline_s is not None and not 0 < deadline_s < float("inf"):
            raise QuintainError(f"deadline_s is a positive number of seconds, not {deadline_s!r}")
        verdicts: list[Verdict | None] = [None] * len(items)
        waiting = iter(range(len(items)))
        batch = object()

        async def consume(numbers: Iterator[int]) -> None:
            for number in numbers:
                verdicts[number] = await self._timed(items[number], deadline_s, batch)
                await asyncio.sleep(0)

        consumers = [consume(waiting) for _ in range(min(len(items), ITEMS_PER_SLOT * self._sandboxes.slots))]
        try:
            async with asyncio.TaskGroup() as group:
                for each in consumers:
                    group.create_task(each)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [verdict for verdict in verdicts if verdict is not None]

    async def close(self) -> None:
        """End every program and every process of the sandbox."""
        self._closed = True
        await self._graders.close()
        await self._sandboxes.close()

    async def _timed(self, item: Item, deadline_s: float | None, batch: Hashable) -> Verdict:
        started = time.perf_counter()
        try:
            verdict = await self._judge(item, deadline_s, batch)
        except QuintainError:  # this machine cannot do it at all
            raise
        except FailureError as error:
            verdict = Verdict(None, Outcome.CRASHED, error.failure)
        except Exception as error:  # the boundary: a flaw in judging one item costs that item
            verdict = crashed(error)
        return replace(verdict, elapsed_s=time.perf_counter() - started)

    async def _judge(self, item: Item, deadline_s: float | None, batch: Hashable) -> Verdict:
        refused = unreadable(item.answer)
        if refused is not None:
            return refused
        try:
            task = task_of(item.reference)
            limits = tightened(self.options.limits.limits(), task.limits)
            finding = await self._find(task, item.answer, shortened(limits, deadline_s), batch)
        except BadReference as error:
            finding, task = Finding(CaseStatus.BAD_REFERENCE, str(error)), None
        if finding.status is CaseStatus.NO_CODE:
            return unparsable(finding.message or "there is no code in the answer", status=str(CaseStatus.NO_CODE))
        kind = "?" if task is None else KINDS[type(task)]
        return verdict_of(finding, kind, partial_credit=self.options.partial_credit)

    async def _find(self, task: Task, answer: str, limits: Limits, batch: Hashable) -> Finding:
        options = self.options
        body = options.body_of(answer)
        if isinstance(task, ProjectTask):
            return await self._find_project(task, body, limits, batch)
        name = (task.language or options.language) if isinstance(task, StdioTask) else PYTHON
        language = options.language_called(name)
        if language is None:
            raise BadReference(f"language is one of the option languages, not {name[:50]!r}")
        entry = task.entry_point if isinstance(task, FunctionTask) else None
        code = code_of(body, name, language, options, entry)
        if code is None:
            return Finding(CaseStatus.NO_CODE)
        if isinstance(task, StdioTask):
            finding = await programs.judge_program(
                self._sandboxes,
                task,
                with_prelude(task.prelude, code.text),
                name,
                language,
                limits,
                options.compile_limits.limits(),
                programs.Comparison(
                    task.compare or options.compare, options.tolerance if task.tolerance is None else task.tolerance
                ),
                partial_credit=options.partial_credit,
                group=batch,
            )
        else:
            finding = await self._find_function(task, code, limits, batch)
        if finding.status is CaseStatus.COMPILE_ERROR and not code.fenced:
            return replace(finding, status=CaseStatus.NO_CODE, message=f"the answer is no code: {finding.message}")
        return finding

    async def _find_function(self, task: FunctionTask, code: Code, limits: Limits, batch: Hashable) -> Finding:
        sources = assemblies(code, task.prompt, task.entry_point)
        judge = functools.partial(
            functions.judge_function,
            self._sandboxes,
            self._graders,
            task,
            sources,
            limits,
            partial_credit=self.options.partial_credit,
            in_place=self.options.in_place,
            group=batch,
        )
        try:
            return await judge()
        except functions.MaybeKilled:
            pass
        try:
            return await judge()
        except functions.MaybeKilled as twice:
            return twice.finding

    async def _find_project(self, task: ProjectTask, body: str | None, limits: Limits, batch: Hashable) -> Finding:
        language = self.options.language_called(PYTHON)
        assert language is not None
        code = code_of(body, PYTHON, language, self.options)
        solution = projects.solution_files(files_in(body or ""), None if code is None else code.text, task.path)
        if not solution:
            return Finding(CaseStatus.NO_CODE)
        return await projects.judge_project(self._sandboxes, task, solution, limits, group=batch)


def code_of(
    body: str | None, name: str, language: LanguageOptions, options: CodeOptions, defines: str | None = None
) -> Code | None:
    """The code of that language in `body`, which `defines` a name."""
    return None if body is None else code_in(body, frozenset({name, *language.fences}), options.extraction, defines)


def with_prelude(prelude: str, source: str) -> str:
    """`source` after `prelude`, unless it has an import that must come first."""
    return source if "from __future__" in source else prelude + source


def shortened(limits: Limits, deadline_s: float | None) -> Limits:
    """`limits` with no more wall time than `deadline_s`."""
    return limits if deadline_s is None else replace(limits, wall_s=min(limits.wall_s, deadline_s))


@functools.cache
def python_version(python: str | None, backend: str) -> str:
    """The version of the interpreter that runs tested programs, as "python-3.11.2"."""
    import sys

    from quintain.verifiers.sandbox.interpreter import SYSTEM_PYTHON

    system = SYSTEM_PYTHON if backend == "namespaces" and os.path.exists(SYSTEM_PYTHON) else sys.executable
    ask = [python or system, "-I", "-c", "import platform; print(platform.python_version())"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return "python-unknown"
    return f"python-{done.stdout.strip()}"


def _check(options: CodeOptions) -> None:
    """Raises QuintainError for options that contradict each other."""
    if options.backend == "process" and not options.unsafe:
        raise QuintainError(
            "the code verifier: backend process has no walls, so programs can do whatever this service can; write"
            " unsafe: true to have it all the same, or use backend namespaces"
        )
    if options.backend == "docker" and not options.image:
        raise QuintainError("the code verifier: backend docker needs image, the name of an image with Python 3.10")
    for name in ("folders", "readable"):
        if getattr(options, name) and options.backend != "namespaces":
            raise QuintainError(f"the code verifier: {name} are for backend namespaces, not for {options.backend}")
    if options.language_called(options.language) is None:
        from quintain.nearest import one_of
        from quintain.verifiers.code.options import LANGUAGES

        known = sorted({*LANGUAGES, *options.languages})
        raise QuintainError(
            f"the code verifier: there is no language {options.language!r}{one_of(options.language, known)}"
        )
    for name, language in options.languages.items():
        if language.compile and not (language.artifact and language.run):
            raise QuintainError(f"the code verifier: language {name!r} has compile, so it needs artifact and run")
