"""The file system that programs see: made once by the zygote, before it forks anybody.

What always holds after `enter_root`: nothing of the host can be reached from this process or its children but
the paths named as readable, none of which can be written; `/box` is where a session's own file system goes,
and `/tmp` and `/dev/shm` lead into it. A readable path that lies there on the host is kept below `HELD`, and a link in
the session's own file system leads to it. A folder that is a session's own (`folders`) is a link into its work folder.
"""

from __future__ import annotations

import os
import socket

from . import kernel

BOX = "/box"
WORK = BOX + "/work"
HELD = "/.held"
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {
    "/tmp": BOX + "/tmp",
    "/var/tmp": BOX + "/tmp",
    "/dev/shm": BOX + "/shm",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types")
WRITTEN = {
    "/etc/passwd": f"root:x:0:0:root:/:/bin/sh\nguest:x:1000:1000:guest:{WORK}:/bin/sh\n",
    "/etc/group": "root:x:0:\nguest:x:1000:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
}
ROOT_SIZE = "size=1m,nr_inodes=4k,mode=0755"


def enter_namespaces(privileged: bool) -> None:
    """Leave the host's mounts, network, names and message queues; in user mode, become root of a user
    namespace first."""
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if privileged:
        kernel.unshare(flags)
        os.setgroups([])
    else:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.CLONE_NEWUSER | flags)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"0 {uid} 1")
        write("/proc/self/gid_map", f"0 {gid} 1")
    socket.sethostname("sandbox")


def enter_root(readable: list[str], folders: list[str]) -> None:
    """Make the new root from the host's `readable` paths, and leave the host's; `folders` of it lead into the work
    folder. Raises ValueError for a folder that is there already."""
    kernel.mount("none", "/", "", kernel.MS_PRIVATE | kernel.MS_REC)
    # Any folder will do as the place to stand on: what it hides is still there under /host after the pivot.
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID, ROOT_SIZE)
    os.mkdir("/tmp/root")
    os.mkdir("/tmp/host")
    kernel.pivot_root("/tmp", "/tmp/host")
    os.chdir("/")
    kernel.mount("tmpfs", "/root", "tmpfs", kernel.MS_NOSUID, ROOT_SIZE)
    for path in [*SYSTEM, *("/etc/" + name for name in ETC), *readable]:
        show(path)
    for name in DEVICES:
        bind("/dev/" + name)
    for folder in (BOX, "/proc", "/var"):
        os.makedirs("/root" + folder, exist_ok=True)
    for path, target in LINKS.items():
        if not os.path.lexists("/root" + path):
            os.symlink(target, "/root" + path)
    for folder in folders:
        if os.path.lexists("/root" + folder):
            raise ValueError(f"{folder} cannot lead into the work folder: the sandbox's own files are there")
        os.symlink(WORK + folder, "/root" + folder)
    hold("/root" + BOX)
    for path, content in WRITTEN.items():
        write("/root" + path, content)
    kernel.restrict_mount("/root", kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID)
    # A new proc can only be mounted where one is in sight; each session covers this one with its own.
    kernel.mount("/host/proc", "/root/proc", "", kernel.MS_BIND | kernel.MS_REC)
    kernel.pivot_root("/root", "/root" + BOX)
    os.chdir("/")
    kernel.unmount(BOX, kernel.MNT_DETACH)


def show(path: str) -> None:
    """Have the host's `path` in the new root, read-only, if there is such a thing and it is not there yet;
    links on the way are links here too."""
    parts = path.strip("/").split("/")
    for number in range(1, len(parts) + 1):
        here = "/" + "/".join(parts[:number])
        if os.path.islink("/host" + here):
            target, new = os.readlink("/host" + here), placed(here)
            if not os.path.lexists(new):
                os.makedirs(os.path.dirname(new), exist_ok=True)
                os.symlink(os.path.join(os.path.dirname(here), target) if is_held(here) else target, new)
            show(os.path.normpath(os.path.join(os.path.dirname(here), target, *parts[number:])))
            return
    if os.path.lexists("/host" + path) and not os.path.lexists(placed(path)):
        bind(path)


def is_held(path: str) -> bool:
    """Whether `path` lies in a folder in whose place a session has one of its own."""
    return any(target.startswith(BOX) and path.startswith(folder + "/") for folder, target in LINKS.items())


def placed(path: str) -> str:
    """Where the host's `path` goes in the new root."""
    return "/root" + (HELD + path if is_held(path) else path)


def hold(box: str) -> None:
    """Have links in `box`, a session's file system, to what is held."""
    top = box[: -len(BOX)]
    if not os.path.isdir(top + HELD):
        return
    for folder, target in LINKS.items():
        held = HELD + folder
        if target.startswith(BOX) and os.path.isdir(top + held):
            os.makedirs(top + target, exist_ok=True)
            for name in os.listdir(top + held):
                if not os.path.lexists(f"{top}{target}/{name}"):
                    os.symlink(f"{held}/{name}", f"{top}{target}/{name}")


def bind(path: str) -> None:
    """Mount the host's `path`, a folder or a file, at its place in the new root."""
    host, here = "/host" + path, placed(path)
    if os.path.isdir(host):
        os.makedirs(here, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(here), exist_ok=True)
        os.close(os.open(here, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(host, here, "", kernel.MS_BIND | kernel.MS_REC)


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
