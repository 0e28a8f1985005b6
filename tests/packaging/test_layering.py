"""Who may import whom (design, section 2), read from the source itself.

The graph has every import statement of the five rooms: those at module level, which run on import, and the
*late* ones inside functions or under TYPE_CHECKING, which do not. A dependency is a dependency either way, so
the rules about rooms count both; the rules about what an import loads follow only the first kind.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "quintain": "quintain",
    "quintain.envs": "envs",
    "quintain.rollout": "rollout",
    "quintain.trainers": "trainers",
    "quintain.verifiers": "verifiers",
}
# Cumulative but for one line: a trainer never imports an environment.
MAY_IMPORT = {
    "core": {"core"},
    "verifiers": {"core", "verifiers"},
    "envs": {"core", "verifiers", "envs"},
    "rollout": {"core", "verifiers", "envs", "rollout"},
    "trainers": {"core", "verifiers", "rollout", "trainers"},
    "top": {"core", "verifiers", "envs", "rollout", "trainers", "top"},
}
TOP = (
    "quintain.cli",
    "quintain.evaluation",
    "quintain.launch",
    "quintain.__main__",
)  # the leaves: they see all, nobody sees them
LEARNING = {"accelerate", "datasets", "peft", "torch", "transformers", "trl"}
SERVING = {"starlette", "uvicorn"}
REWARD_MODEL = (
    "quintain.verifiers.models.reward_model.classifier"  # a model on this machine: the one verifier with torch
)
HEAVY = LEARNING | SERVING | {"gymnasium", "httpx", "matplotlib", "pandas", "sympy", "websockets"}


@dataclass(frozen=True, slots=True)
class Import:
    importer: str
    target: str  # a module of ours by its full name, anything else by its first part
    late: bool
    place: str


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = path
    return found


def named_by(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name that the statement may import: for `from a import b` both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    origin = node.module or ""
    if node.level:
        parents = module.split(".")
        here = parents[: len(parents) - node.level + (1 if is_package else 0)]
        origin = ".".join((*here, *filter(None, [node.module])))
    yield origin
    yield from (f"{origin}.{alias.name}" for alias in node.names)


def statements(tree: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, late
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, late=True)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from statements(ast.Module([child], []), late=True)
            for child in node.orelse:
                yield from statements(ast.Module([child], []), late)
        else:
            yield from statements(node, late)


@cache
def imports() -> list[Import]:
    """Of all modules: read by the test that asks first, and not by whoever only collects."""
    found = []
    for module, path in modules().items():
        for node, late in statements(ast.parse(path.read_text())):
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            for name in named_by(node, module, path.name == "__init__.py"):
                if name.split(".")[0] != "quintain":
                    found.append(Import(module, name.split(".")[0], late, place))
                elif name in modules():
                    found.append(Import(module, name, late, place))
    return found


def room_of(module: str) -> str:
    if module in TOP or module.startswith(tuple(f"{top}." for top in TOP)):
        return "top"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and f"quintain.{parts[1]}" in FOLDERS else "core"


def loaded_by(module: str) -> set[str]:
    """What `import module` loads, followed through our own modules and their parent packages."""
    loaded: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        if name in loaded:
            continue
        loaded.add(name)
        if name in modules():
            waiting |= {step.target for step in imports() if step.importer == name and not step.late}
            waiting |= {name.rpartition(".")[0]} - {""}
    return loaded


def loads_after(statement: str, names: set[str]) -> set[str]:
    """Which of `names` a fresh interpreter has loaded after the statement, run far from the repository."""
    code = f"import sys\n{statement}\nprint(*(name for name in {sorted(names)!r} if name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_the_graph_knows_all_five_rooms_and_real_edges() -> None:
    assert {room_of(module) for module in modules()} == set(MAY_IMPORT)
    assert any(step.importer == "quintain.verdict" and step.target == "quintain.failure" for step in imports())
    assert any(step.target == "torch" and room_of(step.importer) == "trainers" for step in imports())


def test_late_imports_and_relative_ones_are_told_apart_and_resolved() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "from . import sibling\n"
        "from ..verdict import Verdict\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "class A:\n    import numpy\n    def f(self):\n        import sympy\n"
    )
    late = {ast.unparse(node): late for node, late in statements(ast.parse(source))}
    assert late == {
        "from typing import TYPE_CHECKING": False,
        "from . import sibling": False,
        "from ..verdict import Verdict": False,
        "import torch": True,
        "import numpy": False,
        "import sympy": True,
    }
    sibling, verdict = (node for node, _ in statements(ast.parse(source)) if getattr(node, "level", 0))
    assert list(named_by(sibling, "quintain.envs.gym", False)) == ["quintain.envs", "quintain.envs.sibling"]
    assert "quintain.envs.sibling" in named_by(sibling, "quintain.envs", True)
    assert "quintain.verdict" in named_by(verdict, "quintain.envs.gym", False)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_the_design_lets_it(room: str) -> None:
    wrong = {
        f"{step.place}: {room} imports {step.target}"
        for step in imports()
        if room_of(step.importer) == room and step.target in modules() and room_of(step.target) not in MAY_IMPORT[room]
    }
    assert wrong == set()


@pytest.mark.parametrize(("room", "beneath"), [("rollout", "envs"), ("trainers", "rollout")])
def test_a_room_uses_only_the_client_side_of_the_room_beneath_it(room: str, beneath: str) -> None:
    wrong = {
        f"{step.place}: {step.target} loads {sorted(loaded_by(step.target) & SERVING)}"
        for step in imports()
        if room_of(step.importer) == room
        and step.target in modules()
        and room_of(step.target) == beneath
        and loaded_by(step.target) & SERVING
    }
    assert wrong == set()


def test_environments_verifiers_and_the_core_never_import_torch_not_even_late_but_for_the_reward_model() -> None:
    wrong = {
        f"{step.place}: imports {step.target}"
        for step in imports()
        if room_of(step.importer) in {"core", "verifiers", "envs"}
        and step.importer != REWARD_MODEL
        and step.target in LEARNING
    }
    assert wrong == set()


@pytest.mark.parametrize("module", ["quintain", "quintain.envs", "quintain.verifiers", "quintain.cli"])
def test_nothing_heavy_can_be_reached_from_what_must_import_quickly(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


HELP = """
from quintain.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "statement",
    ["import quintain", "import quintain.envs", "import quintain.verifiers", "import quintain.cli", HELP],
    ids=["quintain", "quintain.envs", "quintain.verifiers", "quintain.cli", "quintain --help"],
)
def test_nothing_heavy_is_loaded_by_a_fresh_interpreter(statement: str) -> None:
    assert loads_after(statement, HEAVY) == set()


@pytest.mark.parametrize("names", ["Action, Environment, Observation, Step", "SingleTurnEnv, Task, Verdict"])
def test_writing_an_environment_loads_nothing_heavy(names: str) -> None:
    assert loads_after(f"from quintain.envs import {names}", HEAVY) == set()


def test_the_http_client_loads_no_server_and_no_learning() -> None:
    assert loads_after("from quintain.envs import RemoteEnv", LEARNING | SERVING | {"sympy", "gymnasium"}) == set()


@pytest.mark.parametrize("room", ["quintain.rollout", "quintain.trainers"])
def test_rooms_that_need_torch_can_be_looked_into_without_loading_it(room: str) -> None:
    assert loads_after(f"import {room}", LEARNING) == set()


def test_every_module_of_the_rooms_says_what_it_is_for() -> None:
    silent = {
        str(path.relative_to(ROOT))
        for path in modules().values()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    }
    assert silent == set()


def test_one_file_makes_every_http_client() -> None:
    """So none of them asks a proxy for this machine."""
    made = {"AsyncClient", "Client", "AsyncHTTPTransport", "get", "post", "put", "delete", "request", "stream"}
    found = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in made) == ("httpx", True)
    }
    assert found == {"quintain.calling.connections"}
