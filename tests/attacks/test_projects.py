"""Attacks on pytest projects, which share a process with their tests: those that the isolation there can stop."""

from __future__ import annotations

import pytest

from quintain.verifiers.base import Verifier

from .attacks import Attack, attacks
from .held import attacked

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("attack", attacks("pytest"), ids=lambda attack: attack.name)
async def test_no_attack_on_a_project_is_passed(attack: Attack, verifier: Verifier, port: int) -> None:
    verdict = await attacked(attack, verifier, port)
    assert verdict.detail["isolation"] == "same_process"
