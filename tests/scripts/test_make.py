"""The Makefile and the shell scripts behind it, run for real; only the programs they call are stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("dockerd", "g++", "node", "bwrap")  # what shows that the packages are there
COLOURED = re.compile(r"^\033\[1;33mLEFT OUT: bubblewrap is missing.*\033\[0m$", re.MULTILINE)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Machine:
    """A copy of the scripts on a machine with a handful of programs, none of the packages and a pretended pytest."""

    def __init__(self, place: Path, *, root: bool, vllm: int = 0) -> None:
        self.place, self.vllm = place, vllm
        self.bin = place / "bin"
        shutil.copytree(ROOT / "scripts", place / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("sh", "cat", "chmod", "cut", "dirname", "mktemp", "paste", "rm", "sed", "tail"):
            found = shutil.which(name)
            assert found is not None, name
            self.bin.mkdir(exist_ok=True)
            (self.bin / name).symlink_to(found)
        executable(self.bin / "id", f"echo {0 if root else 1000}")
        self.pytest_exits_with(0)

    def pytest_exits_with(self, code: int) -> None:
        vllm = f'case "$1" in *setup_vllm.py) echo "$1" >&2; exit {self.vllm} ;; esac'
        executable(self.place / ".venv" / "bin" / "python", f'{vllm}\necho "pytest got: $*"\nexit {code}')

    def test(self, *arguments: str, which: str = "all", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "scripts/run_tests.sh", which, *arguments],
            cwd=self.place,
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def chosen(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The marks that each call of pytest was given."""
    return re.findall(r" --dist loadfile -m (.*)$", result.stdout, re.MULTILINE)


def test_without_root_the_missing_package_is_named_in_colour_after_the_tests(tmp_path: Path) -> None:
    result = Machine(tmp_path, root=False).test()
    assert result.returncode == 0
    assert " and not needs_bubblewrap" in result.stdout
    assert COLOURED.search(result.stdout.splitlines()[-1])
    assert "tests of the sandbox benchmark are left out" in result.stdout


def test_no_colour_is_used_where_the_user_wants_none(tmp_path: Path) -> None:
    result = Machine(tmp_path, root=False).test(NO_COLOR="1")
    assert "\033" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("LEFT OUT: bubblewrap is missing")


def test_as_root_with_apt_the_package_is_installed_and_no_test_is_left_out(tmp_path: Path) -> None:
    machine = Machine(tmp_path, root=True)
    every = " ".join(str(machine.bin / name) for name in PROGRAMS)
    executable(
        machine.bin / "apt-get",
        f'[ "$1" = install ] || exit 0\nfor each in {every}; do : > $each; chmod +x $each; done',
    )
    result = machine.test()
    assert result.returncode == 0
    assert "installing docker.io" in result.stderr
    there = "slow and needs_vllm -o testpaths=tests/rollout/vllm"
    assert chosen(result) == ["not slow", "slow and not needs_vllm", there]
    assert "LEFT OUT" not in result.stdout


def test_quick_and_slow_are_the_two_halves_of_all(tmp_path: Path) -> None:
    machine = Machine(tmp_path, root=True)
    for name in PROGRAMS:
        executable(machine.bin / name, "")
    quick, slow = machine.test(which="quick"), machine.test(which="slow")
    assert (quick.returncode, slow.returncode) == (0, 0)
    assert chosen(quick) + chosen(slow) == chosen(machine.test(which="all"))
    assert "setup_vllm" not in quick.stdout + quick.stderr
    assert "setup_vllm" in slow.stdout + slow.stderr
    wrong = machine.test(which="fast")
    assert (wrong.returncode, wrong.stderr) == (2, "run_tests: expected quick, slow or all, got 'fast'\n")


def test_an_apt_that_fails_leaves_tests_out_but_does_not_stop_the_others(tmp_path: Path) -> None:
    machine = Machine(tmp_path, root=True)
    executable(machine.bin / "apt-get", 'echo "E: no network"; exit 100')
    result = machine.test()
    assert result.returncode == 0
    assert "E: no network" in result.stderr
    assert " and not needs_bubblewrap" in result.stdout


def test_where_vllm_cannot_be_had_its_tests_are_left_out_loudly_and_the_others_run(tmp_path: Path) -> None:
    result = Machine(tmp_path, root=False, vllm=1).test()
    assert result.returncode == 0
    (quick, slow) = chosen(result)
    assert quick.startswith("not slow and not needs_")
    assert slow.startswith("slow and not needs_vllm and not needs_")
    assert "LEFT OUT: vLLM's environment could not be made" in result.stdout.splitlines()[-1]


def test_a_failing_suite_fails_the_script_also_when_tests_were_left_out(tmp_path: Path) -> None:
    machine = Machine(tmp_path, root=False)
    machine.pytest_exits_with(3)
    assert machine.test().returncode == 3


def test_only_when_no_part_has_a_test_is_there_nothing_to_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path, root=False)
    python = machine.place / ".venv" / "bin" / "python"
    machine.pytest_exits_with(5)
    assert machine.test().returncode == 5
    executable(python, 'case "$*" in *"and needs_vllm"*) exit 0 ;; *setup_vllm*) exit 0 ;; esac\nexit 5')
    assert machine.test().returncode == 0
    executable(python, 'case "$*" in *"and needs_vllm"*) exit 1 ;; esac\nexit 0')
    assert machine.test().returncode == 1


def test_arguments_and_the_number_of_workers_reach_pytest(tmp_path: Path) -> None:
    result = Machine(tmp_path, root=False).test("tests/envs", "-x", WORKERS="4")
    assert result.stdout.count("-n 4 ") == 2  # and 2 where vLLM's servers take every core
    assert "tests/envs -x" in result.stdout


def test_the_tests_of_a_file_run_on_one_of_several_workers(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    test = "import os, pytest\n@pytest.mark.parametrize('at', range(9))\ndef test_it(at):\n    "
    for name in ("one", "other"):
        (tmp_path / f"test_{name}.py").write_text(f"{test}print(os.getpid(), file=open({name!r}, 'a'))\n")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", "--dist", "loadfile"]
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=environ, check=True)
    one, other = ((tmp_path / name).read_text().split() for name in ("one", "other"))
    assert (len(one), len(set(one)), len(other), len(set(other))) == (9, 1, 9, 1)


def test_every_test_against_real_vllm_is_where_the_suite_looks_for_it() -> None:
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.needs_vllm", file.read_text())]
    assert {file.parent.relative_to(ROOT).as_posix() for file in marked} == {"tests/rollout/vllm"}


def test_every_marker_of_a_system_package_is_known_to_pytest() -> None:
    script = (ROOT / "scripts" / "system_packages.sh").read_text()
    markers = set(re.findall(r"needs_\w+", script))
    assert markers
    for marker in markers:
        assert f'"{marker}: ' in (ROOT / "pyproject.toml").read_text()


def test_make_without_a_target_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert re.findall(r"^  make (\S+) +\S", result.stdout, re.MULTILINE) == phony.group(1).split()


def test_make_clean_spares_the_environment_the_model_and_the_results(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    kept = [
        ".venv/lib/__pycache__/a.pyc",
        "models/m/model.safetensors",
        "runs/r/summary.json",
        "envs/builtin/math.py",
    ]
    gone = ["build/lib/x.py", "dist/x.whl", "quintain.egg-info/PKG-INFO", "envs/__pycache__/a.pyc"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, timeout=60)
    assert {name for name in kept + gone if (tmp_path / name).exists()} == set(kept)


@pytest.mark.parametrize("failing", ["lint", "types", "model", "test", "test-slow", None])
def test_ci_runs_every_step_and_fails_when_any_of_them_does(tmp_path: Path, failing: str | None) -> None:
    steps = ["venv", "lint", "types", "model", "test", "test-slow"]
    rules = [f"{name}:\n\t@echo did {name}; {'false' if name == failing else 'true'}" for name in steps]
    (tmp_path / "Makefile").write_text("\n".join([f".PHONY: {' '.join(steps)}", *rules, ""]))
    (tmp_path / ".ci").mkdir()
    shutil.copy2(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    result = subprocess.run(
        ["bash", ".ci/run"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL"}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    done = re.findall(r"^did (\S+)", result.stdout, re.MULTILINE)
    assert [done[0], *sorted(done[1:4], key=steps.index), *done[4:]] == steps  # these three at once
    assert result.returncode == (0 if failing is None else 1)
    assert ("CI passed" in result.stdout) is (failing is None)
