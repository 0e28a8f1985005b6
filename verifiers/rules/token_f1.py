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
from typing import Any, ClassVar, Literal

from quintain.verdict import Verdict
from quintain.verifiers.options import TextOptions
from quintain.verifiers.pure import PureVerifier, bad_reference, unparsable
from quintain.verifiers.text import shown, straight_quotes, texts_of

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1Options(TextOptions):
    """Options of the token F1 verifier."""

    metric: Literal["f1", "exact_match"] = "f1"
    """`f1` as defined above; `exact_match` is 1 where the normalised texts are equal, else 0."""


class TokenF1Verifier(PureVerifier):
    """Scores an answer by the words that it shares with the nearest reference."""

    name: ClassVar[str] = "token_f1"
    options_type: ClassVar[type | None] = TokenF1Options

    def __init__(self, options: TokenF1Options | None = None) -> None:
        self.options = options or TokenF1Options()

    def judge(self, answer: str, reference: Any) -> Verdict:
        """The best score over the references; thinking that never ends is `unparsable`."""
        accepted = texts_of(reference)
        if accepted is None:
            return bad_reference("a text that is not empty, or a list of such texts", reference)
        given = self.options.answer_in(answer)
        if not given:
            return unparsable("there is no answer in the text")
        words = normal_words(given)
        if self.options.metric == "exact_match":
            score = float(any(words == normal_words(text) for text in accepted))
        else:
            score = max(token_f1(words, normal_words(text)) for text in accepted)
        return Verdict.scored(score, answer=shown(given))


def normal_words(text: str) -> list[str]:
    """The words of `text` under SQuAD's normalisation."""
    return _ARTICLES.sub(" ", straight_quotes(text).lower().translate(_PUNCTUATION)).split()


def token_f1(answer: list[str], reference: list[str]) -> float:
    """The F1 score of two lists of words, in [0, 1]."""
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))  # which is 2pr / (p + r), without rounding twice


def make_token_f1_verifier(**options: Any) -> TokenF1Verifier:
    """The token F1 verifier with the named options of `TokenF1Options`."""
    return TokenF1Verifier(TokenF1Options.of("token_f1", options))
