"""quintain: reinforcement learning for language models in environments whose rewards can be verified."""

__version__ = "0.1.0"
