"""Which letter of a multiple choice does a text name? One reading, for the math and the multiple-choice verifier.

Where the letter is, first match wins:

| the text has | the letter |
|---|---|
| `<answer>…</answer>` | in the last one, as in a box, or as in a text of its own |
| a `\\boxed{…}` | in the last line that has some: a letter, or one as a list labels its items ("B. Rome", "(B) 25") |
| "answer is", "answer:", "correct option is", "I choose", "it's" | behind the last of these: "the answer is **(B)**" |
| "B is correct", "B is the right answer" | before the last of these |
| a last line, or a first, that is a letter or begins with one as a list does ("B", "(B)", "B) Rome", "B - Rome") | that one, if no other line is or does so with another letter |

In each of these places the text of exactly one choice stands for its letter, where the choices are known.

What always holds: whatever else stands in the sentence that names a letter, a second letter in it, or another choice's
text, is a hedge, and both are given, so nobody is right by naming several ("B or A", "B but it might be A", "B | A");
only what is denied ("B, not A") or gives a reason ("because A is wrong") is not. Of later sentences on the line, a
letter that ends a clause, or is said to be something ("Maybe A.", "A is also right"), is a hedge too, and so is one on a
next line that goes on ("or A"). Behind a denial ("not B", "anything but B") nothing is named. A letter
in prose is never taken ("A dog"); `E = mc^2`, `A^2` and `AB` name none. Time is linear in the text.
"""  # noqa: E501 - a table

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from quintain.verifiers.text import last_element, straight_quotes, takes_back

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_BOXES: Final = 32
"""Only so many of the last boxes are looked at."""
PROSE_WINDOW_CHARS: Final = 8_000
"""Only the end of a long answer is searched for a letter."""

_MARKS = r"[\s*_`\"'$({\[]{0,8}"
_END = r"(?![A-Za-z0-9'^_])"
_LETTER = rf"{_MARKS}(?P<letter>[A-Za-z]){_END}"
_SURELY = (
    r"(?:\b(?:therefore|thus|hence|then|so|now|clearly|obviously|certainly|surely|definitely|most\slikely|likely|indeed"
    r"|simply|just|either|the|letter|option|choice|answer)\b[\s,:*]{1,4}){0,3}"
)
_ANNOUNCED = re.compile(
    r"\b(?:(?:answers?|(?:correct|right|best|my|final)\s(?:option|choice))\b[^.\n:=]{0,40}?"
    r"(?:\b(?:is|(?:would|must|to)\sbe)\b|:|=|\s-\s)"
    r"|(?:respuesta|réponse|antwort|resposta|ответ)\b[^.\n:=]{0,40}?(?:\b(?:es|est|ist|é)\b|:|=)"
    r"|(?:choose|pick|select|(?:go|going)\swith|(?:i'd|would)\ssay)\b|\bit(?:'s|\sis|\smust\sbe)\b)"
    r"|答案\s*(?:[是为]|:)",
    re.IGNORECASE,
)
_BEHIND = re.compile(rf"[\s*_:]{{0,6}}(?P<named>{_SURELY}){_LETTER}(?!\s{{0,2}}=)", re.IGNORECASE)
_BEFORE = re.compile(
    rf"(?<![A-Za-z0-9'\\])(?P<named>)(?P<letter>[A-Z]){_END}[)}}\]*_`\"'$]{{0,4}}\s(?:is|must\sbe)\s"
    r"(?:(?:clearly|therefore|thus|indeed)\s)?(?:the\s)?(?:only\s)?(?:correct|right|best)\b"
)
_DENIED = re.compile(r"[\s*_]{0,4}(?:not|neither|never|anything\s+but|all\s+(?:but|except)|unknown|unclear)\b", re.I)
_DENIES = re.compile(
    r"\b(?:not|never|no|neither|nor|cannot|doubt|unless|if|whether|why|wrong|incorrect)\b|n't\b|不是",
    re.IGNORECASE,
)
_START = re.compile(rf"(?P<named>(?:(?:option|choice|answer)\b\s?:?)?){_LETTER}", re.IGNORECASE)
_LISTED_END = re.compile(r"[\s.*_`\"'$)}\]]{0,8}$|[)}\]*_]{0,4}[.:)\]][)}\]*_]{0,4}\s|\s[-\u2013\u2014]\s|[。，]|不是")
_HEDGED = re.compile(r"[)}\]*_`\"'$.\s]{0,8}(?:,|/|&|;|\||\+|\\|\bor\b|\band\b|\bvs\b)")
_ASIDE = re.compile(
    r"\b(?:because|since|(?<!well\s)as(?!\s+well\b)|given|whereas|while|unlike|rather\s+than|instead\s+of|over|explanation|not)\b|不是",
    re.IGNORECASE,
)
_OTHER = re.compile(rf"(?<![A-Za-z0-9'^_])(?P<letter>[A-Za-z]){_END}")
_ENDING = re.compile(
    r"[)}\]*_`\"'$]{0,6}(?:[.,;:!?]|$|\s+(?:is|looks|seems|works|(?:could|might|may|can)\s+(?:also\s+)?be)\b)"
)
_GOES_ON = re.compile(r"\n(?!\s*(?:or|and|maybe|perhaps|possibly|actually|wait|no|sorry|correction)\b)", re.IGNORECASE)
_REFUTED = re.compile(
    r"[\s)*_}\]]{1,6}(?:(?:is|was)\s+(?:not|never|wrong|incorrect|false)|(?:is|was|ca|could)n't|cannot)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[)\]*_\"']{0,3}\s+")
_VERBS = r"or|and|because|since|as|is|was|could|might|may|can|would|will|also|too|seems|looks|if|though|instead"
_ARTICLE_END = re.compile(rf"\s+(?!(?:{_VERBS})\b)[a-z]{{2,}}")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[A-Za-z]))")
_CORRECTS = re.compile(r"\b(?:then|so|next|finally|wait|no|not|actually|hence|therefore|thus)\b", re.IGNORECASE)
_FONTS = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|boxed)\s{0,2}\{([^{}]{0,400})\}")
_SPACING = re.compile(r"\\(?:[ ,;:!{}]|q?quad(?![A-Za-z]))")


def chosen_letters(text: str, choices: Sequence[str] = (), *, bare_small: bool = True) -> frozenset[str]:
    """The letters that `text` names by the policy above: none, one, or the several that it hedges between.

    `choices`: their texts, where they are known. `bare_small`: whether a small letter counts that neither stands in
    brackets nor behind "option"; in mathematics it is a variable.
    """
    text = last_element(text, "answer") or text
    boxes = _boxes(text)
    if boxes is not None:
        return _listed(_plainly(boxes), choices, bare_small)
    window = _plainly(text[-PROSE_WINDOW_CHARS:])
    for announced in reversed(list(_ANNOUNCED.finditer(window))):
        is_it = announced[0][:2].lower() == "it"  # "I do not think it's B"
        if _DENIED.match(window, announced.end()) or (is_it and _is_denied(announced, window)):
            return frozenset()
        found = _BEHIND.match(window, announced.end())
        if found is not None and not _is_article(found, window) and _counts(found, window, bare_small):
            return _with_hedges(found, window, choices)
        line = window[announced.end() :].strip(" \n*_:").partition("\n")[0]
        if letter := _letter_of(line, choices):
            return frozenset(letter)
    for found in reversed(list(_BEFORE.finditer(window))):
        if not _is_denied(found, window):
            return _with_hedges(found, window, choices)
    lines = [line for line in _GOES_ON.split(window) if line.strip()]
    if not any(_listed(line, choices, bare_small) for line in (*lines[:1], *lines[-1:])):
        return frozenset()
    return frozenset().union(*(_listed(line, choices, bare_small) for line in lines))


def listed_letters(text: str, choices: Sequence[str] = (), *, bare_small: bool = True) -> frozenset[str]:
    """The letters that a short text is, or begins with as a list does, or whose choice's text it is."""
    return _listed(_plainly(text), choices, bare_small)


def _boxes(text: str) -> str | None:
    """What is in the last box, and in those on its line that nothing takes back; None without any."""
    found = (
        [(*box.span(), _closed(text, box.end())) for box in list(_BOX.finditer(text))[-MAX_BOXES:]]
        if "\\" in text
        else []
    )
    spans = [(start, at, end) for start, at, end in found if end is not None]
    if not spans:
        return "" if found else None
    together = [spans[-1]]
    for span in reversed(spans[:-1]):
        gap = text[span[2] : together[0][0]]
        if "\n" in gap or _CORRECTS.search(gap):
            break
        together.insert(0, span)
    return " , ".join(text[at:end] for _, at, end in together)


def _closed(text: str, start: int) -> int | None:
    """Where the group that has begun at `start` ends."""
    depth = 1 if text[start - 1] == "{" else 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth <= 0:
            return at + (text[start - 1] != "{")
    return None


def _listed(text: str, choices: Sequence[str], bare_small: bool) -> frozenset[str]:
    text = text.strip()
    start = _START.match(text)
    if start is not None and _counts(start, text, bare_small) and not _is_article(start, text):
        label = _LISTED_END.match(text, start.end())
        if label is not None or _HEDGED.match(text, start.end()):
            return _with_hedges(start, text, choices)
    letter = _letter_of(text, choices)
    return frozenset(letter)


def _with_hedges(found: re.Match[str], text: str, choices: Sequence[str]) -> frozenset[str]:
    """The letter that was `found`, and those that the rest of its line names beside it; none where that refutes it."""
    if _REFUTED.match(text, found.end("letter")):
        return frozenset()
    letter, line = found["letter"].upper(), _GOES_ON.split(text[found.end("letter") :], maxsplit=1)[0]
    if own := _letter_of(line.lstrip(" .:)]}*_$-\u2013\u2014"), choices):
        return frozenset({letter, own})
    sentence, *later = _SENTENCE_END.split(line)
    letters = {letter, *_letters_in(_ASIDE.split(sentence, maxsplit=1)[0], choices, ends=False)}
    if later and takes_back(later[0]):
        letters |= _letters_in(later[0], choices, ends=True)
        return frozenset(letters if len(letters) > 1 else ())
    for other in later:
        if not _DENIES.search(other) and not _ASIDE.search(other):
            letters |= _letters_in(other, choices, ends=True)
    if letter in LETTERS[: len(choices)]:
        rest = sentence.casefold().replace(choices[LETTERS.index(letter)].casefold(), "")
        rest = _ASIDE.split(rest, maxsplit=1)[0]
        for place, choice in enumerate(choices):
            if len(choice) > 1 and re.search(rf"(?<!\w){re.escape(choice.casefold())}(?!\w)", rest):
                letters.add(LETTERS[place])
    return frozenset(letters)


def _letters_in(text: str, choices: Sequence[str], *, ends: bool) -> set[str]:
    """The letters of choices in `text`; of those that `ends` asks for, only where a clause ends."""
    known = LETTERS[: len(choices)] if choices else LETTERS
    return {
        other["letter"].upper()
        for other in _OTHER.finditer(text)
        if other["letter"].upper() in known
        and not _is_article(other, text)
        and (other["letter"].isupper() or other["letter"] not in "ai" or _bracketed(other, text))
        and (not ends or _ENDING.match(text, other.end()))
    }


def _letter_of(text: str, choices: Sequence[str]) -> str:
    """The letter of the one choice whose text this is, or ""."""
    named = [LETTERS[place] for place, choice in enumerate(choices) if _same_text(choice, text)]
    return named[0] if len(named) == 1 else ""


def _counts(found: re.Match[str], text: str, bare_small: bool) -> bool:
    return bare_small or found["letter"].isupper() or bool(found["named"].strip()) or _bracketed(found, text)


def _bracketed(found: re.Match[str], text: str) -> bool:
    at = found.start("letter")
    return text[max(at - 1, 0) : at] in ("(", "[") and text[at + 1 : at + 2] in (")", "]")


def _is_article(found: re.Match[str], text: str) -> bool:
    """Whether the letter is the word "a" or "I" of a sentence: "the answer is a dog", "B, I think"."""
    return found["letter"] in "aAiI" and _ARTICLE_END.match(text, found.end("letter")) is not None


def _is_denied(found: re.Match[str], text: str) -> bool:
    """Whether the clause before what was `found` says that it is not so."""
    before = re.split(r"[.,;!?\n]", text[max(0, found.start() - 80) : found.start()])[-1]
    return _DENIES.search(before) is not None


def _plainly(text: str) -> str:
    """`text` with the letters of other alphabets' forms as ASCII, and without LaTeX's fonts and blanks."""
    text = straight_quotes(unicodedata.normalize("NFKC", text))
    if "\\" not in text:
        return text
    for _ in range(3):
        text = _FONTS.sub(r"\1", text)
    return _SPACING.sub(" ", text)


def _same_text(one: str, other: str) -> bool:
    one, other = (" ".join(text.split()).strip(" .\"'*$").casefold() for text in (one, other))
    return one == other != ""
