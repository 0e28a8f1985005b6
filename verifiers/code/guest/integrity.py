"""Whether code that judges is still what it was: a fingerprint of the functions of some modules.

What always holds: functions and the methods of classes count, by identity of their code; data does not.
"""

from __future__ import annotations

import sys
import types
from typing import Any

WATCHED = (
    *(
        "_pytest.runner",
        "_pytest.reports",
        "_pytest.python",
        "_pytest.python_api",
        "_pytest.raises",
        "_pytest.outcomes",
    ),
    *("_pytest.skipping", "_pytest.main", "_pytest.nodes", "_pytest.unittest", "_pytest.assertion.rewrite"),
    *("_pytest.assertion.util", "_pytest.assertion", "_pytest._code.code", "pluggy._callers", "pluggy._hooks"),
    *("pluggy._manager", "pluggy._result", "unittest.case", "json", "json.encoder", "os", "builtins"),
)


def fingerprint() -> dict[str, Any]:
    """Every function and method of the watched modules, by its name."""
    found: dict[str, Any] = {}
    for module_name in WATCHED:
        module = sys.modules.get(module_name)
        if module is None:
            continue
        for name, value in list(vars(module).items()):
            found[f"{module_name}.{name}"] = _mark(value)
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    found[f"{module_name}.{name}.{attribute}"] = _mark(member)
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names that stand for something else now, or for nothing."""
    return sorted(name for name, mark in before.items() if mark is not None and after.get(name) is not mark)


def _mark(value: Any) -> Any:
    """What must stay the same: the code of a function, or the builtin function itself."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return value.__code__
    return value if isinstance(value, types.BuiltinFunctionType) else None
