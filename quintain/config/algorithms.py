"""The options of every algorithm, and the list of them: `trainer.algorithm` says whose options a file has.

An option of one algorithm stands in its class, one that several share in a base of theirs; which algorithms have it
is then what a file that gives it to another is told. A new algorithm is a class here, listed in `AlgorithmConfig`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from pydantic import model_validator

from quintain.config.distillation import DistillationConfig
from quintain.config.loss import ClipOptions, LossOptions
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
from quintain.config.ppo import PPOConfig
from quintain.config.preference import SORTED, PreferenceOptions
from quintain.config.section import Above0, Fraction, Positive, Rate
from quintain.config.trainer import GroupConfig, OnlineConfig

DEFAULT_ALGORITHM: Final = "grpo"


class GRPOConfig(LossOptions, GroupConfig):
    """GRPO and its family: advantages relative to a group, and one of many losses. Names as in TRL's GRPOConfig."""

    algorithm: Literal["grpo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none", "mean"] = "group"
    """Divide centred rewards by the standard deviation of their group, of the batch, not at all, or by the mean of
    their group (MaxRL, for rewards that are not negative)."""
    pass_at_k: Positive | None = None
    """Train for one success in so many tries: advantages of pass@k, of rewards that pass from 0.5 on."""
    credit: Literal["episode", "turn"] = "episode"
    """What a token's advantage is made of: the episode's reward, or that of its turn and those after it, compared with
    the same turn of the group's other members."""
    discount: Fraction = 1.0
    """With credit turn: what a reward counts one turn earlier."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Several rewards: add, then normalise (GRPO); or normalise each, then add (GDPO)."""

    @model_validator(mode="after")
    def _has_rewards_to_normalise(self) -> GRPOConfig:
        if self.rewards_apart and self.reward_weights is None:
            raise ValueError("normalize_then_sum needs reward_weights, which name the rewards to normalise")
        if self.credit == "turn" and (self.reward_weights is not None or self.pass_at_k is not None):
            raise ValueError("credit turn takes the rewards of turns: leave out reward_weights and pass_at_k")
        if self.credit == "episode" and self.discount != 1.0:
            raise ValueError("discount is between turns: set credit: turn, or leave it out")
        if self.pass_at_k is not None and not 1 < self.pass_at_k < self.num_generations:
            raise ValueError(
                f"pass_at_k ({self.pass_at_k}) must be above 1 and below num_generations ({self.num_generations})"
            )
        return self

    @property
    def rewards_apart(self) -> bool:
        """Whether named rewards are compared one by one, and not their weighted sum."""
        return self.multi_objective_aggregation == "normalize_then_sum"


class RLOOConfig(ClipOptions, GroupConfig):
    """RLOO: the other members of a group are the baseline. Names and defaults as in TRL's RLOOConfig."""

    algorithm: Literal["rloo"] = "rloo"
    beta: Rate = 0.05
    """Weight of the k1 estimate of KL(policy || reference), subtracted from the reward; 0 loads no reference."""
    normalize_advantages: bool = False
    """Centre advantages and divide them by their standard deviation over the batch."""
    reward_clip_range: tuple[float, float] | None = None
    """Rewards are held within it."""
    mask_truncated_completions: bool = False
    """Rows that a limit cut short are not trained on."""

    @model_validator(mode="after")
    def _range(self) -> RLOOConfig:
        if self.reward_clip_range is not None and self.reward_clip_range[0] >= self.reward_clip_range[1]:
            raise ValueError(f"reward_clip_range: expected a low and a higher bound, got {self.reward_clip_range}")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the credit reads the reference model's log-probabilities."""
        return self.beta > 0


class ReinforceConfig(LossOptions, OnlineConfig):
    """REINFORCE++: returns whitened over the batch, and one of the losses of the GRPO family."""

    algorithm: Literal["reinforce_plus_plus", "reinforce_plus_plus_baseline"] = "reinforce_plus_plus"
    """Which algorithm makes rows and a loss out of data; the baseline is the mean of the group."""
    gamma: Fraction = 1.0
    """Discount per token of what is still to come."""
    kl_coef: Rate = 0.0
    """Weight of the k1 estimate of KL(policy || reference), subtracted from the reward at every token."""

    @property
    def needs_reference(self) -> bool:
        """Whether the credit or the loss reads the reference model's log-probabilities."""
        return self.kl_coef > 0 or self.beta > 0


class OnlineDPOConfig(PreferenceOptions, GroupConfig):
    """Online DPO: pairs out of the groups that the policy samples, better against worse by verified reward."""

    algorithm: Literal["online_dpo"] = "online_dpo"
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Of a group: its best against its worst, or all pairs; only of rewards further apart than `pair_margin`."""
    pair_margin: Rate = 0.0
    """How much better the chosen one must be."""
    xpo_alpha: Rate = 0.0
    """Weight of XPO's exploration: how likely the policy is to say what the reference would, which is minimised; TRL's
    XPOConfig has 1e-5."""

    @model_validator(mode="after")
    def _a_pair_stands_alone(self) -> OnlineDPOConfig:
        if sorts := ", ".join(sorted(SORTED & set(self.loss_type))):
            raise ValueError(f"loss_type: {sorts} sorts the pairs of a data set's batch, which dpo has: take another")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the reference model's log-probabilities."""
        return True


class NashMDConfig(GroupConfig):
    """Nash-MD: how often an answer beats the group's others, held to the reference. Names as in TRL's NashMDConfig."""

    algorithm: Literal["nash_md"] = "nash_md"
    beta: Rate = 0.1
    """Weight of KL(policy || reference) in the loss; 0, with `mixture_coef` 0, loads no reference."""
    mixture_coef: Fraction = 0.0
    """Weight of the reference in the geometric mixture that answers are to beat: 0 is self-play, 1 the reference. The
    group's members count with their importance, so the nearer to 1, the fewer of them count (`opponents` says so)."""

    @property
    def needs_reference(self) -> bool:
        """Whether anything reads the reference model's log-probabilities."""
        return self.beta > 0 or self.mixture_coef > 0


class SDPOConfig(GroupConfig):
    """SDPO: the policy, told how its attempt went, is its own teacher. Names as in TRL's SDPOConfig."""

    algorithm: Literal["sdpo"] = "sdpo"
    success_reward_threshold: float = 1.0
    """From this reward on an attempt is shown to the teachers of the group's others."""
    include_environment_feedback: bool = True
    """Tell the teacher of an attempt without success what the environment said at the end (the last observation, and
    `feedback` in the episode's info)."""
    distillation_is_clip: Above0 = 2.0
    """Upper bound of the ratio to the policy that sampled."""
    max_reprompt_len: Positive = 10240
    """Most tokens of the teacher's prompt; an episode whose would be longer teaches nothing."""
    teacher_model_kind: Literal["ema", "base", "live"] = "ema"
    """Who is told: a copy that follows the policy, the policy before training, or the policy before the step. The last
    costs no memory, and learns to no longer listen."""
    teacher_update_rate: Fraction = 0.05
    """With ema: the policy's share of the new teacher."""
    teacher_sync_steps: Positive = 1
    """With ema: after how many steps the teacher follows."""

    @property
    def needs_reference(self) -> bool:
        """Whether the teacher is another than the policy before the step."""
        return self.teacher_model_kind != "live"

    @property
    def reference_follows(self) -> bool:
        """Whether the teacher follows the policy."""
        return self.teacher_model_kind == "ema"

    def follows(self, step: int) -> float:
        """The policy's share of the teacher after `step` steps."""
        return self.teacher_update_rate if step % self.teacher_sync_steps == 0 else 0.0


AlgorithmConfig: TypeAlias = (
    GRPOConfig
    | RLOOConfig
    | ReinforceConfig
    | OnlineDPOConfig
    | NashMDConfig
    | SDPOConfig
    | PPOConfig
    | DistillationConfig
    | SFTConfig
    | DPOConfig
    | CPOConfig
    | ORPOConfig
    | KTOConfig
    | BCOConfig
    | RewardConfig
    | PRMConfig
)
"""The options of one algorithm or another."""
