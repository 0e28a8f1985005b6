"""One experiment, as data: what a YAML file may say, and the same classes as the Python API.

An option is defined here once, with its default, its range and what it means; field names follow TRL where the
meaning is the same. Nothing heavy is imported: a file can be checked on a laptop.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quintain.config.algorithms import DEFAULT_ALGORITHM, AlgorithmConfig, GRPOConfig
from quintain.config.dataset import DatasetConfig, Datasets
from quintain.config.offline import DataOptions, OfflineConfig
from quintain.config.section import Count, Fraction, MayChange, Positive, Rate, Seconds, Section, Url
from quintain.config.trainer import OnlineConfig
from quintain.config.vllm import VLLMConfig
from quintain.failure import QuintainError


class LoraConfig(Section):
    """Train a low-rank adapter (PEFT) in place of the whole model; the model without it is the reference, or with the
    adapter of `path` as it was."""

    path: str | None = None
    """A folder with an adapter to go on from (a checkpoint's `adapter`), of the model at model.path; null makes one."""
    r: Positive = 16
    """Rank of the adapter."""
    alpha: Positive = 32
    """Scale: the adapter's update is multiplied by alpha / r."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input. Above 0 the sampler and the trainer no longer compute the same function."""
    target_modules: str | list[str] = "all-linear"
    """Which layers get an adapter, as PEFT names them."""

    @model_validator(mode="after")
    def _is_made_or_loaded(self) -> LoraConfig:
        fields = type(self).model_fields
        own = [name for name in ("r", "alpha", "target_modules") if getattr(self, name) != fields[name].default]
        if self.path is not None and own:
            raise ValueError(f"path: the adapter there has its own {' and '.join(own)}: leave out that, or path")
        return self


class ModelConfig(Section):
    """The policy."""

    path: str
    """A folder with a transformers model and its tokenizer, or a hub's name of one, which is fetched if need be."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the trained weights and of the optimiser's state."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type matrix products run in; bfloat16 with float32 weights is mixed precision. auto: bfloat16 on a GPU, and
    where it is measured to be the faster one on this CPU; what was chosen stands in the run's config.yaml and stays."""
    lora: LoraConfig | None = None
    """A low-rank adapter; null trains every weight."""
    gradient_checkpointing: MayChange[bool] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class EpisodeSampling(Section):
    """How the training episodes of one environment are sampled; what is null is as in `rollout`."""

    temperature: Annotated[float, Field(gt=0, le=10)] | None = None
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling."""
    top_k: Count | None = None
    """Keep only the k likeliest tokens; 0 is off."""
    max_completion_length: Positive | None = None
    """Most tokens of one turn."""
    max_turns: Positive | None = None
    """An episode with more turns is truncated."""


class CurriculumConfig(Section):
    """Tasks are chosen by how hard they have turned out to be. Shares need not add up to 1; an empty pool's pass on."""

    unseen: Rate = 0.3
    """Share of tasks that were never measured."""
    hard: Rate = 0.1
    """Share of hard tasks."""
    medium: Rate = 0.5
    """Share of tasks that are neither: what is sometimes passed teaches most."""
    easy: Rate = 0.1
    """Share of easy tasks."""
    hard_below: Fraction = 0.1
    """A task is hard where at most this share of episodes passed, over the visits that count."""
    easy_above: Fraction = 0.9
    """A task is easy where at least this share passed."""
    visits: Positive = 2
    """How many of a task's last visits count; one is a group of trainer.num_generations episodes."""
    pass_at: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """The reward from which an episode has passed."""
    tasks: Positive | None = None
    """Of an endless split, how many tasks from its beginning; null of a finite one, which is taken whole."""

    @model_validator(mode="after")
    def _pools(self) -> CurriculumConfig:
        if not self.unseen:
            raise ValueError("'unseen' is 0, so nothing would ever be measured: give it a share")
        if self.hard_below >= self.easy_above:
            raise ValueError(f"hard_below ({self.hard_below}) must be less than easy_above ({self.easy_above})")
        return self

    def size(self, split: str, size: int | None) -> int:
        """How many tasks of `split`, which has `size`, are chosen from. QuintainError where that is not clear."""
        if size is None and self.tasks is None:
            raise QuintainError(
                f"environment.curriculum: the split '{split}' is endless: give 'tasks', how many to visit"
            )
        if size is not None and self.tasks is not None:
            raise QuintainError(f"environment.curriculum.tasks: the split '{split}' is finite, it has {size}: drop it")
        return size or self.tasks or 0


class EnvironmentConfig(Section):
    """Where tasks and rewards come from."""

    name: str | None = None
    """A built-in environment, `module:Class`, or `file.py:Class`: served by the run as its own process."""
    url: MayChange[Url | None] = None
    """An environment server that is already running, or several of the same with commas in between. Or give `name`."""
    token: MayChange[str | None] = Field(default=None, repr=False)
    """The bearer token of the server at `url`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Options of the environment's class."""
    split: str = "train"
    """The split that training draws from."""
    heldout_split: str | None = None
    """The split of this environment that is evaluated on; null is evaluation.split."""
    title: str | None = None
    """What its trajectories, metrics and figures are called; null is its name or address."""
    weight: Rate = 1.0
    """Its share of the groups, beside the weights of the other environments; 0 is evaluated on only."""
    reward_weights: dict[str, float] | None = Field(default=None, min_length=1)
    """An episode's reward is the weighted sum of these named rewards; null takes the environment's own as it is."""
    sampling: EpisodeSampling = EpisodeSampling()
    """How its training episodes are sampled, where that is not as in `rollout`."""
    shuffle: bool = True
    """Visit a finite split in a seeded order, a new one each epoch; an endless split is always taken in order."""
    curriculum: CurriculumConfig | None = None
    """Visit tasks by how hard they have turned out to be; null visits each once an epoch."""
    workers: MayChange[Positive] = 1
    """Worker processes of the environment server."""
    replicas: MayChange[Positive] = 1
    """Environment servers that the run starts; each episode goes to the one with the fewest."""
    step_timeout_s: MayChange[Seconds] = 60.0
    """A reset or step that takes longer is killed and is a failure."""
    lease_s: MayChange[Seconds] = 120.0
    """An episode whose rollout server has given no sign of life for so long is closed; sampling gives such signs."""
    max_episodes: MayChange[Positive | None] = None
    """Most episodes the environment server plays at once, more wait; null is rollout.max_concurrency."""

    @property
    def label(self) -> str:
        """What trajectories call it."""
        return self.title or self.name or self.url or ""

    @model_validator(mode="after")
    def _one_source(self) -> EnvironmentConfig:
        if (self.name is None) == (self.url is None):
            raise ValueError("give exactly one of 'name' (serve this environment) and 'url' (one already running)")
        return self


class RolloutConfig(Section):
    """How episodes are sampled."""

    engine: str = "transformers"
    """What samples: 'transformers' (the embedded engine), 'vllm' (servers, see section `vllm`), or an engine of one's
    own by its factory, `module:factory` or `file.py:factory`: called with the experiment's configuration, it gives a
    `quintain.rollout.engines.base.Engine`."""
    vllm: VLLMConfig | None = None
    """With engine 'vllm': which servers; by default one that the run starts with this Python."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type the engine samples in; auto as in model.compute_dtype."""
    device: MayChange[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where the embedded engine computes; auto is the GPU where there is one (never tested: there was none)."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature of training episodes."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling. Below 1 it biases the importance ratio."""
    top_k: Count = 0
    """Keep only the k likeliest tokens; 0 is off. Above 0 it biases the importance ratio."""
    max_completion_length: Positive = 256
    """Most tokens of one turn."""
    max_length: Positive | None = None
    """Most tokens of a whole episode; null is what the model allows."""
    max_turns: Positive = 16
    """An episode with more turns is truncated."""
    max_batch: MayChange[Positive] = 64
    """Most sequences the embedded engine decodes at once."""
    max_concurrency: MayChange[Positive] = 256
    """Most episodes in flight."""
    max_staleness: Count = 0
    """How many versions old a trajectory may be when it is consumed; 0 is exactly on-policy."""
    attempts: MayChange[Positive] = 3
    """How often a trajectory is tried while its failure is retryable."""
    threads: MayChange[Positive | None] = None
    """CPU threads of the engine; null is one per core."""
    canary_tolerance: MayChange[Rate | None] = None
    """Largest mean |log-probability difference| a publish may show; null: 0.1 in bfloat16, 0.001 in float32."""
    restarts: MayChange[Count] = 3
    """How often a server of the run that dies is started again."""

    concurrency: MayChange[Literal["fixed", "auto"]] = "auto"
    """Whether the episodes in flight follow the engine's load, up to max_concurrency; only an engine that reports its
    KV cache's use has one to follow (the embedded engine does not: its lockstep must stay reproducible)."""
    oversample: Count = 0
    """Most extra members a group may start, each for one that failed; never for a slow one, which would favour short
    episodes."""
    dynamic_sampling: bool = False
    """Replace a group whose rewards are all equal, or with fewer than two that did not fail, by a new one (DAPO)."""
    max_refills: Count | None = None
    """Most groups of a step that dynamic_sampling replaces, the others are used as they are; null is four times
    trainer.prompts_per_step."""
    straggler: Literal["wait", "fail"] = "wait"
    """An episode far slower than its group: wait for it, or end it as a failure (which favours short episodes)."""
    straggler_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """straggler 'fail': how many times the median of its finished peers an episode may take ..."""
    straggler_floor_s: Seconds = 60.0
    """... and that it may take this long in any case."""
    sample_timeout_s: MayChange[Seconds | None] = 3600.0
    """A turn that takes the engine longer is a failure (a hung engine) and is tried again; null waits for ever."""

    renderer: str = "auto"
    """What writes messages as text: 'template' (the tokenizer's chat template) or a family of the package `renderers`;
    auto is that package's family where it is installed and knows this very model, by its hub's name."""
    tool_calls: str = "auto"
    """The format in which the model writes tool calls; auto is what its chat template writes, none reads no calls."""
    thinking: bool | None = None
    """Whether the chat template asks the model to think first (`enable_thinking`); null leaves it to the template."""
    date: datetime.date | None = None
    """The day for a chat template that writes today's; null is the day on which the run began."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further options of the model's chat template."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end a turn too, for base models: with the token that completes one. What is before it was said."""
    stop_ids: list[Count] | None = None
    """Tokens that end a turn; null is every end that tokenizer, generation config or template know."""

    @model_validator(mode="after")
    def _grouping(self) -> RolloutConfig:
        if self.max_refills is not None and not self.dynamic_sampling:
            raise ValueError("max_refills bounds dynamic_sampling, which is off: set dynamic_sampling: true or drop it")
        return self

    @model_validator(mode="before")
    @classmethod
    def _servers(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("engine") == "vllm" and data.get("vllm") is None:
            return {**data, "vllm": {}}
        return data

    @model_validator(mode="after")
    def _engine(self) -> RolloutConfig:
        if self.engine not in ("transformers", "vllm") and ":" not in self.engine:
            raise ValueError(
                f"'engine' is '{self.engine}': expected 'transformers', 'vllm', or an engine of your own as"
                " module:factory or file.py:factory"
            )
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError(f"'vllm' is given, but engine is '{self.engine}': set engine: vllm, or drop the section")
        if self.vllm is not None and self.vllm.urls and self.dtype == "auto":
            raise ValueError("dtype: auto measures this machine, not the servers at vllm.urls: give their --dtype")
        return self


class EvaluationConfig(Section):
    """Evaluation on tasks that training never shows."""

    split: str = "heldout"
    """The split to evaluate on."""
    dataset: Datasets | None = None
    """Of a trainer on a data set: the rows to evaluate on; null holds num_tasks of its rows back from training."""
    num_tasks: Positive | None = None
    """How many of its tasks, or rows; null is all of a finite split."""
    eval_steps: Positive | None = None
    """Evaluate every so many steps; before and after training it always is."""
    metric_for_best_model: str | None = None
    """The figure that says which evaluation is the best: one of a data set's metrics; null is the held-out figure."""
    greater_is_better: bool | None = None
    """Whether more of it is better; null is yes, unless it is a loss."""
    early_stopping_patience: Positive | None = None
    """End after so many evaluations in a row that are no better than the best; null never."""
    load_best_model_at_end: bool = False
    """Keep the checkpoint of the best evaluation; with the run as model.path the next stage starts from it."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0 is greedy."""
    samples_shown: Count = 5
    """Sample answers shown at the end, before and after."""


class GuardsConfig(Section):
    """What stops a run that cannot learn."""

    first_step: MayChange[Literal["stop", "warn"]] = "stop"
    """What to do where all of the first step is alike: no call read, nothing sampled, all cut off, one reward."""
    every_step: MayChange[Literal["stop", "warn"]] = "warn"
    """What to do where figures say, several steps in a row, that training comes apart: the KL, the policy's move within
    a step, the critic's values and how much they explain, the entropy."""


class ExperimentConfig(Section):
    """One experiment: what `quintain train FILE.yaml` runs."""

    name: MayChange[str] = "run"
    """Names the run directory."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Everything random follows from it."""
    model: ModelConfig
    environment: EnvironmentConfig | None = None
    """Where episodes are played, of a trainer that samples what it trains on."""
    environments: list[EnvironmentConfig] = Field(default_factory=list)
    """Several environments in one run, in place of `environment`; each gets its share of every step."""
    dataset: Datasets | None = None
    """What is trained on, of a trainer that samples nothing."""
    rollout: RolloutConfig = RolloutConfig()
    trainer: AlgorithmConfig = Field(default=GRPOConfig(), discriminator="algorithm")
    """How the policy learns: the options of `algorithm`, which is grpo where it is not named."""
    evaluation: MayChange[EvaluationConfig | None] = None
    guards: GuardsConfig = GuardsConfig()
    output_dir: MayChange[str] = "runs"
    """Where run directories are made."""

    @property
    def online(self) -> OnlineConfig:
        """The trainer's options, where it samples what it trains on. QuintainError where it does not."""
        if not isinstance(self.trainer, OnlineConfig):
            raise QuintainError(f"trainer.algorithm: {self.trainer.algorithm} trains on a dataset and samples nothing")
        return self.trainer

    @property
    def offline(self) -> OfflineConfig | None:
        """The trainer's options, where it trains on a data set."""
        return self.trainer if isinstance(self.trainer, OfflineConfig) else None

    @property
    def reads(self) -> DataOptions | None:
        """The trainer's options about the data set, where it trains on one, alone or beside what it samples."""
        return self.trainer if isinstance(self.trainer, DataOptions) and self.dataset is not None else None

    @property
    def plays(self) -> tuple[EnvironmentConfig, ...]:
        """The environments. QuintainError where there is none."""
        found = (self.environment,) if self.environment is not None else tuple(self.environments)
        if not found:
            raise QuintainError("environment: required, and not given")
        return found

    @field_validator("trainer", mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        return {"algorithm": DEFAULT_ALGORITHM, **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _has_what_it_trains_on(self) -> ExperimentConfig:
        algorithm, evaluation = self.trainer.algorithm, self.evaluation
        if self.offline is None:
            if self.environment is None and not self.environments:
                raise ValueError(f"environment: required by {algorithm}, and not given")
            self._check_environments()
            share = getattr(self.trainer, "lmbda", 1.0)
            if self.dataset is not None and share == 1:
                raise ValueError(
                    f"dataset: {algorithm} samples what it trains on: drop it, or choose another algorithm"
                )
            if self.dataset is None and share < 1:
                raise ValueError(f"dataset: with trainer.lmbda {share:g} the others come from one: give it")
            if evaluation is not None and evaluation.dataset is not None:
                raise ValueError(f"evaluation.dataset: {algorithm} is evaluated on tasks of its environment: drop it")
            self._check_dataset(self.dataset or ())
            return self
        if self.dataset is None:
            raise ValueError(f"dataset: required by {algorithm}, and not given")
        if self.environment is not None or self.environments:
            raise ValueError(f"environment: {algorithm} trains on a dataset and plays nothing: drop it")
        if evaluation is not None and evaluation.dataset is None and evaluation.num_tasks is None:
            raise ValueError("evaluation: say with num_tasks how many rows to hold back, or give a dataset of its own")
        if self.model.lora is not None and self.trainer.head != "lm":
            raise ValueError(f"model.lora: {algorithm} trains the whole model so far: drop it")
        self._check_dataset(self.dataset)
        return self

    def _check_dataset(self, sources: tuple[DatasetConfig, ...]) -> None:
        weighted = [source.weight is not None for source in sources]
        if any(weighted) and not all(weighted):
            raise ValueError("dataset: give every data set of the mixture a weight, or none")
        self._check_streams(sources)
        algorithm = self.trainer.algorithm
        if algorithm not in ("sft", "distillation") and any(source.run is not None for source in sources):
            raise ValueError(f"dataset.run: sft trains on trajectories, {algorithm} does not")

    def _check_streams(self, sources: tuple[DatasetConfig, ...]) -> None:
        """ValueError where something needs to know all rows of data sets that are streamed."""
        if not any(source.streaming for source in sources):
            return
        if not all(source.streaming for source in sources):
            raise ValueError("dataset: stream every data set of the mixture, or none")
        if len(sources) > 1 and sources[0].weight is None:
            raise ValueError("dataset: nobody knows how long streams are: give each a weight")
        for name in ("num_train_epochs", "packing", "precompute_ref_log_probs"):
            if getattr(self.trainer, name, None):
                raise ValueError(f"trainer.{name} needs all rows before the first step: drop it, or dataset.streaming")
        evaluation = self.evaluation if self.offline is not None else None
        if evaluation is not None and evaluation.dataset is None and len(sources) > 1:
            raise ValueError("evaluation: rows are held back of a single stream: give it a dataset of its own")
        if evaluation is not None and any(source.streaming for source in evaluation.dataset or ()):
            raise ValueError("evaluation.dataset: what is held out is read whole: drop streaming there")

    def _check_environments(self) -> None:
        if self.environment is not None and self.environments:
            raise ValueError("environment and environments are both given: put the one into the list")
        labels = [environment.label for environment in self.plays]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"environments: two are called {twice!r}: give each a title of its own")
        if not sum(environment.weight for environment in self.plays):
            raise ValueError("environments: every weight is 0: give at least one a weight above 0")

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        longest = self.rollout.max_length
        if longest is not None and self.rollout.max_completion_length >= longest:
            raise ValueError(
                f"rollout.max_completion_length ({self.rollout.max_completion_length}) leaves no room for a prompt"
                f" within rollout.max_length ({longest}): make it smaller"
            )
        trainer = self.trainer
        cache = trainer.soft_punish_cache if isinstance(trainer, OnlineConfig) else None
        if cache is not None and cache > self.rollout.max_completion_length:
            raise ValueError(
                f"trainer.soft_punish_cache ({cache}) is more than rollout.max_completion_length"
                f" ({self.rollout.max_completion_length}): make it a part of that"
            )
        if self.rollout.dynamic_sampling and isinstance(trainer, OnlineConfig) and trainer.num_generations == 1:
            raise ValueError(
                "rollout.dynamic_sampling replaces groups whose rewards are all equal, and a group of one always is:"
                " drop it, or set trainer.num_generations to 2 or more"
            )
        lora = self.model.lora
        if self.trainer.needs_reference and lora is not None and lora.dropout > 0:
            raise ValueError(
                "a reference model (trainer.beta > 0, or a teacher) with model.lora.dropout > 0 makes a noisy KL: set"
                " dropout to 0"
            )
        if self.model.dtype == "bfloat16" and self.model.compute_dtype == "float32":
            raise ValueError(
                "model.compute_dtype: float32 with model.dtype: bfloat16 gains nothing: use bfloat16 in both"
            )
        return self
