"""What a user gets: the wheel and the sdist are built, looked into, and the wheel is installed by itself.

The build works on a copy of the repository: it leaves nothing behind, and nothing left behind slips into it.
The clean environment gets the base install (no extra) through the machine's own pip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "quintain": "quintain",
    "envs": "quintain/envs",
    "rollout": "quintain/rollout",
    "trainers": "quintain/trainers",
    "verifiers": "quintain/verifiers",
}
BESIDE = ("tests", "examples", "benchmarks", "scripts", "docs")
# What lies at the top of a repository in use but is no part of it, as .gitignore says; elsewhere only caches.
NOT_SOURCE = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "models",
    "runs",
    "build",
    "dist",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
)
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc")


def not_source(folder: str, names: list[str]) -> set[str]:
    return (NOT_SOURCE if Path(folder) == ROOT else CACHES)(folder, names)


@dataclass(frozen=True, slots=True)
class Built:
    source: Path  # the copy that was built
    wheel: Path
    sdist: Path
    log: str


@dataclass(frozen=True, slots=True)
class Installed:
    bin: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.bin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = tmp_path_factory.mktemp("source") / "quintain"
    shutil.copytree(ROOT, source, ignore=not_source)
    out = tmp_path_factory.mktemp("dist")
    # The wheel is built from the sdist, so this also shows that the sdist is complete.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return Built(source, wheel, sdist, result.stdout + result.stderr)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", str(built.wheel)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return Installed(place / "bin")


def files_below(source: Path, *folders: str) -> set[str]:
    return {
        path.relative_to(source).as_posix()
        for folder in folders
        for path in (source / folder).rglob("*")
        if path.is_file()
    }


def test_every_file_of_the_rooms_is_in_the_wheel_under_its_import_name(built: Built) -> None:
    expected = {
        re.sub(r"^[^/]+", ROOMS[name.split("/")[0]], name, count=1) for name in files_below(built.source, *ROOMS)
    }
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_every_folder_with_code_is_a_package_and_is_declared_as_one(built: Built) -> None:
    with_code = {path.parent for room in ROOMS for path in (built.source / room).rglob("*.py")}
    assert [str(folder) for folder in with_code if not (folder / "__init__.py").is_file()] == []
    # setuptools would pack an undeclared package as data all the same, with this warning.
    assert "is absent from the `packages` configuration" not in built.log


def test_the_sdist_has_the_rooms_the_tests_and_everything_beside_them(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert files_below(built.source, *ROOMS, *BESIDE) - packed == set()
    top = {path.name for path in built.source.iterdir() if path.is_file()} | {".ci/run"}
    assert top - packed == set()


def test_the_wheel_names_its_licence_its_python_and_no_torch_in_the_base(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert base
    assert not any(re.search(r"torch|transformers|trl|sympy", line) for line in base)
    extras = set(re.findall(r"Provides-Extra: (\S+)", metadata))
    verifiers = {"math", "schema", "ifeval", "reasoning-gym"}
    assert extras == verifiers | {"renderers", "train", "vllm", "docker", "mcp", "textarena", "dev", "all"}


def test_the_base_install_has_no_torch(installed: Installed) -> None:
    for absent in ("torch", "transformers", "trl", "math_verify"):
        result = installed.run("python", "-c", f"import {absent}")
        assert f"No module named '{absent}'" in result.stderr


@pytest.mark.parametrize("room", sorted(name.replace("/", ".") for name in ROOMS.values()))
def test_a_room_can_be_imported_from_the_base_install_and_is_typed(installed: Installed, room: str) -> None:
    code = f"import {room}, pathlib; print(pathlib.Path({room}.__file__).with_name('py.typed').is_file())"
    result = installed.run("python", "-c", code)
    assert result.stdout == "True\n", result.stderr


def test_every_module_of_core_environments_and_verifiers_imports_in_the_base_install(
    installed: Installed,
) -> None:
    """What asks for an extra is a module of its own: parts of four verifiers, and a training run."""
    code = """
import importlib, pkgutil, quintain
imported, lacking = [], []
def walk(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.name in {"quintain.rollout", "quintain.trainers"} or found.name.endswith("__main__"):
            continue
        try:
            imported.append(importlib.import_module(found.name))
        except ModuleNotFoundError as error:
            lacking.append(f"{found.name}: {error.name}")
            continue
        if found.ispkg:
            walk(imported[-1])
walk(quintain)
print(len(imported), *lacking, sep="\\n")
"""
    result = installed.run("python", "-c", code)
    assert result.returncode == 0, result.stderr
    count, *lacking = result.stdout.splitlines()
    assert int(count) > 10
    allowed = re.compile(
        r"quintain\.verifiers\.math(\.\w+)+: (mpmath|sympy|math_verify|latex2sympy2_extended)(\.\w+)*"
        r"|quintain\.verifiers\.rules\.json_schema\.(check|schema): jsonschema"
        r"|quintain\.verifiers\.rules\.reasoning_gym\.score: reasoning_gym"
        r"|quintain\.verifiers\.models\.reward_model\.classifier: torch"
        r"|quintain\.launch\.session: torch"
    )
    assert [line for line in lacking if not allowed.fullmatch(line)] == []


def test_the_version_is_the_same_in_the_wheel_and_in_the_package(built: Built, installed: Installed) -> None:
    result = installed.run("python", "-c", "import quintain; print(quintain.__version__)")
    assert built.wheel.name.split("-")[1] == result.stdout.strip()


def test_the_installed_command_shows_its_help(installed: Installed) -> None:
    result = installed.run("quintain", "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: quintain" in result.stdout
    for command in ("train", "eval", "env", "verify", "config"):
        assert re.search(rf"^\s+{command}\b", result.stdout, re.MULTILINE), f"{command} is not in the help"
