"""The service's side of the namespaces sandbox: the zygote process, and the keeper of each slot.

What always holds: an order ends with a report or with `KeeperGone`, never with neither; a keeper that
is gone comes back, and so does a zygote, as long as they start at all; after `close`, and after the death of
this process by whatever means, neither they nor anything they have started is left. The zygote is a sibling of
the worker pool's, and cannot be the same: it runs in another interpreter, without quintain and its packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from quintain.failure import QuintainError, one_line
from quintain.verifiers.sandbox.jail import keeper as wire

MESSAGE_BYTES: Final = 1 << 16
START_TIMEOUT_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 5.0
STDERR_BYTES: Final = 1 << 16
FALSE_STARTS: Final = 3
"""A keeper that dies so many times before it is ready will never be."""
BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop(3)); from jail.zygote import main; del sys.path[0]; main()"
ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/box/work", "LANG": "C.UTF-8"}
"""What every program finds in its environment."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A module that starts threads when it is imported cannot be preloaded."""


class KeeperGone(Exception):
    """The keeper of a slot, or the zygote, died; what ran there is gone with it."""


@dataclass(frozen=True, slots=True)
class ZygoteSpec:
    """How zygotes are started: the interpreter, the modules it loads beforehand, the host's paths that
    programs may read, the folders at the top that lead into the work folder, the user it becomes (None: it stays who it
    is), and the files of prepared programs by name."""

    python: str
    preload: tuple[str, ...]
    readable: tuple[str, ...]
    folders: tuple[str, ...]
    user: int | None
    prepared: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ZygoteFacts:
    """What a zygote says of itself: whether it has root's means, its Python's version, the machine's
    architecture, whether there is a system call filter for it, whether the kernel counts a slot's processes, and
    whether there may only be a few in each slot although it does not."""

    privileged: bool
    python: str
    machine: str
    seccomp: bool
    counted: bool
    few: bool


class KeeperHandle:
    """One slot, seen from the event loop: one command at a time. `uid` is the user its programs become."""

    def __init__(self, slot: int, uid: int) -> None:
        self.slot, self.uid = slot, uid
        self.pid: int | None = None
        self._sock: socket.socket | None = None
        self._report: asyncio.Future[bytes] | None = None
        self._up = asyncio.Event()
        self.false_starts = 0
        self._said_ready = False
        self._given_up: QuintainError | None = None
        self.begun: float | None = None
        """When the program of the order began, by the loop's clock; None before."""

    @property
    def busy(self) -> bool:
        """Whether an order waits for its answer."""
        return self._report is not None and not self._report.done()

    async def ready(self) -> None:
        """Wait until it is there. Raises QuintainError where it will never be."""
        if self._given_up is None:
            await self._up.wait()
        if self._given_up is not None:
            raise self._given_up

    def send(self, order: bytes, fds: Sequence[int] = ()) -> asyncio.Future[bytes]:
        """Give an order that has an answer; the answer, or KeeperGone."""
        assert not self.busy, "a slot does one thing at a time"
        report = self._report = asyncio.get_running_loop().create_future()
        report.add_done_callback(_seen)  # whoever gave the order may have gone, and nobody else asks
        self.begun = None
        if self._sock is None:
            report.set_exception(KeeperGone("the sandbox process is gone"))
            return report
        try:
            socket.send_fds(self._sock, [order], fds)
        except OSError as error:
            report.set_exception(KeeperGone(f"the sandbox process does not listen: {error.strerror}"))
        return report

    def kill(self, report: asyncio.Future[bytes], *, last: bool = False) -> None:
        """End the command that `report` is about, if it still runs, and where it is the `last` the session with it;
        the report says so."""
        if self._sock is not None and self._report is report and self.busy:
            with contextlib.suppress(OSError):  # its death is being reported anyway
                self._sock.send(order(wire.LAST if last else wire.KILL))

    async def close_session(self) -> None:
        """End every process of the session, and wait until it is gone. Raises KeeperGone."""
        await asyncio.shield(self.send(order(wire.CLOSE)))

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call `then` when no order waits for its answer: now, or later."""
        if self._report is not None and self.busy:
            self._report.add_done_callback(lambda _: then())
        else:
            then()

    def has_programs(self) -> bool:
        """Whether anything of a program lives in the slot now: more than the keeper and the init of its session."""
        return self.pid is not None and living_below(self.pid) > 1

    def attach(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        """A keeper for this slot is being started at the other end of `sock`."""
        sock.setblocking(False)
        self._sock = sock
        loop.add_reader(sock.fileno(), self._receive, loop)

    def adopted(self, pid: int) -> None:
        """It is the process `pid`, and where it belongs."""
        self.pid = pid
        if self._said_ready:
            self._rise()

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The keeper is gone."""
        if self._given_up is None:
            self._up.clear()
        self._said_ready, self.pid = False, None
        if self._sock is not None:
            loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        if self._report is not None and not self._report.done():
            self._report.set_exception(KeeperGone("the sandbox process died"))

    def _rise(self) -> None:
        self.false_starts = 0
        self._up.set()

    def give_up(self, error: QuintainError) -> None:
        """There will be none any more."""
        if self._given_up is None:
            self._given_up = error
        self._up.set()

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(MESSAGE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.detach(loop)
        elif data == b"ready":
            self._said_ready = True
            if self.pid is not None:
                self._rise()
        elif data == wire.BEGUN:
            self.begun = loop.time()
        elif self._report is not None and not self._report.done():
            self._report.set_result(data)


def _seen(report: asyncio.Future[bytes]) -> None:
    if not report.cancelled():
        report.exception()


def living_below(pid: int) -> int:
    """How many processes live that `pid`, or one of them, has started."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                parents[int(name)] = int(parent)
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return len(below) - 1


def order(kind: int) -> bytes:
    """An order without a command."""
    return wire.ORDER.pack(kind, 0.0, 0.0, 0.0, 0, 0, 0, False)


class JailZygote:
    """Starts the zygote, has it make a keeper for each slot, and starts again what dies."""

    def __init__(self, spec: ZygoteSpec, keepers: Sequence[KeeperHandle], adopt: Callable[[int, int], None]) -> None:
        """`adopt(slot, pid)` is called for each new keeper, before it has done anything."""
        self._spec, self._keepers, self._adopt = spec, keepers, adopt
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._stderr = -1
        self._last_words = ""
        self._closed = False
        self._restart: asyncio.Task[None] | None = None
        self.facts: ZygoteFacts | None = None

    @property
    def pid(self) -> int | None:
        """The zygote's process id while it lives."""
        return None if self._process is None else self._process.pid

    async def start(self) -> ZygoteFacts:
        """Start it and all keepers. Raises QuintainError where this machine cannot."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                await asyncio.to_thread(self._launch, theirs)
            except OSError as error:
                ours.close()
                raise QuintainError(f"the sandbox's Python {self._spec.python} cannot be started: {error}") from None
        try:
            config = {name: value for name, value in asdict(self._spec).items() if name != "python"}
            await self._loop.sock_sendall(ours, json.dumps(config).encode())
            async with asyncio.timeout(START_TIMEOUT_S):
                answer = json.loads(await self._loop.sock_recv(ours, MESSAGE_BYTES) or b"{}")
        except (OSError, TimeoutError) as error:
            answer = {"error": str(error) or f"not ready after {START_TIMEOUT_S:g} s"}
        except BaseException:
            ours.close()
            await self._end()
            raise
        if "ready" not in answer:
            ours.close()
            await self._end()
            raise QuintainError(self._cannot(answer.get("error", "")))
        self.facts = ZygoteFacts(**answer["ready"])
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._receive)
        for keeper in self._keepers:
            self._spawn(keeper)
        return self.facts

    async def close(self) -> None:
        """End it and all keepers, and wait until they are gone."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait([self._restart])
        for keeper in self._keepers:
            keeper.give_up(QuintainError("the sandbox was closed"))
        self._let_go()
        await self._end()

    def kill_keeper(self, slot: int) -> None:
        """End a keeper that does not answer, and all it has started; another takes its place."""
        self._tell({"slot": slot, "kill": True})

    def _launch(self, theirs: socket.socket) -> None:
        spec = self._spec
        command = [spec.python, "-I", "-X", "utf8", "-c", BOOT]
        command += [f"{theirs.fileno()}", f"{os.getpid()}", f"{Path(__file__).parent}"]
        read_err, write_err = os.pipe()
        nowhere = os.pipe()  # the interpreter looks at its standard streams once: programs have theirs on pipes
        try:
            self._process = subprocess.Popen(
                command,
                stdin=nowhere[0],
                stdout=nowhere[1],
                stderr=write_err,
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT | (ONE_THREAD if spec.preload or spec.prepared else {}),
                cwd="/",
            )
        except OSError:
            os.close(read_err)
            raise
        finally:
            for fd in (*nowhere, write_err):
                os.close(fd)
        os.set_blocking(read_err, False)
        self._stderr = read_err

    def _spawn(self, keeper: KeeperHandle) -> None:
        keeper.false_starts += 1  # until it says that it is ready
        if keeper.false_starts > FALSE_STARTS:
            self._listen()
            keeper.give_up(QuintainError(self._cannot("")))
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            keeper.attach(self._loop, ours)
            self._tell({"slot": keeper.slot, "uid": keeper.uid}, [theirs.fileno()])

    def _tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):  # it is gone, which the next look at the socket says
                socket.send_fds(self._control, [json.dumps(message).encode()], fds)

    def _receive(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(MESSAGE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._let_go()
            if not self._closed:
                self._restart = self._loop.create_task(self._start_again())
            return
        message = json.loads(data)
        if "keeper" in message:
            self._adopt(message["keeper"], message["pid"])
            self._keepers[message["keeper"]].adopted(message["pid"])
        elif "dead" in message:
            keeper = self._keepers[message["dead"]]
            keeper.detach(self._loop)
            self._spawn(keeper)

    async def _start_again(self) -> None:
        await self._end()
        try:
            await self.start()
        except QuintainError as error:
            for keeper in self._keepers:
                keeper.give_up(error)

    def _let_go(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        for keeper in self._keepers:
            keeper.detach(self._loop)

    async def _end(self) -> None:
        """Wait for the process, which ends by itself when its socket closes, and kill it if it does not."""
        if self._process is None:
            return
        try:
            await asyncio.to_thread(self._process.wait, CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._process = None
        self._listen()
        os.close(self._stderr)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # it has said nothing
            self._last_words = os.read(self._stderr, STDERR_BYTES).decode(errors="replace") or self._last_words

    def _cannot(self, why: str) -> str:
        last = self._last_words.strip().rpartition("\n")[2]
        return one_line(
            f"programs cannot be isolated with namespaces here: {last or why or 'no reason given'}; they need Linux"
            " 5.12 or newer, and root or user namespaces (in a container: --privileged, or a seccomp profile that"
            " allows unshare and mount); the docker sandbox does without"
        )
