"""The table of attacks, as items for the code verifier. Each family is a YAML file in `table/`.

An attack is `code` (or `text`, a whole answer) that defines `secret`, which function tests and project tests call with
3 and which must give 8173; as a program for stdio cases it must print that. No attack knows that number. One with
`escape: true` defines `attack` instead, which gives something true, without raising OSError, if it got out: then it
answers "escaped", which is what its tests ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quintain.verifiers import Item

TABLE = Path(__file__).with_name("table")
KINDS = ("function", "stdio")
HIDDEN = 8173
LONG_SOURCES = {
    "parentheses": "x = " + "(" * 100_000,
    "minus_signs": "x = " + "-" * 200_000 + "1",
    "attributes": "x = x" + ".a" * 200_000,
}
ESCAPE = """
def secret(x):
    try:
        return "escaped" if attack() else "held"
    except OSError:
        return "held"
"""


PROJECT = """
from solution import secret
import unittest


def test_secret():
    assert secret(3) == {expected!r}


class TestSecret(unittest.TestCase):
    def test_it(self):
        self.assertEqual(secret(3), {expected!r})
"""


LIMITED = ("function", "stdio")
"""Kinds of tests that may bound their own time."""


@dataclass(frozen=True)
class Attack:
    """One attack in one kind of test. `out` says that it is about getting out."""

    name: str
    kind: str
    answer: str
    out: bool

    def item(self, port: int = 0) -> Item:
        """What the verifier is asked; `port` is where something on the host listens."""
        reference = reference_of(self.kind, "escaped" if self.out else HIDDEN)
        if self.kind in LIMITED:  # it takes no longer, and the honest beside it have the verifier's own patience
            reference["limits"] = {"wall_s": 1.5}
        return Item(self.answer.replace("PORT", str(port)), reference)


def reference_of(kind: str, expected: object) -> dict[str, Any]:
    """Tests that `expected` passes."""
    if kind == "function":
        body = (
            f"def check(candidate):\n    assert candidate(3) == {expected!r}\n    assert candidate(3) == {expected!r}\n"
        )
        return {"kind": kind, "entry_point": "secret", "tests": body}
    if kind == "stdio":
        return {"kind": kind, "cases": [{"stdin": "3\n", "stdout": f"{expected}\n"}]}
    test = PROJECT.format(expected=expected)
    ids = ["test_solution.py::test_secret", "test_solution.py::TestSecret::test_it"]
    return {"kind": "pytest", "files": {"test_solution.py": test}, "tests": ids}


def right_answer(kind: str) -> Item:
    """An honest item."""
    code = "def secret(x):\n    return 8173\n" if kind != "stdio" else "input()\nprint(8173)\n"
    return Item(f"```python\n{code}```\n", reference_of(kind, HIDDEN))


def attacks(kind: str) -> list[Attack]:
    """Every attack that there is in `kind`."""
    found: list[Attack] = []
    for path in sorted(TABLE.glob("*.yaml")):
        family = yaml.safe_load(path.read_text())
        for entry in family["attacks"]:
            if kind in entry.get("kinds", family.get("kinds", KINDS)):
                found += variants(path.stem, entry, kind)
    return found


def variants(family: str, entry: dict[str, Any], kind: str) -> Iterator[Attack]:
    """The attack, or one for `each` of its bodies."""
    out = entry.get("escape", False)
    name = f"{family}-{entry['name']}"
    if "text" in entry:
        yield Attack(name, kind, entry["text"], out)
        return
    code = LONG_SOURCES[entry["generated"]] if "generated" in entry else entry["code"]
    if out:
        code += ESCAPE + ("print(secret(3))\n" if kind == "stdio" else "")
    for number, body in enumerate(entry.get("each", [None])):
        source = code if body is None else code.replace("BODY", repr(body))
        yield Attack(name if body is None else f"{name}-{number}", kind, f"```python\n{source}\n```\n", out)
