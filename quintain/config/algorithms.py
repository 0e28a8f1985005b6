"""The options of every algorithm, and the list of them: `trainer.algorithm` says whose options a file has.

An option of one algorithm stands in its class, one that several share in a base of theirs; which algorithms have it
is then what a file that gives it to another is told. A new algorithm is a class here, listed in `AlgorithmConfig`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import model_validator

from quintain.config.loss import LossOptions
from quintain.config.offline import (
    BCOConfig,
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PRMConfig,
    RewardConfig,
    SFTConfig,
)
from quintain.config.trainer import GroupConfig

DEFAULT_ALGORITHM: Final = "grpo"


class GRPOConfig(LossOptions, GroupConfig):
    """GRPO and its family: advantages relative to a group, and one of many losses. Names as in TRL's GRPOConfig."""

    algorithm: Literal["grpo"] = "grpo"
    """Which algorithm makes rows and a loss out of data."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide centred rewards by the standard deviation of their group, of the batch, or not at all."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Several rewards: add, then normalise (GRPO); or normalise each, then add (GDPO)."""

    @model_validator(mode="after")
    def _has_rewards_to_normalise(self) -> GRPOConfig:
        if self.rewards_apart and self.reward_weights is None:
            raise ValueError("normalize_then_sum needs reward_weights, which name the rewards to normalise")
        return self

    @property
    def rewards_apart(self) -> bool:
        """Whether named rewards are compared one by one, and not their weighted sum."""
        return self.multi_objective_aggregation == "normalize_then_sum"


AlgorithmConfig: TypeAlias = (
    GRPOConfig | SFTConfig | DPOConfig | CPOConfig | ORPOConfig | KTOConfig | BCOConfig | RewardConfig | PRMConfig
)
"""The options of one algorithm or another."""
