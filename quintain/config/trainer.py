"""The options that trainers share: of all of them, and of those that sample what they train on.

Names follow TRL's trainers where the meaning is the same. Those of one algorithm are in `algorithms`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quintain.config.section import Count, Fraction, MayChange, Positive, Rate, Section


class TrainerConfig(Section):
    """How a model learns, whatever it learns from."""

    head: ClassVar[Literal["lm", "score", "steps"]] = "lm"
    """What the trained model says of a token: a distribution, a number, or one of two labels."""
    algorithm: str
    """Which algorithm makes rows and a loss out of data."""
    max_steps: MayChange[Positive] = 100
    """Batches to train on. A run is resumed with the same number where its learning rate falls to the last one
    (lr_scheduler_type)."""

    learning_rate: Rate = 1e-6
    """Peak learning rate."""
    optim: Literal["adamw", "sgd", "adafactor", "muon", "adamw_8bit"] = "adamw"
    """The optimiser: torch's, or bitsandbytes' 8-bit AdamW where that is installed. muon is for matrices, scaled to the
    learning rate of AdamW, which has the embeddings, the head and all that is no matrix."""
    lr_scheduler_type: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"  # fmt: skip
    """How the rate falls after the warm-up: not, to zero in a line, in half a cosine, or as transformers has it."""
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More options of that schedule, as transformers names them (num_cycles, min_lr, num_decay_steps, ...)."""
    warmup_steps: Count = 0
    """Steps in which the rate rises from zero."""
    weight_decay: Rate = 0.0
    """Decoupled weight decay."""
    adam_beta1: Fraction = 0.9
    """Decay of the first moment."""
    adam_beta2: Fraction = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""

    router_aux_loss_coef: Rate = 0.0
    """Weight of the loss that keeps a model's experts equally used (often 0.001), of a model that has experts. It is a
    mean over micro-batches, so it depends a little on how a batch is cut."""

    layout: MayChange[Literal["auto", "tree", "packed", "padded"]] = "auto"
    """How rows share a forward pass; auto is tree wherever the model allows it."""
    max_tokens_per_microbatch: MayChange[Positive] = 8192
    """Token budget of one forward and backward pass; more tokens are accumulated over several."""
    threads: MayChange[Positive | None] = None
    """CPU threads of the trainer; null is one per core."""
    streams: MayChange[Positive] = 2
    """Micro-batches that a CPU works on side by side, sharing `threads`; each keeps a gradient of its own."""

    processes: MayChange[Positive] = 1
    """Processes (ranks) that share the work of a batch; torchrun and accelerate launch start theirs themselves."""
    parallel: MayChange[Literal["ddp", "fsdp"]] = "ddp"
    """Whether each of several processes has a copy of the model, or a shard of each of its parameters."""

    save_steps: MayChange[Positive | None] = None
    """Write a checkpoint every so many steps; one is always written at the end and when stopped."""
    save_total_limit: MayChange[Positive] = 2
    """Checkpoints to keep."""
    report_to: MayChange[list[str]] = Field(default_factory=list)
    """Trackers of Accelerate that get the metrics as well (tensorboard, wandb, ...)."""
    push_to_hub: MayChange[bool] = False
    """Upload the trained model with its card at the end; you are logged in there, or HF_TOKEN is set."""
    hub_model_id: MayChange[str | None] = None
    """What the model is called on the hub; null is the run's `name`."""
    hub_private_repo: MayChange[bool | None] = None
    """Whether only its owner sees it there; null is as the hub has it."""

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> TrainerConfig:
        if self.counts_steps and self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is more than max_steps ({self.max_steps})")
        if self.router_aux_loss_coef > 0 and not self.balances_experts:
            raise ValueError(
                f"router_aux_loss_coef: {self.algorithm} cannot balance experts with these options: drop it"
            )
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> TrainerConfig:
        if self.parallel == "fsdp" and self.optim not in ("adamw", "sgd"):
            raise ValueError(f"optim: {self.optim} needs whole matrices, and fsdp shards them: use adamw, or ddp")
        return self

    @model_validator(mode="after")
    def _goes_where_it_is_called(self) -> TrainerConfig:
        if self.hub_model_id is not None and not self.push_to_hub:
            raise ValueError(
                f"hub_model_id is {self.hub_model_id!r}, but nothing is pushed: set push_to_hub, or drop it"
            )
        return self

    @property
    def counts_steps(self) -> bool:
        """Whether `max_steps` says how long the run is."""
        return True

    @property
    def epochs(self) -> int:
        """How often a batch is gone over."""
        return 1

    @property
    def minibatches(self) -> int:
        """In how many optimiser updates a batch is gone over once."""
        return 1

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the credit reads the reference model's log-probabilities."""
        return False

    @property
    def reference_follows(self) -> bool:
        """Whether the reference model follows the policy."""
        return False

    def follows(self, step: int) -> float:
        """The policy's share of a reference that follows, after `step` steps; 0: it stays what it is."""
        return 0.0

    @property
    def balances_experts(self) -> bool:
        """Whether the loss on how a model's experts are used may be added."""
        return self.head == "lm"

    @property
    def noise(self) -> float | None:
        """NEFTune's alpha."""
        return None

    @property
    def needs_mass(self) -> bool:
        """Whether the loss reads log Σ p² of the policy's distributions."""
        return False

    def rate_of(self, model: str, rate: float, step: int) -> float | None:
        """The learning rate of `model`, by its name, at `step`, where the run's is `rate`; None: it is not trained."""
        return rate

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but rarely meant, one line each, starting with the field."""
        return ()

    def fixed(self, name: str) -> str | None:
        """As for any section; `max_steps` is fixed where the learning rate falls to it."""
        if name == "max_steps" and self.lr_scheduler_type not in ("constant", "inverse_sqrt"):
            return (
                f"the {self.lr_scheduler_type} learning rate falls to zero there and would jump; to train on, start a"
                " new run with a checkpoint as model.path"
            )
        return super().fixed(name)


class OnlineConfig(TrainerConfig):
    """How a policy learns from what it samples."""

    learns_from_rewards: ClassVar[bool] = True
    """Whether rewards that are all the same teach nothing."""
    prompts_per_step: Positive = 8
    """Groups of a batch."""
    num_generations: Positive = 8
    """Trajectories of a group (G)."""
    num_iterations: Positive = 1
    """How often a batch is gone over (mu of the GRPO paper, PPO's epochs)."""
    num_mini_batches: Positive = 1
    """In how many optimiser updates a batch is gone over once."""
    reward_weights: dict[str, float] | None = None
    """Weights of the environment's named rewards; null takes the episode's reward as it is."""
    soft_punish_cache: Positive | None = None
    """In a turn's last so many tokens before rollout.max_completion_length the reward falls by up to 1 (DAPO's soft
    overlong punishment). Among reward_weights it is called soft_overlong."""

    @model_validator(mode="after")
    def _names_a_reward(self) -> OnlineConfig:
        if self.reward_weights is not None and not self.reward_weights:
            raise ValueError("reward_weights is empty: name at least one reward, or leave it out")
        return self

    @property
    def epochs(self) -> int:
        """How often a batch is gone over."""
        return self.num_iterations

    @property
    def minibatches(self) -> int:
        """In how many optimiser updates a batch is gone over once."""
        return self.num_mini_batches

    @property
    def rewards_apart(self) -> bool:
        """Whether named rewards are compared one by one, and not their weighted sum."""
        return False


class GroupConfig(OnlineConfig):
    """How a policy learns from the differences within a group."""

    num_generations: Annotated[int, Field(ge=2)] = 8
