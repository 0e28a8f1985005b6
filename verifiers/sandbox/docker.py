"""The sandbox in containers, through the Docker Engine's API (podman's socket speaks it too).

A pool of containers stands ready; a session takes one, each command is an `exec` in it, and afterwards the
container is thrown away while another takes its place in the background: nothing is ever used twice. What
always holds, beside what every sandbox holds:
- containers have no network, a read-only root, no capabilities, no new privileges, bounded memory, processes
  and file systems, and the engine's own system call filter; programs run as a user of their container;
- the status of a program is what the engine says of it;
- a container ends with the service: its process 1 reads from a connection that this process holds open.

The image needs Python 3.10 or newer as `python3`, whatever language the programs are in: it sets the limits and
then becomes the program.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from quintain.cores import cores
from quintain.failure import FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.slots import Slots
from quintain.verifiers.sandbox.container import WORK, Container, bounded_memory
from quintain.verifiers.sandbox.container_session import ContainerSession
from quintain.verifiers.sandbox.hijack import Line, address, connect, reach
from quintain.verifiers.sandbox.interface import (
    CLOSED,
    Execution,
    Files,
    Limits,
    Program,
    Protection,
    Sandbox,
    Session,
    Status,
    check_files,
)
from quintain.verifiers.sandbox.outcome import broken
from quintain.verifiers.sandbox.session import Starting, slot_count

if TYPE_CHECKING:
    from docker import APIClient

FIRST_UID: Final = 1_900_000
UIDS: Final = 100_000
"""Users of containers are numbered from a random one of so many on, since the kernel counts processes per user."""
KEEP_ALIVE: Final = "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); sys.stdin.buffer.read()"
"""Process 1 of a container: it ends when the service's end of its standard input closes, and collects orphans."""
CALL_TIMEOUT_S: Final = 60
SLACK_PROCESSES: Final = 16
"""Of ours and the engine's, in a container."""
TRIES: Final = 2


def client_class() -> type[APIClient]:
    """What asks an engine, of the package docker. QuintainError where that is not installed."""
    try:
        from docker import APIClient
    except ModuleNotFoundError:
        raise QuintainError("the docker sandbox needs its extra: pip install 'quintain[docker]'") from None
    found: type[APIClient] = APIClient
    return found


class DockerSandbox(Sandbox):
    """`slots` programs at a time in containers of `image`, by default one for each processor.

    `url` is the engine's address (default: DOCKER_HOST, then the local socket; unix:// or tcp:// without TLS),
    `runtime` one of its runtimes ("runsc" for gVisor), `cpus` the processors that a container may use. `limits`
    are those for which containers are kept ready: a session with another work folder, or with more processes,
    waits for a container of its own.
    """

    def __init__(
        self,
        image: str,
        *,
        slots: int | None = None,
        url: str | None = None,
        runtime: str | None = None,
        cpus: float = 1.0,
        limits: Limits | None = None,
    ) -> None:
        self._image = image
        self._count = slot_count(slots, cores())
        self._url = url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        address(self._url)
        self._runtime, self._cpus = runtime, cpus
        self._limits = limits or Limits()
        self._engine: Any = None
        self._starting = Starting(self._start)
        self._spares: dict[int, asyncio.Task[Container]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._sessions: set[ContainerSession] = set()
        self._slots: Slots[int] = Slots([])
        first = secrets.randbelow(UIDS)
        self._uids = itertools.cycle(FIRST_UID + (first + number) % UIDS for number in range(UIDS))

    async def start(self) -> None:
        await self._starting.done()

    async def protections(self) -> tuple[Protection, ...]:
        await self.start()
        info = await self._call(self._engine.info, "ask")
        filtered = any("seccomp" in each and "unconfined" not in each for each in info.get("SecurityOptions") or ())
        return (
            Protection("files", True, "a read-only image, and file systems of the session's own"),
            Protection("disk", True, "/work, /tmp and /dev/shm are each bounded in bytes and in number of files"),
            Protection("network", True, "network mode none"),
            Protection("processes", True, "namespaces of the container's own"),
            Protection("verdict", True, "the engine reports how the program ended"),
            Protection("leftovers", True, "the container is removed with the session"),
            Protection("identity", True, "programs run as a user of their container"),
            Protection("capabilities", True, "all are dropped, and no-new-privileges is set"),
            Protection(
                "system calls",
                filtered,
                "the engine's default seccomp profile" if filtered else "the engine has no seccomp profile",
            ),
            Protection("process count", True, "RLIMIT_NPROC for the container's user, and a pids control group"),
            Protection("wall time", True, "the program is killed at its deadline"),
            Protection("processor time", False, "RLIMIT_CPU for each process; the sum is known when all has ended"),
            Protection("memory of one process", True, "RLIMIT_DATA"),
            Protection("memory of all processes", bool(info.get("MemoryLimit")), "a memory control group"),
            Protection("fair share of processors", bool(info.get("CpuCfsQuota")), f"{self._cpus:g} of them each"),
        )

    async def run(
        self,
        program: Program,
        *,
        stdin: bytes = b"",
        files: Files | None = None,
        limits: Limits | None = None,
        group: Hashable = None,
    ) -> Execution:
        done = broken("it was not tried")
        for _ in range(TRIES):  # a container may have been lost while it waited
            done = await super().run(program, stdin=stdin, files=files, limits=limits, group=group)
            if done.status is not Status.INFRA_ERROR or self._starting.closed:
                break
        return done

    async def open(
        self, files: Files | None = None, limits: Limits | None = None, *, group: Hashable = None
    ) -> Session:
        checked = check_files(files)
        await self.start()
        slot = await self._slots.acquire(group)
        box = limits or self._limits
        try:
            container = await self._take(slot, box)
        except BaseException as error:
            self._slots.release(slot)
            if isinstance(error, QuintainError):
                raise FailureError.of(FailureKind.CRASHED, Stage.SANDBOX, str(error)) from None
            raise
        session = ContainerSession(container, checked, box, lambda session: self._ended(session, slot))
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        self._slots.close(CLOSED)
        if not await self._starting.close(cancel=False):
            return
        for session in list(self._sessions):
            await session.close()
        for spare in self._spares.values():
            self._leave(spare)
        if self._leaving:
            await asyncio.wait(self._leaving)
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    # Containers

    async def _start(self) -> None:
        client = client_class()
        _, writer = await reach(self._url)  # the package leaves its socket open where nobody listens
        writer.close()
        self._engine = await self._call(
            lambda: client(base_url=self._url, version="auto", timeout=CALL_TIMEOUT_S), "connect to"
        )
        try:
            await self._call(lambda: self._engine.inspect_image(self._image), f"find the image {self._image!r} in")
        except QuintainError:
            await asyncio.to_thread(self._engine.close)
            raise
        made = await asyncio.gather(*(self._make(self._limits) for slot in range(self._count)), return_exceptions=True)
        errors = [each for each in made if isinstance(each, BaseException)]
        for slot, each in enumerate(made):
            if isinstance(each, Container):
                if errors:
                    await each.remove()
                else:
                    self._spares[slot] = asyncio.create_task(_at_once(each))
        if errors:
            await asyncio.to_thread(self._engine.close)
            raise errors[0]
        self._slots = Slots(range(self._count))

    async def _take(self, slot: int, box: Limits) -> Container:
        """A container for a session with `box`: the spare one if it will do, and then a new spare is made."""
        if not self._fits(box):
            making = asyncio.create_task(self._make(box))
            try:
                return await asyncio.shield(making)
            except asyncio.CancelledError:
                self._leave(making)
                raise
        spare = self._spares[slot]
        try:
            container = await asyncio.shield(spare)
        except QuintainError:
            self._spares[slot] = asyncio.create_task(self._make(self._limits))  # perhaps now it works
            container = await asyncio.shield(self._spares[slot])
        self._spares[slot] = asyncio.create_task(self._make(self._limits))
        return container

    def _fits(self, box: Limits) -> bool:
        ready = self._limits
        same_folder = (box.workdir_bytes, box.inodes) == (ready.workdir_bytes, ready.inodes)
        return same_folder and box.processes <= ready.processes

    async def _make(self, box: Limits) -> Container:
        """A fresh container that waits for commands. Raises QuintainError where the engine cannot."""
        uid = next(self._uids)
        bounds = f"rw,exec,nosuid,nodev,size={box.workdir_bytes},nr_inodes={box.inodes}"
        shared = f"{bounds},mode=1777"

        def make() -> Any:
            host = self._engine.create_host_config(
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                ipc_mode="none",  # it would bring a /dev/shm that is not bounded in files
                tmpfs={WORK: f"{bounds},mode=0700,uid={uid},gid={uid}", "/tmp": shared, "/dev/shm": shared},
                **bounded_memory(box.memory_bytes),
                pids_limit=box.processes + SLACK_PROCESSES,
                nano_cpus=int(self._cpus * 1e9),
                runtime=self._runtime,
                auto_remove=True,
            )
            return self._engine.create_container(
                self._image,
                command=["python3", "-I", "-S", "-c", KEEP_ALIVE],
                stdin_open=True,
                user="0:0",
                working_dir="/",
                hostname="sandbox",
                labels={"quintain": f"{os.getpid()}"},
                host_config=host,
            )

        name: str = (await self._call(make, "make a container in"))["Id"]
        line: Line | None = None
        try:
            line = await connect(self._url, f"/containers/{name}/attach?stream=1&stdin=1", {})
            await self._call(lambda: self._engine.start(name), "start a container in")
        except BaseException:
            if line is not None:
                line.close()
            with suppress(QuintainError):
                await self._call(lambda: self._engine.remove_container(name, force=True), "remove a container from")
            raise
        return Container(self._engine, self._url, self._call, name, uid, box.memory_bytes, line)

    async def _call(self, call: Callable[[], Any], what: str) -> Any:
        """What the blocking `call` gives; QuintainError where the engine refuses or is not there."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        try:
            return await asyncio.to_thread(call)
        except (DockerException, RequestException, OSError) as error:
            raise QuintainError(one_line(f"cannot {what} the container engine at {self._url}: {error}")) from None

    def _ended(self, session: ContainerSession, slot: int) -> None:
        self._sessions.discard(session)
        self._leave(_at_once(session.container))
        self._slots.release(slot)

    def _leave(self, making: Awaitable[Container]) -> None:
        """Remove a container once it is there, while others go on."""

        async def remove() -> None:
            with suppress(QuintainError):  # it never came to be
                await (await making).remove()

        task = asyncio.create_task(remove())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


async def _at_once(container: Container) -> Container:
    return container
