"""The reward model: a transformers sequence classifier scores answers."""

from quintain.verifiers.models.reward_model.verifier import (
    RewardModelOptions,
    RewardModelVerifier,
    make_reward_model_verifier,
)

__all__ = ["RewardModelOptions", "RewardModelVerifier", "make_reward_model_verifier"]
