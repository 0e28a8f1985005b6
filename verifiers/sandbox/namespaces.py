"""The sandbox over the kernel's namespaces: no daemon, no image, as root or as an ordinary user.

A trusted zygote (`jail/`) has an interpreter ready; each session runs in namespaces of its own that are made
from it in milliseconds. What always holds, beside what every sandbox holds:
- the status of a program comes from the kernel, through a process that it cannot see or reach;
- a program whose zygote or keeper dies is run once more; the second time it is INFRA_ERROR;
- nothing that one program brought is ever in a process that runs another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.verifiers._slots import Slots
from quintain.verifiers.sandbox import _interpreter, cgroups
from quintain.verifiers.sandbox._command import Command, Pipes, encode
from quintain.verifiers.sandbox._walls import walls
from quintain.verifiers.sandbox._zygote import Facts, Keeper, KeeperGone, Zygote, ZygoteSpec
from quintain.verifiers.sandbox.interface import (
    Execution,
    Limits,
    Program,
    Protection,
    Running,
    Sandbox,
    Session,
    check_files,
)
from quintain.verifiers.sandbox.outcome import broken

HIGHEST_UID: Final = 2_000_000_000
"""Users of slots are numbered downwards from here, or from the highest user id there is: no account has those."""
TRIES: Final = 2


class NamespaceSandbox(Sandbox):
    """`slots` programs at a time (by default one for each processor, and one more so that none idles).

    `python` is the interpreter that runs Python programs, `preload` names modules it has imported already
    (their state is the same in every run), `readable` further paths of the host that programs may read.
    Where such a path, or the interpreter, lies under /tmp, programs cannot write there but in /var/tmp, which
    `tempfile` finds. `user` is the user id to become, which gives up root's means; `control_groups=False` does without
    those.
    """

    def __init__(
        self,
        *,
        slots: int | None = None,
        python: str | None = None,
        preload: Sequence[str] = (),
        readable: Sequence[str] = (),
        user: int | None = None,
        control_groups: bool = True,
    ) -> None:
        if slots is not None and slots < 1:
            raise QuintainError(f"a sandbox has at least one slot, not {slots}")
        self._count = slots or len(os.sched_getaffinity(0)) + 1
        self._python = python
        self._preload = tuple(preload)
        self._readable = tuple(os.path.abspath(path) for path in readable)
        self._user = user
        self._use_groups = control_groups and user is None
        self._starting: asyncio.Task[Facts] | None = None
        self._closed = False
        self._zygote: Zygote | None = None
        self._groups: list[cgroups.SlotGroup] = []
        self._slots: Slots[Keeper] = Slots([])

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process id, for metrics and for tests that kill it."""
        return self._zygote.pid if self._zygote is not None else None

    async def start(self) -> None:
        await self._ready()

    async def protections(self) -> tuple[Protection, ...]:
        facts = await self._ready()
        return walls(facts, frozenset.intersection(*(group.controls for group in self._groups)))

    async def run(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
        group: Hashable = None,
    ) -> Execution:
        limits = limits or Limits()
        command = encode(program, check_files(files), limits, limits)
        await self._ready()
        why = ""
        for _ in range(TRIES):
            try:
                keeper = await self._acquire(group)
            except FailureError as error:
                return Execution.broken(error.failure)
            try:
                return await self._begin(keeper, command, limits, Pipes.capturing(stdin), once=True).finish()
            except KeeperGone as gone:
                why = f"{gone}, {TRIES} times"
            except OSError as error:
                return broken(str(error))
            finally:
                self._release(keeper)
        return broken(why)

    async def open(
        self, files: Mapping[str, bytes] | None = None, limits: Limits | None = None, *, group: Hashable = None
    ) -> Session:
        checked = check_files(files)
        await self._ready()
        return _Session(self, await self._acquire(group), checked, limits or Limits())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._slots.close()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._zygote is not None:
            await self._zygote.close()
        await asyncio.to_thread(self._remove_groups)

    # Slots

    async def _acquire(self, group: Hashable) -> Keeper:
        keeper = await self._slots.acquire(group)
        try:
            await keeper.ready()
        except QuintainError as error:
            self._slots.release(keeper)
            kind = FailureKind.CANCELLED if self._closed else FailureKind.CRASHED
            raise FailureError(Failure.of(kind, Stage.SANDBOX, str(error))) from None
        except BaseException:
            self._slots.release(keeper)
            raise
        return keeper

    def _release(self, keeper: Keeper) -> None:
        """Give the slot back, once nothing runs in it any more."""
        keeper.when_idle(lambda: self._slots.release(keeper))

    def _begin(self, keeper: Keeper, command: bytes, limits: Limits, pipes: Pipes, *, once: bool) -> Command:
        assert self._zygote is not None
        return Command(keeper, self._zygote, self._groups[keeper.slot], command, limits, pipes, once=once)

    # Start and end

    async def _ready(self) -> Facts:
        if self._closed:
            raise QuintainError("this sandbox is closed: make a new one")
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        try:
            return await asyncio.shield(self._starting)
        except QuintainError:
            self._starting = None  # perhaps it works the next time
            raise

    async def _start(self) -> Facts:
        interpreter = await asyncio.to_thread(_interpreter.find, self._python)
        spec = ZygoteSpec(interpreter.path, self._preload, (*interpreter.folders, *self._readable), self._user)
        uids = slot_uids(_read("/proc/self/uid_map"), self._count)
        keepers = [Keeper(slot, uid) for slot, uid in enumerate(uids)]
        self._groups = await asyncio.to_thread(self._make_groups)
        self._zygote = Zygote(spec, keepers, self._adopt)
        try:
            facts = await self._zygote.start()
            for keeper in keepers:
                await keeper.ready()
        except BaseException:
            await self._zygote.close()
            await asyncio.to_thread(self._remove_groups)
            raise
        self._slots = Slots(keepers)
        return facts

    def _make_groups(self) -> list[cgroups.SlotGroup]:
        trees = cgroups.own() if self._use_groups else []
        cgroups.sweep(trees)
        name = secrets.token_hex(4)
        return [cgroups.make(cgroups.group_name(os.getpid(), name, slot), trees) for slot in range(self._count)]

    def _remove_groups(self) -> None:
        for group in self._groups:
            group.remove()

    def _adopt(self, slot: int, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has died already
            self._groups[slot].adopt(pid)


class _Session(Session):
    """A slot, for as long as the session lasts."""

    def __init__(self, sandbox: NamespaceSandbox, keeper: Keeper, files: dict[str, bytes], box: Limits) -> None:
        self._sandbox = sandbox
        self._keeper = keeper
        self._files = files
        self._box = box
        self._running: _Running | None = None
        self._lost = ""
        self._closed = False

    async def run(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Execution:
        limits = limits or self._box
        try:
            return await self._begin(program, files, limits, Pipes.capturing(stdin)).finish()
        except KeeperGone as gone:
            self._lose(str(gone))
            return broken(str(gone))
        except OSError as error:
            return broken(str(error))

    async def start(
        self, program: Program, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None
    ) -> Running:
        try:
            pipes, reader, writer = await Pipes.talking()
        except OSError as error:
            raise _crashed(error) from None
        try:
            command = self._begin(program, files, limits or self._box, pipes)
        except (KeeperGone, OSError) as error:
            writer.close()
            if isinstance(error, KeeperGone):
                self._lose(str(error))
            raise _crashed(error) from None
        except BaseException:
            writer.close()
            raise
        self._running = _Running(command, reader, writer, self._lose)
        return self._running

    def _lose(self, why: str) -> None:
        """The files and processes of the session are gone."""
        self._lost = why

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._running is not None:
                await self._running.close()
            if not self._lost:
                with contextlib.suppress(KeeperGone):
                    await self._keeper.close_session()
        finally:
            self._sandbox._release(self._keeper)

    def _begin(self, program: Program, files: Mapping[str, bytes] | None, limits: Limits, pipes: Pipes) -> Command:
        try:
            if self._closed:
                raise QuintainError("this session is closed: open another")
            if self._lost:
                raise KeeperGone(self._lost)
            if self._keeper.busy:
                raise QuintainError("a session runs one command at a time: wait for the one that runs")
            command = encode(program, self._files | check_files(files), limits, self._box)
        except BaseException:
            pipes.close()
            raise
        self._files = {}  # they are written with the first command
        return self._sandbox._begin(self._keeper, command, limits, pipes, once=False)


class _Running(Running):
    """A command that somebody talks to."""

    def __init__(
        self,
        command: Command,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_lost: Callable[[str], None],
    ) -> None:
        self.stdout = reader
        self.stdin = writer
        self._on_lost = on_lost
        self._command = command
        self._finished = asyncio.create_task(self._finish())

    def kill(self) -> None:
        self._command.kill()

    async def wait(self) -> Execution:
        return await asyncio.shield(self._finished)

    async def close(self) -> None:
        """End it, and let go of its channel."""
        self.kill()
        await self._finished

    async def _finish(self) -> Execution:
        try:
            return await self._command.finish()
        except KeeperGone as gone:
            self._on_lost(str(gone))
            return broken(str(gone))
        finally:
            self.stdin.close()


def _crashed(error: Exception) -> FailureError:
    return FailureError(Failure.of(FailureKind.CRASHED, Stage.SANDBOX, str(error)))


def slot_uids(uid_map: str, count: int) -> list[int]:
    """A user id for each of `count` slots that exists here and that nobody has, from /proc/self/uid_map."""
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    end = max((first + length for first, _, length in ranges), default=0)
    top = min(end - 1, HIGHEST_UID)
    return [max(top - slot, 0) for slot in range(count)]


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
