"""What README, docs, docstrings and comments name is there: files, modules, and what is imported from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("envs", "rollout", "trainers", "verifiers")
FILES = [
    path
    for pattern in ("*.md", "docs/**/*.md", "{}/**/*.py", "examples/**/*.py", "benchmarks/**/*.py", "scripts/**/*.py")
    for folder in (("quintain", *ROOMS) if "{}" in pattern else ("",))
    for path in sorted(ROOT.glob(pattern.format(folder)))
    if path.name != "CHANGELOG.md"  # which tells of what is no more
]
A_FILE = re.compile(
    r"(?<![\w/.*-])(?:quintain|envs|rollout|trainers|verifiers|docs|benchmarks|examples|scripts)/[\w/.-]+\.(?:py|md|sh)\b"
)
A_FILE_NAME = re.compile(r"`((?:\w+/)*\w+\.py)`")
A_MODULE = re.compile(r"(?<![\w.])quintain((?:\.\w+)+)")
NO_MODULES = {"quintain.ignored", "quintain.trajectories"}  # a field of an answer, a name in a Parquet file


def named() -> Iterator[tuple[str, str]]:
    for path in FILES:
        for line in path.read_text().splitlines():
            yield from ((str(path.relative_to(ROOT)), found.group()) for found in A_FILE.finditer(line))


def test_every_file_that_is_named_is_there() -> None:
    assert len(FILES) > 300, "the source was not found"
    gone = {(where, name) for where, name in named() if not (ROOT / name).exists()}
    there = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/**/*.py")]
    for path in FILES:
        for name in A_FILE_NAME.findall(path.read_text()):
            if not any(f"/{file}".endswith(f"/{name}") for file in there):
                gone.add((str(path.relative_to(ROOT)), name))
    assert gone == set()


def test_every_module_that_is_named_is_there() -> None:
    gone = set()
    for path in FILES:
        for found in A_MODULE.finditer(path.read_text()):
            if found.group() not in NO_MODULES and not is_there(found.group(1)[1:].split(".")):
                gone.add((str(path.relative_to(ROOT)), found.group()))
    assert gone == set()


def test_every_name_that_a_page_imports_is_there() -> None:
    imports = [
        (page.name, module, name.strip())
        for page in FILES
        if page.suffix == ".md"
        for module, names in re.findall(r"^from (quintain[\w.]*) import ([\w, ]+)$", page.read_text(), re.MULTILINE)
        for name in names.split(",")
    ]
    assert len(imports) > 10, "the pages were not found"
    assert [shown for shown in imports if not hasattr(import_module(shown[1]), shown[2])] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_table_of_the_rooms_names_folders_that_are_there(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)/` \| `quintain[.\w]*` \| (.*) \|$", (ROOT / page).read_text(), re.MULTILINE)
    assert [room for room, _ in rows] == ["quintain", "verifiers", "envs", "rollout", "trainers"]
    named = {f"{room}/{folder}" for room, text in rows for folder in re.findall(r"`(\w+)/`", text)}
    assert {folder for folder in named if not (ROOT / folder).is_dir()} == set()


def is_there(parts: list[str]) -> bool:
    """Whether the dotted name leads to a module, or to a name that a package's `__init__` mentions."""
    at = ROOT if parts[0] in ROOMS else ROOT / "quintain"
    for part in parts:
        if (at / part).is_dir():
            at = at / part
            continue
        init = at / "__init__.py"
        return (at / f"{part}.py").exists() or (
            init.exists() and re.search(rf"\b{part}\b", init.read_text()) is not None
        )
    return True
