"""Stop strings: a turn ends with the token that completes one, whichever engine samples it. Pure.

An engine asks after each token, so its output is what it would have sampled anyway, up to that token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_EDGE: Final = 8  # tokens more than a stop has letters: a decoder may trim the beginning of what it is given
_BROKEN: Final = "\ufffd"  # what a decoder makes of half a letter


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Whether tokens say one of `strings`; `decode` gives the text of tokens."""

    decode: Callable[[Sequence[int]], str]
    strings: tuple[str, ...]

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether `tokens`, all of a turn so far, say one. Only the end is looked at: those before it said none."""
        longest = max(map(len, self.strings))
        needed = longest + _EDGE + len(self.decode(tokens[-1:]))
        window = longest + _EDGE
        while True:
            text = self.decode(tokens[-window:])
            if window >= len(tokens) or (len(text) >= needed and not text.startswith(_BROKEN)):
                return any(stop in text for stop in self.strings)
            window *= 2

    def before(self, text: str) -> str | None:
        """What `text` says before the first of them, None where it says none."""
        places = [at for stop in self.strings if (at := text.find(stop)) >= 0]
        return text[: min(places)] if places else None
