"""Configuration: one YAML file is one experiment, and the same classes are the Python API."""

from quintain.config.algorithms import (
    GRPOConfig,
    NashMDConfig,
    OnlineDPOConfig,
    ReinforceConfig,
    RLOOConfig,
    SDPOConfig,
)
from quintain.config.distillation import DistillationConfig
from quintain.config.load import dump_config, load_config, parse_config, write_config
from quintain.config.ppo import PPOConfig
from quintain.config.schema import (
    CurriculumConfig,
    EnvironmentConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
)
from quintain.config.trainer import OnlineConfig, TrainerConfig
from quintain.config.vllm import VLLMConfig

__all__ = [
    "CurriculumConfig",
    "DistillationConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "GRPOConfig",
    "LoraConfig",
    "ModelConfig",
    "NashMDConfig",
    "OnlineConfig",
    "OnlineDPOConfig",
    "PPOConfig",
    "RLOOConfig",
    "ReinforceConfig",
    "RolloutConfig",
    "SDPOConfig",
    "TrainerConfig",
    "VLLMConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "write_config",
]
