"""The zygote: enters the sandbox's file system, loads what programs will want, and forks a keeper per slot.

It runs no foreign code, reads nothing of any program, and ends when the service's end of its socket closes or
the service is gone; its keepers die with it, and everything in them with them. Datagrams of JSON from the
service: the configuration, then `keeper` (with the keeper's socket) and `kill`. To it: `ready` or `error`,
then `keeper` with a process id, and `dead`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
import types
from typing import Any

from . import kernel, root, script, seccomp
from .guest import GUEST_ID
from .keeper import Keeper

PARENT_POLL_MS = 1000
CAPABILITIES_NEEDED = (1 << 21) | (1 << 0) | (1 << 18) | (1 << 7) | (1 << 6) | (1 << 5)
"""CAP_SYS_ADMIN, CHOWN, SYS_CHROOT, SETUID, SETGID and KILL: what containers usually give, and SYS_ADMIN."""
MESSAGE_BYTES = 1 << 16


def main() -> None:
    """Serve one service until it is gone."""
    control, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's business; it reaches the whole group
    config = json.loads(control.recv(MESSAGE_BYTES))
    try:
        facts, prepared = prepare(config)
    except Exception as error:  # the boundary: the service turns it into a QuintainError
        tell(control, {"error": f"{type(error).__name__}: {error}"})
        return
    script.hide()
    gc.collect()
    gc.freeze()  # or collecting in a fork would write to every page that it shares
    tell(control, {"ready": facts})
    Zygote(control, parent, facts, prepared).serve()


def prepare(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, types.ModuleType]]:
    """Load the modules, enter the sandbox's root; what this machine gave, and the prepared programs by name."""
    for name in config["preload"]:
        importlib.import_module(name)
    prepared = {name: load(path) for name, path in config["prepared"].items()}
    for path in config["prepared"].values():
        script.hide(package_of(path))
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a preloaded module has started threads, so nothing can be forked from here")
    if config["user"] is not None:
        os.setgroups([])
        os.setresgid(config["user"], config["user"], config["user"])
        os.setresuid(config["user"], config["user"], config["user"])
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # its own /proc/self is its own again
    privileged = effective_capabilities() & CAPABILITIES_NEEDED == CAPABILITIES_NEEDED
    if privileged:
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
        except OSError:
            privileged = False
    root.enter_namespaces(privileged)
    root.enter_root(config["readable"], config["folders"])
    users = user_namespace(0)  # that one can be made is better known now
    counted = privileged or counts_processes(users)  # a slot's own user is never the host's root
    os.close(users)
    compile("0", "main.py", "exec")  # the compiler makes its hundred types at its first use: not in every program
    facts = {
        "privileged": privileged,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seccomp": seccomp.build(platform.machine()) is not None,
        "counted": counted,
        "few": not counted and kernel.pid_max_is_per_namespace(),
    }
    return facts, prepared


def load(path: str) -> types.ModuleType:
    """The module in the file `path`, whose folder is its package.

    Where it has a function `warm`, that is called: code that has run already is faster, in every fork.
    """
    folder, package = os.path.dirname(path), package_of(path)
    spec = importlib.util.spec_from_file_location(
        package, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    if package not in sys.modules:
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    module = importlib.import_module(f"{package}.{os.path.basename(path)[:-3]}")
    if hasattr(module, "warm"):
        module.warm()
    return module


def package_of(path: str) -> str:
    return os.path.basename(os.path.dirname(path))


def effective_capabilities() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))


def tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the service is gone: the next look at the socket says so
        control.send(json.dumps(message).encode())


class Zygote:
    """The state of the zygote: its keepers, by slot."""

    def __init__(
        self, control: socket.socket, parent: int, facts: dict[str, Any], prepared: dict[str, types.ModuleType]
    ) -> None:
        self._control, self._parent, self._facts, self._prepared = control, parent, facts, prepared
        programs = [seccomp.build(platform.machine(), loopback) for loopback in (False, True)]
        self._filters = [None if program is None else kernel.compile_filter(program) for program in programs]
        self._pids: dict[int, int] = {}

    def serve(self) -> None:
        poll = select.poll()
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while os.getppid() == self._parent:
            ready = [fd for fd, _ in poll.poll(PARENT_POLL_MS)]
            if wake in ready:
                os.read(wake, 4096)
            self._reap()
            if self._control.fileno() in ready and not self._obey((wake, woken)):
                break
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)  # returns when everything in the keeper's process namespace has been reaped

    def _obey(self, ours: tuple[int, ...]) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 4)
        except ConnectionError:
            return False
        if not data:
            return False
        message = json.loads(data)
        slot = message["slot"]
        if "kill" in message:
            if slot in self._pids:
                os.kill(self._pids[slot], signal.SIGKILL)
            return True
        uid = message["uid"] if self._facts["privileged"] else 0
        users = user_namespace(uid)
        pid = kernel.clone(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET)
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(self._control.detach())
                for fd in ours:
                    os.close(fd)
                Keeper(fds[0], users, uid, self._filters, self._prepared, self._facts["few"]).serve()
            except Exception:
                sys.excepthook(*sys.exc_info())  # to stderr, which the service reads
            finally:
                os._exit(1)
        os.close(users)
        os.close(fds[0])
        self._pids[slot] = pid
        tell(self._control, {"keeper": slot, "pid": pid})
        return True

    def _reap(self) -> None:
        for slot, pid in list(self._pids.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._pids[slot]
                tell(self._control, {"dead": slot, "pid": pid})


def counts_processes(users: int) -> bool:
    """Whether the kernel bounds how many processes the user of the namespace `users` has: for the host's root, it
    does not."""
    pid = os.fork()
    if pid == 0:
        counted = False
        try:
            kernel.setns(users, kernel.CLONE_NEWUSER)
            os.setresgid(GUEST_ID, GUEST_ID, GUEST_ID)
            os.setresuid(GUEST_ID, GUEST_ID, GUEST_ID)
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            try:
                os.fork()
            except BlockingIOError:
                counted = True
        finally:
            os._exit(0 if counted else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def user_namespace(uid: int) -> int:
    """A descriptor of a user namespace that has one user: 1000, who outside is `uid`."""
    go, made = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(made[0])
            os.close(go[1])
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(made[1], b"x")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    os.close(made[1])
    os.close(go[0])
    if not os.read(made[0], 1):
        raise OSError("no user namespace can be made here")
    users = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    root.write(f"/proc/{pid}/setgroups", "deny")
    root.write(f"/proc/{pid}/uid_map", f"{GUEST_ID} {uid} 1")
    root.write(f"/proc/{pid}/gid_map", f"{GUEST_ID} {uid} 1")
    os.close(made[0])
    os.close(go[1])
    os.waitpid(pid, 0)
    return users
