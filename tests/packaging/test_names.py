"""A public class name means one thing in the whole product."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("quintain", "envs", "rollout", "trainers", "verifiers")


def test_no_two_modules_define_a_public_class_of_the_same_name() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    assert len(homes) > 300, "the source was not found"
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
