"""Limits, programs and paths: what makes no sense is refused where it is written."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.interface import Limits, Program, check_path

NAMES = [each.name for each in fields(Limits)]
SECONDS = {"wall_s", "cpu_s"}


@given(st.sampled_from(NAMES), st.integers(1, 2**62 - 1) | st.floats(min_value=1e-6, max_value=1e15))
def test_a_limit_that_makes_sense_is_kept(name: str, value: float) -> None:
    if name in SECONDS or isinstance(value, int):
        assert getattr(Limits(**{name: value}), name) == value


@given(
    st.sampled_from(NAMES),
    st.integers(max_value=0)
    | st.floats(max_value=0)
    | st.just(math.nan)
    | st.just(math.inf)
    | st.integers(min_value=2**62)
    | st.booleans()
    | st.none()
    | st.text(),
)
def test_a_limit_that_makes_none_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(QuintainError, match=f"limit {name} is"):
        Limits(**{name: value})


@given(st.sampled_from(sorted(set(NAMES) - SECONDS)), st.floats(min_value=1, max_value=1e9))
def test_a_limit_of_things_that_are_counted_is_whole(name: str, value: float) -> None:
    with pytest.raises(QuintainError, match="whole number"):
        Limits(**{name: value})


@given(st.lists(st.sampled_from(["a", "b.txt", "..", ".", "", "é", "a b", "..."]), min_size=1, max_size=5))
def test_a_path_stays_inside(parts: list[str]) -> None:
    path = "/".join(parts)
    depth = 0
    stays = not path.startswith("/") and path not in ("", ".") and not path.endswith("/")
    for part in parts:
        depth += 0 if part in ("", ".") else -1 if part == ".." else 1
        stays = stays and depth >= 0 and part != ".."
    stays = stays and any(part not in ("", ".") for part in parts)
    if stays:
        assert check_path(path) == path
    else:
        with pytest.raises(QuintainError, match="relative path"):
            check_path(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Program.command(), "at least a name"),
        (lambda: Program.command(""), "at least a name"),
        (lambda: Program.command("a\0b"), "NUL"),
        (lambda: Program.command("a", env={"A=B": "c"}), "without '='"),
        (lambda: Program.command("a", env={"": "c"}), "without '='"),
        (lambda: Program.command("a", env={"A": "\0"}), "NUL"),
        (lambda: Program.python("1", name="../x.py"), "relative path"),
        (lambda: Program.python("1", name="/x.py"), "relative path"),
    ],
)
def test_a_program_that_cannot_be_is_refused(make: object, reason: str) -> None:
    with pytest.raises(QuintainError, match=reason):
        make()  # type: ignore[operator]


def test_source_may_hold_what_is_no_unicode() -> None:
    assert Program.python("x = '\ud800'").source == b"x = '\xed\xa0\x80'"
