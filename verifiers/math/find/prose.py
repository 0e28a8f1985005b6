"""Mathematics in prose: the runs of words in a sentence that are no prose.

A run is the longest sequence of numbers, operators, commands, `$…$`, single letters beside operators, and units
behind numbers; "2 and 3" is one run, and a list. Alternatives that hedging words join across prose ("25, or
maybe 26") are one run too, so that naming several candidates is naming a list. What always holds: time is linear
in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from quintain.verifiers.math.read.numbers import SCALES
from quintain.verifiers.math.read.spelling import FUNCTIONS, unwrapped, word_set
from quintain.verifiers.math.read.units import UNITS, parse_unit

_DISPLAY = re.compile(r"\$\$.{1,600}?\$\$|\\\[.{1,600}?\\\]|\\begin\{(\w{1,20}\*?)\}.{1,600}?\\end\{\1\}", re.DOTALL)
_SENTENCE_END = re.compile(
    r"(?P<formula>\$\$.{1,600}?\$\$|\$(?!\s)(?:\\.|[^$\\]){1,600}?(?<!\s)\$(?!\d))|(?:(?<=[.?])|(?<=[A-Za-z)\d]!))(?:[*_\"')]*)\s+|\n+",
    re.DOTALL,
)
_TOKEN = re.compile(
    r"""\$\$.{1,600}?\$\$                                       # display mathematics
      | \$(?!\s)(?:\\.|[^$\\\n]){1,600}?(?<!\s)\$(?!\d)         # inline mathematics; "$5 or $6" is money
      | \$\ (?:\\.|[^$\\\n]){1,600}?\$(?!\d)
      | \\\(.{1,600}?\\\) | \\\[.{1,600}?\\\]
      | \\begin\{(?P<env>\w{1,20}\*?)\}.{1,600}?\\end\{(?P=env)\}
      | (?:\\[A-Za-z]+\s*\{[^{}]*\}|\\.|[^\s$])+               # a word; blanks within \text{ } are part of it
      | \$""",
    re.VERBOSE | re.DOTALL,
)
_COMMAND = re.compile(r"\\(?:text|mathrm|textrm|textnormal|mbox|textbf|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+|_\{[^{}]*\}")
_FOREIGN = re.compile(r"[^\W\d_\x00-\x7f]")
_LETTERS = re.compile(r"[A-Za-z]+")
STRONG: Final = re.compile(r"\d|\\[A-Za-z]")
_OPERATORS: Final = frozenset("+-*/=<>^|&,;:(")
_ORDINAL = re.compile(r"\d(?:st|nd|rd|th)$")
_NUMBER_END = re.compile(r"[\d})\]%]$")
_SHORT_PROSE = re.compile("am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|oh|ok|on|so|to|up|us|we")
_COMPARISON = re.compile(r"[<>]|\\(?:[lg]eq?|neq?|[lg]t)(?![A-Za-z])")
"""Between inequalities it matters whether there is "and" or "or"; between values both make a list."""
_LOOSE_ENDS = re.compile(r"^(?:(?:and|or)\b[\s,]{0,3})+|(?:[\s,]{0,3}\b(?:and|or))+$")
_LIST_WORDS: Final = frozenset(("and", "or"))
_HEDGES: Final = word_set(
    "or alternatively maybe perhaps possibly might may could either otherwise else unless though however also another "
    "too other others both equally well pick choose likewise valid possible possibility aka ie vs versus "
    "ou oder o aut ou bien oppure или либо 或 或者 还是 和 または か 또는"
)
_CORRECTIONS: Final = word_set("no wait actually instead rather")
_DENIALS: Final = word_set("not isn't never rather instead because since as where when for if")
_NEGATIONS: Final = word_set(
    "not isn't isnt aren't wasn't never neither nor cannot can't no nicht kein keine pas non não не"
)
_CHANGED = re.compile(
    r"(?:\b(?:than|least|most|over|under|above|below|beyond|few|nearly|almost|minus|negative|half|twice|double|triple"
    r"|except|from|point|step|question|problem|case|up to|one in|(?:any\w*|all|every\w*) but|(?:divi|multipl)\w+ by"
    r"|(?:root|cube|square|log\w*|(?:co)?sine|tangent|reciprocal|inverse|opposite|multiple|divisor|half|third|quarter"
    r"|(?<!by a )factor|power|factorial|percent) of(?: the)?"
    r"|rul\w+ out|(?:eliminat|exclud|reject)\w*)|[%°]|不是|不为|不等于)$"
)
"""Right before a number these words make it another one, or none."""
_REFUTED = re.compile(
    r"(?<!\S)\S+\s+(?:(?:is|was)\s+(?:not|never|wrong|incorrect|false)|(?:is|was|ca|could)n['’]t|cannot)\b",
    re.IGNORECASE,
)
_OPERATIONS: Final = word_set("more less fewer greater than minus plus times over point divided multiplied by of from")
"""Two numbers with nothing but these between them are an expression in words."""
_OTHERWISE = re.compile(r"\b(?:otherwise|else)\W*$|\b(?:if|when)\b.*\b(?:if|when)\b", re.IGNORECASE | re.DOTALL)
MAX_HEDGE_WORDS: Final = 6
MAX_DENIAL_WORDS: Final = 3
"""A negation denies what stands so many words behind it."""
EMPHASIS: Final = "*_`\"'"


@dataclass(frozen=True, slots=True)
class MathRun:
    """A run of mathematics and the words of prose just before it; `groups`: all of it is LaTeX in delimiters."""

    text: str
    before: tuple[str, ...] = ()
    groups: bool = False


def joined(text: str) -> str:
    """`text` with every display and environment on one line."""
    return _DISPLAY.sub(lambda display: display[0].replace("\n", " "), text)


def sentences(text: str) -> Iterator[str]:
    """The sentences and lines of `text` that have something in them."""
    text, start = joined(text), 0
    for end in _SENTENCE_END.finditer(text):
        if end["formula"] is None:
            if text[start : end.start()].strip():
                yield text[start : end.start()]
            start = end.end()
    if text[start:].strip():
        yield text[start:]


def runs(sentence: str) -> Iterator[MathRun]:
    """The runs of mathematics in `sentence`, in order; "5 more than 3" is one, and not worked out."""
    found: list[MathRun] = []
    for run in _runs(_REFUTED.sub(r"not \g<0>", sentence)):
        if found and run.before and set(run.before) <= _OPERATIONS:
            before = found.pop()
            run = MathRun(" ".join((before.text, *run.before, run.text)), before.before)
        found.append(run)
    yield from found


def _runs(sentence: str) -> Iterator[MathRun]:
    run: list[str] = []
    prose: list[str] = []
    groups = True
    for token, is_math in _tokens(sentence):
        word = token.strip(EMPHASIS) or (token if token in ("*", "**") and run else "")
        if _list_word(word):
            if not run:
                prose.append(word.lower().strip(","))
            run.append(word.lower())
        elif is_math and word:
            delimited = word.startswith(("$", r"\(", r"\[")) and len(word) > 1
            groups = groups and delimited
            run.append(unwrapped(word) if delimited else word)
            if word[-1] in ".;!?" and not word.startswith("\\"):
                yield from _whole(run, prose, groups)
                run, prose, groups = [], [], True
        else:
            found = list(_whole(run, prose, groups))
            yield from found
            if found:
                prose = []
                if _list_word(run[-1]):
                    prose.append(run[-1].strip(","))
            run, groups = [], True
            prose.append(word.lower().replace("’", "'").strip("()[],.;:!?"))
            if word.endswith((",", ";", ":")):
                prose.append(",")
    yield from _whole(run, prose, groups)


def first(sentence: str, following: str = "") -> MathRun | None:
    """The first run with a digit or a command, else the first, with the alternatives that follow it.

    Nothing is what it is said not to be ("not 5 but 4"), or to be less or more than. `following` is the next
    sentence, which may have second thoughts ("Or 4.").
    """
    found = [run for run in runs(sentence) if not is_denied(run)]
    start = next((place for place, run in enumerate(found) if STRONG.search(run.text)), 0)
    found = found[start:]
    if not found:
        return None
    if _OTHERWISE.search(sentence):
        return _joined_runs(found)
    together = [found[0]]
    for run in found[1:]:
        words = set(run.before)
        if not words & _HEDGES and (words & _DENIALS or len(run.before) > MAX_HEDGE_WORDS):
            break
        together.append(run)
    if has_second_thoughts(following):
        together += [run for run in runs(following) if STRONG.search(run.text)][:1]
    return _joined_runs(together)


def has_second_thoughts(sentence: str) -> bool:
    """Whether `sentence`, which follows an answer, names another: with a word that says so, or with nothing else."""
    if not any(STRONG.search(run.text) and not is_denied(run) for run in runs(sentence)):
        return False
    words = {word.strip("()[],.;:!?*").lower() for word in sentence.split()}
    return bool(words & (_HEDGES | _CORRECTIONS)) or ("=" not in sentence and is_bare(sentence))


def is_bare(line: str) -> bool:
    """Whether `line` is one run of mathematics and has no word of prose beside it."""
    return all(is_math or _list_word(token) for token, is_math in _tokens(line))


def last(sentence: str) -> MathRun | None:
    """The last run with a digit or a command, with the alternatives that it is one of."""
    found = [run for run in runs(sentence) if STRONG.search(run.text) and not is_denied(run)]
    if not found:
        return None
    start = len(found) - 1
    while start and _hedged(found[start]):
        start -= 1
    return _joined_runs([found[start], *takewhile(_hedged, found[start + 1 :])])


def _joined_runs(found: list[MathRun]) -> MathRun:
    return MathRun(" , ".join(run.text for run in found), found[0].before, all(run.groups for run in found))


def _hedged(run: MathRun) -> bool:
    words = set(run.before)
    return len(run.before) <= MAX_HEDGE_WORDS and bool(words & _HEDGES) and not words & _DENIALS


def is_denied(run: MathRun) -> bool:
    """Whether the words before `run` say that this is not it, or that it is more or less, or so many times it."""
    if _CHANGED.search(" ".join(run.before[-4:])):
        return True
    near = run.before[-MAX_DENIAL_WORDS:]
    return bool(_NEGATIONS & set(near[near.index(",") + 1 :] if "," in near else near))


def _list_word(word: str) -> bool:
    return word.lower().strip(",") in _LIST_WORDS


def _whole(run: list[str], prose: list[str], groups: bool) -> Iterator[MathRun]:
    words = run if any(map(_COMPARISON.search, run)) else ["," if _list_word(word) else word for word in run]
    text = _LOOSE_ENDS.sub("", re.sub(r",\s*,", ",", " ".join(words)).strip(" ,:;")).strip(" ,:;")
    if not ("[" in text or "]" in text):  # of (or 26) the second bracket is left; [1, 2) is an interval
        if text.count(")") > text.count("("):
            bare = text.rstrip("). ")
            text = bare + ")" * max(text.count("(") - bare.count(")"), 0)
        elif text.count("(") > text.count(")"):
            text = text.lstrip("( ") if text.startswith("(") else text
    if re.search(r"[A-Za-z0-9]", text):
        yield MathRun(text, tuple(prose), groups)


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """The words of `text`, and whether each is mathematics."""
    words = (match[0] for match in _TOKEN.finditer(text))
    before, word = "", next(words, "")
    while word:
        after = next(words, "")
        math = _is_math_word(word, before, after)
        yield word, math
        before, word = (word if math else ""), after


def _is_math_word(word: str, before: str, after: str) -> bool:
    """Whether `word` is mathematics, given the mathematics `before` it (or "") and the word `after` it."""
    if word.startswith(("$", r"\(", r"\[", r"\begin")) and len(word) > 1:
        return True
    word = word.strip(EMPHASIS + ".,;:!?()[]") or word
    if word.lower() in _LIST_WORDS:
        return False
    letters = _LETTERS.findall(_COMMAND.sub(" ", word))
    if _FOREIGN.search(word):
        return False
    if not letters:
        return not any(char in "—…#~" for char in word)
    if word == "in" and after:
        return False
    is_unit = (
        word in UNITS
        or word.lower() in UNITS
        or word in ("square", "cubic", "per", "percent", "percentage", "pct", *SCALES)
        or ("/" in word and parse_unit(word) is not None)
    )
    if is_unit and (
        before in UNITS or before in ("square", "cubic", "per") or _NUMBER_END.search(before.rstrip(EMPHASIS + "$"))
    ):
        return True
    if word in ("a", "A", "I"):  # an article, unless something is done with it or it stands alone
        if before:
            return before[-1:] in _OPERATORS or before.startswith("\\")
        return not after or after[:1] in _OPERATORS or after.startswith("\\")
    if "\\" in word and all(part.isupper() and len(part) <= 4 for part in letters):  # \frac{NO}{BO}
        return True
    return not _ORDINAL.search(word) and all(_is_name(part) for part in letters)


def _is_name(letters: str) -> bool:
    """Whether `letters` are a variable, two of them, or a function, and no word."""
    if len(letters) <= 2:
        return len(letters) == 1 or not _SHORT_PROSE.fullmatch(letters.lower())
    return FUNCTIONS.fullmatch(letters) is not None
