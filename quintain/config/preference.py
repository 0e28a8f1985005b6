"""Which preference loss, and its constants: names and defaults as in TRL 1.16's `DPOConfig` and `CPOConfig`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quintain.config.section import Above0, Fraction, Rate, Section

PairLossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
BY_DIFFERENCE: frozenset[PairLossType] = frozenset(
    ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
)
"""The loss types made of the difference of the two rewards: those that another f-divergence has a meaning for."""
SORTED: frozenset[PairLossType] = frozenset(("aot", "aot_unpaired"))
"""The loss types that sort a step's pairs, which are then in one micro-batch however many tokens they have."""


class PreferenceOptions(Section):
    """The loss on pairs of a chosen and a rejected completion."""

    loss_type: Annotated[tuple[PairLossType, ...], Field(min_length=1)] = ("sigmoid",)
    """One loss, or several that are added with `loss_weights` (MPO)."""
    loss_weights: tuple[float, ...] | None = None
    """A weight for each loss; null weighs all 1."""
    beta: Above0 = 0.1
    """How strongly the policy is held to the reference; tau of ipo."""
    label_smoothing: Fraction = 0.0
    """robust: the share of labels that are wrong, below 0.5; exo_pair: its epsilon, above 0 (1e-3); aot: smoothing."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """How the policy's distance from the reference is measured (f-DPO)."""
    f_alpha_divergence_coef: float = 0.5
    """Alpha of alpha_divergence."""
    ld_alpha: Fraction | None = None
    """Weight of tokens beyond the shorter completion's length (LD-DPO); null is 1."""
    use_weighting: bool = False
    """Weigh pairs by how likely the policy is to write them (WPO)."""
    discopop_tau: Above0 = 0.05
    """Temperature of discopop."""

    @property
    def needs_mass(self) -> bool:
        """Whether the loss reads log Σ p² of the policy's distributions."""
        return self.use_weighting

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_meaning(self) -> PreferenceOptions:
        kinds = set(self.loss_type)
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} entries for {len(self.loss_type)} loss types")
        without = ", ".join(sorted(kinds - BY_DIFFERENCE))
        if self.f_divergence_type != "reverse_kl" and without:
            raise ValueError(f"f_divergence_type: {self.f_divergence_type} has no meaning for {without}")
        if self.use_weighting and kinds & SORTED:
            raise ValueError(
                f"use_weighting: {', '.join(sorted(kinds & SORTED))} sorts pairs, a weight has none to go to"
            )
        if "robust" in kinds and self.label_smoothing >= 0.5:
            raise ValueError(f"label_smoothing: robust takes less than 0.5, got {self.label_smoothing}")
        if "exo_pair" in kinds and not 0 < self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing: exo_pair takes more than 0 and less than 1 (1e-3), got {self.label_smoothing}"
            )
        return self


class CPOOptions(Section):
    """The loss on pairs without a reference: CPO, SimPO, AlphaPO."""

    loss_type: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    """simpo and ipo take log-probabilities per token, the others sums."""
    beta: Above0 = 0.1
    """Scale of the rewards."""
    label_smoothing: Fraction = 0.0
    """Of sigmoid and simpo."""
    cpo_alpha: Rate = 1.0
    """Weight of the chosen completions' likelihood; SimPO is 0."""
    simpo_gamma: float = 0.5
    """The margin that simpo asks for."""
    alpha: float = 0.0
    """AlphaPO's shape of the reward, (1 - p^-alpha) / alpha; 0 is log p."""
