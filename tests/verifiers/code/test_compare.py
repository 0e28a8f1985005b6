"""When one output is as good as another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.verifiers.code.compare import same

EQUAL = [
    ("exact", b"a\n", b"a\n"),
    ("lines", b"a \r\nb\t\n\n\n", b"a\nb"),
    ("lines", b"", b"\n \n"),
    ("tokens", b"1 2\n3", b"1\n2  3\n"),
    ("numbers", b"0.50 x", b"0.5 x"),
    ("numbers", b"1e3\n", b"1000"),
    ("numbers", b"-0", b"0"),
    ("numbers", b"123456789012345678901234567890.0", b"123456789012345678901234567890"),
]
UNEQUAL = [
    ("exact", b"a", b"a\n"),
    ("lines", b" a", b"a"),
    ("lines", b"a b", b"a  b"),
    ("lines", b"a\n\nb", b"a\nb"),
    ("lines", b"1.0", b"1"),
    ("tokens", b"12", b"1 2"),
    ("numbers", b"1\n2", b"1 2"),
    ("numbers", b"123456789012345678901234567891", b"123456789012345678901234567890"),
    ("numbers", b"nan", b"NaN"),
    ("numbers", b"inf", b"1e999"),
    ("numbers", b"1_0", b"10"),
    ("numbers", "１".encode(), b"1"),
    ("numbers", b"", b"0"),
]


@pytest.mark.parametrize(("policy", "given_", "expected"), EQUAL)
def test_these_are_the_same(policy: str, given_: bytes, expected: bytes) -> None:
    assert same(given_, expected, policy)  # type: ignore[arg-type]


@pytest.mark.parametrize(("policy", "given_", "expected"), UNEQUAL)
def test_these_are_not_the_same(policy: str, given_: bytes, expected: bytes) -> None:
    assert not same(given_, expected, policy)  # type: ignore[arg-type]


def test_the_tolerance_is_absolute_below_one_and_relative_above() -> None:
    assert same(b"0.001", b"0", "numbers", 0.001)
    assert not same(b"0.0011", b"0", "numbers", 0.001)
    assert same(b"1001", b"1000", "numbers", 0.001)
    assert not same(b"1002", b"1000", "numbers", 0.001)


@given(st.binary(), st.binary())
def test_each_policy_accepts_what_a_stricter_one_does(one: bytes, other: bytes) -> None:
    exact, by_line, numbers = (same(one, other, policy) for policy in ("exact", "lines", "numbers"))  # type: ignore[arg-type]
    assert by_line >= exact
    assert numbers >= by_line
    assert same(one, one, "tokens")
