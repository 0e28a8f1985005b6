"""The token F1 verifier: how many words do answer and reference share?

Definition (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", and the
evaluation of SQuAD 2.0): both texts are lower-cased, their typographic
quotation marks made plain, freed of ASCII punctuation and of the words a, an and the,
and split at white space. With c words in common, counted as often as both have them, precision p = c / words of the
answer, recall r = c / words of the reference, and the score is 2pr / (p + r), the best over all references. Where
one side has no words left, the score is 1 if the other has none either, else 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from quintain.verifiers.options import Options, TextOptions
from quintain.verifiers.pure import AcceptedTexts
from quintain.verifiers.text import straight_quotes

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1Options(TextOptions):
    """Options of the token F1 verifier."""

    metric: Literal["f1", "exact_match"] = "f1"
    """`f1` as defined above; `exact_match` is 1 where the normalised texts are equal, else 0."""


class TokenF1Verifier(AcceptedTexts[TokenF1Options]):
    """Scores an answer by the words that it shares with the nearest reference."""

    name: ClassVar[str] = "token_f1"
    options_type: ClassVar[type[Options]] = TokenF1Options

    def score_of(self, given: str, accepted: Sequence[str]) -> float:
        """The best score over the references."""
        words = normal_words(given)
        if self.options.metric == "exact_match":
            return float(any(words == normal_words(text) for text in accepted))
        return max(token_f1(words, normal_words(text)) for text in accepted)


def normal_words(text: str) -> list[str]:
    """The words of `text` under SQuAD's normalisation."""
    return _ARTICLES.sub(" ", straight_quotes(text).lower().translate(_PUNCTUATION)).split()


def token_f1(answer: list[str], reference: list[str]) -> float:
    """The F1 score of two lists of words, in [0, 1]."""
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))  # which is 2pr / (p + r), without rounding twice
