"""The system calls that Python's `os` lacks, by ctypes: namespaces, mounts, capabilities, seccomp.

Everything in this folder runs in the sandbox's own interpreter, which need not be quintain's: it uses the
standard library only, runs on Python 3.10, and imports its siblings relatively. Every function raises OSError
with the call's name where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import signal
import socket
import struct

CLONE_VM = 0x00000100
CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECUREBITS_ALL_LOCKED = 0xEF
"""NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each locked, and KEEP_CAPS locked off."""

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
STACK_BYTES = 1 << 16
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

_SYS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126, "mount_setattr": 442},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91, "mount_setattr": 442},
}.get(platform.machine(), {})

# PyDLL keeps the interpreter's lock during a call: a process that clone made has nobody to hand it over.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_CAPSET = ctypes.c_long(_SYS.get("capset", -1))
_CAPABILITIES_V3 = struct.pack("Ii", 0x20080522, 0)
_NO_CAPABILITIES = bytes(24)


def pid_max_is_per_namespace() -> bool:
    """Whether each process namespace has a bound of its own, as since Linux 6.14: before, it is the whole machine's."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (6, 14)


def _done(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(name: str, *args: object) -> int:
    if name not in _SYS:
        raise OSError(f"the system call {name} is not known on {platform.machine()}")
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _done(_libc.syscall(ctypes.c_long(_SYS[name]), *words), name)


def clone(flags: int) -> int:
    """Fork into new namespaces: 0 in the child, its process id in the parent.

    No fork handlers run and the C library does not learn of it, so the child stays on one thread and lets
    `os.fork` make whatever is to run foreign code.
    """
    return _syscall("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)


class Sleeper:
    """Starts a process that does nothing but sleep, and shares this one's memory: it costs next to nothing.

    One lives at a time, on a stack that is kept for it. It shares the descriptors, too, so it keeps none open.
    """

    def __init__(self) -> None:
        self._stack = ctypes.create_string_buffer(STACK_BYTES)
        self._top = (ctypes.addressof(self._stack) + STACK_BYTES) & ~0xF
        self._pause = ctypes.cast(_libc.pause, ctypes.c_void_p)
        self._clone = _libc.clone
        self._clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]

    def start(self) -> int:
        """Its process id. It is process 1 where this process has just made a process namespace."""
        return _done(self._clone(self._pause, self._top, CLONE_VM | CLONE_FILES | signal.SIGCHLD, None), "clone")


def unshare(flags: int) -> None:
    _done(_libc.unshare(ctypes.c_int(flags)), "unshare")


def own_loopback() -> None:
    """Leave the network for one that has nothing but a loopback; needs the means of root in this user namespace."""
    unshare(CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def setns(fd: int, kind: int) -> None:
    _done(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, fstype: str, flags: int, options: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), options.encode() or None
    )
    _done(result, f"mount {fstype or source} on {target}")


def unmount(target: str, flags: int) -> None:
    _done(_libc.umount2(target.encode(), ctypes.c_int(flags)), f"umount2 {target}")


def pivot_root(new: str, old: str) -> None:
    _syscall("pivot_root", new.encode(), old.encode())


def restrict_mount(path: str, attributes: int) -> None:
    """Add MOUNT_ATTR_* to the mount at `path` and all below it."""
    attr = struct.pack("QQQQ", attributes, 0, 0, 0)
    _syscall("mount_setattr", AT_FDCWD, path.encode(), AT_RECURSIVE, attr, len(attr))


def prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) < 0:
        _done(-1, f"prctl {option}")


def drop_capabilities() -> None:
    """Give up every capability in this user namespace. With `no_new_privs`, and root meaning nothing any more,
    there is no way back to one; what is left in the bounding set is never asked."""
    prctl(PR_SET_SECUREBITS, SECUREBITS_ALL_LOCKED)
    _done(_libc.syscall(_CAPSET, _CAPABILITIES_V3, _NO_CAPABILITIES), "capset")


class Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def compile_filter(program: bytes) -> Filter:
    """What `install_filter` takes, from struct sock_filter[]."""
    return Filter(len(program) // 8, program)


def install_filter(program: Filter) -> None:
    """Install a seccomp filter; needs no_new_privs."""
    _done(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0), "prctl seccomp")
