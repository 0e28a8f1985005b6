"""Verifiers that follow rules: texts, choices, formats, schemas, queries and calls."""
