"""The sandbox over the kernel's namespaces: no daemon, no image, as root or as an ordinary user.

A trusted zygote (`jail/`) has an interpreter ready; each session runs in namespaces of its own that are made
from it in milliseconds. What always holds, beside what every sandbox holds:
- the status of a program comes from the kernel, through a process that it cannot see or reach;
- a program whose zygote or keeper dies is run once more; the second time it is INFRA_ERROR; one that lives on past
  its deadline, so that its keeper finds no time to report, has itself to blame;
- nothing that one program brought is ever in a process that runs another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from quintain.cores import cores
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.slots import Slots
from quintain.verifiers.sandbox import cgroups
from quintain.verifiers.sandbox.command import Command, Pipes, encode
from quintain.verifiers.sandbox.handle import JailZygote, KeeperGone, KeeperHandle, ZygoteFacts, ZygoteSpec
from quintain.verifiers.sandbox.interface import (
    CLOSED,
    Execution,
    Files,
    Limits,
    Program,
    Protection,
    Sandbox,
    Session,
    check_files,
)
from quintain.verifiers.sandbox.interpreter import find
from quintain.verifiers.sandbox.outcome import broken
from quintain.verifiers.sandbox.protections import walls
from quintain.verifiers.sandbox.session import Begun, OneAtATime, Starting, slot_count

HIGHEST_UID: Final = 2_000_000_000
"""Users of slots are numbered downwards from here, or from the highest user id there is: no account has those."""
TRIES: Final = 2


class NamespaceSandbox(Sandbox):
    """`slots` programs at a time (by default one for each processor, and one more so that none idles).

    `python` is the interpreter that runs Python programs, `preload` names modules it has imported already
    (their state is the same in every run), `readable` further paths of the host that programs may read.
    `folders` at the top, as "/app", lead into the work folder: what is in /app is in its `app`, once that is there.
    Where /tmp itself is one of them, programs cannot write there but in /var/tmp, which `tempfile` finds. `prepared`
    names programs that `Program.prepared` runs: the path of a Python file whose folder is a package; it is imported
    once, its `warm` is called if it has one, and each run calls its `main` in a fresh process. `user` is the user id
    to become, which gives up root's means; `control_groups=False` does without those.
    """

    def __init__(
        self,
        *,
        slots: int | None = None,
        python: str | None = None,
        preload: Sequence[str] = (),
        readable: Sequence[str] = (),
        folders: Sequence[str] = (),
        user: int | None = None,
        control_groups: bool = True,
        prepared: Mapping[str, str] | None = None,
    ) -> None:
        self._count = slot_count(slots, cores() + 1)
        self._python = python
        self._preload = tuple(preload)
        self._readable = tuple(os.path.abspath(path) for path in readable)
        self._folders = tuple(folders)
        self._user = user
        self._prepared = dict(prepared or {})
        self._use_groups = control_groups and user is None
        self._starting = Starting(self._start)
        self._zygote: JailZygote | None = None
        self._groups: list[cgroups.SlotGroup] = []
        self._slots: Slots[KeeperHandle] = Slots([])

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process id, for metrics and for tests that kill it."""
        return self._zygote.pid if self._zygote is not None else None

    async def start(self) -> None:
        await self._starting.done()

    async def protections(self) -> tuple[Protection, ...]:
        facts = await self._starting.done()
        return walls(facts, frozenset.intersection(*(group.controls for group in self._groups)))

    async def run(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Files | None = None,
        limits: Limits | None = None,
        group: Hashable = None,
    ) -> Execution:
        limits = limits or Limits()
        command = encode(program, check_files(files), limits, limits, self._prepared)
        await self._starting.done()
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
        self, files: Files | None = None, limits: Limits | None = None, *, group: Hashable = None
    ) -> Session:
        checked = check_files(files)
        await self._starting.done()
        return _Session(self, await self._acquire(group), checked, limits or Limits())

    async def close(self) -> None:
        self._slots.close(CLOSED)
        if not await self._starting.close(cancel=True):
            return
        if self._zygote is not None:
            await self._zygote.close()
        await asyncio.to_thread(self._remove_groups)

    # Slots

    async def _acquire(self, group: Hashable) -> KeeperHandle:
        keeper = await self._slots.acquire(group)
        try:
            await keeper.ready()
        except QuintainError as error:
            self._slots.release(keeper)
            kind = FailureKind.CANCELLED if self._starting.closed else FailureKind.CRASHED
            raise FailureError.of(kind, Stage.SANDBOX, str(error)) from None
        except BaseException:
            self._slots.release(keeper)
            raise
        return keeper

    def _release(self, keeper: KeeperHandle) -> None:
        """Give the slot back, once nothing runs in it any more."""
        keeper.when_idle(lambda: self._slots.release(keeper))

    def _begin(self, keeper: KeeperHandle, command: bytes, limits: Limits, pipes: Pipes, *, once: bool) -> Command:
        assert self._zygote is not None
        return Command(keeper, self._zygote, self._groups[keeper.slot], command, limits, pipes, once=once)

    # Start and end

    async def _start(self) -> ZygoteFacts:
        interpreter = await asyncio.to_thread(find, self._python)
        readable = (*interpreter.folders, *self._readable)
        spec = ZygoteSpec(interpreter.path, self._preload, readable, self._folders, self._user, self._prepared)
        uids = slot_uids(_read("/proc/self/uid_map"), self._count)
        keepers = [KeeperHandle(slot, uid) for slot, uid in enumerate(uids)]
        self._groups = await asyncio.to_thread(self._make_groups)
        self._zygote = JailZygote(spec, keepers, self._adopt)
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


class _Session(OneAtATime):
    """A slot, for as long as the session lasts."""

    def __init__(self, sandbox: NamespaceSandbox, keeper: KeeperHandle, files: dict[str, bytes], box: Limits) -> None:
        super().__init__(files, box, prepared=sandbox._prepared)
        self._sandbox, self._keeper = sandbox, keeper
        self._command: Command | None = None
        self._lost = ""

    @property
    def busy(self) -> bool:
        return self._keeper.busy

    async def _run(self, command: bytes, limits: Limits, stdin: bytes) -> Execution:
        return await self._finish(self._begin(command, limits, Pipes.capturing(stdin)))

    async def _start(self, command: bytes, limits: Limits, pipes: Pipes) -> Begun:
        begun = self._begin(command, limits, pipes)
        return begun.kill, self._finish(begun)

    async def _leave(self) -> None:
        try:
            if self._command is not None:
                self._command.kill(last=True)
            if self._running is not None:
                await self._running.wait()
            if not self._lost:
                with contextlib.suppress(KeeperGone):
                    await self._keeper.close_session()
        finally:
            self._sandbox._release(self._keeper)

    def _begin(self, command: bytes, limits: Limits, pipes: Pipes) -> Command:
        if self._lost:
            pipes.close()
            raise FailureError.of(FailureKind.CRASHED, Stage.SANDBOX, self._lost)
        self._files = {}
        self._command = self._sandbox._begin(self._keeper, command, limits, pipes, once=False)
        return self._command

    async def _finish(self, command: Command) -> Execution:
        """The execution of `command`; where the keeper or the session is gone with it, so are the files."""
        try:
            done = await command.finish()
            if command.closed:
                self._lost = "the session has ended with an earlier command"
            return done
        except KeeperGone as gone:
            self._lost = str(gone)
            return broken(str(gone))


def slot_uids(uid_map: str, count: int) -> list[int]:
    """A user id for each of `count` slots that exists here and that nobody has, from /proc/self/uid_map."""
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    end = max((first + length for first, _, length in ranges), default=0)
    top = min(end - 1, HIGHEST_UID)
    return [max(top - slot, 0) for slot in range(count)]


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
