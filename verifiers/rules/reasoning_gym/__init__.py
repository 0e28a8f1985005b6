"""The reasoning-gym verifier: the scorers of reasoning-gym's procedural families, in killable workers."""

from quintain.verifiers.rules.reasoning_gym.verifier import (
    ReasoningGymOptions,
    ReasoningGymVerifier,
    make_reasoning_gym_verifier,
)

__all__ = ["ReasoningGymOptions", "ReasoningGymVerifier", "make_reasoning_gym_verifier"]
