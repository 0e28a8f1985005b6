"""Rubrics: verifiers made of verifiers."""

from quintain.verifiers.rubric.verifier import RubricOptions, RubricVerifier, make_rubric_verifier

__all__ = ["RubricOptions", "RubricVerifier", "make_rubric_verifier"]
