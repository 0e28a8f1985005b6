"""Verifiers by name: the right one, or an error that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, available_verifiers, get_verifier, verify_sync
from quintain.verifiers.math import MathVerifier


def test_math_is_known_by_its_name() -> None:
    verifier = get_verifier("math", deadline_s=2.0)
    assert isinstance(verifier, MathVerifier)
    assert verifier.options.deadline_s == 2.0
    assert "math" in available_verifiers()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(QuintainError, match=r"no verifier 'maths': did you mean 'math'\?"):
        get_verifier("maths")


def test_a_name_unlike_any_is_answered_with_what_there_is() -> None:
    with pytest.raises(QuintainError, match=r"expected one of .*math"):
        get_verifier("zzz")


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(QuintainError, match=r"deadline: no such field: did you mean 'deadline_s'\?"):
        get_verifier("math", deadline=3)


@pytest.mark.parametrize("option", [{"extraction": "last"}, {"deadline_s": 0}, {"places": -1}, {"workers": 0}])
def test_an_option_out_of_range_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(QuintainError):
        get_verifier("math", **option)


def test_verify_sync_judges_and_leaves_nothing_behind() -> None:
    verdicts = verify_sync("math", [Item("25", 25), Item("The answer is 24.", 25)])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.WRONG]


async def test_verify_sync_says_what_to_do_in_an_event_loop() -> None:
    with pytest.raises(QuintainError, match="await"):
        verify_sync("math", [])


ENTRY_POINT = """
[quintain.verifiers]
brevity = length_verifier:make
math = length_verifier:make
wrong = length_verifier:wrong
"""
PLUGIN = """
from quintain.verdict import Verdict
from quintain.verifiers import Verifier

class Length(Verifier):
    name = "brevity"
    version = "1"

    def __init__(self, limit):
        self.limit = limit

    async def verify(self, items, *, deadline_s=None):
        return [Verdict.scored(float(len(item.answer) <= self.limit)) for item in items]

def make(limit=5):
    return Length(limit)

def wrong():
    return 5
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with entry points for verifiers."""
    (tmp_path / "length_verifier.py").write_text(PLUGIN)
    info = tmp_path / "length_verifier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: length-verifier\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugin")
def test_another_package_can_offer_a_verifier() -> None:
    assert "brevity" in available_verifiers()
    verdicts = verify_sync("brevity", [Item("abc", None), Item("abcdef", None)], {"limit": 4})
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0]


@pytest.mark.usefixtures("plugin")
def test_another_package_cannot_take_over_a_built_in_name() -> None:
    assert isinstance(get_verifier("math"), MathVerifier)


@pytest.mark.usefixtures("plugin")
def test_a_factory_that_gives_no_verifier_is_refused() -> None:
    with pytest.raises(QuintainError, match="gave a int"):
        get_verifier("wrong")


def test_importing_the_verifiers_loads_nothing_heavy() -> None:
    program = (
        "import sys; import quintain.verifiers; quintain.verifiers.get_verifier('math');"
        "heavy = {'sympy', 'math_verify', 'torch', 'numpy', 'mpmath'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
