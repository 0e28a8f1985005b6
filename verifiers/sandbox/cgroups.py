"""Control groups: the kernel's limits on all processes of a slot together, where this process may make them.

Groups are made beside or below the one this process is in, one for each slot, because making one takes tens of
milliseconds: a slot keeps its group, and a run only sets its limit. Version 2 and the separate hierarchies of
version 1 are both driven. What always holds: `of_memory` says whether memory is bounded, so whoever asks for
protection is never told more than is true; groups left by a service that was killed are removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "quintain-"
SLACK_BYTES: Final = 24 << 20
"""For the keeper of the slot, and what the kernel itself needs for the program."""
UNBOUNDED: Final = 1 << 62
MOST_PROCESSES: Final = 1 << 22
"""What the kernel takes for a bound on processes."""
CONTROLLERS: Final = ("memory", "pids", "cpu")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A tree of control groups: the folder of this process's group, and what it controls."""

    folder: Path
    controllers: frozenset[str]
    version: int


def hierarchies(mountinfo: str, cgroup: str) -> list[Hierarchy]:
    """The trees in which this process has a place, from /proc/self/mountinfo and /proc/self/cgroup."""
    mounts: list[tuple[str, Path, int, frozenset[str]]] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (fstype, *rest) = before.split(), after.split()
        if fstype == "cgroup2":
            mounts.append((fields[3], Path(fields[4]), 2, frozenset()))
        elif fstype == "cgroup":
            mounts.append((fields[3], Path(fields[4]), 1, frozenset(rest[-1].split(","))))
    found = []
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        for root, mounted, version, options in mounts:
            mine = version == 2 if not names else version == 1 and set(names.split(",")) <= options
            if not mine or not (root == "/" or path == root or path.startswith(root + "/")):
                continue
            folder = mounted / path[len(root) :].lstrip("/") if root != "/" else mounted / path.lstrip("/")
            if version == 2:
                with contextlib.suppress(OSError):
                    given = frozenset((folder / "cgroup.controllers").read_text().split())
                    found.append(Hierarchy(folder, given & set(CONTROLLERS), 2))
            elif options & set(CONTROLLERS):
                found.append(Hierarchy(folder, frozenset(names.split(",")) & set(CONTROLLERS), 1))
            break
    return found


class SlotGroup:
    """The control groups of one slot. Everything it cannot do is left undone; ask `controls`."""

    def __init__(self, folders: dict[str, tuple[Path, int]]) -> None:
        self._folders = folders
        self._set: dict[str, int] = {}
        self._files: dict[str, int] = {}  # open for as long as the group is there: they are read at every run

    @property
    def controls(self) -> frozenset[str]:
        """Which of memory, pids and cpu are in force."""
        return frozenset(self._folders)

    def adopt(self, pid: int) -> None:
        """Move the process `pid`, and so its children to come, into the groups. Raises OSError."""
        for folder, _ in set(self._folders.values()):
            (folder / "cgroup.procs").write_text(f"{pid}")

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Set the limits for the next session. Raises OSError."""
        if "memory" in self._folders and self._set.get("memory") != memory_bytes:
            folder, version = self._folders["memory"]
            if version == 2:
                (folder / "memory.max").write_text(f"{memory_bytes}")
                with contextlib.suppress(OSError):  # where there is swap, it is no way round
                    (folder / "memory.swap.max").write_text("0")
            else:
                swap = folder / "memory.memsw.limit_in_bytes"
                if swap.exists():  # it is never below the other, so they change in an order
                    swap.write_text("-1")
                (folder / "memory.limit_in_bytes").write_text(f"{memory_bytes}")
                if swap.exists():
                    swap.write_text(f"{memory_bytes}")
            self._set["memory"] = memory_bytes
        if "pids" in self._folders and self._set.get("pids") != processes:
            bound = f"{processes}" if processes < MOST_PROCESSES else "max"
            self._folders["pids"][0].joinpath("pids.max").write_text(bound)
            self._set["pids"] = processes

    def reset_peak(self) -> None:
        """Forget the largest amount of memory so far."""
        if self._version == 1:
            os.pwrite(self._file("memory.max_usage_in_bytes"), b"0", 0)

    def peak_bytes(self) -> int:
        """The largest amount of memory since `reset_peak`, or 0 where that is not known: version 2 has it only
        since the group was made."""
        return int(os.pread(self._file("memory.max_usage_in_bytes"), 64, 0)) if self._version == 1 else 0

    def out_of_memory(self) -> int:
        """How many processes the kernel has killed so far because the group's memory was used up."""
        if not self._version:
            return 0
        text = os.pread(self._file("memory.events" if self._version == 2 else "memory.oom_control"), 1024, 0)
        found = re.search(rb"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(found[1]) if found else 0

    @property
    def _version(self) -> int:
        """Of the hierarchy that bounds memory; 0 where none does."""
        return self._folders["memory"][1] if "memory" in self._folders else 0

    def _file(self, name: str) -> int:
        if name not in self._files:
            writable = name == "memory.max_usage_in_bytes"
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
            self._files[name] = os.open(self._folders["memory"][0] / name, flags)
        return self._files[name]

    def remove(self) -> None:
        """Remove the groups, which are empty by now."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        for folder, _ in set(self._folders.values()):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._folders.clear()


def make(name: str, trees: list[Hierarchy]) -> SlotGroup:
    """Groups called `name` in as many of `trees` as let us."""
    folders: dict[str, tuple[Path, int]] = {}
    for tree in trees:
        for parent in places(tree):
            folder = parent / name
            try:
                if tree.version == 2:
                    enable(parent, tree.controllers)
                folder.mkdir()
            except OSError:
                continue
            controls = {each for each in tree.controllers if (folder / witness(each, tree.version)).exists()}
            if not controls or not os.access(folder / "cgroup.procs", os.W_OK):
                folder.rmdir()
                continue
            folders |= dict.fromkeys(controls - folders.keys(), (folder, tree.version))
            break
    return SlotGroup(folders)


def places(tree: Hierarchy) -> list[Path]:
    """Where a group may be made: in our own; of version 2, whose groups hold processes or groups but not both,
    beside it too."""
    return [tree.folder] if tree.version == 1 else [tree.folder, tree.folder.parent]


def enable(folder: Path, controllers: frozenset[str]) -> None:
    """Have the children of the version 2 group `folder` controlled, as far as it lets us."""
    control = folder / "cgroup.subtree_control"
    missing = controllers - set(control.read_text().split())
    if missing:
        with contextlib.suppress(OSError):
            control.write_text(" ".join(f"+{each}" for each in sorted(missing)))


def witness(controller: str, version: int) -> str:
    """A file that is there where `controller` is in force."""
    first = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.shares"}
    second = {"memory": "memory.max", "pids": "pids.max", "cpu": "cpu.weight"}
    return (first if version == 1 else second)[controller]


def own() -> list[Hierarchy]:
    """The trees of this process; none where the kernel has no control groups or they are out of sight."""
    try:
        return hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return []


def sweep(trees: list[Hierarchy]) -> None:
    """Remove the groups of services that are no more."""
    for tree in trees:
        for parent in places(tree):
            for folder in parent.glob(f"{PREFIX}*"):
                found = re.match(rf"{PREFIX}(\d+)-", folder.name)
                if found and not Path(f"/proc/{found[1]}").exists():
                    with contextlib.suppress(OSError):  # it is in use after all, or not ours
                        folder.rmdir()


def group_name(pid: int, sandbox: str, slot: int) -> str:
    """The name of a slot's groups: `sweep` finds the service in it."""
    return f"{PREFIX}{pid}-{sandbox}-{slot}"
