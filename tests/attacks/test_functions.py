"""Attacks on function tests: none is passed, and nobody else feels it."""

from __future__ import annotations

import pytest

from quintain.verifiers.base import Verifier

from .attacks import Attack, attacks
from .held import attacked

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("attack", attacks("function"), ids=lambda attack: attack.name)
async def test_no_attack_on_function_tests_is_passed(attack: Attack, verifier: Verifier, port: int) -> None:
    verdict = await attacked(attack, verifier, port)
    assert verdict.detail["status"] != "bad_reference"
