"""The multiple-choice verifier: which letter does the answer choose?

The reference is a letter ("B"), the choice's number (0 is A), or `{"answer": letter or number, "choices":
["Paris", "Rome", …]}`, with which an answer may also be the text of a choice.

Where the letter is found, and what counts as one: `quintain.verifiers.rules.choices`. Who hedges chooses nothing: two
letters in the place that counts ("A or B") are `unparsable`, and so is a letter beyond the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from quintain.verdict import Verdict
from quintain.verifiers.options import Options, TextOptions
from quintain.verifiers.pure import PureVerifier, bad_reference, unparsable
from quintain.verifiers.rules.choices import LETTERS, chosen_letters
from quintain.verifiers.text import shown


class MultipleChoiceOptions(TextOptions):
    """Options of the multiple-choice verifier."""

    choices: Annotated[int, Field(ge=2, le=26)] = 26
    """How many choices there are where the reference does not list them."""


class MultipleChoiceVerifier(PureVerifier[MultipleChoiceOptions]):
    """Judges whether an answer chooses the right letter."""

    name: ClassVar[str] = "multiple_choice"
    options_type: ClassVar[type[Options]] = MultipleChoiceOptions

    def judge(self, answer: str, reference: Any) -> Verdict:
        """`correct` or `wrong`; `unparsable` where no letter, or more than one, is chosen."""
        asked = _asked(reference, self.options.choices)
        if asked is None:
            return bad_reference('a letter, a number from 0, or {"answer": …, "choices": [texts]}', reference)
        right, choices = asked
        given = self.options.answer_in(answer)
        if not given:
            return unparsable("there is no answer in the text")
        chosen = chosen_letters(given, choices)
        if len(chosen) != 1:
            why = f"it chooses {' and '.join(sorted(chosen))}" if chosen else "it chooses no letter"
            return unparsable(why, answer=shown(given[-200:]))
        [letter] = chosen
        known = len(choices) or self.options.choices
        if LETTERS.index(letter) >= known:
            return unparsable(f"there is no choice {letter}: the last is {LETTERS[known - 1]}")
        return Verdict.scored(float(letter == right), chosen=letter)


def _asked(reference: Any, choices: int) -> tuple[str, Sequence[str]] | None:
    """The right letter and the texts of the choices, or None where `reference` does not say."""
    texts: Any = ()
    if isinstance(reference, dict):
        texts = reference.get("choices", ())
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            return None
        if set(reference) - {"answer", "choices"} or len(texts) == 1 or len(texts) > len(LETTERS):
            return None
        reference = reference.get("answer")
    known = len(texts) or choices
    if isinstance(reference, int) and not isinstance(reference, bool):
        return (LETTERS[reference], texts) if 0 <= reference < known else None
    if not isinstance(reference, str):
        return None
    letter = reference.strip().strip("().").upper()
    return (letter, texts) if len(letter) == 1 and letter in LETTERS[:known] else None
