"""Which letter of a multiple choice does a text name? One reading, for the math and the multiple-choice verifier.

Where the letter is, first match wins:

| the text has | the letter |
|---|---|
| a `\\boxed{…}` | in the last one, or in those that belong together: a letter, or a letter as a list labels its items ("B. Rome", "(B) 25") |
| "answer is", "answer:", "answer =", "correct option is", "I choose" | behind the last of these: "the answer is **(B)**" |
| a last line, or a first, that is a letter or begins with one as a list does ("B", "(B)", "B) Rome", "B. Rome") | that one, if no other line is or does so with another letter |

In a box and in a line, the text of exactly one choice stands for its letter, where the choices are known.

What always holds: who hedges names several letters ("A or B", "(A) 12 (B) 25", all choices in a list), and those are
all given, so nobody is right by naming every one; a letter in prose is never taken ("A dog"); `E = mc^2`, `A^2` and
`AB` name none. Time is linear in the text.
"""  # noqa: E501 - a table

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from quintain.verifiers.math.find.extract import boxes_of
from quintain.verifiers.math.read.spelling import plain_spelling

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROSE_WINDOW_CHARS: Final = 8_000
"""Only the end of a long answer is searched for a letter."""

_MARKS = r"[\s*_`\"'$({\[]{0,8}"
_END = r"(?![A-Za-z0-9’'^_])"
_LETTER = rf"{_MARKS}(?P<letter>[A-Za-z]){_END}"
_ANNOUNCED = re.compile(
    r"\b(?:(?:answers?|(?:correct|right|best)\s(?:option|choice))\b[^.\n:=]{0,40}?(?:\bis\b|:|=)"
    r"|(?:choose|pick|select|go\swith)\b)"
    rf"[\s*_]{{0,4}}(?:(?P<named>option|choice)\b)?{_LETTER}(?!\s{{0,2}}=)",
    re.IGNORECASE,
)
_START = re.compile(rf"(?:(?P<named>option|choice|answer)\b\s?:?)?{_LETTER}", re.IGNORECASE)
_LISTED_END = re.compile(r"[\s.*_`\"'$)}\]]{0,8}$|[)}\]*_]{0,4}[.:)\]][)}\]*_]{0,4}\s")
_HEDGE = re.compile(
    rf"[)}}\]*_`\"'$.\s]{{0,8}}(?:,|/|&|;|\bor\b|\band\b|\bvs\b){{1,2}}\s?(?:(?:option|choice)\b)?{_MARKS}"
    rf"(?P<letter>[A-Za-z]){_END}"
)
_LABEL = re.compile(r"(?<![A-Za-z0-9])(?:\((?P<bracketed>[A-Za-z])\)|(?P<dotted>[A-Z])[.)](?=\s))")
_ARTICLE_END = re.compile(r"\s+(?!(?:or|and|because|since|as)\b)[a-z]{2,}")
_FONTS = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|boxed)\s{0,2}\{([^{}]{0,400})\}")
_SPACING = re.compile(r"\\(?:[ ,;:!]|q?quad(?![A-Za-z]))")


def chosen_letters(text: str, choices: Sequence[str] = (), *, bare_small: bool = True) -> frozenset[str]:
    """The letters that `text` names by the policy above: none, one, or the several that it hedges between.

    `choices`: their texts, where they are known. `bare_small`: whether a small letter counts that neither stands in
    brackets nor behind "option"; in mathematics it is a variable.
    """
    box = boxes_of(text)
    if box is not None:
        return listed_letters(box, choices, bare_small=bare_small)
    window = _plainly(text[-PROSE_WINDOW_CHARS:])
    for announced in reversed(list(_ANNOUNCED.finditer(window))):
        if not _is_article(announced, window) and _counts(announced, window, bare_small):
            return _with_hedges(announced, window)
    lines = [line for line in window.splitlines() if line.strip()]
    if not any(_listed(line, choices, bare_small) for line in (*lines[:1], *lines[-1:])):
        return frozenset()
    return frozenset().union(*(_listed(line, choices, bare_small) for line in lines))


def listed_letters(text: str, choices: Sequence[str] = (), *, bare_small: bool = True) -> frozenset[str]:
    """The letters that a short text is, or begins with as a list does, or whose choice's text it is."""
    return _listed(_plainly(text), choices, bare_small)


def _listed(text: str, choices: Sequence[str], bare_small: bool) -> frozenset[str]:
    text = text.strip()
    start = _START.match(text)
    if start is not None and _counts(start, text, bare_small):
        hedged = _HEDGE.match(text, start.end())
        if hedged is not None and not _is_article(hedged, text):
            return _with_hedges(start, text)
        label = _LISTED_END.match(text, start.end())
        if label is not None:
            rest = text[label.end() :]
            if any(_same_text(rest, choice) for choice in choices):
                return frozenset(start["letter"].upper())
            others = (found["bracketed"] or found["dotted"] for found in _LABEL.finditer(rest))
            return frozenset({start["letter"].upper(), *map(str.upper, others)})
    named = [LETTERS[place] for place, choice in enumerate(choices) if _same_text(choice, text)]
    return frozenset(named) if len(named) == 1 else frozenset()


def _counts(found: re.Match[str], text: str, bare_small: bool) -> bool:
    if bare_small or found["letter"].isupper() or found["named"]:
        return True
    at = found.start("letter")
    return text[max(at - 1, 0) : at] in ("(", "[") and text[at + 1 : at + 2] in (")", "]")


def _with_hedges(found: re.Match[str], text: str) -> frozenset[str]:
    letters, at = {found["letter"].upper()}, found.end("letter")
    while (hedge := _HEDGE.match(text, at)) and not _is_article(hedge, text):
        letters.add(hedge["letter"].upper())
        at = hedge.end()
    return frozenset(letters)


def _is_article(found: re.Match[str], text: str) -> bool:
    """Whether the letter is the word "a" or "I" of a sentence: "the answer is a dog", "B, I think"."""
    return found["letter"] in "aAiI" and _ARTICLE_END.match(text, found.end()) is not None


def _plainly(text: str) -> str:
    """`text` with the letters of other alphabets' forms as ASCII, and without LaTeX's fonts and blanks."""
    text = plain_spelling(text)
    if "\\" not in text:
        return text
    for _ in range(3):
        text = _FONTS.sub(r"\1", text)
    return _SPACING.sub(" ", text)


def _same_text(one: str, other: str) -> bool:
    one, other = (" ".join(text.split()).strip(" .\"'*$").casefold() for text in (one, other))
    return one == other != ""
