"""The 25 instruction families of IFEval (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language
Models", table 1), each a pure function of the answer and its parameters, linear in the answer.

`FAMILIES` has each by the dataset's id, with the parameters that it needs. An empty answer follows nothing. Where the
authors' programme leaves the meaning to a library or to a regular expression, the meaning here is:
- a word is a maximal run of letters, digits and underscores; a word in capitals is a run without white space, freed
  of punctuation at both ends, all of whose letters are capitals (so a hyphenated word is one);
- a sentence ends at `.`, `!`, `?` or `…` before white space or the end, but not after a common abbreviation or an
  initial; a line's end ends no sentence; what follows the last end is a sentence too if it has a word in it;
- keywords are texts and no regular expressions; a forbidden word is one that no word character touches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias

Language: TypeAlias = Callable[[str], str | None]
"""The ISO 639-1 code of a text's language, or None where nothing in the text tells."""
Kind = Literal["count", "text", "texts", "relation"]

LESS_THAN: Final = "less than"
AT_LEAST: Final = "at least"
CONSTRAINED_RESPONSES: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_SENTENCE_END = re.compile(r"[.!?…]{1,8}[\"'”’)\]*_]{0,4}(?=\s|$)|[。！？]")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:(?-i:[A-Z])|mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|no|fig|inc|ltd|co|approx|e\.g|i\.e|a\.m|p\.m)\.$",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
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


def words(text: str) -> int:
    """The number of words in `text`."""
    return sum(1 for _ in _WORD.finditer(text))


def sentences(text: str) -> int:
    """The number of sentences in `text`."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if end[0] == "." and _ABBREVIATION.search(text[max(start, end.end() - 12) : end.end()]):
            continue
        count += _WORD.search(text, start, end.end()) is not None
        start = end.end()
    return count + (_WORD.search(text, start) is not None)


def capital_words(text: str) -> int:
    """The number of words in `text` whose letters are all capitals."""
    return sum(word.strip(_PUNCTUATION).isupper() for word in text.split())


def placeholders(text: str) -> int:
    """The number of `[…]` in `text`, each within one line."""
    count = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start + 1)) >= 0:
            count += 1
            start = line.find("[", end + 1)
    return count


def bullets(text: str) -> int:
    """The number of lines of `text` that are Markdown bullets: they begin with `-`, or with one `*`."""
    lines = (line.lstrip() for line in text.split("\n"))
    return sum(line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*")) for line in lines)


def highlights(text: str) -> int:
    """The number of `*…*` in `text` with something in them, and of `**…**`, each within one line."""
    single = sum(bool(found.strip("*").strip()) for found in re.findall(r"\*[^\n*]*\*", text))
    return single + sum(bool(found[2:-2].strip()) for found in re.findall(r"\*\*[^\n*]*\*\*", text))


def _has_keywords(text: str, *, keywords: list[str]) -> bool:
    folded = text.lower()
    return all(keyword.lower() in folded for keyword in keywords)


def _keyword_count(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return compared(text.lower().count(keyword.strip().lower()), relation, frequency)


def _no_forbidden(text: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def _letter_count(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compared(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _language(text: str, *, language: str, detect: Language) -> bool:
    return detect(text) == language


def _number_of_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    first, *others = re.split(r"\s?\*\*\*\s?", text)
    parts = [first.strip(), *(other.strip() for other in others)]
    if any(not part for part in parts[1:-1]):
        return False
    return sum(map(bool, parts)) == num_paragraphs


def _first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    if sum(map(bool, map(str.strip, paragraphs))) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    start = paragraphs[nth_paragraph - 1].split(maxsplit=1)
    found = re.split(r"[.,?!'\"]", start[0].lstrip("'").lstrip('"'), maxsplit=1)[0] if start else ""
    return bool(found) and found.lower() == first_word.strip().lower()


def _postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _is_json(text: str) -> bool:
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.strip().removeprefix(fence)
    try:
        json.loads(text.removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True


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
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _in_case(text: str, *, capital: bool, detect: Language | None) -> bool:
    if not (text.isupper() if capital else text.islower()):
        return False
    return detect is None or detect(text.lower()) == "en"  # detectors know small letters better


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


FAMILIES: Final[Mapping[str, Family]] = {
    "keywords:existence": Family({"keywords": "texts"}, _has_keywords),
    "keywords:frequency": Family({"keyword": "text", "frequency": "count", "relation": "relation"}, _keyword_count),
    "keywords:forbidden_words": Family({"forbidden_words": "texts"}, _no_forbidden),
    "keywords:letter_frequency": Family(
        {"letter": "text", "let_frequency": "count", "let_relation": "relation"}, _letter_count
    ),
    "language:response_language": Family({"language": "text"}, _language, detects=True),
    "length_constraints:number_sentences": Family(
        {"num_sentences": "count", "relation": "relation"},
        lambda text, *, num_sentences, relation: compared(sentences(text), relation, num_sentences),
    ),
    "length_constraints:number_paragraphs": Family({"num_paragraphs": "count"}, _number_of_paragraphs),
    "length_constraints:number_words": Family(
        {"num_words": "count", "relation": "relation"},
        lambda text, *, num_words, relation: compared(words(text), relation, num_words),
    ),
    "length_constraints:nth_paragraph_first_word": Family(
        {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"}, _first_word
    ),
    "detectable_content:number_placeholders": Family(
        {"num_placeholders": "count"},
        lambda text, *, num_placeholders: placeholders(text) >= num_placeholders,
    ),
    "detectable_content:postscript": Family({"postscript_marker": "text"}, _postscript),
    "detectable_format:number_bullet_lists": Family(
        {"num_bullets": "count"}, lambda text, *, num_bullets: bullets(text) == num_bullets
    ),
    "detectable_format:constrained_response": Family(
        {}, lambda text: any(response in text for response in CONSTRAINED_RESPONSES)
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
    "change_case:capital_word_frequency": Family(
        {"capital_frequency": "count", "capital_relation": "relation"},
        lambda text, *, capital_frequency, capital_relation: compared(
            capital_words(text), capital_relation, capital_frequency
        ),
    ),
    "change_case:english_capital": Family({}, partial(_in_case, capital=True), detects=True),
    "change_case:english_lowercase": Family({}, partial(_in_case, capital=False), detects=True),
    "punctuation:no_comma": Family({}, lambda text: "," not in text),
}
"""The families by the ids of the dataset `google/IFEval`; parameters are called as they are there."""
