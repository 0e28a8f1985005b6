"""The exact verifier: is the answer one of the accepted texts, character for character?

Score 1 where the answer, read as the options say, equals the reference (a text, or a list of which any will do),
0 elsewhere. Both sides are normalised in the same way: stripped, and then as the options ask.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import ClassVar

from quintain.verifiers.options import Options, TextOptions
from quintain.verifiers.pure import AcceptedTexts


class ExactOptions(TextOptions):
    """Options of the exact verifier."""

    case_sensitive: bool = True
    """Whether "Paris" and "paris" differ; where not, both are case-folded as Unicode defines it."""
    collapse_whitespace: bool = False
    """Whether any run of white space is one blank."""
    nfkc: bool = False
    """Whether both sides are brought to Unicode's NFKC first, so that full-width digits are digits."""


class ExactVerifier(AcceptedTexts[ExactOptions]):
    """Judges whether an answer is one of the accepted texts; an empty answer is `unparsable`."""

    name: ClassVar[str] = "exact"
    options_type: ClassVar[type[Options]] = ExactOptions

    def score_of(self, given: str, accepted: Sequence[str]) -> float:
        """Whether it is one of them."""
        return float(self._normal(given) in map(self._normal, accepted))

    def _normal(self, text: str) -> str:
        if self.options.nfkc:
            text = unicodedata.normalize("NFKC", text)
        if self.options.collapse_whitespace:
            text = " ".join(text.split())
        return (text if self.options.case_sensitive else text.casefold()).strip()
