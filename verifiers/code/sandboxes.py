"""The sandboxes of a code verifier: made when they are first needed, and what they need to run our side of a test.

What always holds: at most `slots` programs run at a time, whoever asks takes turns by group; a function's tests and
its solution count as one program (one of the two waits for the other), and always find two free slots of the sandbox;
what is closed leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from quintain.cores import cores
from quintain.failure import FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.slots import Slots
from quintain.verifiers.code import guest
from quintain.verifiers.code.guest.wire import framed
from quintain.verifiers.code.options import CodeOptions, LanguageOptions
from quintain.verifiers.sandbox.interface import CLOSED, Limits, Program, Sandbox, Status

PRELOAD: Final = (
    *("ast", "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq"),
    *("io", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "struct", "types"),
    *("__future__", "contextlib", "dataclasses", "enum", "fcntl", "gc", "marshal", "resource", "shutil", "signal"),
    *("textwrap", "traceback", "typing"),
)
"""What our own programs import, and what tested programs often do."""
SPARE_SLOTS: Final = 2
"""More than processors: a function waits for its tests, and its tests for it."""
PACKAGE: Final = "guest"
ENVIRONMENT: Final = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""Of the runner of projects: pytest is as it comes, whatever else is installed beside it."""
GUESTS: Final = {
    "worker": ("wire", "values", "worker"),
    "grader_host": ("wire", "values", "worker", "asserts", "grader", "grader_host"),
    "pytest_run": ("wire", "values", "integrity", "pytest_run"),
}
"""The modules of each program of ours, the last of which has its `main`."""
MAIN_GUESTS: Final = ("worker", "grader_host")
PYTEST_GUESTS: Final = ("pytest_run",)
COMPILER: Final = """
import json, marshal, sys
modules = json.load(sys.stdin)
codes = [(name, compile(source, "<" + name + ">", "exec", dont_inherit=True, optimize=2)) for name, source in modules]
sys.stdout.buffer.write(marshal.dumps(codes))
"""
BOOT: Final = """
import marshal, os, sys, types
left, parts = int.from_bytes(os.read(0, 4), "big"), []
while left:
    parts.append(os.read(0, left))
    left -= len(parts[-1]) or os._exit(0)
for name, code in marshal.loads(b"".join(parts)):
    module = sys.modules[name] = types.ModuleType(name)
    module.__package__, module.__path__ = "guest", []
    exec(code, module.__dict__)
for name in [name for name in sys.modules if name.partition(".")[0] == "guest"]:
    del sys.modules[name]
module.main()
"""
"""Reads the modules from its first frame: a program that is short is quickly begun."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A program of ours: what is started, and the frame that it needs first."""

    program: Program
    first: bytes


class Sandboxes:
    """Those of one verifier, on one event loop."""

    def __init__(self, options: CodeOptions) -> None:
        self._options = options
        self.slots = options.slots or cores() + SPARE_SLOTS
        self._permits: Slots[int] = Slots(range(self.slots))
        self._main: Sandbox | None = None
        self._pytest: Sandbox | None = None
        self._guests: dict[tuple[bool, str], asyncio.Task[Guest]] = {}
        self._found: set[str] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def permit(self, group: Hashable) -> AsyncIterator[None]:
        """Leave to run one program, once it is the turn of `group`."""
        slot = await self._permits.acquire(group)
        try:
            yield
        finally:
            self._permits.release(slot)

    @property
    def main(self) -> Sandbox:
        """Where programs run. Raises QuintainError where the options make no sandbox."""
        if self._closed:
            raise QuintainError("this verifier is closed: make a new one")
        if self._main is None:
            self._main = self._make(self._options.python, (*PRELOAD, *self._options.preload), MAIN_GUESTS)
        return self._main

    @property
    def pytest(self) -> Sandbox:
        """Where projects run: its interpreter has pytest. Raises QuintainError where there is none."""
        if self._closed:
            raise QuintainError("this verifier is closed: make a new one")
        if self._pytest is None:
            self._pytest = self._main_or_own()
        return self._pytest

    async def guest(self, name: str, *, pytest: bool = False) -> Guest:
        """Our program `name`: prepared, or compiled by the sandbox's own interpreter. Raises FailureError where that
        breaks."""
        key = (pytest, name)
        sandbox = self.pytest if pytest else self.main
        try:
            if self._options.backend == "namespaces":
                await sandbox.start()
                return Guest(Program.prepared(name, env=environment(name)), b"")
            if key not in self._guests:
                self._guests[key] = asyncio.create_task(self._compile(sandbox, name))
            return await asyncio.shield(self._guests[key])
        except (FailureError, QuintainError) as error:
            self._guests.pop(key, None)  # perhaps it works the next time
            if not pytest or isinstance(error, FailureError) or self._closed:
                raise
            message = f"projects need a Python with pytest, which the option pytest_python can name: {error}"
            raise FailureError.of(FailureKind.REJECTED, Stage.VERIFY, message) from None

    async def need(self, name: str, language: LanguageOptions) -> None:
        """Make sure that what compiles or runs `language` is in the sandbox. Raises FailureError where it is not."""
        commands = {command[0] for command in (language.compile, language.run) if command} - self._found
        for command in sorted(commands):
            if command.startswith("./"):
                continue
            probe = Program.command("sh", "-c", 'command -v -- "$1"', "sh", command)
            done = await self.main.run(probe)
            if done.unbroken().status is not Status.OK:
                message = f"programs in {name} need {command}, which is not in the sandbox: install it"
                raise FailureError.of(FailureKind.REJECTED, Stage.VERIFY, message)
            self._found.add(command)

    async def close(self) -> None:
        """End every program, and give everything back."""
        self._closed = True
        self._permits.close(CLOSED)
        for task in self._guests.values():
            task.cancel()
        for sandbox in {self._main, self._pytest} - {None}:
            assert sandbox is not None
            await sandbox.close()

    def _make(self, python: str | None, preload: tuple[str, ...], guests: tuple[str, ...]) -> Sandbox:
        options = self._options
        slots = 2 * self.slots  # two for each function
        if options.backend == "process":
            from quintain.verifiers.sandbox.process import ProcessSandbox

            return ProcessSandbox(unsafe=options.unsafe, slots=slots, python=python)
        if options.backend == "docker":
            from quintain.verifiers.sandbox.docker import DockerSandbox

            assert options.image is not None  # the verifier has looked
            return DockerSandbox(
                options.image,
                slots=slots,
                url=options.engine_url,
                runtime=options.runtime,
                limits=options.limits.limits(),
            )
        from quintain.verifiers.sandbox.namespaces import NamespaceSandbox

        prepared = {name: f"{Path(guest.__file__).parent / name}.py" for name in guests}
        return NamespaceSandbox(
            slots=slots,
            python=python,
            preload=preload,
            readable=options.readable,
            folders=options.folders,
            prepared=prepared,
        )

    def _main_or_own(self) -> Sandbox:
        if self._options.backend == "docker":
            return self.main
        python = self._options.pytest_python or sys.executable
        return self._make(python, (*PRELOAD, "pytest", "unittest", "unittest.mock"), PYTEST_GUESTS)

    async def _compile(self, sandbox: Sandbox, name: str) -> Guest:
        folder = resources.files("quintain.verifiers.code.guest")
        modules = [(PACKAGE, "")]
        for module in GUESTS[name]:
            source = folder.joinpath(f"{module}.py").read_text("utf-8")
            modules.append((f"{PACKAGE}.{module}", source))
        done = await sandbox.run(
            Program.python(COMPILER), stdin=json.dumps(modules).encode(), limits=Limits(output_bytes=8 << 20)
        )
        if done.unbroken().status is not Status.OK:
            said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            message = one_line(f"the sandbox's Python does not compile our {name}: {done.reason} {said}")
            raise FailureError.of(FailureKind.CRASHED, Stage.SANDBOX, message)
        return Guest(Program.python(BOOT, name=f"{name}.py", env=environment(name)), framed(done.stdout))


def environment(name: str) -> dict[str, str] | None:
    """The environment of our program `name`."""
    return ENVIRONMENT if name == "pytest_run" else None
