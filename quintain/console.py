"""The terminal on which a command tells people things.

What always holds: a text is printed as it is. Rich reads `[/INST]` in what it is told as markup, and `:one:` as a
picture, and most of what is told quotes models, files and errors.
"""

from __future__ import annotations

from typing import IO

from rich.console import Console


def console_for(*, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console on standard output, on standard error, or on `file`."""
    return Console(stderr=stderr, file=file, width=width, markup=False, emoji=False)
