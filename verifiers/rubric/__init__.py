"""Rubrics: verifiers made of verifiers."""
