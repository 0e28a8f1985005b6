"""The options of the algorithms that learn from a data set: names and defaults as in TRL 1.16 (PRM and BCO: 1.12)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from quintain.config.preference import CPOOptions, PreferenceOptions
from quintain.config.section import Above0, Fraction, Positive, Rate
from quintain.config.trainer import TrainerConfig


class DataOptions(TrainerConfig):
    """How rows of a data set become what is trained on."""

    rows: ClassVar[str]
    """What a row of the data has to hold (`quintain.trainers.data_items.Form`)."""
    max_length: Positive | None = 1024
    """What is longer is cut at its end; null is what the model allows."""
    max_dropped: Fraction = 0.05
    """Most of the rows that may be left out because nothing to train on is left of them; more ends the run."""

    @property
    def examples_per_step(self) -> int:
        """How many examples a step takes of the data."""
        raise NotImplementedError


class OfflineConfig(DataOptions):
    """How a model learns from a data set."""

    train_batch_size: Positive = 8
    """Examples of a step (pairs, where they are pairs; bins, where they are packed), however many fit at once."""
    num_train_epochs: Above0 | None = None
    """Passes over the data, in place of max_steps."""

    @property
    def examples_per_step(self) -> int:
        """How many examples a step takes of the data."""
        return self.train_batch_size

    @property
    def counts_steps(self) -> bool:
        """Whether `max_steps` says how long the run is; passes over the data do where they are asked for."""
        return self.num_train_epochs is None


class ReferenceConfig(OfflineConfig):
    """How a model learns beside a reference: itself, before training."""

    precompute_ref_log_probs: bool = False
    """Score the data with the reference once, before training, and keep that: it is not in memory afterwards."""
    sync_ref_model: bool = False
    """Let the reference follow the policy (TR-DPO)."""
    ref_model_mixup_alpha: Fraction = 0.6
    """With sync_ref_model: the policy's share of the new reference."""
    ref_model_sync_steps: Positive = 512
    """With sync_ref_model: how often."""

    @property
    def reference_follows(self) -> bool:
        """Whether the reference model follows the policy."""
        return self.sync_ref_model

    def follows(self, step: int) -> float:
        """The policy's share of the reference after `step` steps."""
        return self.ref_model_mixup_alpha if step % self.ref_model_sync_steps == 0 else 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the credit reads the reference model's log-probabilities."""
        return True

    @model_validator(mode="after")
    def _reference_stays(self) -> ReferenceConfig:
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ValueError("sync_ref_model changes the reference, so precompute_ref_log_probs cannot hold: drop one")
        return self


class SFTConfig(OfflineConfig):
    """Supervised fine-tuning: text, prompts with completions, chats, and trajectories of our own."""

    rows: ClassVar[str] = "text"
    algorithm: Literal["sft"] = "sft"
    learning_rate: Rate = 2e-5
    loss_type: Literal["nll", "dft"] = "nll"
    """Negative log-likelihood, or the same weighted by the policy's own probability (DFT)."""
    completion_only_loss: bool | None = None
    """Train on completions alone; null: where rows have a prompt."""
    assistant_only_loss: bool = False
    """Train on what assistants say alone."""
    packing: bool = False
    """Fill bins of max_length with rows (best-fit decreasing) and count bins in train_batch_size. Rows never see each
    other."""
    neftune_noise_alpha: Above0 | None = None
    """Noise on the embeddings (NEFTune)."""

    @property
    def noise(self) -> float | None:
        """NEFTune's alpha."""
        return self.neftune_noise_alpha

    @model_validator(mode="after")
    def _bins_have_a_size(self) -> SFTConfig:
        if self.packing and self.max_length is None:
            raise ValueError("packing fills bins of max_length: set it")
        return self


class DPOConfig(PreferenceOptions, ReferenceConfig):
    """DPO and its family: pairs against a reference."""

    rows: ClassVar[str] = "pair"
    algorithm: Literal["dpo"] = "dpo"


class CPOConfig(CPOOptions, OfflineConfig):
    """CPO, SimPO (loss_type simpo, cpo_alpha 0) and AlphaPO (alpha): pairs without a reference."""

    rows: ClassVar[str] = "pair"
    algorithm: Literal["cpo"] = "cpo"


class ORPOConfig(OfflineConfig):
    """ORPO: the chosen's likelihood and the odds ratio, without a reference."""

    rows: ClassVar[str] = "pair"
    algorithm: Literal["orpo"] = "orpo"
    beta: Above0 = 0.1
    """Weight of the odds ratio."""


class KTOConfig(ReferenceConfig):
    """KTO: completions that are desirable or not."""

    rows: ClassVar[str] = "labelled"
    algorithm: Literal["kto"] = "kto"
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """KTO, or APO-zero for single completions, which has no KL term."""
    beta: Above0 = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: Rate = 1.0
    """Weight of desirable completions."""
    undesirable_weight: Rate = 1.0
    """Weight of the others."""
    train_batch_size: Annotated[int, Field(ge=2)] = 8
    """Examples of a step; the KL term pairs each prompt with another's completion."""

    @model_validator(mode="after")
    def _kl_needs_its_batch(self) -> KTOConfig:
        if self.precompute_ref_log_probs and self.loss_type == "kto":
            raise ValueError(
                "precompute_ref_log_probs: kto's KL pairs the rows of a step, so it cannot be scored before"
            )
        return self


class BCOConfig(ReferenceConfig):
    """BCO: a classifier of desirable completions."""

    rows: ClassVar[str] = "labelled"
    algorithm: Literal["bco"] = "bco"
    learning_rate: Rate = 5e-7
    beta: Above0 = 0.1
    """How strongly the policy is held to the reference."""


class RewardConfig(OfflineConfig):
    """A reward model: which of two answers is the better one."""

    rows: ClassVar[str] = "pair"
    head: ClassVar[Literal["lm", "score", "steps"]] = "score"
    algorithm: Literal["reward"] = "reward"
    learning_rate: Rate = 1e-4
    center_rewards_coefficient: Rate | None = None
    """Weight of the squared sum of a pair's rewards, which centres them (0.01 is published)."""


class PRMConfig(OfflineConfig):
    """A process reward model: which steps are right."""

    rows: ClassVar[str] = "steps"
    head: ClassVar[Literal["lm", "score", "steps"]] = "steps"
    algorithm: Literal["prm"] = "prm"
    learning_rate: Rate = 1e-5
    step_separator: str = "\n"
    """Put after each step; its last token is where the step is judged."""
    train_on_last_step_only: bool = False
    """Train on the last step's label alone."""
