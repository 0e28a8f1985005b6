"""One file per algorithm."""

from quintain.config import ExperimentConfig
from quintain.trainers.algorithms.base import Algorithm
from quintain.trainers.algorithms.grpo import GRPO


def algorithm_of(config: ExperimentConfig) -> Algorithm:
    """The algorithm that `trainer.algorithm` names; a new one is a line here."""
    algorithms = {"grpo": GRPO}
    return algorithms[config.trainer.algorithm](config.trainer, longest=config.rollout.max_completion_length)
