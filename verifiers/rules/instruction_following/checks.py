"""The 25 instruction families of IFEval (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language
Models", table 1), each a pure function of the answer and its parameters, linear in the answer.

`FAMILIES` has each by the dataset's id, with the parameters that it needs. An empty answer follows nothing. Where the
authors' programme leaves the meaning to a library or to a regular expression, the meaning here is:
- a word is a maximal run of letters, digits and underscores with a letter or digit in it; a word in capitals is a run
  without white space, freed of punctuation at both ends, whose letters are all capitals (a hyphenated word is one);
- a sentence ends at `.`, `!`, `?` or `…` before white space or the end, but not after a title ("Dr."), an initial or
  an abbreviation within a sentence ("e.g."), and after another one ("U.S.", "p.m.", "Inc.") only where a capital
  follows; a line's end ends no sentence; what follows the last end is a sentence too if it has a word in it;
- keywords are texts and no regular expressions; a forbidden word is one that no letter or digit touches;
- what only looks like a character is that character where something is forbidden or counted: a letter of another
  alphabet that is drawn like a Latin one, every kind of comma, a mark of no width; typographic quotation marks are
  quotation marks;
- a bullet is `-` or `*` and a blank, with something behind it; emphasis begins and ends at no blank, and `***bold***`
  is one; a paragraph, a placeholder and a section have something in them, and a section's number counts once;
- of the constrained responses exactly one is given; JSON has no NaN.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias

from quintain.verifiers.text import straight_quotes

Language: TypeAlias = Callable[[str], str | None]
"""The ISO 639-1 code of a text's language, or None where nothing in the text tells."""
Kind = Literal["count", "text", "texts", "relation"]

LESS_THAN: Final = "less than"
AT_LEAST: Final = "at least"
CONSTRAINED_RESPONSES: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_SENTENCE_END = re.compile(r"[.!?…]{1,8}[\"'”’)\]*_]{0,4}(?=\s|$)|[。！？]")
_TITLE = re.compile(
    r"(?:^|[\s(\[\"'])(?:(?-i:[A-Z])|mr|mrs|ms|dr|prof|sr|jr|gen|rev|hon|vs|fig|approx|e\.g|i\.e|cf|no(?=\.\s+\d))\.$",
    re.IGNORECASE,
)
"""Before a full stop that never ends a sentence."""
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:(?:[a-z]\.)+[a-z]|etc|inc|ltd|co|corp|st|ave|dept|no)\.$", re.IGNORECASE
)
"""Before one that ends a sentence where a capital follows."""
_SAINT = re.compile(r"(?<![A-Za-z])[a-z]+\sSt\.$")
_WORD = re.compile(r"\w*[^\W_]\w*")
_EMPHASIS = re.compile(r"(?<![*\\])(\*{1,3})(?=[^\s*])[^\n*]*(?<![\s*])\1(?!\*)")
_BULLET = re.compile(r"^[ \t]*[-*][ \t]+\S", re.MULTILINE)
_FIRST_WORD = re.compile(r"\w+(?:[-']\w+)*")
_DRAWN_ALIKE: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u051b\u0261\u04bb"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u03bf\u03b1\u03bd\u03c1\u03b9\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxijsdwghABEKMHOPCTYXIJSoavpiABEZHIKMNOPTYX",
)
"""Cyrillic and Greek letters that are drawn as Latin ones."""
_PUNCTUATION: Final = ".,;:!?\"'“”‘’()[]{}<>*_`~#…-–—/\\"


@dataclass(frozen=True, slots=True)
class Family:
    """A family of instructions: the parameters it needs, and whether an answer follows it."""

    parameters: Mapping[str, Kind]
    follows: Callable[..., bool]
    detects: bool = False
    """Whether `follows` takes `detect` too, a `Language` or None."""


def compared(number: int, relation: str, threshold: int) -> bool:
    """Whether `number` is less than, or at least, `threshold`."""
    return number < threshold if relation == LESS_THAN else number >= threshold


def is_comma(char: str) -> bool:
    """Whether `char` is a comma of any alphabet, or drawn as one."""
    return char in ",\u201a" or (char > "\x7f" and "COMMA" in unicodedata.name(char, ""))


def words(text: str) -> int:
    """The number of words in `text`."""
    return sum(1 for _ in _WORD.finditer(text))


def sentences(text: str) -> int:
    """The number of sentences in `text`."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if end[0] == "." and _goes_on(text[max(start, end.end() - 12) : end.end()], text[end.end() : end.end() + 8]):
            continue
        count += _WORD.search(text, start, end.end()) is not None
        start = end.end()
    return count + (_WORD.search(text, start) is not None)


def _goes_on(before: str, after: str) -> bool:
    """Whether a sentence goes on behind a full stop, given what is around it."""
    if _TITLE.search(before) or _SAINT.search(before):
        return True
    following = after.lstrip(" \t\n\"'([*_")
    return _ABBREVIATION.search(before) is not None and bool(following) and not following[0].isupper()


def seen(text: str) -> str:
    """`text` in small letters as a reader sees it: letters drawn alike are one, marks of no width are none."""
    text = unicodedata.normalize("NFKC", straight_quotes(text)).translate(_DRAWN_ALIKE)
    return "".join(char for char in text if unicodedata.category(char) != "Cf").lower()


def capital_words(text: str) -> int:
    """The number of words in `text` whose letters are all capitals."""
    return sum(word.strip(_PUNCTUATION).isupper() for word in text.split())


def placeholders(text: str) -> int:
    """The number of `[…]` in `text`, each within one line."""
    count = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start + 1)) >= 0:
            count += _WORD.search(line, start + 1, end) is not None
            start = line.find("[", end + 1)
    return count


def bullets(text: str) -> int:
    """The number of lines of `text` that are Markdown bullets."""
    return sum(1 for _ in _BULLET.finditer(text))


def highlights(text: str) -> int:
    """The number of `*…*`, `**…**` and `***…***` in `text`, each within one line."""
    return sum(1 for _ in _EMPHASIS.finditer(text))


def _has_keywords(text: str, *, keywords: list[str]) -> bool:
    folded = straight_quotes(text).lower()
    return all(straight_quotes(keyword).lower() in folded for keyword in keywords)


def _keyword_count(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return compared(seen(text).count(seen(keyword.strip())), relation, frequency)


def _no_forbidden(text: str, *, forbidden_words: list[str]) -> bool:
    text = seen(text)
    words = (re.escape(seen(word.strip())) for word in forbidden_words)
    return not any(re.search(rf"(?<![^\W_]){word}(?![^\W_])", text) for word in words)


def _letter_count(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compared(seen(text).count(seen(letter.strip())), let_relation, let_frequency)


def _language(text: str, *, language: str, detect: Language) -> bool:
    return detect(text) == language


def _number_of_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    first, *others = re.split(r"\s?\*\*\*\s?", text)
    parts = [first.strip(), *(other.strip() for other in others)]
    if any(not part for part in parts[1:-1]):
        return False
    return sum(map(bool, parts)) == num_paragraphs


def _first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part for part in straight_quotes(text).split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    found = _FIRST_WORD.search(paragraphs[nth_paragraph - 1])
    return found is not None and found[0].lower() == straight_quotes(first_word.strip()).lower()


def _postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(set(map(int, re.findall(rf"{re.escape(section_spliter.strip())}\s?(\d{{1,9}})", text)))) >= num_sections


def _is_json(text: str) -> bool:
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.strip().removeprefix(fence)
    try:
        json.loads(text.removesuffix("```"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _has_title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def _two_responses(text: str) -> bool:
    first, *others = (part.strip() for part in text.split("******"))
    if any(not part for part in others[:-1]):
        return False
    responses = [part for part in (first, *others) if part]
    return len(responses) == 2 and responses[0] != responses[1]


def _repeats(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, *, end_phrase: str) -> bool:
    text, phrase = straight_quotes(text).strip().strip('"').lower(), straight_quotes(end_phrase).strip().lower()
    return text.endswith(phrase)


def _in_case(text: str, *, capital: bool, detect: Language | None) -> bool:
    if not (text.isupper() if capital else text.islower()):
        return False
    return detect is None or detect(text.lower()) == "en"  # detectors know small letters better


def _is_quoted(text: str) -> bool:
    text = straight_quotes(text).strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _at_least_or_less(count: Callable[[str], int], threshold: str, relation: str) -> Family:
    """The family whose answers have so many of what is counted, by the names of its parameters."""
    return Family(
        {threshold: "count", relation: "relation"},
        lambda text, **given: compared(count(text), given[relation], given[threshold]),
    )


FAMILIES: Final[Mapping[str, Family]] = {
    "keywords:existence": Family({"keywords": "texts"}, _has_keywords),
    "keywords:frequency": Family({"keyword": "text", "frequency": "count", "relation": "relation"}, _keyword_count),
    "keywords:forbidden_words": Family({"forbidden_words": "texts"}, _no_forbidden),
    "keywords:letter_frequency": Family(
        {"letter": "text", "let_frequency": "count", "let_relation": "relation"}, _letter_count
    ),
    "language:response_language": Family({"language": "text"}, _language, detects=True),
    "length_constraints:number_sentences": _at_least_or_less(sentences, "num_sentences", "relation"),
    "length_constraints:number_paragraphs": Family({"num_paragraphs": "count"}, _number_of_paragraphs),
    "length_constraints:number_words": _at_least_or_less(words, "num_words", "relation"),
    "length_constraints:nth_paragraph_first_word": Family(
        {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"}, _first_word
    ),
    "detectable_content:number_placeholders": Family(
        {"num_placeholders": "count"}, lambda text, *, num_placeholders: placeholders(text) >= num_placeholders
    ),
    "detectable_content:postscript": Family({"postscript_marker": "text"}, _postscript),
    "detectable_format:number_bullet_lists": Family(
        {"num_bullets": "count"}, lambda text, *, num_bullets: bullets(text) == num_bullets
    ),
    "detectable_format:constrained_response": Family(
        {}, lambda text: sum(response in text for response in CONSTRAINED_RESPONSES) == 1
    ),
    "detectable_format:number_highlighted_sections": Family(
        {"num_highlights": "count"}, lambda text, *, num_highlights: highlights(text) >= num_highlights
    ),
    "detectable_format:multiple_sections": Family({"section_spliter": "text", "num_sections": "count"}, _sections),
    "detectable_format:json_format": Family({}, _is_json),
    "detectable_format:title": Family({}, _has_title),
    "combination:two_responses": Family({}, _two_responses),
    "combination:repeat_prompt": Family({"prompt_to_repeat": "text"}, _repeats),
    "startend:end_checker": Family({"end_phrase": "text"}, _ends),
    "startend:quotation": Family({}, _is_quoted),
    "change_case:capital_word_frequency": _at_least_or_less(capital_words, "capital_frequency", "capital_relation"),
    "change_case:english_capital": Family({}, partial(_in_case, capital=True), detects=True),
    "change_case:english_lowercase": Family({}, partial(_in_case, capital=False), detects=True),
    "punctuation:no_comma": Family({}, lambda text: not any(map(is_comma, text))),
}
"""The families by the ids of the dataset `google/IFEval`; parameters are called as they are there."""
