"""The seccomp filter: which system calls a tested program is refused. Pure: builds a classic BPF program.

What always holds: a refused call fails with an errno and changes nothing, so ordinary programs (numpy,
threads, subprocesses, compilers, node) work; a call of another architecture or of the x32 ABI, and any call
newer than this list, fails with ENOSYS, so nothing passes because it is not known here.

BPF layout: struct sock_filter {u16 code; u8 jt; u8 jf; u32 k}; seccomp_data {int nr; u32 arch; u64 ip; u64
args[6]} (linux/seccomp.h).
"""

from __future__ import annotations

import errno
import struct

from .kernel import CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS

NEW_NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)
AF_UNIX, AF_INET = 1, 2
IPPROTO_TCP = 6
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
NEWEST = 466
"""The last system call number this list has considered (removexattrat, Linux 6.13)."""

X86_64 = {
    "shmget": 29, "shmat": 30, "shmctl": 31, "shmdt": 67, "semget": 64, "semop": 65, "semctl": 66,
    "semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "ptrace": 101, "syslog": 103,
    "uselib": 134, "ustat": 136, "_sysctl": 156, "modify_ldt": 154, "pivot_root": 155, "adjtimex": 159,
    "chroot": 161, "sync": 162, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167,
    "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "create_module": 174, "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178,
    "quotactl": 179, "nfsservctl": 180, "vhangup": 153, "lookup_dcookie": 212, "clock_settime": 227,
    "mq_open": 240, "mq_unlink": 241, "mq_timedsend": 242, "mq_timedreceive": 243, "mq_notify": 244,
    "mq_getsetattr": 245, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
    "migrate_pages": 256, "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300,
    "fanotify_mark": 301, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "syncfs": 306,
}  # fmt: skip
AARCH64 = {
    "lookup_dcookie": 18, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42, "chroot": 51, "sync": 81,
    "vhangup": 58, "quotactl": 60, "acct": 89, "unshare": 97, "kexec_load": 104, "init_module": 105,
    "delete_module": 106, "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161,
    "setdomainname": 162, "settimeofday": 170, "adjtimex": 171, "mq_open": 180, "mq_unlink": 181,
    "mq_timedsend": 182, "mq_timedreceive": 183, "mq_notify": 184, "mq_getsetattr": 185, "msgget": 186,
    "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191, "semtimedop": 192, "semop": 193,
    "shmget": 194, "shmctl": 195, "shmat": 196, "shmdt": 197, "add_key": 217, "request_key": 218, "keyctl": 219,
    "swapon": 224, "swapoff": 225, "migrate_pages": 238, "move_pages": 239, "perf_event_open": 241,
    "fanotify_init": 262, "fanotify_mark": 263, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "clock_adjtime": 266, "syncfs": 267, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "finit_module": 273, "memfd_create": 279, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip
EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "quotactl_fd": 443, "memfd_secret": 447, "process_mrelease": 448, "statmount": 457, "listmount": 458,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
}  # fmt: skip
"""Numbered alike on every architecture."""

ENOSYS_CALLS = frozenset({"clone3", "memfd_create", "memfd_secret", "pidfd_open", "io_uring_setup"})
"""Those whose callers have another way, which they take where the kernel is too old for this one."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED = {"x86_64": {**X86_64, **EVERYWHERE}, "aarch64": {**AARCH64, **EVERYWHERE}}
CHECKED = {
    "x86_64": {"clone": 56, "socket": 41, "socketpair": 53, "ioctl": 16},
    "aarch64": {"clone": 220, "socket": 198, "socketpair": 199, "ioctl": 29},
}

LD, JEQ, JGE, JSET, RET = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW = 0x7FFF0000
ERRNO = 0x00050000
NR_OFFSET, ARCH_OFFSET, ARGS_OFFSET = 0, 4, 16


def build(machine: str, loopback: bool = False) -> bytes | None:
    """The filter for `machine` (as `platform.machine()` names it), or None where it is not known here. `loopback`
    allows TCP and UDP over IPv4, too: for a program whose network is its own."""
    if machine not in AUDIT_ARCH:
        return None
    code = [(LD, 0, 0, ARCH_OFFSET), (JEQ, 1, 0, AUDIT_ARCH[machine]), (RET, 0, 0, ERRNO | errno.ENOSYS)]
    code.append((LD, 0, 0, NR_OFFSET))
    checked = CHECKED[machine]
    for name in ("clone", "socket", "socketpair", "ioctl"):
        check = _check(name, loopback)
        code.append((JEQ, 0, len(check), checked[name]))
        code += check
    code += _tree(_ranges(DENIED[machine]))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _check(name: str, loopback: bool) -> list[tuple[int, int, int, int]]:
    """Decides a call by its first or second argument; always returns."""
    refuse, allow = (RET, 0, 0, ERRNO | errno.EPERM), (RET, 0, 0, ALLOW)
    if name == "clone":
        return [(LD, 0, 0, ARGS_OFFSET), (JSET, 0, 1, NEW_NAMESPACES), refuse, allow]
    if name == "ioctl":
        return [(LD, 0, 0, ARGS_OFFSET + 8), (JEQ, 1, 0, TIOCSTI), (JEQ, 0, 1, TIOCLINUX), refuse, allow]
    if name == "socket" and loopback:
        family, protocol = (LD, 0, 0, ARGS_OFFSET), (LD, 0, 0, ARGS_OFFSET + 16)
        refuse = (RET, 0, 0, ERRNO | errno.EAFNOSUPPORT)
        inet = [(JEQ, 0, 3, AF_INET), protocol, (JEQ, 2, 0, 0), (JEQ, 1, 0, IPPROTO_TCP), refuse, allow]
        return [family, (JEQ, len(inet) - 1, 0, AF_UNIX), *inet]
    return [(LD, 0, 0, ARGS_OFFSET), (JEQ, 1, 0, AF_UNIX), (RET, 0, 0, ERRNO | errno.EAFNOSUPPORT), allow]


def _ranges(denied: dict[str, int]) -> list[tuple[int, int]]:
    """What happens from which number on: (first number, action), by number; covers all 32-bit numbers."""
    actions = {
        number: ERRNO | (errno.ENOSYS if name in ENOSYS_CALLS else errno.EPERM) for name, number in denied.items()
    }
    points = [(0, actions.get(0, ALLOW))]
    for number in range(1, NEWEST + 1):
        action = actions.get(number, ALLOW)
        if action != points[-1][1]:
            points.append((number, action))
    points.append((NEWEST + 1, ERRNO | errno.ENOSYS))  # x32 calls are above it, too
    return points


def _tree(points: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """A binary search over `points`. The kernel walks the filter once for each call number when it is
    installed, which is once for each run: a chain of comparisons would cost it ten times as much."""
    if len(points) == 1:
        return [(RET, 0, 0, points[0][1])]
    middle = len(points) // 2
    low, high = _tree(points[:middle]), _tree(points[middle:])
    return [(JGE, len(low), 0, points[middle][0]), *low, *high]
