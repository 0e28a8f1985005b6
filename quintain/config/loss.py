"""Which policy loss, and its constants: names and defaults as in TRL 1.16's `GRPOConfig`.

`warnings()` says what is allowed but rarely meant. Two names are ours because TRL's are tied to its engine:
`off_policy_correction` (TRL: `vllm_importance_sampling_mode`) and `importance_sampling_clip_max` / `_min` (TRL: the
same with the prefix `vllm_`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from quintain.config.section import Above0, Fraction, Rate, Section

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "gmpo", "dppo_tv", "dppo_kl"]
CLIPPED: frozenset[LossType] = frozenset(("grpo", "bnpo", "dr_grpo", "dapo", "luspo"))
"""The loss types whose core is PPO's clipped ratio; they differ in the reduction only."""

Correction = Literal["none", "tis", "icepop", "sequence_truncate", "sequence_mask", "geometric_mask", "decoupled"]
BY_SEQUENCE: frozenset[Correction] = frozenset(("sequence_truncate", "sequence_mask", "geometric_mask"))
"""The corrections that are one number for a row."""


class ClipOptions(Section):
    """How far the policy may move from the one that the batch was sampled with."""

    epsilon: Rate = 0.2
    """The ratio is clipped below 1 - epsilon."""
    epsilon_high: Rate | None = None
    """The ratio is clipped above 1 + epsilon_high; null is `epsilon`. For cispo the absolute bound (ScaleRL: 5)."""

    @property
    def clip_high(self) -> float:
        """`epsilon_high`, or `epsilon` where it is not set."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


class LossOptions(ClipOptions):
    """The policy part of an algorithm."""

    loss_type: LossType = "dapo"
    """The loss: its core and its reduction."""
    delta: Above0 | None = None
    """Upper bound of the unclipped ratio (two-sided clipping, INTELLECT-2)."""
    beta: Rate = 0.0
    """Weight of the k3 estimate of KL(policy || reference); 0 loads no reference."""
    use_bias_correction_kl: bool = True
    """Multiply the KL by the importance ratio (DeepSeek-V3.2)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One ratio per token, or exp(mean log-ratio) per row (GSPO)."""
    top_entropy_quantile: Fraction = 1.0
    """Train only on this share of tokens, those of the highest entropy; denominators do not change."""
    mask_truncated_completions: bool = False
    """Rows that a limit cut short leave the token count and the loss, and stay in the row count."""
    off_policy_mask_threshold: Above0 | None = None
    """Drop rows of negative advantage whose mean log(sampler / policy) exceeds this (DeepSeek-V3.2, eq. 9)."""
    off_policy_correction: Correction = "none"
    """How the ratio of trainer to sampler enters: each token's, truncated (tis), masked (icepop) or as it is
    (decoupled); the product over a row, truncated or masked (sequence_truncate, sequence_mask); or not at all but for
    rows that are dropped because its geometric mean is out of bounds (geometric_mask)."""
    importance_sampling_clip_max: Above0 | None = 3.0
    """Upper bound of that ratio; decoupled has none."""
    importance_sampling_clip_min: Rate | None = None
    """Lower bound of that ratio; decoupled has none."""
    sapo_temperature_pos: Above0 = 1.0
    """SAPO's temperature where the advantage is positive."""
    sapo_temperature_neg: Above0 = 1.05
    """SAPO's temperature elsewhere."""
    dppo_threshold: Above0 = 0.15
    """DPPO's bound of the divergence from the sampler at a token: total variation (dppo_tv) or KL (dppo_kl)."""
    covariance: Literal["none", "clip", "kl"] = "none"
    """What is done about the tokens whose advantage and log-probability go together most, which cost the most entropy:
    a share of them gets no gradient (Clip-Cov), or is held to the policy before the update (KL-Cov)."""
    covariance_ratio: Fraction = 0.0002
    """That share of all tokens (published: 0.0002 for clip, 0.002 for kl)."""
    covariance_bounds: tuple[float, float] = (1.0, 5.0)
    """With clip: which covariances the tokens may have, of which some are drawn."""
    covariance_kl_coef: Rate = 1.0
    """With kl: the weight of |log-ratio| at those tokens."""
    entropy_coef: Rate = 0.0
    """Weight of the policy's mean entropy per token, which is added to what is maximised."""
    entropy_target: Rate | None = None
    """Let that weight begin at entropy_coef, rise by entropy_coef_delta after a step whose entropy (in nats a token)
    was no higher than this and fall after others, after which there is no bonus (Skywork-OR1); null keeps it."""
    entropy_coef_delta: Above0 = 0.005
    """How much the weight changes in a step, with entropy_target."""
    entropy_coef_min: Rate = 0.0
    """Least weight, with entropy_target."""
    entropy_coef_max: Rate = 1.0
    """Largest weight, with entropy_target."""
    env_token_loss_coef: Rate = 0.0
    """Weight of the cross-entropy of what the environment wrote after the policy's first words, a mean over those
    tokens, which is minimised too (ECHO); its paper takes 0.05."""
    vespo_k_pos: Rate = 2.0
    """VESPO's exponent where the advantage is not negative."""
    vespo_lambda_pos: Above0 = 3.0
    """VESPO's decay where the advantage is not negative."""
    vespo_k_neg: Rate = 3.0
    """VESPO's exponent elsewhere."""
    vespo_lambda_neg: Above0 = 2.0
    """VESPO's decay elsewhere."""

    @model_validator(mode="after")
    def _correction_has_bounds(self) -> LossOptions:
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"importance_sampling_clip_min ({low}) must be below importance_sampling_clip_max ({high})"
            )
        if self.off_policy_correction not in ("none", "decoupled") and low is None and high is None:
            raise ValueError(
                f"off_policy_correction: {self.off_policy_correction} needs a bound; set importance_sampling_clip_max"
                " or importance_sampling_clip_min, or use decoupled (no bound)"
            )
        if self.entropy_coef_min > self.entropy_coef_max:
            raise ValueError(
                f"entropy_coef_min ({self.entropy_coef_min}) must be no higher than entropy_coef_max"
                f" ({self.entropy_coef_max})"
            )
        if self.loss_type == "vespo" and self.off_policy_correction in BY_SEQUENCE:
            raise ValueError(
                "off_policy_correction: vespo folds a per-token correction into its sequence weight and takes no"
                f" separate factor; use tis, icepop, decoupled or none instead of {self.off_policy_correction}"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the reference model's log-probabilities."""
        return self.beta > 0

    @property
    def zero_advantage_is_inert(self) -> bool:
        """True when a row with advantage 0 has no loss and no gradient, so that it need not be run at all.

        It still counts in the global denominators, its entropies in the threshold of `top_entropy_quantile`, and
        leaving it out changes the metrics. Not so with a KL term, an entropy bonus or a loss on the environment's
        tokens, nor for `bnpo`, whose local mean counts it.
        """
        others = self.beta > 0 or self.has_entropy_bonus or self.env_token_loss_coef > 0 or self.covariance != "none"
        return not others and self.loss_type != "bnpo"

    @property
    def has_entropy_bonus(self) -> bool:
        """Whether entropy is rewarded, now or whenever it is too low."""
        return self.entropy_coef > 0 or self.entropy_target is not None

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but rarely meant, one line each, starting with the field."""
        found = []
        if self.loss_type == "cispo" and self.clip_high < 1.0:
            found.append(
                "epsilon_high: for cispo this is the absolute upper bound of the ratio; "
                f"{'unset, so' if self.epsilon_high is None else 'set to'} {self.clip_high}, it scales down "
                "on-policy tokens too; 5.0 is the published value"
            )
        if self.loss_type in CLIPPED and self.delta is not None and self.delta <= 1 + self.clip_high:
            found.append(
                f"delta: {self.delta} is not above 1 + epsilon_high ({1 + self.clip_high}), so it replaces that bound"
            )
        by_sequence = self.importance_sampling_level == "sequence"
        if self.loss_type == "luspo" and not by_sequence:
            found.append("importance_sampling_level: luspo is published with sequence; got token")
        if self.loss_type == "vespo" and by_sequence:
            found.append(
                "importance_sampling_level: vespo makes its own sequence weights; sequence reaches only its KL term"
            )
        if by_sequence and self.loss_type in ("bnpo", "dr_grpo", "dapo", "cispo"):
            found.append(
                f"importance_sampling_level: with sequence, {self.loss_type} weights a row by its length; "
                "GSPO is loss_type grpo"
            )
        return tuple(found)
