"""Control groups of both versions: where they are found, what is written, what is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quintain.verifiers.sandbox import cgroups
from quintain.verifiers.sandbox.cgroups import Hierarchy, SlotGroup, hierarchies

HYBRID_MOUNTS = """\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / {root}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / {root}/memory rw,relatime shared:9 - cgroup cgroup rw,memory
33 30 0:29 / {root}/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / {root}/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_GROUPS = "4:memory:/jobs/7\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n"


def test_a_hybrid_machine_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("hugetlb\n")
    found = hierarchies(HYBRID_MOUNTS.format(root=tmp_path), HYBRID_GROUPS)
    assert found == [
        Hierarchy(tmp_path / "memory" / "jobs" / "7", frozenset({"memory"}), 1),
        Hierarchy(tmp_path / "cpu", frozenset({"cpu"}), 1),
        Hierarchy(tmp_path / "unified", frozenset(), 2),
    ]


def test_a_container_sees_its_own_part_of_the_tree(tmp_path: Path) -> None:
    mounts = f"32 30 0:28 /docker/abc {tmp_path} rw - cgroup cgroup rw,memory\n"
    assert hierarchies(mounts, "4:memory:/docker/abc/in\n") == [Hierarchy(tmp_path / "in", frozenset({"memory"}), 1)]
    assert hierarchies(mounts, "4:memory:/elsewhere\n") == []


def test_a_machine_of_version_2_has_one_tree(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = hierarchies(f"34 30 0:30 / {tmp_path} rw - cgroup2 cgroup2 rw\n", "0::/user\n")
    assert found == [Hierarchy(tmp_path / "user", frozenset({"cpu", "memory", "pids"}), 2)]


def group_of(folder: Path, version: int) -> SlotGroup:
    return SlotGroup(dict.fromkeys(("memory", "pids", "cpu"), (folder, version)))


def test_limits_of_version_2_are_written_once(tmp_path: Path) -> None:
    group = group_of(tmp_path, 2)
    group.limit(1000, 7)
    (tmp_path / "memory.max").unlink()
    group.limit(1000, 8)
    assert (tmp_path / "pids.max").read_text() == "8"
    assert not (tmp_path / "memory.max").exists()
    group.limit(2000, 8)
    assert (tmp_path / "memory.max").read_text() == "2000"
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 5\noom_group_kill 0\n")
    assert (group.out_of_memory(), group.peak_bytes()) == (5, 0)
    group.reset_peak()
    group.adopt(42)
    assert (tmp_path / "cgroup.procs").read_text() == "42"


def test_limits_of_version_1_are_written_with_swap(tmp_path: Path) -> None:
    (tmp_path / "memory.memsw.limit_in_bytes").touch()
    (tmp_path / "memory.max_usage_in_bytes").write_text("1234")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    group = group_of(tmp_path, 1)
    group.limit(1000, 7)
    assert (tmp_path / "memory.limit_in_bytes").read_text() == "1000"
    assert (tmp_path / "memory.memsw.limit_in_bytes").read_text() == "1000"
    assert (group.out_of_memory(), group.peak_bytes()) == (3, 1234)
    before = len(os.listdir("/proc/self/fd"))
    group.remove()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert group.controls == frozenset()


def test_without_control_groups_nothing_is_in_force_and_nothing_fails(tmp_path: Path) -> None:
    group = cgroups.make("quintain-x", [Hierarchy(tmp_path / "missing", frozenset({"memory"}), 1)])
    assert group.controls == frozenset()
    group.limit(1, 1)
    group.reset_peak()
    group.adopt(1)
    assert (group.out_of_memory(), group.peak_bytes()) == (0, 0)
    group.remove()


def test_a_folder_that_is_no_control_group_is_not_taken_for_one(tmp_path: Path) -> None:
    group = cgroups.make("quintain-x", [Hierarchy(tmp_path, frozenset({"memory"}), 1)])
    assert group.controls == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_groups_of_dead_services_are_swept_and_others_stay(tmp_path: Path) -> None:
    dead = max(int(name) for name in os.listdir("/proc") if name.isdigit()) + 4_000_000
    names = [f"quintain-{dead}-ab-0", f"quintain-{os.getpid()}-ab-0", "quintain-words", "other"]
    for name in names:
        (tmp_path / name).mkdir()
    cgroups.sweep([Hierarchy(tmp_path, frozenset({"memory"}), 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user cannot make control groups here")
def test_a_real_group_bounds_a_real_process() -> None:
    group = cgroups.make(cgroups.group_name(os.getpid(), "test", 0), cgroups.own())
    try:
        if "memory" in group.controls:
            group.limit(64 << 20, 10)
            assert group.out_of_memory() == 0
            assert group.peak_bytes() < 64 << 20
        assert group.controls <= {"memory", "pids", "cpu"}
    finally:
        group.remove()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/quintain-{os.getpid()}-test-0"))
