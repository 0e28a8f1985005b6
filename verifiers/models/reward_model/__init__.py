"""The reward model: a transformers sequence classifier scores answers."""
