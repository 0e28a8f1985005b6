"""What of a sandbox can be seen on its host: by this a test knows whether anything is left of one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
GONE_WITHIN_S = 10


@dataclass(frozen=True)
class Host:
    """Of this process: its mounts, open descriptors, control groups and descendants; of the machine: the names in
    the folders that everybody may write to, but for those of other test processes."""

    mounts: frozenset[str]
    descriptors: frozenset[str]
    groups: frozenset[str]
    shared_names: frozenset[str]
    processes: frozenset[int]


def look() -> Host:
    """The host as it is now."""
    return Host(mounts(), frozenset(descriptors()), frozenset(control_groups()), shared_names(), frozenset(family()))


def mounts() -> frozenset[str]:
    """All but those of container engines, which come and go in other tests; where one of ours leaves a mount, its
    folder cannot be removed, which fails loudly."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return frozenset(line for line in lines if not line.startswith(("nsfs ", "overlay ")) and "-engine-" not in line)


def descriptors() -> set[str]:
    """Open ones; each is named with what it leads to, since a number may be taken again."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # the one that listed them
            continue
    return found


def control_groups() -> set[str]:
    """Those that sandboxes of this process have made."""
    mine = f"quintain-{os.getpid()}-"  # walked, not globbed: other tests remove theirs meanwhile
    return {f"{at}/{name}" for at, names, _ in os.walk(CONTROL_GROUPS) for name in names if name.startswith(mine)}


def shared_names() -> frozenset[str]:
    """Names in folders for everybody that a program of a sandbox could have made, were it not for the sandbox."""
    found = set()
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        found |= {f"{folder}/{name}" for name in os.listdir(folder) if name in PLANTED}
    return frozenset(found)


PLANTED = frozenset({"box", "root", "host", "mark", "json.py", "sitecustomize.py", "big", "0", "1", "f0"})
"""Names that the tests' programs, and the sandbox itself, use in such folders."""


def family() -> set[int]:
    """Processes below this one, and those that were once below a zygote of this one: its command line has our id,
    and so has whatever forked from it."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if len(words) > 3 and "jail.zygote" in " ".join(words) and str(os.getpid()) in words:
            ours.add(process.pid)
    return ours


def of_zygote(pid: int) -> list[psutil.Process]:
    """All that lives below a zygote but its keepers."""
    zygote = psutil.Process(pid)
    keepers = zygote.children()
    return [process for process in zygote.children(recursive=True) if process not in keepers]


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; none where the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def exists(path: str) -> bool:
    return os.path.exists(path)
