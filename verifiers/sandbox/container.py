"""One container and the commands in it.

What always holds: a command ends by itself, by its deadline or by `kill`, and then the engine says how; a container in
which something cannot be ended is stopped as a whole, and its session is lost. The first instruction of a program comes
after BEGUN, so what broke before that is never its fault, and its time starts there.
"""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.cgroups import SLACK_BYTES
from quintain.verifiers.sandbox.hijack import Line, connect
from quintain.verifiers.sandbox.interface import Execution, Limits
from quintain.verifiers.sandbox.jail.bare import BEGUN, USAGE, USAGE_MARK
from quintain.verifiers.sandbox.outcome import End, Observed, broken, judge

WORK: Final = "/work"
RECEIVE: Final = """
import os, sys
def take(size, fd):
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            sys.exit("the service has hung up")
        size -= len(part)
        while part:
            part = part[os.write(fd, part):]
def take_file():
    size, content = os.memfd_create("size"), os.memfd_create("content")
    take(8, size)
    take(int.from_bytes(os.pread(size, 8, 0), "big"), content)
    os.close(size)
    return content
jail = take_file()
sys.path.insert(0, f"/proc/self/fd/{jail}")
from jail import bare
del sys.path[0]
os.close(jail)
command = take_file()
bare.supervise()
bare.main(command, 1, *map(int, sys.argv[1:]))
"""
"""Takes our part of the standard input, not a byte more: the rest is the program's."""
KILL_ALL: Final = ("python3", "-I", "-S", "-c", "import os; os.kill(-1, 9)")
KILLED_OR_NOBODY: Final = (0, 1)
"""Its exit codes: Python's own where there was nobody to kill."""
START_TIMEOUT_S: Final = 60.0
"""What the engine and the interpreter may take to start a command."""
KILL_GRACE_S: Final = 2.0
OVERDUE_S: Final = 10.0
"""How long after its deadline, or after it was killed, the engine may take to end a command."""
POLL_S: Final = 0.01
DATA_FACTOR: Final = 4
"""One process may map so many times its memory, which a control group bounds."""
SUPERVISOR_PROCESSES: Final = 1
STDOUT, STDERR = 1, 2
SIGNALLED: Final = 128
"""The engine gives this plus the signal where a program was killed."""
SIGKILL: Final = 9
LAST_SIGNAL: Final = 64
Call = Callable[[Callable[[], Any], str], Awaitable[Any]]
Sink = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Container:
    """A running container; `line` holds it alive. Its programs are the user `uid`."""

    engine: Any
    url: str
    call: Call
    name: str
    uid: int
    memory_bytes: int
    line: Line
    used: bool = False

    async def begin(self, command: bytes, limits: Limits) -> Exec:
        """Start a command. Raises QuintainError where the engine cannot."""
        if self.used:
            await self.kill_all()  # whatever has outlived its supervisor
        if limits.memory_bytes != self.memory_bytes:
            bound = bounded_memory(limits.memory_bytes)
            await self.call(lambda: self.engine.update_container(self.name, **bound), "set the memory limit in")
            self.memory_bytes = limits.memory_bytes
        bounds = (
            int(not self.used),
            min(limits.memory_bytes * DATA_FACTOR, 1 << 62),
            limits.processes + SUPERVISOR_PROCESSES,
        )
        self.used = True
        made = await self._exec(["python3", "-I", "-X", "utf8", "-c", RECEIVE, *map(str, bounds)], stdin=True)
        line = await connect(self.url, f"/exec/{made}/start", {"Detach": False, "Tty": False})
        jail = packed_jail()
        for part in (jail, command):
            line.writer.write(len(part).to_bytes(8, "big") + part)
        return Exec(self, made, line, limits)

    async def kill_all(self) -> bool:
        """End every process of the program, or the whole container where that cannot be done; whether it lives."""
        try:
            made = await self._exec(list(KILL_ALL), stdin=False)
            await self.call(lambda: self.engine.exec_start(made, detach=True), "end the program in")
            if await self.ended(made) in KILLED_OR_NOBODY:
                return True
        except QuintainError:
            pass
        await self.stop()
        return False

    async def stop(self) -> None:
        """End the container, and so its session."""
        with suppress(QuintainError):  # it has ended already
            await self.call(lambda: self.engine.kill(self.name), "stop a container of")

    async def remove(self) -> None:
        """Remove the container and all that is in it."""
        with suppress(QuintainError):  # it is removing itself
            await self.call(lambda: self.engine.remove_container(self.name, force=True), "remove a container of")
        self.line.close()

    async def ran_out_of_memory(self) -> bool:
        """Whether the kernel has told the engine so."""
        filters = {"container": self.name, "event": "oom"}

        def ask() -> bool:
            return bool(list(self.engine.events(since=0, until=int(time.time()) + 1, filters=filters)))

        try:
            return bool(await self.call(ask, "learn why a container ended from"))
        except QuintainError:
            return False

    async def ended(self, name: str) -> int | None:
        """The exit code of an `exec` that is over; None where the engine does not know it, or the container is gone."""
        for _ in range(int(KILL_GRACE_S / POLL_S)):
            try:
                seen = await self.call(lambda: self.engine.exec_inspect(name), "learn how a program ended from")
            except QuintainError:
                return None
            if not seen["Running"]:
                code: int | None = seen["ExitCode"]
                return code
            await asyncio.sleep(POLL_S)
        return None

    async def _exec(self, argv: list[str], *, stdin: bool) -> str:
        def create() -> Any:
            return self.engine.exec_create(self.name, argv, stdin=stdin, user=f"{self.uid}:{self.uid}", workdir=WORK)

        made: str = (await self.call(create, "run a command in"))["Id"]
        return made


class Exec:
    """A command that has been started; `finish` must be awaited."""

    def __init__(self, container: Container, name: str, line: Line, limits: Limits) -> None:
        self._container, self._name, self._line, self._limits = container, name, line, limits
        self._began_s = 0.0
        self._wall_s = 0.0
        self._begun = asyncio.Event()
        self._over = asyncio.Event()
        self._end = End.ITSELF
        self._killing: asyncio.Task[None] | None = None
        self._outputs = {stream: bytearray() for stream in (STDOUT, STDERR)}
        self._room = limits.output_bytes + USAGE.size

    def kill(self, why: End = End.KILLED) -> None:
        """End it, if it still runs."""
        if self._end is End.ITSELF:
            self._end = why
        if self._killing is None:
            self._killing = asyncio.create_task(self._kill())

    async def finish(self, feed: Callable[[asyncio.StreamWriter], Awaitable[None]], sink: Sink | None) -> Execution:
        """Have `feed` write its stdin, give its stdout to `sink` (None: keep it), and wait for its end."""
        draining = asyncio.create_task(self._drain(sink))
        beginning = asyncio.create_task(self._begun.wait())
        feeding = asyncio.create_task(self._feed(feed))
        try:
            await asyncio.wait([draining, beginning], timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if self._begun.is_set():
                await asyncio.wait([draining], timeout=self._limits.wall_s)
            if not draining.done():
                self.kill(End.WALL)
                await asyncio.wait([draining], timeout=OVERDUE_S)
        except asyncio.CancelledError:
            self.kill()
            await asyncio.wait([draining], timeout=OVERDUE_S)
            raise
        finally:
            for task in (draining, beginning, feeding):
                task.cancel()
            await asyncio.gather(draining, beginning, feeding, return_exceptions=True)
            self._line.close()
            if self._killing is not None:
                await self._killing
        return await self._judge()

    async def _drain(self, sink: Sink | None) -> None:
        try:
            async for stream, data in self._line.frames():
                if stream == STDOUT and not self._begun.is_set():
                    data = data[len(BEGUN) :]
                    self._began_s = time.monotonic()
                    self._begun.set()
                if stream == STDOUT and sink is not None:
                    await sink(data)
                    continue
                self._outputs[stream] += data[: self._room]
                if len(data) > self._room:
                    self.kill(End.OUTPUT)
                self._room = max(0, self._room - len(data))
        finally:
            self._wall_s = time.monotonic() - self._began_s if self._begun.is_set() else 0.0
            self._over.set()

    async def _feed(self, feed: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        with suppress(ConnectionError):  # it does not want any more
            await feed(self._line.writer)
            self._line.writer.write_eof()

    async def _kill(self) -> None:
        await self._container.kill_all()
        try:
            async with asyncio.timeout(KILL_GRACE_S):
                await self._over.wait()
        except TimeoutError:  # something holds the stream still
            await self._container.stop()

    async def _judge(self) -> Execution:
        code = await self._container.ended(self._name)
        stdout, stderr = map(bytes, self._outputs.values())
        if not self._begun.is_set() and self._end in (End.ITSELF, End.WALL):
            last = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return broken(f"the program could not be started: {last or 'the engine gave no reason'}")
        usage, stderr = split_usage(stderr)
        cpu_s, kills, peak_bytes = usage or (0.0, 0, 0)
        out_of_memory = kills > 0
        if self._end is End.ITSELF and usage is None:  # its supervisor was killed: by the program, or with all
            lost = code is None or not await self._container.kill_all()
            out_of_memory = lost and await self._container.ran_out_of_memory()
            if lost and not out_of_memory:
                return broken("the container ended while the program ran")
        if self._end is End.ITSELF and cpu_s >= self._limits.cpu_s:
            self._end = End.CPU
        if len(stdout) + len(stderr) > self._limits.output_bytes:
            self._end = End.OUTPUT
            stdout = stdout[: self._limits.output_bytes]
            stderr = stderr[: self._limits.output_bytes - len(stdout)]
        seen = Observed(
            end=self._end,
            exit=exit_code(code),
            out_of_memory=out_of_memory,
            wall_s=self._wall_s,
            cpu_s=cpu_s,
            peak_bytes=peak_bytes,
        )
        return judge(seen, self._limits, stdout, stderr)


def bounded_memory(limit_bytes: int) -> dict[str, int]:
    """What the engine is told of a memory limit."""
    return {"mem_limit": limit_bytes + SLACK_BYTES, "memswap_limit": limit_bytes + SLACK_BYTES}


def exit_code(code: int | None) -> int:
    """The engine's exit code in our terms: negative for a signal, and SIGKILL where there is none."""
    if code is None:
        return -SIGKILL
    return SIGNALLED - code if SIGNALLED < code <= SIGNALLED + LAST_SIGNAL else code


def split_usage(stderr: bytes) -> tuple[tuple[float, int, int] | None, bytes]:
    """What the supervisor of a program says at the end of its stderr (processor seconds, processes killed for
    lack of memory, peak bytes; None where it was killed), and what the program wrote itself."""
    own, last = stderr[: -USAGE.size], stderr[-USAGE.size :]
    if len(last) < USAGE.size or not last.startswith(USAGE_MARK):
        return None, stderr
    _, cpu_s, kills, peak_bytes = USAGE.unpack(last)
    return (max(0.0, cpu_s), kills, peak_bytes), own


def packed_jail() -> bytes:
    """The modules that become the program, as a zip archive."""
    folder = Path(__file__).parent / "jail"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("__init__", "bare", "guest", "kernel", "root", "script"):
            archive.writestr(f"jail/{name}.py", (folder / f"{name}.py").read_bytes())
    return packed.getvalue()
