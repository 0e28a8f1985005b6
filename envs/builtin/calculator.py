"""Arithmetic that a small model cannot do in its head, with a calculator: the simplest task that needs a tool.

What always holds: the questions are those of `math` with larger numbers (the same options, the same splits); a correct
final answer gets 1.0 from the math verifier, whether a tool was called or not, and any other 0.0. The calculator
evaluates numbers, + - * / and parentheses, exactly and within bounds, and nothing else: no names, no calls, no powers.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Final

from quintain.envs.builtin.math import MathEnv
from quintain.envs.tools import ToolEnv, tool
from quintain.task import TaskSource

MAX_CHARS: Final = 200
MAX_BITS: Final = 1000
"""Of a numerator or denominator on the way: about 300 digits, so that every result is a float as well."""
KNOWN: Final = "an expression has numbers, + - * / and parentheses, and nothing else"
_SIGNS: Final[Mapping[type, Callable[[Fraction], Fraction]]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_OPERATIONS: Final[Mapping[type, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class CalculatorEnv(ToolEnv):
    """Arithmetic with a calculator: "What is 4821 * 977?"; reward 1 for a correct final answer."""

    splits = ("train", "heldout")
    verifier = "math"
    system = "Use the tool calculate for arithmetic. When you know the result, answer with the number."
    max_calls = 4

    @classmethod
    def tasks(
        cls,
        split: str,
        *,
        operations: str = "+-*",
        low: int = 100,
        high: int = 9999,
        heldout: int = 200,
        seed: int = 0,
    ) -> TaskSource:
        """The tasks of `split`: `operations` are any of + - *, the operands whole numbers from `low` to `high`."""
        return MathEnv.tasks(split, operations=operations, low=low, high=high, heldout=heldout, seed=seed)

    @tool
    def calculate(self, expression: str) -> str:
        """Calculate an arithmetic expression.

        Args:
            expression: Numbers, + - * / and parentheses, such as "12 * (3 + 4)".
        """
        return calculated(expression)


def calculated(expression: str) -> str:
    """The value of `expression`: a whole number exactly, any other to 12 digits. Raises ValueError, one line."""
    if len(expression) > MAX_CHARS:
        raise ValueError(f"an expression has at most {MAX_CHARS} characters, not {len(expression)}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"{expression!r} cannot be read: {KNOWN}") from None
    value = _value(tree.body)
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.12g}"


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if type(number) is not bool and math.isfinite(number):
            value = Fraction(repr(number))  # of the digits that were written: 0.1 is a tenth
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            value = _SIGNS[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            a, b = _value(left), _value(right)
            if isinstance(operation, ast.Div) and not b:
                raise ValueError("a division by zero")
            value = _OPERATIONS[type(operation)](a, b)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} cannot be calculated: {KNOWN}")
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ValueError("a number on the way has more than 300 digits")
    return value
