"""Verifiers that ask a model: a judge, or a reward model."""
