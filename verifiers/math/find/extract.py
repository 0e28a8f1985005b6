"""Where in a model's text the answer is.

The policy of `auto`; what is tried first stands first:

| the text | the answer |
|---|---|
| thinking: `</think>`, `</thinking>`, `[/THINK]` … | what follows the last such mark; nothing if one never closes |
| one `\\boxed{…}` (or `\\fbox`) | what is in it, with a percent sign or unit right behind it |
| several, with prose between them | the last one: earlier ones were steps, or were corrected |
| several, with only `and`, `or`, commas or nothing between | the list of them all: two candidates are two answers |
| several, with "and then", "so", "no, wait" between | the last one |
| a box in a box | the outer one, the inner one's frame dropped |
| `\\boxed{}`, `\\boxed{25` | no answer, unless an earlier box is complete |
| text after the box | ignored, but for "final answer" with mathematics behind it, which is later than the box |
| `#### 25` | what follows the last `####` on its line, as in GSM8K |
| one line of mathematics and no prose: `25`, `$\\frac12$`, `17 + 8 = 25.`, `(1, 2)` | all of it |
| "the answer is", "answer:", "answer =" | the first mathematics after the last of these |
| anything else | the last mathematics in the last sentence that has any with a digit or a command in it |
| "25 or 26", "25, maybe 26", "25. Or 26." | the list of them all: it is not 25 |
| "not 25 but 26", "less than 25" | 26; nothing |
| a formula in `$…$` or `\\(…\\)` that runs over a line's end | broken, and no mathematics |
| no mathematics, at most five words | the words |
| a letter, where the reference is a choice from A to J | see `quintain.verifiers.rules.choices` |

`boxed` stops after the boxes. `whole` takes the text after thinking as it is. Of an equation whose left side is
arithmetic ("17 + 8 = 25") the answer is the right side, if the equation is true; else it is the equation, which is
wrong.

What always holds: exactly one candidate comes out, or a list that counts as a list, so hedging never wins; time is
linear in the length of the text, up to a fixed window for prose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from quintain.verifiers.math.find.prose import (
    EMPHASIS,
    STRONG,
    Run,
    first,
    is_denied,
    is_mathematics,
    joined,
    last,
    mathematics_in,
    runs,
    sentences,
)
from quintain.verifiers.math.options import Extraction
from quintain.verifiers.math.read.exact import is_true
from quintain.verifiers.math.read.numbers import SCALES, parse_plain
from quintain.verifiers.math.read.spelling import closing_brace, comparable, grouped, plain_spelling, unwrapped
from quintain.verifiers.math.read.units import parse_unit
from quintain.verifiers.text import text_after_thinking

PROSE_WINDOW_CHARS: Final = 8_000
"""Only the end of a long text is searched for an answer that nothing marks."""
MAX_WORDS: Final = 5
"""An answer without mathematics ("Tuesday", "not enough information") has at most so many words."""
MAX_BOXES: Final = 32
"""Only so many of the last boxes are looked at, in case none is ever closed."""
MAX_GAP_CHARS: Final = 80
"""Boxes further apart are no list."""

HASHES: Final = "####"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SPECIAL_TOKEN = re.compile(r"<\|[^<|>]{1,40}\|>|</?s>")
_CALCULATED = re.compile(r"<<[^<>\n]{1,200}>>")  # GSM8K's notes of its calculator
_ANSWER = re.compile(r"\banswers?\b(?:[^.\n:=]|\.(?=\d)){0,80}?(?:\b(?:is|are|was|be|equals)\b|:|=)\s*", re.IGNORECASE)
_FINAL_ANSWER = re.compile(r"\bfinal\s+answer\b[^.\n:=]{0,40}?(?:\b(?:is|are)\b|:|=)\s*", re.IGNORECASE)
_BROKEN = re.compile(r"(?<!\$)\$[ \t]*\n[^$A-Za-z]{1,80}\n[ \t]*\$(?!\$)|\\\([ \t]*\n[^$A-Za-z]{1,80}\n[ \t]*\\\)")
_JOINING = re.compile(
    r"(?<![A-Za-z])(?:and|or|vs|versus|alternatively|maybe|perhaps|possibly|otherwise|else|unless)(?![A-Za-z])"
)
_STEPS = re.compile(r"\b(?:then|so|next|finally|wait|no|not|actually|hence|therefore|thus)\b", re.IGNORECASE)
_BETWEEN = re.compile(r"\\(?:text|mathrm|mbox|q?quad)|\\[,;!()\[\]\\]|[$\s{}]")
_BEHIND = re.compile(
    r"\s{0,5}(?:\$|\\\)|\\\])?\s{0,5}(?:(?P<percent>\\?%|(?:percent(?:age)?|per cent|pct)\b)"
    rf"|(?P<scale>(?:{'|'.join(SCALES)})\b)"
    r"|(?P<unit>\\(?:text|mathrm|mbox)\s*\{[^{}]{1,30}\}(?:\^\{?\d\}?)?|[A-Za-z][A-Za-z/^\d ]{0,30}(?=[.,;:!?\n$]|$)))"
)
_EQUALS = re.compile(r"(?<![\\<>!:])=|\\approx(?![A-Za-z])")
_ARITHMETIC = re.compile(r"(?=\D*\d)(?:[\d\s.,+\-*/^()%{}]|\\times|\\cdot|\\div|\\frac|\\left|\\right)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The answer in a text, unwrapped, and the rule that found it; `groups`: its braces only group."""

    text: str
    rule: str
    groups: bool = False


def extract(text: str, mode: Extraction = "auto") -> Extracted | None:
    """The answer in `text` under the policy above, or None where there is none."""
    body = text_after_thinking(text)
    if body is None:
        return None
    body = _CALCULATED.sub("", _SPECIAL_TOKEN.sub(" ", body))
    if mode == "whole":
        return _extracted(body, "whole")
    box = boxes_of(body)
    if box is not None:
        later = None if mode == "boxed" else _final_answer(body)
        return later or _extracted(box, "boxed", groups=True)
    if mode == "boxed":
        return None
    if HASHES in body:
        return _extracted(body.rpartition(HASHES)[2].strip().partition("\n")[0], "marked")
    stripped = unwrapped(body)
    if parse_plain(stripped) is not None:
        return Extracted(stripped, "whole")
    return _from_prose(_BROKEN.sub(" ", plain_spelling(body[-PROSE_WINDOW_CHARS:])))


def boxes_of(text: str) -> str | None:
    """What is in the last box, or boxes that belong together; None without a box, "" where none is ever closed."""
    found = list(_BOX.finditer(text)) if "\\" in text else []
    spans: list[tuple[int, int, int]] = []  # (start of the command, start and end of the content)
    for box in found[-MAX_BOXES:]:
        end = closing_brace(text, box.end())
        if end is not None and not (spans and box.start() < spans[-1][2]):
            spans.append((box.start(), box.end(), end))
    if not spans:
        return "" if found else None
    chosen = [spans[-1]]
    for span in reversed(spans[:-1]):
        if not _belong_together(text[span[2] + 1 : chosen[0][0]]):
            break
        chosen.insert(0, span)
    contents = [text[start:end] for _, start, end in chosen]
    contents[-1] += _behind(text[chosen[-1][2] + 1 :], contents[-1])
    contents = [_BOX.sub("{", content) if "\\" in content else content for content in contents]
    if len(contents) == 1 or len({comparable(unwrapped(content)) for content in contents}) == 1:
        return contents[-1]
    return " , ".join(contents)


def last_box(text: str) -> str | None:
    """What is in the last `\\boxed{…}` that is closed; None without a box, "" where none is ever closed."""
    boxes = list(_BOX.finditer(text))
    for box in reversed(boxes[-MAX_BOXES:]):
        end = closing_brace(text, box.end())
        if end is not None:
            return text[box.end() : end]
    return "" if boxes else None


def open_box(text: str) -> str | None:
    """What is in a box that opens last and never closes, if nothing else is open in it and no line ends."""
    found = list(_BOX.finditer(text))
    if not found or closing_brace(text, found[-1].end()) is not None:
        return None
    content = text[found[-1].end() :].strip()
    return content if "\n" not in content and closing_brace(content + "}", 0) == len(content) else None


def _belong_together(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    if len(gap) > MAX_GAP_CHARS or "\n\n" in gap:
        return False
    gap = _BETWEEN.sub(" ", gap)
    if re.search(r"[.!?]\s+[A-Za-z]", gap):
        return False
    if _STEPS.search(gap):
        return False
    return _JOINING.search(gap) is not None or re.search(r"[A-Za-z0-9]", gap) is None


def _behind(text: str, content: str) -> str:
    """The percent sign or unit right behind a box, where there is none in it."""
    found = _BEHIND.match(text)
    if found is None or re.search(r"[\d})\]!]\s*$", content) is None:
        return ""
    if found["percent"]:
        return r"\%"
    if found["scale"]:
        return " " + found["scale"]
    unit = found["unit"].strip()
    inside = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", unit).strip()
    return rf" \text{{{inside}}}" if parse_unit(inside) is not None else ""


def _final_answer(body: str) -> Extracted | None:
    """The final answer in words, where it comes after the last box."""
    box = list(_BOX.finditer(body))[-1]
    phrases = [phrase for phrase in _FINAL_ANSWER.finditer(body) if phrase.start() > box.start()]
    if not phrases:
        return None
    after = next(sentences(body[phrases[-1].end() :]), "")
    run = first(plain_spelling(after))
    if run is None or not STRONG.search(run.text):
        return None
    return _of_run(run, "answer")


def _from_prose(body: str) -> Extracted | None:
    lines = joined(body).strip()
    if "\n" not in lines and is_mathematics(lines):
        return _extracted(lines, "whole")
    answers = list(_ANSWER.finditer(body))
    if answers:
        for sentence, following in pairwise([*sentences(body[answers[-1].end() :]), ""]):
            run = first(sentence, following)
            if run is not None:
                return _of_run(run, "answer")
            words = unwrapped(sentence.strip(EMPHASIS + " "))
            if words and len(words.split()) <= MAX_WORDS and not sentence.endswith(":"):
                return Extracted(words, "answer")
    weak: Run | None = None
    for sentence in reversed(list(sentences(body))):
        run = last(sentence)
        if run is not None:
            return _of_run(run, "last")
        if weak is None:
            weak = next((run for run in reversed(list(runs(sentence))) if not is_denied(run)), None)
    if weak is not None:
        return _of_run(weak, "last")
    words = unwrapped(body.strip(EMPHASIS + " \n"))
    return Extracted(words, "words") if 0 < len(words.split()) <= MAX_WORDS else None


def _of_run(run: Run, rule: str) -> Extracted | None:
    return _extracted(run.text, rule, groups=run.groups)


def _extracted(text: str, rule: str, *, groups: bool = False) -> Extracted | None:
    text = text.replace('\\"', " ").strip(' \n_`"=')
    text = text.strip("'") if text.startswith("'") else text
    groups = groups or grouped(text)
    text = unwrapped(text)
    parts = _EQUALS.split(text) if "=" in text or "approx" in text else [text]
    parts[:-1] = [part.replace("$", " ") for part in parts[:-1]]  # 2 * $9 = $18
    worked_out = len(parts) > 1 and _ARITHMETIC.fullmatch(parts[0]) is not None and parts[-1].strip() != ""
    if text[-1:] == "!" and (worked_out or rule in ("answer", "last")):
        text = text[:-1]  # in prose that is joy, and no factorial
    if worked_out and is_true(text.replace("$", " ")):
        text = unwrapped(parts[-1].rstrip("!"))
    return Extracted(text, rule, groups) if text else None


__all__ = [
    "HASHES",
    "PROSE_WINDOW_CHARS",
    "Extracted",
    "boxes_of",
    "extract",
    "is_mathematics",
    "last_box",
    "mathematics_in",
    "open_box",
]
