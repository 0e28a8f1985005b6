"""The keeper of a slot: runs sessions one after the other, each in fresh namespaces, and says how each command
of theirs ended.

It is process 1 of a process namespace of its own, so whatever it has started ends with it. For each session it
starts an *init*, process 1 of the session's own process namespace, which runs no code at all: it sleeps, and
collects orphans; where it is killed, the kernel ends everything in there. Programs cannot reach the keeper: it
is outside of what they see, cannot be dumped or traced, and answers on a socket that they do not inherit. The
status it reports comes from `waitpid`, never from the program. What always holds:
- a command's deadline and its processor time are enforced here, whatever the service is doing; the service is told
  when a command begins, so it knows whose fault it is where no report comes;
- it sees every process of a session, by numbers of its own: no command can hide one, or be taken for the init;
- when it reports on a command, every process of the command has been reaped; when it says that a session is
  closed, its mounts are no more;
- it never reads what a command brings, so nothing of one session is in the memory of another's programs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
import types
from typing import NamedTuple

from . import guest, kernel, root

ORDER = struct.Struct("=BdddQQQ?")
"""From the service: what to do; for RUN, with the command's descriptors, its Bounds, and whether the session ends with
it."""
RUN, KILL, CLOSE, LAST = range(4)
"""KILL ends the command that runs, and LAST the session with it; neither is anything where no command runs."""
REPORT = struct.Struct("=BiddQ?")
"""To the service: a reason, the exit code (negative for a signal), wall seconds, processor seconds, peak bytes, whether
the session is closed; then, if it is BROKEN, what broke."""
BEGUN = b"begun"
"""To the service before the report: the program runs now."""
ENDED, WALL, CPU, MEMORY, KILLED, BROKEN, CLOSED, CROWD = range(8)
SESSION = kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWCGROUP
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLE_S = 0.001
FIRST, LEAST = -20, 19
PID_MAX = 640
"""Of a slot's process namespace, where the kernel does not count processes by user: at most so many live at a time."""


class Bounds(NamedTuple):
    """What a command may use: wall seconds, processor seconds, seconds between two looks at its processes, bytes of
    memory over all of them, bytes of data of one of them, and how many processes and threads there may be."""

    wall_s: float
    cpu_s: float
    watch_s: float
    memory_bytes: int
    data_bytes: int
    processes: int


class Usage(NamedTuple):
    """What the processes of a session use now: processor seconds, resident bytes, and how many threads they are."""

    cpu_s: float
    resident_bytes: int
    threads: int


class Keeper:
    """One slot. `users` is a descriptor of its user namespace, `uid` its user as seen from here; `prepared` are the
    programs that the sandbox was made with; `filters` are for those without and with a loopback; `few` bounds process
    numbers (PID_MAX)."""

    def __init__(
        self,
        control: int,
        users: int,
        uid: int,
        filters: list[kernel.Filter | None],
        prepared: dict[str, types.ModuleType],
        few: bool,
    ) -> None:
        self._control, self._few, self._users, self._uid, self._filters = control, few, users, uid, filters
        self._prepared = prepared
        self._init = 0
        self._last = False
        self._home: list[tuple[int, int]] = []
        self._proc = -1
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._sleeper = kernel.Sleeper()

    def serve(self) -> None:
        """Serve the slot until the service closes its end of the socket."""
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # and each guest in one of its own: where the kernel shares by session, no crowd starves its keeper
        with contextlib.suppress(OSError):  # without CAP_SYS_NICE it may not
            os.setpriority(os.PRIO_PROCESS, 0, FIRST)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # sessions cover it with their own
        for name, kind in (("pid", kernel.CLONE_NEWPID), ("mnt", kernel.CLONE_NEWNS), ("ipc", kernel.CLONE_NEWIPC)):
            self._home.append((os.open("/proc/self/ns/" + name, os.O_RDONLY | os.O_CLOEXEC), kind))
        if self._few:
            root.write("/proc/sys/kernel/pid_max", str(PID_MAX))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        control = socket.socket(fileno=self._control)
        control.send(b"ready")
        while True:
            data, fds, _, _ = socket.recv_fds(control, ORDER.size, 8)
            if not data:
                return
            kind, *bounds, once = ORDER.unpack(data)
            if kind == RUN:
                try:
                    report, trouble = self._run(fds, Bounds(*bounds))
                except OSError as error:
                    report, trouble = (BROKEN, 0, 0.0, 0.0, 0), str(error).encode()
                    once = True  # whatever is half made goes
                for fd in fds:
                    os.close(fd)
                once = once or self._last or not self._kill_others()
                if once:
                    self._close()
                control.send(REPORT.pack(*report, once) + trouble)
            elif kind == CLOSE:
                self._close()
                control.send(REPORT.pack(CLOSED, 0, 0.0, 0.0, 0, True))

    def _open(self) -> None:
        """Enter fresh namespaces, and start the init that keeps the new process namespace alive."""
        kernel.unshare(SESSION)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the init inherits that, so orphans vanish by themselves
        try:
            self._init = self._sleeper.start()
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _close(self) -> None:
        """End every process of the session, and leave its namespaces."""
        if self._init:
            os.kill(self._init, signal.SIGKILL)
            os.waitpid(self._init, 0)  # returns when the last process in there has been reaped
            self._init = 0
        for fd, kind in self._home:
            kernel.setns(fd, kind)

    def _run(self, fds: list[int], bounds: Bounds) -> tuple[tuple[int, int, float, float, int], bytes]:
        """A report, and what broke."""
        fresh = not self._init
        self._last = False
        if fresh:
            self._open()
        guests, begins = (end.detach() for end in socket.socketpair())
        pid = os.fork()
        if pid == 0:
            os.setpriority(os.PRIO_PROCESS, 0, LEAST if self._few else self._nice)
            most = (bounds.data_bytes, bounds.memory_bytes)
            guest.become(fds, begins, fresh, *most, self._users, self._uid, self._filters, self._prepared)
        os.close(begins)
        trouble = os.read(guests, 4096)
        started = time.monotonic()
        os.write(self._control, BEGUN)
        if trouble == guest.READY:  # the program does nothing before the service can know that it is there
            trouble = b""
            with contextlib.suppress(BrokenPipeError):  # somebody has killed it
                os.write(guests, guest.READY)
        os.close(guests)
        why, used_s, peak_bytes = self._watch(pid, started + bounds.wall_s, bounds)
        if why != ENDED:
            os.kill(pid, signal.SIGKILL)
        _, status, rusage = os.wait4(pid, 0)
        wall_s = time.monotonic() - started
        code = os.waitstatus_to_exitcode(status)
        used_s = max(used_s, rusage.ru_utime + rusage.ru_stime)
        peak_bytes = max(peak_bytes, rusage.ru_maxrss * 1024)
        if why == ENDED and peak_bytes > bounds.memory_bytes:
            why = MEMORY  # between two looks
        return (BROKEN if trouble else why, code, wall_s, used_s, peak_bytes), trouble

    def _watch(self, pid: int, due: float, bounds: Bounds) -> tuple[int, float, int]:
        """Wait for the end of the guest `pid`, of what it may use, or of the service's patience: which of them,
        and the processor seconds and the peak bytes that were seen."""
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        used_s, peak_bytes, why = 0.0, 0, ENDED
        now = time.monotonic()
        look = now + bounds.watch_s
        while why == ENDED:
            ready = [fd for fd, _ in poll.poll(max(0.0, min(due, look) - now) * 1000 + 1)]
            if pidfd in ready:
                break
            if self._control in ready:
                data = os.read(self._control, ORDER.size)
                if not data:
                    os._exit(0)  # and everything in this slot ends
                if data[0] != RUN:
                    why = KILLED
                    self._last = data[0] == LAST
            now = time.monotonic()
            if now >= look:
                look = now + bounds.watch_s
                seen = self._usage(bounds, due)
                used_s, peak_bytes = seen.cpu_s, max(peak_bytes, seen.resident_bytes)
                why = exceeded(seen, bounds) or why
                self._last = self._last or why == CROWD  # nothing can be started among so many
            if now >= due:
                why = WALL
        os.close(pidfd)
        return why, used_s, peak_bytes

    def _others(self) -> list[int]:
        """Processes of the session that live now, by their numbers here."""
        ours = (os.getpid(), self._init)
        return [int(name) for name in os.listdir(self._proc) if name.isdigit() and int(name) not in ours]

    def _kill_others(self) -> bool:
        """End what the program has left behind, and whether that could be done; the session stays."""
        if not self._others():
            return True
        try:
            pid = os.fork()  # into the session's process namespace
        except BlockingIOError:
            return False  # they are too many for one more
        if pid == 0:
            try:
                os.kill(-1, signal.SIGKILL)  # everybody in there but itself and the init
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        while self._others():
            time.sleep(SETTLE_S)
        return True

    def _usage(self, bounds: Bounds, due: float) -> Usage:
        """What all processes of the session that live now use, as far as that is read until `due`; of more than there
        may be only how many they are, since reading of each takes longer the more they do.

        Pages that processes share are counted for each of them, unless that would be too many.
        """
        ticks = resident = threads = 0
        others = self._others()
        if len(others) > bounds.processes:
            return Usage(0.0, 0, len(others))
        for pid in others:
            fields = self._read(f"{pid}/stat").rpartition(b")")[2].split()
            if fields:
                ticks += sum(map(int, fields[11:15]))
                threads += int(fields[17])
                resident += int(fields[21]) * PAGE
        if resident > bounds.memory_bytes and len(others) > 1:
            resident = 0
            for pid in others:
                resident += self._proportional_bytes(pid) if time.monotonic() < due else 0
        return Usage(ticks / TICK, resident, threads)

    def _proportional_bytes(self, pid: int) -> int:
        """Resident bytes of a process, its share only of those that it shares."""
        for line in self._read(f"{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
        fields = self._read(f"{pid}/statm").split()  # it lets nobody look: all of it counts
        return int(fields[1]) * PAGE if fields else 0

    def _read(self, path: str) -> bytes:
        """What the file of a process says, or nothing where the process has ended meanwhile."""
        try:
            with open(os.open(path, os.O_RDONLY, dir_fd=self._proc), "rb") as file:
                return file.read()
        except OSError:
            return b""


def exceeded(seen: Usage, bounds: Bounds) -> int:
    """Which bound does not hold any more, or ENDED."""
    if seen.cpu_s >= bounds.cpu_s:
        return CPU
    if seen.resident_bytes > bounds.memory_bytes:
        return MEMORY
    return CROWD if seen.threads > bounds.processes else ENDED
