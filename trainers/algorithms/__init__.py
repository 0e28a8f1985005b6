"""One file per algorithm, its options in `quintain.config.algorithms`."""

from functools import cache, partial
from typing import Any

from quintain.config import ExperimentConfig, SDPOConfig
from quintain.rollout.chat.load import load_chat
from quintain.trainers.algorithms.base import Algorithm
from quintain.trainers.algorithms.cpo import CPO
from quintain.trainers.algorithms.distillation import Distillation
from quintain.trainers.algorithms.dpo import DPO
from quintain.trainers.algorithms.grpo import GRPO
from quintain.trainers.algorithms.kto import BCO, KTO
from quintain.trainers.algorithms.nash_md import NashMD
from quintain.trainers.algorithms.online_dpo import OnlineDPO
from quintain.trainers.algorithms.orpo import ORPO
from quintain.trainers.algorithms.ppo import PPO
from quintain.trainers.algorithms.reinforce import ReinforcePlusPlus
from quintain.trainers.algorithms.reward import ProcessRewardModel, RewardModel
from quintain.trainers.algorithms.rloo import RLOO
from quintain.trainers.algorithms.sdpo import SDPO
from quintain.trainers.algorithms.sft import SFT

ALGORITHMS: dict[str, Any] = {
    "grpo": GRPO,
    "sft": SFT,
    "dpo": DPO,
    "cpo": CPO,
    "orpo": ORPO,
    "kto": KTO,
    "bco": BCO,
    "reward": RewardModel,
    "prm": ProcessRewardModel,
    "rloo": RLOO,
    "online_dpo": OnlineDPO,
    "nash_md": NashMD,
    "sdpo": SDPO,
    "ppo": PPO,
    "distillation": Distillation,
    "reinforce_plus_plus": ReinforcePlusPlus,
    "reinforce_plus_plus_baseline": ReinforcePlusPlus,
}
"""By the name that `trainer.algorithm` gives; each is made of its options and `longest`, the completion limit; SDPO
also of the `chat` that it tells its teacher by."""


def algorithm_of(config: ExperimentConfig) -> Algorithm[Any, Any]:
    """The algorithm that the experiment names."""
    more = {"chat": cache(partial(load_chat, config))} if isinstance(config.trainer, SDPOConfig) else {}
    made: Algorithm[Any, Any] = ALGORITHMS[config.trainer.algorithm](
        config.trainer, longest=config.rollout.max_completion_length, **more
    )
    return made
