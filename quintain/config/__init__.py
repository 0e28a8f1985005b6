"""Configuration: one YAML file is one experiment, and the same classes are the Python API."""

from quintain.config.load import dump_config, load_config, parse_config
from quintain.config.schema import (
    EnvironmentConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    TrainerConfig,
)

__all__ = [
    "EnvironmentConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "LoraConfig",
    "ModelConfig",
    "RolloutConfig",
    "TrainerConfig",
    "dump_config",
    "load_config",
    "parse_config",
]
