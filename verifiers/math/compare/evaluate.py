"""The values of trees, to as many digits as one asks for.

What always holds:
- no value overflows or underflows into another: exponents are unbounded, and what would take too much memory or
  time is `Undecided` before it is computed;
- in the real numbers a root or logarithm outside its domain is `Undefined`, never silently complex;
- odd roots of negative numbers are real there (`\\sqrt[3]{-8}` is -2), and principal in the complex numbers.

mpmath does the arithmetic: https://mpmath.org. Imported in worker processes only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import mpmath

from quintain.verifiers.math.read.exact import Environment, Undefined, exact
from quintain.verifiers.math.read.spelling import word_set
from quintain.verifiers.math.read.tree import Node, Op, Undecided, Unreadable

MAX_EXPONENT: Final = 1 << 62
"""No power, exponential or factorial of more than this is computed, not even approximately."""
MAX_GAMMA: Final = 10**9
MAX_COMPLEX_GAMMA: Final = 1_000
MAX_ARGUMENT_BITS: Final = 20_000
"""A function of a larger argument would first have to know pi, or e, to as many bits."""


@dataclass
class Approximation:
    """One evaluation to `digits` digits; it notes how large and how small the numbers on the way were.

    `complex_numbers`: whether roots and logarithms are the principal complex ones. `log_base`: what a bare
    `log` means, e or 10. `scale` is the largest magnitude met, `orders` the largest power of ten, up or down.
    """

    digits: int
    values: Environment = field(default_factory=dict)
    complex_numbers: bool = False
    log_base: int = 0
    scale: Any = field(default_factory=lambda: mpmath.mpf(1))
    orders: int = 0

    def of(self, node: Node) -> Any:
        """The value of `node`. Raises `Undefined`, `Undecided` or `Unreadable`."""
        with mpmath.workdps(self.digits):
            try:
                return self._value(node)
            except (ZeroDivisionError, ValueError, mpmath.libmp.ComplexResult) as error:
                raise Undefined(str(error)) from None
            except (OverflowError, mpmath.mp.NoConvergence) as error:
                raise Undecided(str(error)) from None

    def _value(self, node: Node) -> Any:
        value = self._raw(node)
        size = abs(value)
        if not mpmath.isfinite(size):
            raise Undefined("not a finite number")
        if size:
            self.scale = max(self.scale, size)
            self.orders = max(self.orders, abs(int(mpmath.mag(size))) * 3 // 10)
        return value

    def _raw(self, node: Node) -> Any:
        op, value = node.op, node.value
        if op is Op.NUMBER:
            assert isinstance(value, Fraction)
            return mpmath.mpf(value.numerator) / value.denominator
        if op is Op.SYMBOL:
            if str(value) not in self.values:
                raise Unreadable(f"the variable {value}")
            given = self.values[str(value)]
            return mpmath.mpf(given.numerator) / given.denominator
        if op is Op.CONSTANT:
            if value == "inf":
                raise Unreadable("infinity in an expression")
            return mpmath.mpc(0, 1) if value == "i" else +mpmath.pi if value == "pi" else +mpmath.e
        if op in (Op.MATRIX, Op.ROW, Op.EITHER):
            raise Unreadable(f"a {op} is no number")
        args = [self._value(arg) for arg in node.args]
        if op is Op.ADD:
            return sum(args[1:], args[0])
        if op is Op.NEG:
            return -args[0]
        if op is Op.MUL:
            return math.prod(args[1:], start=args[0])
        if op is Op.DIV:
            if self._is_zero(args[1], node.args[1]):
                raise Undefined("a division by zero")
            return args[0] / args[1]
        if op is Op.POW:
            return self._power(args[0], args[1], node.args[1])
        if op is Op.ROOT:
            return self._root(args[0], exact(node.args[1]))
        if op is Op.APPLY:
            return self._unknown(str(value), args)
        return self._call(str(value), args)

    def _is_zero(self, value: Any, node: Node) -> bool:
        if not self._vanishes(value):
            return False
        known = exact(node, self.values)
        return known is None or known == 0

    def _vanishes(self, value: Any) -> bool:
        return bool(abs(value) <= self.scale * mpmath.mpf(10) ** (8 - self.digits))

    def _power(self, base: Any, exponent: Any, node: Node) -> Any:
        if not base:
            if mpmath.re(exponent) <= 0 and exponent:
                raise Undefined("a division by zero")
            return mpmath.mpf(0 if exponent else 1)
        if abs(exponent) > MAX_EXPONENT:
            raise Undecided("a power too large to be computed")
        whole = exact(node, self.values)
        if whole is not None and whole.denominator == 1:
            return base ** int(whole)
        if mpmath.im(base) == 0 and mpmath.re(base) > 0:
            return mpmath.re(base) ** exponent
        if self.complex_numbers:
            return mpmath.power(base, exponent)
        if whole is not None and whole.denominator % 2:
            root = mpmath.root(-base, whole.denominator)
            return (-root) ** whole.numerator
        raise Undefined("a power of a negative number")

    def _root(self, radicand: Any, index: Fraction | None) -> Any:
        if index is None or index.denominator != 1 or not 1 <= index <= 10_000:
            raise Unreadable("a root has a whole index")
        if mpmath.im(radicand) == 0 and mpmath.re(radicand) >= 0:
            return mpmath.root(mpmath.re(radicand), int(index))
        if self.complex_numbers:
            return mpmath.power(radicand, mpmath.mpf(1) / int(index))
        if index % 2:
            return -mpmath.root(-radicand, int(index))
        raise Undefined("an even root of a negative number")

    def _unknown(self, name: str, args: list[Any]) -> Any:
        """A function nobody knows: some number that depends on its name and arguments alone."""
        if any(abs(mpmath.mag(arg)) > MAX_ARGUMENT_BITS for arg in args if arg):
            raise Undecided(f"{name} of a number too large")
        key = name + "".join(mpmath.nstr(arg, 15) for arg in args)
        return mpmath.mpf(int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")) / (1 << 44)

    def _call(self, name: str, args: list[Any]) -> Any:
        one = args[0]
        if len(args) == 2 and name == "log":
            return self._logarithm(one) / self._logarithm(args[1])
        if name == "binom" and len(args) == 2:
            return mpmath.binomial(*(self._near_enough(arg) for arg in args))
        if name in ("max", "min") and not any(mpmath.im(arg) for arg in args):
            return max(args) if name == "max" else min(args)
        if len(args) != 1:
            raise Unreadable(f"{name} of {len(args)} arguments")
        if one and abs(mpmath.mag(one)) > MAX_ARGUMENT_BITS:
            raise Undecided(f"{name} of a number too large, or too small")
        if name in ("ln", "log"):
            natural = self._logarithm(one)
            return natural / mpmath.log(10) if name == "log" and self.log_base == 10 else natural
        if name == "exp":
            if abs(one) > MAX_EXPONENT:
                raise Undecided("an exponent too large to be computed")
            return mpmath.exp(one)
        if name in ("floor", "ceil"):
            nearest = mpmath.nint(one)
            if abs(one - nearest) < abs(one) * mpmath.mpf(10) ** (8 - self.digits):
                return nearest
            return mpmath.floor(one) if name == "floor" else mpmath.ceil(one)
        if name in ("factorial", "gamma"):
            return getattr(mpmath, name)(self._near_enough(one))
        if name in ("arcsin", "arccos") and not self.complex_numbers and abs(one) > 1:
            raise Undefined(f"{name} outside [-1, 1]")
        if name in ("tan", "sec", "cot", "csc") and self._vanishes(
            mpmath.cos(one) if name in ("tan", "sec") else mpmath.sin(one)
        ):
            raise Undefined(f"{name} at a pole")
        function = _FUNCTIONS.get(name)
        if function is None:
            raise Unreadable(f"the function {name}")
        return function(one)

    def _logarithm(self, value: Any) -> Any:
        if self._vanishes(value):
            raise Undefined("the logarithm of 0")
        if not self.complex_numbers and (mpmath.im(value) or value < 0):
            raise Undefined("the logarithm of a negative number")
        return mpmath.log(value)

    def _near_enough(self, value: Any) -> Any:
        """An argument of the gamma function, which takes long far from 0 where it is no positive real number."""
        positive = not mpmath.im(value) and mpmath.re(value) > 0
        if abs(value) > (MAX_GAMMA if positive else MAX_COMPLEX_GAMMA):
            raise Undecided("a factorial of a number too large")
        return value


_FUNCTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **{name: getattr(mpmath, name) for name in word_set("sin cos tan cot sec csc sinh cosh tanh re im conj")},
    **{f"arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan")},
    "arccot": lambda value: mpmath.pi / 2 - mpmath.atan(value),
    "abs": abs,
}
