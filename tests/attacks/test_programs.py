"""Attacks by programs that read and write: none is passed, and nobody else feels it."""

from __future__ import annotations

import pytest

from quintain.verifiers.base import Verifier

from .attacks import Attack, attacks
from .held import attacked

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("attack", attacks("stdio"), ids=lambda attack: attack.name)
async def test_no_attack_by_a_program_is_passed(attack: Attack, verifier: Verifier, port: int) -> None:
    verdict = await attacked(attack, verifier, port)
    if attack.out:  # it was the wall that held, and not a mistake in the attack that stopped it
        assert verdict.detail["status"] in ("wrong_answer", "runtime_error"), verdict
        (case,) = verdict.detail["cases"]
        assert case["stdout"] == "held" or case["exit"] < 0, verdict
