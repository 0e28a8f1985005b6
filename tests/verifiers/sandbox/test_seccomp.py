"""The system call filter, run by a small interpreter of classic BPF, and its tables against the kernel's."""

from __future__ import annotations

import errno
import platform
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.sandbox.jail import seccomp

MACHINES = sorted(seccomp.DENIED)


def decide(program: bytes, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """What the filter says: 0 to allow, else the errno."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    code = list(struct.iter_unpack("HBBI", program))
    accumulator = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == seccomp.LD:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif op == seccomp.RET:
            if k == seccomp.ALLOW:
                return 0
            assert k & 0xFFFF0000 == seccomp.ERRNO
            return k & 0xFFFF
        else:
            tests = {seccomp.JEQ: accumulator == k, seccomp.JGE: accumulator >= k, seccomp.JSET: accumulator & k}
            at += yes if tests[op] else no


@given(st.sampled_from(MACHINES), st.integers(0, seccomp.NEWEST))
def test_exactly_the_listed_calls_are_refused(machine: str, number: int) -> None:
    program = seccomp.build(machine)
    assert program is not None
    if number in seccomp.CHECKED[machine].values():
        return
    said = decide(program, number, seccomp.AUDIT_ARCH[machine])
    names = [name for name, listed in seccomp.DENIED[machine].items() if listed == number]
    if not names:
        assert said == 0
    else:
        assert said == (errno.ENOSYS if names[0] in seccomp.ENOSYS_CALLS else errno.EPERM)


@given(st.sampled_from(MACHINES), st.integers(seccomp.NEWEST + 1, 2**31 - 1) | st.integers(-(2**31), -1))
def test_no_call_passes_because_it_is_not_known(machine: str, number: int) -> None:
    program = seccomp.build(machine)
    assert program is not None
    assert decide(program, number, seccomp.AUDIT_ARCH[machine]) == errno.ENOSYS


@given(st.sampled_from(MACHINES), st.integers(0, 500), st.integers(0, 2**32 - 1))
def test_no_call_of_another_architecture_passes(machine: str, number: int, arch: int) -> None:
    program = seccomp.build(machine)
    assert program is not None
    if arch != seccomp.AUDIT_ARCH[machine]:
        assert decide(program, number, arch) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_they_matter(machine: str) -> None:
    program, arch = seccomp.build(machine), seccomp.AUDIT_ARCH[machine]
    assert program is not None
    number = seccomp.CHECKED[machine]
    thread = 0x3D0F00  # what glibc makes threads with
    assert decide(program, number["clone"], arch, (thread,)) == 0
    assert decide(program, number["clone"], arch, (0x1200011,)) == 0  # fork
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, number["clone"], arch, (thread | bit,)) == errno.EPERM
    for family in range(64):
        for name in ("socket", "socketpair"):
            assert decide(program, number[name], arch, (family,)) == (0 if family == 1 else errno.EAFNOSUPPORT)
    looped = seccomp.build(machine, loopback=True)
    assert looped is not None
    for family in range(64):
        for protocol in range(263):
            fine = family == 1 or (family == 2 and protocol in (0, 6))
            said = decide(looped, number["socket"], arch, (family, 1, protocol))
            assert said == (0 if fine else errno.EAFNOSUPPORT)
        assert decide(looped, number["socketpair"], arch, (family,)) == (0 if family == 1 else errno.EAFNOSUPPORT)
    for command, said in ((0x5401, 0), (0x5412, errno.EPERM), (0x541C, errno.EPERM)):
        assert decide(program, number["ioctl"], arch, (0, command)) == said


def test_another_machine_has_no_filter() -> None:
    assert seccomp.build("riscv64") is None


@pytest.mark.parametrize(
    ("machine", "headers", "pattern"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
        ("aarch64", "/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
    ],
)
def test_the_numbers_are_the_kernels(machine: str, headers: str, pattern: str) -> None:
    if not Path(headers).exists():
        assert platform.system() == "Linux"
        pytest.skip(f"the kernel's headers are not installed: no {headers}")
    kernel = {name: int(number) for name, number in re.findall(pattern, Path(headers).read_text())}
    ours = seccomp.DENIED[machine] | seccomp.CHECKED[machine]
    known = {name: number for name, number in ours.items() if name in kernel}
    assert known == {name: kernel[name] for name in known}
    assert len(known) > 80
