"""The options of distillation: names as in TRL's `GKDConfig` and `DistillationConfig` where the meaning is the same."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from quintain.config.loss import ClipOptions
from quintain.config.offline import DataOptions
from quintain.config.section import Fraction, MayChange, Positive, Url
from quintain.config.trainer import OnlineConfig


class DistillationConfig(ClipOptions, DataOptions, OnlineConfig):
    """On-policy distillation: the policy samples, and a teacher says of every token how likely it was."""

    rows: ClassVar[str] = "text"
    learns_from_rewards: ClassVar[bool] = False  # a teacher says what is better
    algorithm: Literal["distillation"] = "distillation"
    prompts_per_step: Positive = 64
    num_generations: Positive = 1
    teacher: str | None = None
    """A folder with the teacher, which has the policy's tokenizer. Give this or `teacher_url`."""
    teacher_url: MayChange[Url | None] = None
    """A vLLM server that has the teacher: one that gives log-probabilities of the tokens it is shown."""
    teacher_name: str | None = None
    """What the server at teacher_url calls it; null is the first that it lists."""
    teacher_token: MayChange[str | None] = Field(default=None, repr=False)
    """The bearer token of the server at teacher_url."""
    beta: Fraction | None = None
    """null: the reverse KL at the tokens that were sampled. Else the generalised Jensen-Shannon divergence over the
    whole vocabulary (GKD), of a teacher in a folder: 0 is KL(teacher || policy), 1 is KL(policy || teacher) (MiniLLM),
    0.5 between them."""
    gamma: Fraction = 0.0
    """With beta null: 0 judges a token by what the teacher says of it, 1 by what it says of all that follow too."""

    @property
    def balances_experts(self) -> bool:
        """Whether the loss on how a model's experts are used may be added."""
        return self.beta is None

    lmbda: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of a step's sequences that the policy samples; the others are of `dataset` (GKD). Needs beta."""

    @property
    def examples_per_step(self) -> int:
        """How many examples a step takes of the data, beside what is sampled."""
        sampled = self.prompts_per_step * self.num_generations
        return round(sampled * (1 - self.lmbda) / self.lmbda)

    @model_validator(mode="after")
    def _data_is_compared_whole(self) -> DistillationConfig:
        if self.lmbda < 1 and self.beta is None:
            raise ValueError("lmbda: nobody sampled the tokens of a dataset, so only whole distributions: set beta")
        if self.lmbda < 1 and not self.examples_per_step:
            raise ValueError(f"lmbda: {self.lmbda:g} takes no example of the dataset: lower it, or sample more")
        return self

    @model_validator(mode="after")
    def _one_teacher(self) -> DistillationConfig:
        if (self.teacher is None) == (self.teacher_url is None):
            raise ValueError("give exactly one of 'teacher' (a folder) and 'teacher_url' (a server that has it)")
        if self.beta is not None and self.teacher is None:
            raise ValueError("beta: a server gives no whole distributions: give the teacher's folder, or drop beta")
        return self
