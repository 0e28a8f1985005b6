"""The exact verifier: is the answer one of the accepted texts, character for character?

Score 1 where the answer, read as the options say, equals the reference (a text, or a list of which any will do),
0 elsewhere. Both sides are normalised in the same way: stripped, and then as the options ask.
"""

from __future__ import annotations

import unicodedata
from typing import Any, ClassVar

from quintain.verdict import Verdict
from quintain.verifiers.options import TextOptions
from quintain.verifiers.pure import PureVerifier, bad_reference, unparsable
from quintain.verifiers.text import shown, texts_of


class ExactOptions(TextOptions):
    """Options of the exact verifier."""

    case_sensitive: bool = True
    """Whether "Paris" and "paris" differ; where not, both are case-folded as Unicode defines it."""
    collapse_whitespace: bool = False
    """Whether any run of white space is one blank."""
    nfkc: bool = False
    """Whether both sides are brought to Unicode's NFKC first, so that full-width digits are digits."""


class ExactVerifier(PureVerifier):
    """Judges whether an answer is one of the accepted texts; an empty answer is `unparsable`."""

    name: ClassVar[str] = "exact"
    options_type: ClassVar[type | None] = ExactOptions

    def __init__(self, options: ExactOptions | None = None) -> None:
        self.options = options or ExactOptions()

    def judge(self, answer: str, reference: Any) -> Verdict:
        """`correct` or `wrong`; an empty reference is a `bad_reference`, since silence would satisfy it."""
        accepted = texts_of(reference)
        if accepted is None:
            return bad_reference("a text that is not empty, or a list of such texts", reference)
        given = self.options.answer_in(answer)
        if not given:
            return unparsable("there is no answer in the text")
        right = self._normal(given) in map(self._normal, accepted)
        return Verdict.scored(float(right), answer=shown(given))

    def _normal(self, text: str) -> str:
        if self.options.nfkc:
            text = unicodedata.normalize("NFKC", text)
        if self.options.collapse_whitespace:
            text = " ".join(text.split())
        return (text if self.options.case_sensitive else text.casefold()).strip()


def make_exact_verifier(**options: Any) -> ExactVerifier:
    """The exact verifier with the named options of `ExactOptions`."""
    return ExactVerifier(ExactOptions.of("exact", options))
