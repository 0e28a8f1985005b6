"""What stands between an answer and `eval`.

Some of reasoning-gym's scorers hand the model's answer to Python's `eval`, others to sympy's `parse_expr`, which does
the same behind a translation: an answer could run any programme. `install` puts functions of the same meaning in
their place, which evaluate only what is allowed by name:
- `arithmetic`, for reasoning-gym's own modules: literals and arithmetic, no name, call or attribute;
- `mathematics`, for sympy's parser: also symbols and the elementary functions, as the parser writes them.
Everything else raises ValueError, which to a scorer is an answer that cannot be read.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from typing import Any, Final

MAX_SOURCE_CHARS: Final = 20_000

_ARITHMETIC: Final = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Load, ast.UnaryOp, ast.BinOp,
    ast.operator, ast.unaryop,
)  # fmt: skip
_MATHEMATICS: Final = (*_ARITHMETIC, ast.Name, ast.Call)
_NAMES: Final = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "pi", "E", "I", "oo", "exp", "log", "ln", "sqrt", "cbrt", "Abs", "sign"}
    | {"factorial", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "atan2"}
    | {"sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh", "acosh", "atanh", "acoth", "erf", "gamma"}
)


def arithmetic(source: Any, names: Any = None, more_names: Any = None) -> Any:
    """The value of `source`, which has literals and arithmetic only."""
    return _evaluated(source, _ARITHMETIC, {}, {})


def mathematics(source: Any, names: Mapping[str, Any], more_names: Mapping[str, Any] | None = None) -> Any:
    """The value of what sympy's parser made of an expression: symbols, numbers and elementary functions."""
    known = {name: names[name] for name in _NAMES if name in names}
    return _evaluated(source, _MATHEMATICS, known, dict(more_names or {}))


def install() -> None:
    """Put the guards in the place of `eval`, in all of reasoning-gym's modules and in sympy's parser."""
    from sympy.parsing import sympy_parser

    vars(sympy_parser)["eval"] = mathematics
    for name, module in list(sys.modules.items()):
        if name == "reasoning_gym" or name.startswith("reasoning_gym."):
            vars(module)["eval"] = arithmetic


def _evaluated(source: Any, allowed: tuple[type, ...], names: dict[str, Any], more: dict[str, Any]) -> Any:
    if not isinstance(source, str) or len(source) > MAX_SOURCE_CHARS:
        raise ValueError("only a text of moderate length is evaluated")
    tree = ast.parse(source.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            raise ValueError(f"a {type(node).__name__} is not evaluated")
        if isinstance(node, ast.Name) and node.id not in names and node.id not in more:
            raise ValueError(f"the name {node.id!r} is not evaluated")
    return eval(compile(tree, "<answer>", "eval"), {"__builtins__": {}, **names}, more)
