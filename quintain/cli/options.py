"""NAME=VALUE options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def parse_options(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`pairs` as a dictionary; values are read as YAML, so numbers are numbers."""
    import yaml

    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{flag} {pair}: expected NAME=VALUE")
        try:
            out[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise click.UsageError(f"{flag} {pair}: '{text}' is not a YAML value") from None
    return out
