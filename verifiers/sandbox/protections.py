"""What the namespaces sandbox can promise on a machine, in words. Pure.

What always holds: a wall is called held only where the kernel holds it against the program itself; what is
merely looked at now and then is said to be so. Every held wall is attacked in the tests.
"""

from __future__ import annotations

from collections.abc import Set

from quintain.verifiers.sandbox.handle import ZygoteFacts
from quintain.verifiers.sandbox.interface import Protection


def walls(facts: ZygoteFacts, controls: Set[str]) -> tuple[Protection, ...]:
    """The protections, given what the zygote found and which control groups (memory, pids, cpu) are in force."""
    user = (
        "programs run as a user of their slot, whom nothing else on this machine belongs to"
        if facts.privileged
        else "programs run as the user of the service, in a user namespace of their own, without any capability"
    )
    no_group = "no control group could be made (it takes root, or a delegated group)"
    return (
        Protection("files", True, "an own root: system folders, read-only, and a file system of the session's own"),
        Protection("disk", True, "the session's file system is bounded in bytes and in number of files"),
        Protection("network", True, "a network namespace without any interface; only unix sockets can be made"),
        Protection("processes", True, "process, mount and message-queue namespaces of the session's own"),
        Protection("verdict", True, "a process outside of the program's sight waits for it and reports"),
        Protection("leftovers", True, "the process namespace is ended with the session, by the kernel"),
        Protection("identity", facts.privileged, user),
        Protection("capabilities", True, "none, and no_new_privs: nothing that is executed brings one back"),
        Protection(
            "system calls",
            facts.seccomp,
            "a seccomp filter refuses mounts, namespaces, tracing, kernel keys, bpf, io_uring and the like"
            if facts.seccomp
            else f"there is no list of system calls for {facts.machine}",
        ),
        process_count(facts, controls),
        Protection("wall time", True, "the keeper kills at the deadline, whatever the service does"),
        Protection(
            "processor time", True, "RLIMIT_CPU for each process; the sum over all that live is looked at every 50 ms"
        ),
        Protection("private memory of one process", True, "RLIMIT_DATA; what it shares counts with all"),
        Protection(
            "memory of all processes",
            "memory" in controls,
            "a memory control group for each slot"
            if "memory" in controls
            else f"{no_group}; the sum is only looked at every 50 ms, so it may be exceeded for that long",
        ),
        Protection(
            "fair share of processors",
            "cpu" in controls,
            "a cpu control group for each slot"
            if "cpu" in controls
            else f"{no_group}; slots are sessions, which the kernel treats as groups where autogroup is on",
        ),
    )


def process_count(facts: ZygoteFacts, controls: Set[str]) -> Protection:
    """What bounds the number of processes."""
    if facts.counted:
        return Protection("process count", True, "RLIMIT_NPROC in a user namespace of the slot's own")
    if "pids" in controls:
        return Protection("process count", True, "a pids control group for each slot")
    if facts.few:
        return Protection("process count", True, "the pid_max of a process namespace of the slot's own: 640")
    root = "the kernel does not count the processes of root, whom programs run as in the eyes of the host"
    return Protection("process count", False, f"{root}; they are counted every 50 ms, so more may live for that long")
