"""The multiple-choice verifier: which letter does the answer choose?

The reference is a letter ("B"), the choice's number (0 is A), or `{"answer": letter or number, "choices":
["Paris", "Rome", …]}`, with which an answer may also be the text of a choice.

Where the letter is found, first match wins:
1. In the last `\\boxed{…}`: a letter, or a letter and a choice's text ("B. Rome").
2. Behind the last "answer is", "answer:", "answer =" or "correct option is": "the answer is **(B)**".
3. The last line is a letter, or begins with one as a list does ("B", "(B)", "B) Rome", "B. Rome"), and no other
   line is or does so with another letter.
In a box and in a last line, the text of exactly one choice stands for its letter.

Who hedges chooses nothing: two letters in the place that counts ("A or B") are `unparsable`, and so is a letter
beyond the choices. A letter in prose is never taken: "A dog" names no choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from quintain.verdict import Verdict
from quintain.verifiers.math.extract import last_box
from quintain.verifiers.options import TextOptions
from quintain.verifiers.pure import PureVerifier, bad_reference, unparsable
from quintain.verifiers.text import answer_in, shown

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROSE_WINDOW_CHARS: Final = 8_000
"""Only the end of a long answer is searched for a letter."""

_MARKS = r"[\s*_`\"'$({\[]{0,8}"
_WRAPPED = r"(?:\\(?:text|textbf|mathrm|mathbf)\s{0,2}\{\s{0,2}\(?)?"
_END = r"(?![A-Za-z0-9’'])"
_LETTER = rf"{_MARKS}{_WRAPPED}(?P<letter>[A-Za-z]){_END}"
_ANNOUNCED = re.compile(
    rf"\b(?:answers?|(?:correct|right|best)\s(?:option|choice))\b[^.\n:=]{{0,40}}?(?:\bis\b|:|=)"
    rf"\s{{0,4}}(?:(?:option|choice)\b)?{_LETTER}",
    re.IGNORECASE,
)
_START = re.compile(_LETTER)
_LISTED_END = re.compile(r"[\s.*_`\"'$)}\]]{0,8}$|[)}\]*_]{0,4}[.:)][)}\]*_]{0,4}\s")
_HEDGE = re.compile(rf"[)}}\]*_`\"'$.\s]{{0,8}}(?:,|/|&|\bor\b|\band\b){{1,2}}{_MARKS}(?P<letter>[A-Za-z]){_END}")
_ARTICLE_END = re.compile(r"\s+(?!(?:or|and|because|since|as)\b)[a-z]{2,}")


class MultipleChoiceOptions(TextOptions):
    """Options of the multiple-choice verifier."""

    choices: Annotated[int, Field(ge=2, le=26)] = 26
    """How many choices there are where the reference does not list them."""


class MultipleChoiceVerifier(PureVerifier):
    """Judges whether an answer chooses the right letter."""

    name: ClassVar[str] = "multiple_choice"
    options_type: ClassVar[type | None] = MultipleChoiceOptions

    def __init__(self, options: MultipleChoiceOptions | None = None) -> None:
        self.options = options or MultipleChoiceOptions()

    def judge(self, answer: str, reference: Any) -> Verdict:
        """`correct` or `wrong`; `unparsable` where no letter, or more than one, is chosen."""
        asked = _asked(reference, self.options.choices)
        if asked is None:
            return bad_reference('a letter, a number from 0, or {"answer": …, "choices": [texts]}', reference)
        right, choices = asked
        given = answer_in(answer, after_thinking=self.options.after_thinking, tag=self.options.tag)
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


def chosen_letters(text: str, choices: Sequence[str] = ()) -> frozenset[str]:
    """The letters that `text` chooses by the policy above: none, one, or the several that it hedges between."""
    box = last_box(text)
    if box is not None:
        return _listed(box, choices)
    window = text[-PROSE_WINDOW_CHARS:]
    for announced in reversed(list(_ANNOUNCED.finditer(window))):
        if not _is_article(announced, window):
            return _with_hedges(announced, window)
    lines = [line for line in window.splitlines() if line.strip()]
    if not lines or not _listed(lines[-1], choices):
        return frozenset()
    return frozenset().union(*(_listed(line, choices) for line in lines))  # who lists all the choices chooses none


def _listed(text: str, choices: Sequence[str]) -> frozenset[str]:
    """The letters that `text` is, or begins with as a list does, or whose choice's text it is."""
    text = text.strip()
    start = _START.match(text)
    if start is not None and (_LISTED_END.match(text, start.end()) or _HEDGE.match(text, start.end())):
        return _with_hedges(start, text)
    named = [LETTERS[place] for place, choice in enumerate(choices) if _plain(choice) == _plain(text)]
    return frozenset(named) if len(named) == 1 else frozenset()


def _with_hedges(found: re.Match[str], text: str) -> frozenset[str]:
    letters, at = {found["letter"].upper()}, found.end("letter")
    while (hedge := _HEDGE.match(text, at)) and not _is_article(hedge, text):
        letters.add(hedge["letter"].upper())
        at = hedge.end()
    return frozenset(letters)


def _is_article(found: re.Match[str], text: str) -> bool:
    """Whether the letter is the word "a" or "I" of a sentence: "the answer is a dog", "B, I think"."""
    return found["letter"] in "aAiI" and _ARTICLE_END.match(text, found.end()) is not None


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .\"'*$").casefold()


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


def make_multiple_choice_verifier(**options: Any) -> MultipleChoiceVerifier:
    """The multiple-choice verifier with the named options of `MultipleChoiceOptions`."""
    return MultipleChoiceVerifier(MultipleChoiceOptions.of("multiple_choice", options))
