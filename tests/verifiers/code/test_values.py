"""Values that cross come out as they went in, type by type; whatever else is fed in is refused."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.verifiers.code.guest import values

anything_text = st.text(st.characters(codec=None, categories=None)) | st.text(st.sampled_from("a\ud83d\ude00\udfff\0"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=1 << 62).map(lambda n: n**9)
    | st.floats()
    | anything_text
    | st.binary()
    | st.complex_numbers()
    | st.decimals().filter(lambda number: not number.is_snan())
    | st.fractions()
    | st.builds(range, st.integers(-9, 9), st.integers(-(1 << 70), 1 << 70), st.integers(1, 9))
)
hashable = st.deferred(lambda: HASHABLE)  # whose representation is short
HASHABLE = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4)
)
whole = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(hashable, inner, max_size=3).map(lambda d: defaultdict(list, d))
        | st.dictionaries(hashable, st.integers(), max_size=3).map(Counter)
        | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 9))
        | st.binary().map(bytearray)
    ),
    max_leaves=25,
)


def dumps(value: Any) -> str:
    return json.dumps(values.encode(value), separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes) -> Any:
    return values.decode(values.parse(text))


def same(one: Any, other: Any) -> bool:
    """Whether both are alike throughout: type, order, the sign of zero, not-a-number."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=len(one) == len(other))
        return len(one) == len(other) and all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, (set, frozenset)):
        return sorted(map(marked, one)) == sorted(map(marked, other))
    if isinstance(one, deque):
        return one.maxlen == other.maxlen and same(list(one), list(other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def marked(value: object) -> str:
    """`value` as text that tells types apart, whatever the order of a set's members."""
    if isinstance(value, (frozenset, tuple)):
        parts = [marked(each) for each in value]
        return f"{type(value).__name__}({sorted(parts) if isinstance(value, frozenset) else parts})"
    return f"{type(value).__name__}:{value!r}"


@settings(max_examples=200, deadline=None)
@given(whole)
def test_a_value_comes_out_as_it_went_in(value: Any) -> None:
    text = dumps(value)
    assert text.isascii()
    assert same(loads(text), value)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(sorted(values.TAGS)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_json_comes_in_is_a_value_or_is_refused(plain: Any) -> None:
    text = json.dumps(plain)
    try:
        value = loads(text)
    except values.NotTransferable:
        return
    if not hasattr(value, "__next__"):
        values.encode(value)  # what comes in could have gone out


@settings(max_examples=200, deadline=None)
@given(st.binary())
def test_whatever_bytes_come_in_are_a_value_or_are_refused(data: bytes) -> None:
    try:
        loads(data)
    except values.NotTransferable:
        return


class Member(IntEnum):
    ONE = 1


class Pair(NamedTuple):
    a: int


class MyInt(int):
    pass


class MyStr(str):
    pass


class MyList(list):  # type: ignore[type-arg]
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


class MyFloat(float):
    pass


SUBCLASSES = [Member.ONE, Pair(1), MyInt(1), MyStr("a"), MyList(), MyDict(), MyFloat(1.0)]


@pytest.mark.parametrize(
    "value",
    [*SUBCLASSES, object(), int, len, lambda: 0, ..., NotImplemented, ValueError()],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: [1, (v,)], lambda v: {"a": v}], ids=["bare", "nested", "in a dict"]
)
def test_what_is_of_no_known_type_does_not_cross_however_deep(value: Any, wrap: Any) -> None:
    with pytest.raises(values.NotTransferable):
        values.encode(wrap(value))


def test_a_bool_is_no_int_and_an_int_no_float() -> None:
    assert [type(loads(dumps(each))) for each in (True, 1, 1.0, -0.0)] == [bool, int, float, float]
    assert math.copysign(1, loads(dumps(-0.0))) == -1


@pytest.mark.parametrize("depth", [values.MAX_DEPTH - 1, values.MAX_DEPTH])
def test_nesting_crosses_up_to_the_limit_and_no_further(depth: int) -> None:
    value: Any = []
    for _ in range(depth):
        value = [value]
    if depth < values.MAX_DEPTH:
        assert loads(dumps(value)) == value
    else:
        with pytest.raises(values.NotTransferable, match="deep"):
            values.encode(value)


def test_a_value_of_too_many_parts_is_refused_on_both_sides() -> None:
    shared = [0] * 1000
    with pytest.raises(values.NotTransferable, match="parts"):
        values.encode([[shared] * 100] * 100)
    with pytest.raises(values.NotTransferable):
        values.decode(["l"] + [0] * values.MAX_PARTS)


def test_iterators_are_run_through_as_far_as_they_may_and_tell_where_they_were_cut() -> None:
    assert list(loads(dumps(n * n for n in range(4)))) == [0, 1, 4, 9]
    assert list(loads(dumps(map(str, (1, 2))))) == ["1", "2"]
    endless = loads(dumps(iter(int, 1)))
    with pytest.raises(RuntimeError, match="first 10,000"):
        list(endless)


def test_views_of_dicts_stay_views() -> None:
    pairs = {"a": [1], "b": [2]}
    assert loads(dumps(pairs.keys())) == pairs.keys()
    assert list(loads(dumps(pairs.values()))) == [[1], [2]]
    assert list(loads(dumps(pairs.items()))) == [("a", [1]), ("b", [2])]


def test_a_defaultdict_keeps_a_builtin_factory_and_loses_another() -> None:
    assert loads(dumps(defaultdict(int, a=1))).default_factory is int
    assert loads(dumps(defaultdict(lambda: 0, a=1))).default_factory is None


@given(st.lists(st.lists(st.integers())), st.lists(st.lists(st.integers())))
def test_an_update_in_place_gives_the_new_value_and_keeps_the_objects_that_stay(
    old: list[list[int]], new: list[list[int]]
) -> None:
    kept = list(old)
    assert values.update(old, new)
    assert old == new
    assert all(before is after for before, after in zip(kept, old, strict=False))


def test_what_cannot_change_is_not_updated() -> None:
    assert not values.update((1,), (2,))
    assert not values.update([1], (1,))
    assert values.update(d := {"a": [1], "b": 2}, {"a": [3]})
    assert d == {"a": [3]}
    assert values.update(s := {1}, {2})
    assert s == {2}
    assert values.update(b := bytearray(b"a"), bytearray(b"bc"))
    assert b == b"bc"
    assert same(Fraction(1, 3), loads(dumps(Fraction(1, 3))))
