"""The options of PPO: names and defaults as in TRL 1.12's `PPOConfig` where the meaning is the same.

TRL's `num_ppo_epochs` is `num_iterations` here, as for every algorithm that goes over a batch several times. Policy and
critic have an optimiser each, and a learning rate (`critic_learning_rate`); `vf_coef` is for a critic on the policy's
trunk.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import model_validator

from quintain.config.section import Above0, Count, Fraction, Positive, Rate
from quintain.config.trainer import OnlineConfig

CRITIC: Final = "critic"
"""The critic's name among the models that are trained."""
CRITIC_RATE: Final = 10.0
"""How many times the policy's learning rate a critic's is, unless it is given."""


class PPOConfig(OnlineConfig):
    """PPO: what came is compared with what a critic expected."""

    algorithm: Literal["ppo"] = "ppo"
    prompts_per_step: Positive = 64
    num_generations: Positive = 1
    num_iterations: Positive = 4
    critic: str | None = None
    """A folder with the model that the critic begins as, a reward model say; null: the policy's, with a head that
    says 0. It has the policy's tokenizer, is trained in full, and is saved in each checkpoint's folder `critic`."""
    value_head: bool = False
    """The critic is a head on the policy's own trunk and not a model of its own: half the memory and time, and both
    learn from one loss."""
    vf_coef: Above0 = 0.1
    """With value_head: the weight of the critic's loss in it."""
    critic_learning_rate: Rate | None = None
    """Peak learning rate of the critic; null is ten times the policy's."""
    critic_warmup_steps: Count = 0
    """The first so many steps train the critic alone."""
    gamma: Fraction = 1.0
    """Discount per token of what is still to come."""
    lam: Fraction = 0.95
    """GAE's lambda: 1 compares with what came, 0 with what the critic expects a token later."""
    whiten_rewards: bool = False
    """Divide the tokens' rewards, the KL included, by their standard deviation over the batch."""
    cliprange: Rate = 0.2
    """The ratio is clipped outside 1 - cliprange to 1 + cliprange."""
    cliprange_value: Rate = 0.2
    """The critic is not rewarded for moving further than this from what it said of the batch at first."""
    kl_coef: Rate = 0.05
    """Weight of the estimate of KL(policy || reference), subtracted from the reward at every token; 0 loads no
    reference."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """k1: log(policy / reference), unbiased. k3: never negative, of less variance."""
    kl_target: Above0 | None = None
    """Let the weight begin at kl_coef and follow this KL per episode (arXiv 1909.08593, 2.2); null keeps it."""
    kl_horizon: Positive = 10_000
    """With kl_target: in so many episodes the weight changes by up to a fifth, e-fold."""

    @model_validator(mode="after")
    def _weight_can_follow(self) -> PPOConfig:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target: the weight of the KL begins at kl_coef, which is 0: give it a positive one")
        if self.critic_learning_rate is not None and self.learning_rate == 0:
            raise ValueError("critic_learning_rate follows the schedule of learning_rate, which is 0: give that too")
        apart = {"critic": None, "critic_learning_rate": None, "critic_warmup_steps": 0}
        given = [name for name, default in apart.items() if getattr(self, name) != default]
        if self.value_head and given:
            raise ValueError(
                f"value_head: {' and '.join(given)} are of a critic that is a model of its own: drop one of both"
            )
        if self.critic_warmup_steps >= self.max_steps:
            raise ValueError(
                f"critic_warmup_steps ({self.critic_warmup_steps}) leaves the policy no step of max_steps"
                f" ({self.max_steps})"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the credit reads the reference model's log-probabilities."""
        return self.kl_coef > 0

    def rate_of(self, model: str, rate: float, step: int) -> float | None:
        """The learning rate of `model`, by its name, at `step`, where the run's is `rate`; None: it is not trained."""
        if model != CRITIC:
            return rate if step >= self.critic_warmup_steps else None
        if self.critic_learning_rate is None:
            return CRITIC_RATE * rate
        return rate * self.critic_learning_rate / self.learning_rate
