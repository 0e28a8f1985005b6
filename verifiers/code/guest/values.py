"""Python values as tagged JSON, for crossing between a solution and its tests.

What always holds:
- exactly the types named here cross, and `type(value) is ...` decides: an instance of a subclass is no value, so no
  method of tested code ever runs where its answer is judged;
- `decode(encode(x))` equals `x` and has the same type throughout, -0.0, NaN, lone surrogates and integers of any size
  included; sharing is lost, so a value that contains itself does not cross;
- depth and number of parts are bounded on both sides; whatever `decode` is given, it gives a value or
  raises NotTransferable.

None, bool, str, finite floats and integers of 64 bits are JSON's own; everything else is a list that begins with its
tag. Three kinds of value change on the way, as documented in `TAGS`: iterators are run through, a defaultdict's
factory survives only if it is a builtin type, and views of dicts become views of new dicts.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

MAX_DEPTH = 150
MAX_PARTS = 2_000_000
MAX_ITERATOR_ITEMS = 10_000
SMALL = 1 << 63

TAGS = {
    "l": "list",
    "t": "tuple",
    "s": "set",
    "f": "frozenset",
    "d": "dict, as key, value, key, value",
    "i": "int of more than 64 bits, in hexadecimal",
    "n": "float that JSON has not: nan, inf, -inf",
    "u": "str with surrogates, as UTF-32 in hexadecimal",
    "b": "bytes, each one a character",
    "a": "bytearray",
    "c": "complex, as its two floats",
    "r": "range",
    "D": "Decimal, as its text",
    "F": "Fraction, as its two integers",
    "q": "deque, its maximal length first",
    "C": "Counter",
    "O": "OrderedDict",
    "e": "defaultdict, its factory's name first",
    "g": "iterator: whether these are all its items, then at most MAX_ITERATOR_ITEMS of them; beyond them it raises",
    "k": "keys of a dict",
    "v": "values of a dict",
    "m": "items of a dict",
}
FACTORIES: dict[str, Any] = {each.__name__: each for each in (int, float, str, bool, list, tuple, set, dict, bytes)}
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "f"}
VIEWS: dict[type, str] = {type({}.keys()): "k", type({}.values()): "v", type({}.items()): "m"}
MUTABLE = (list, dict, set, bytearray, deque, Counter, OrderedDict, defaultdict)


class NotTransferable(ValueError):
    """This cannot cross; the message says what and why."""


def parse(text: str | bytes) -> Any:
    """JSON, without the liberties that Python's reader takes. Raises NotTransferable."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NotTransferable(f"not JSON: {str(error)[:200]}") from None


def encode(value: Any) -> Any:
    """`value` as JSON's own types. Raises NotTransferable."""
    return _Encoder().encode(value, 0)


def decode(plain: Any) -> Any:
    """The value that `plain`, as `parse` gives it, stands for. Raises NotTransferable."""
    return _Decoder().decode(plain, 0)


class _Encoder:
    """Counts the parts of one value."""

    def __init__(self) -> None:
        self._left = MAX_PARTS

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is int:
            return value if -SMALL <= value < SMALL else ["i", f"{value:x}"]
        if kind is str:
            return value if value.isascii() or not _has_surrogates(value) else ["u", _utf32(value)]
        if kind is bool or value is None:
            return value
        if kind is float:
            return value if math.isfinite(value) else ["n", repr(value)]
        if depth >= MAX_DEPTH:
            raise NotTransferable(f"a value nested more than {MAX_DEPTH} deep")
        tag = SEQUENCES.get(kind)
        if tag is not None:
            return self._many(tag, value, depth)
        if kind is dict:
            return self._pairs(["d"], value, depth)
        return self._rare(kind, value, depth)

    def _rare(self, kind: type, value: Any, depth: int) -> Any:
        if kind is bytes or kind is bytearray:
            return ["b" if kind is bytes else "a", value.decode("latin-1")]
        if kind is complex:
            return ["c", self.encode(value.real, depth), self.encode(value.imag, depth)]
        if kind is range:
            return ["r", *(self.encode(part, depth) for part in (value.start, value.stop, value.step))]
        if kind is Decimal:
            return ["D", str(value)]
        if kind is Fraction:
            return ["F", self.encode(int(value.numerator), depth), self.encode(int(value.denominator), depth)]
        if kind is deque:
            return self._many("q", value, depth, value.maxlen)
        if kind is Counter or kind is OrderedDict:
            return self._pairs(["C" if kind is Counter else "O"], value, depth)
        if kind is defaultdict:
            name = getattr(value.default_factory, "__name__", None)
            known = type(name) is str and FACTORIES.get(name) is value.default_factory
            return self._pairs(["e", name if known else None], value, depth)
        if kind in VIEWS:
            tag = VIEWS[kind]
            return self._pairs([tag], dict(value), depth) if tag == "m" else self._many(tag, value, depth)
        if isinstance(value, Iterator):
            items: list[Any] = []
            for item in value:
                if len(items) == MAX_ITERATOR_ITEMS:
                    return self._many("g", items, depth, False)
                items.append(item)
            return self._many("g", items, depth, True)
        raise NotTransferable(f"a value of type {_name(kind)}")

    def _many(self, tag: str, values: Any, depth: int, *first: Any) -> list[Any]:
        self._count(len(values))
        encode, depth = self.encode, depth + 1
        return [tag, *first, *[encode(value, depth) for value in values]]

    def _pairs(self, plain: list[Any], pairs: Any, depth: int) -> list[Any]:
        self._count(2 * len(pairs))
        encode, depth = self.encode, depth + 1
        for key, value in pairs.items():
            plain.append(encode(key, depth))
            plain.append(encode(value, depth))
        return plain

    def _count(self, parts: int) -> None:
        self._left -= parts
        if self._left < 0:
            raise NotTransferable(f"a value of more than {MAX_PARTS:,} parts")


class _Decoder:
    """Counts the parts of one value."""

    def __init__(self) -> None:
        self._left = MAX_PARTS

    def decode(self, plain: Any, depth: int) -> Any:
        kind = type(plain)
        if kind is int:
            if not -SMALL <= plain < SMALL:
                raise NotTransferable("an integer that is too large for JSON")
            return plain
        if kind is float and not math.isfinite(plain):
            raise NotTransferable("a number that is too large for JSON")
        if kind is not list:
            if kind is dict:
                raise NotTransferable("an object of JSON")
            return plain
        self._left -= len(plain)
        if depth >= MAX_DEPTH or self._left < 0:
            raise NotTransferable("a value nested too deep, or of too many parts")
        if not plain or type(plain[0]) is not str:
            raise NotTransferable("a list without a tag")
        tag = plain[0]
        if tag in ("l", "t", "s", "f", "k", "v"):
            values = self._values(plain[1:], depth)
            return _BUILD[tag](_hashable(values) if tag in "sfk" else values)
        if tag in ("d", "C", "O", "m"):
            return _BUILD[tag](self._pairs(plain[1:], depth))
        try:
            return self._rare(tag, plain[1:], depth)
        except (ValueError, TypeError, KeyError, OverflowError, InvalidOperation, ZeroDivisionError) as error:
            raise (
                error if type(error) is NotTransferable else NotTransferable(f"a malformed {TAGS.get(tag, 'value')}")
            ) from None

    def _rare(self, tag: str, rest: list[Any], depth: int) -> Any:
        if tag == "i":
            return _checked(int(_text(rest), 16), lambda value: not -SMALL <= value < SMALL)
        if tag == "n":
            return NOT_FINITE[_text(rest)]
        if tag == "u":
            return bytes.fromhex(_text(rest)).decode("utf-32-le", "surrogatepass")
        if tag in ("b", "a"):
            return (bytes if tag == "b" else bytearray)(_text(rest).encode("latin-1"))
        if tag == "D":
            return Decimal(_text(rest))
        if tag in ("c", "r", "F"):
            parts = self._values(rest, depth)
            wanted, count = (float, 2) if tag == "c" else (int, 3 if tag == "r" else 2)
            if len(parts) != count or any(type(part) is not wanted for part in parts):
                raise NotTransferable(f"a malformed {TAGS[tag]}")
            return {"c": complex, "r": range, "F": Fraction}[tag](*parts)
        if tag == "q":
            if not (rest[:1] == [None] or (type(rest[0]) is int and 0 <= rest[0] < SMALL)):
                raise NotTransferable("a malformed deque")
            return deque(self._values(rest[1:], depth), rest[0])
        if tag == "e":
            name = _text(rest[:1]) if rest[:1] != [None] else None
            return defaultdict(FACTORIES[name] if name else None, self._pairs(rest[1:], depth))
        if tag == "g":
            if not rest or type(rest[0]) is not bool:
                raise NotTransferable("a malformed iterator")
            return _replay(self._values(rest[1:], depth), rest[0])
        raise NotTransferable(f"a list with the unknown tag {tag[:20]!r}")

    def _values(self, plain: list[Any], depth: int) -> list[Any]:
        decode, depth = self.decode, depth + 1
        return [decode(each, depth) for each in plain]

    def _pairs(self, plain: list[Any], depth: int) -> dict[Any, Any]:
        if len(plain) % 2:
            raise NotTransferable("a key without a value")
        values = self._values(plain, depth)
        return dict(zip(_hashable(values[::2]), values[1::2], strict=True))


_BUILD: dict[str, Any] = {
    "l": lambda values: values,
    "t": tuple,
    "s": set,
    "f": frozenset,
    "k": lambda values: dict.fromkeys(values).keys(),
    "v": lambda values: dict(enumerate(values)).values(),
    "d": lambda pairs: pairs,
    "C": Counter,
    "O": OrderedDict,
    "m": lambda pairs: pairs.items(),
}


def update(old: Any, new: Any) -> bool:
    """Make `old` equal to `new` in place, the containers inside it too where they stand at the same place;
    whether that is possible: both have the same type, and one that can change."""
    kind = type(old)
    if kind is not type(new) or kind not in MUTABLE:
        return False
    if kind is list or kind is deque:
        kept = [was if update(was, now) else now for was, now in zip(old, new, strict=False)]
        kept += list(new)[len(kept) :]
        old.clear()
        old.extend(kept)
    elif kind is bytearray:
        old[:] = new
    elif kind is set:
        old.clear()
        old.update(new)
    else:
        kept_pairs = [(key, old[key] if key in old and update(old[key], now) else now) for key, now in new.items()]
        old.clear()
        for key, value in kept_pairs:
            old[key] = value
    return True


def _replay(items: list[Any], complete: bool) -> Iterator[Any]:
    yield from items
    if not complete:
        raise RuntimeError(f"only the first {len(items):,} items of an iterator cross")


def _hashable(values: list[Any]) -> Iterable[Any]:
    try:
        for value in values:
            hash(value)
    except TypeError as error:
        raise NotTransferable(str(error)) from None
    return values


def _text(rest: list[Any]) -> str:
    if len(rest) != 1 or type(rest[0]) is not str:
        raise NotTransferable("not one text")
    return rest[0]


def _checked(value: int, fits: Any) -> int:
    if not fits(value):
        raise NotTransferable("a small integer in the form of a large one")
    return value


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _utf32(text: str) -> str:
    return text.encode("utf-32-le", "surrogatepass").hex()


def _name(kind: type) -> str:
    name = type.__getattribute__(kind, "__name__")
    return name[:80] if type(name) is str else "?"


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
