"""Where in a model's text the answer is.

The policy of `auto`, first match wins:
1. Thinking is no answer: only what follows the last `</think>` counts, and nothing after an open `<think>`.
2. The last complete `\\boxed{…}`; one that is empty, or never closed, is no answer.
3. What follows the last `####` on its line, as in GSM8K.
4. The whole text, where it is one line of mathematics and no prose: `25`, `$\\frac12$`, `17 + 8 = 25.`, `(1, 2)`.
5. The first mathematics after the last "answer is", "answer:" or "answer =".
6. The last mathematics in the last sentence that has any with a digit or a command in it, else any at all.

`boxed` stops after 2. `whole` takes the text after thinking as it is.

Mathematics in prose is the longest run of words that are no prose: numbers, operators, commands, `$…$`,
single letters beside operators, and units behind numbers; "2 and 3" is one run, the list `2 , 3`. Of an
equation whose left side is arithmetic ("17 + 8 = 25") the answer is the right side.

What always holds: time is linear in the length of the text, up to a fixed window for prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from quintain.verifiers.math.numbers import parse_plain
from quintain.verifiers.math.options import Extraction
from quintain.verifiers.math.text import closing_brace, plain_spelling, unwrapped
from quintain.verifiers.math.units import UNITS

PROSE_WINDOW_CHARS: Final = 8_000
"""Only the end of a long text is searched for an answer that nothing marks."""
MAX_WORDS: Final = 5
"""An answer without mathematics ("Tuesday", "not enough information") has at most so many words."""
MAX_BOXES: Final = 32
"""Only so many of the last boxes are looked at, in case none is ever closed."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
HASHES: Final = "####"
_SPECIAL_TOKEN = re.compile(r"<\|[^<|>]{1,40}\|>|</?s>")
_ANSWER = re.compile(r"\banswers?\b(?:[^.\n:=]|\.(?=\d)){0,80}?(?:\b(?:is|are|was|be|equals)\b|:|=)\s*", re.IGNORECASE)
_DISPLAY = re.compile(r"\$\$.{1,600}?\$\$|\\\[.{1,600}?\\\]|\\begin\{(\w{1,20}\*?)\}.{1,600}?\\end\{\1\}", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[*_\"')]*)\s+|\n+")
_TOKEN = re.compile(
    r"""\$\$.{1,600}?\$\$                                       # display mathematics
      | \$(?!\s)(?:\\.|[^$\\\n]){1,600}?(?<!\s)\$(?!\d)         # inline mathematics; "$5 or $6" is money
      | \\\(.{1,600}?\\\) | \\\[.{1,600}?\\\]
      | \\begin\{(?P<env>\w{1,20}\*?)\}.{1,600}?\\end\{(?P=env)\}
      | (?:\\[A-Za-z]+\s*\{[^{}]*\}|\\.|[^\s$])+               # a word; blanks within \text{ } are part of it
      | \$""",
    re.VERBOSE | re.DOTALL,
)
_COMMAND = re.compile(r"\\(?:text|mathrm|textrm|mbox|textbf|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_LETTERS = re.compile(r"[A-Za-z]+")
_STRONG = re.compile(r"\d|\\[A-Za-z]")
_OPERATORS: Final = frozenset("+-*/=<>^|&,;:(")
_ORDINAL = re.compile(r"\d(?:st|nd|rd|th)$")
_NUMBER_END = re.compile(r"[\d})\]%]$")
_EQUALS = re.compile(r"(?<![\\<>!])=|\\approx(?![A-Za-z])")
_ARITHMETIC = re.compile(r"(?=\D*\d)(?:[\d\s.,+\-*/^()%{}]|\\times|\\cdot|\\div|\\frac|\\left|\\right)+", re.ASCII)

_SHORT_PROSE = re.compile("am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|oh|ok|on|so|to|up|us|we")
_FUNCTION = re.compile(
    "(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|sqrt|cbrt|lim|max|min|gcd|lcm|mod|det|abs|inf(?:inity)?"
)
_LIST_WORDS: Final = frozenset(("and", "or"))
_EMPHASIS: Final = "*_`\"'"


@dataclass(frozen=True, slots=True)
class Extracted:
    """The answer in a text, unwrapped, and the rule that found it."""

    text: str
    rule: str


def extract(text: str, mode: Extraction = "auto") -> Extracted | None:
    """The answer in `text` under the policy above, or None where there is none."""
    body = after_thinking(text)
    if body is None:
        return None
    if mode == "whole":
        return _extracted(body, "whole")
    box = last_box(body)
    if box is not None:
        return _extracted(box, "boxed")
    if mode == "boxed":
        return None
    if HASHES in body:
        return _extracted(body.rpartition(HASHES)[2].strip().partition("\n")[0], "marked")
    stripped = unwrapped(body)
    if parse_plain(stripped) is not None:
        return Extracted(stripped, "whole")
    return _from_prose(plain_spelling(body[-PROSE_WINDOW_CHARS:]))


def after_thinking(text: str) -> str | None:
    """What follows the thinking, or None where the thinking never ended."""
    body = text.rpartition("</think>")[2]
    return None if "<think>" in body else _SPECIAL_TOKEN.sub(" ", body)


def last_box(text: str) -> str | None:
    """What is in the last `\\boxed{…}` that is closed; None without a box, "" where none is ever closed."""
    boxes = list(_BOX.finditer(text))
    for box in reversed(boxes[-MAX_BOXES:]):
        end = closing_brace(text, box.end())
        if end is not None:
            return text[box.end() : end]
    return "" if boxes else None


def is_mathematics(text: str) -> bool:
    """Whether `text` has no prose in it, and anything to compute with at all."""
    seen = False
    for token in _tokens(text):
        if not token.math:
            return False
        seen = True
    return seen


def mathematics_in(text: str) -> list[str]:
    """The runs of mathematics in `text` that have a digit or a command in them, in order."""
    return [run for sentence in _sentences(text) for run in _runs(sentence) if _STRONG.search(run)]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    math: bool


def _from_prose(body: str) -> Extracted | None:
    lines = _joined(body).strip()
    if "\n" not in lines and is_mathematics(lines):
        return _extracted(lines, "whole")
    answers = list(_ANSWER.finditer(body))
    if answers:
        for sentence in _sentences(body[answers[-1].end() :]):
            runs = list(_runs(sentence))
            if runs:
                return _extracted(next(filter(_STRONG.search, runs), runs[0]), "answer")
            words = unwrapped(sentence.strip(_EMPHASIS + " "))
            if words and len(words.split()) <= MAX_WORDS and not sentence.endswith(":"):
                return Extracted(words, "answer")
    weak = None
    for sentence in reversed(list(_sentences(body))):
        for run in reversed(list(_runs(sentence))):
            if _STRONG.search(run):
                return _extracted(run, "last")
            weak = weak or run
    if weak is not None:
        return _extracted(weak, "last")
    words = unwrapped(body.strip(_EMPHASIS + " \n"))
    return Extracted(words, "words") if 0 < len(words.split()) <= MAX_WORDS else None


def _extracted(text: str, rule: str) -> Extracted | None:
    text = unwrapped(text.strip(" \n_`\"'="))
    parts = _EQUALS.split(text)
    worked_out = len(parts) > 1 and _ARITHMETIC.fullmatch(parts[0]) is not None and parts[-1].strip() != ""
    if worked_out:
        text = unwrapped(parts[-1])
    if text[-1:] == "!" and (worked_out or rule in ("answer", "last")):
        text = text[:-1]  # in prose that is joy, and no factorial
    return Extracted(text, rule) if text else None


def _joined(text: str) -> str:
    """`text` with every display and environment on one line."""
    return _DISPLAY.sub(lambda display: display[0].replace("\n", " "), text)


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(_joined(text)):
        if sentence and sentence.strip():
            yield sentence


def _runs(sentence: str) -> Iterator[str]:
    """The runs of mathematics in `sentence`, in order."""
    run: list[str] = []
    for token in _tokens(sentence):
        word = token.text.strip(_EMPHASIS)
        if word.lower().strip(",") in _LIST_WORDS:
            run.append(",")
        elif token.math and word:
            run.append(unwrapped(word) if word.startswith(("$", r"\(", r"\[")) else word)
            if word[-1] in ".;!?" and not word.startswith("\\"):
                yield from _whole_run(run)
                run = []
        else:
            yield from _whole_run(run)
            run = []
    yield from _whole_run(run)


def _whole_run(run: list[str]) -> Iterator[str]:
    text = re.sub(r",\s*,", ",", " ".join(run)).strip(" ,:;")
    if re.search(r"[A-Za-z0-9]", text):
        yield text


def _tokens(text: str) -> Iterator[_Token]:
    words = (match[0] for match in _TOKEN.finditer(text))
    before, word = "", next(words, "")
    while word:
        after = next(words, "")
        math = _is_math_word(word, before, after)
        yield _Token(word, math)
        before, word = (word if math else ""), after


def _is_math_word(word: str, before: str, after: str) -> bool:
    """Whether `word` is mathematics, given the mathematics `before` it (or "") and the word `after` it."""
    if word.startswith(("$", r"\(", r"\[", r"\begin")) and len(word) > 1:
        return True
    word = word.strip(_EMPHASIS + ".,;:!?()[]") or word
    if word.lower() in _LIST_WORDS:
        return False
    letters = _LETTERS.findall(_COMMAND.sub(" ", word))
    if not letters:
        return not any(char in "—…#~" for char in word)
    if word in UNITS or word.lower() in UNITS or word in ("square", "cubic", "per", "percent"):
        if before and _NUMBER_END.search(before.rstrip(_EMPHASIS)):
            return True
        if before in ("square", "cubic", "per") or before in UNITS:
            return True
    if word in ("a", "A", "I"):  # an article, unless something is done with it or it stands alone
        return before[-1:] in _OPERATORS if before else not after or after[:1] in _OPERATORS
    return not _ORDINAL.search(word) and all(_is_name(part) for part in letters)


def _is_name(letters: str) -> bool:
    """Whether `letters` are a variable, two of them, or a function, and no word."""
    if len(letters) <= 2:
        return len(letters) == 1 or not _SHORT_PROSE.fullmatch(letters.lower())
    return _FUNCTION.fullmatch(letters) is not None
