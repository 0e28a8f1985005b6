"""Where in a model's text, its thinking aside, the answer is.

The policy of `auto`; what is tried first stands first:

| the text | the answer |
|---|---|
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
| "25. That is wrong.", "25. No, wait." | nothing |
| "not 25 but 26", "less than 25", "half of 25", "not \\boxed{25}" | 26; nothing |
| "25 more than 3", "2\\cdot\\boxed{25}", "\\boxed{25}^2" | nothing: it is a part of what is said |
| "25 if n is even and 26 if n is odd" | both: it is not 25 |
| a formula in `$…$` or `\\(…\\)` that runs over a line's end | broken, and no mathematics |
| no mathematics, at most five words | the words |
| a letter, where the reference is a choice from A to J | see `quintain.verifiers.rules.choices` |

`boxed` stops after the boxes. `whole` takes the text as it is. Of an equation whose left side is
arithmetic ("17 + 8 = 25") the answer is the right side, if the equation is true; else it is the equation, which is
wrong.

What always holds: exactly one candidate comes out, or a list that counts as a list, so hedging never wins; time is
linear in the length of the text, up to a fixed window for prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from quintain.verifiers.math.find.prose import (
    EMPHASIS,
    STRONG,
    MathRun,
    first,
    has_second_thoughts,
    is_bare,
    is_denied,
    joined,
    last,
    runs,
    sentences,
)
from quintain.verifiers.math.read.exact import ARITHMETIC, is_true
from quintain.verifiers.math.read.lexer import MAX_CHARS
from quintain.verifiers.math.read.numbers import SCALES, parse_plain
from quintain.verifiers.math.read.reading import has_words, read
from quintain.verifiers.math.read.spelling import closing_brace, comparable, grouped, plain_spelling, unwrapped
from quintain.verifiers.math.read.tree import Undecided, Unreadable
from quintain.verifiers.math.read.units import parse_unit, split_unit
from quintain.verifiers.text import takes_back

Extraction = Literal["auto", "boxed", "whole"]

PROSE_WINDOW_CHARS: Final = 8_000
"""Only the end of a long text is searched for an answer that nothing marks."""
MAX_WORDS: Final = 5
"""An answer without mathematics ("Tuesday", "not enough information") has at most so many words."""
MAX_BOXES: Final = 32
"""Only so many of the last boxes are looked at, in case none is ever closed."""
MAX_GAP_CHARS: Final = 80
"""Boxes further apart are no list."""

HASHES: Final = "####"
_BOX = re.compile(
    r"\\(?:boxed|fbox|box)\s*(?:(?P<brace>\{)|(?P<bare>\\[dt]?frac\s*\d\s*\d|-?\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])))"
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$((?:\\.|[^$\\])+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_INLINE = re.compile(r"\$\$.+?\$\$|\$(?!\s)(?:\\.|[^$\\\n])+?(?<!\s)\$(?!\d)|\\\(.+?\\\)|\\\[.+?\\\]")
_LISTING = re.compile(r"\b(?:and|or)\b")
_VALUE_AND_WORDS = re.compile(r"[-+$€£]?\d[\d.,/ ]*%?((?:\s+[(\[]?[A-Za-z'/-]+[)\]]?){1,4})[.!]?")
_CLAUSE = re.compile(r"\b(?:is|are|was|were|be|because|since|as|which|so|for|in total|altogether)\b")
_FACTORIAL = re.compile(r"!\s*(?:\$|\\\)|\\\])[\s.*]*$")
_UNIT_WORDS = re.compile(
    r"(?<=[\d\s])(?<![\\A-Za-z])(?:[A-Za-z]{2,}|[mshgLNJW](?![A-Za-z]))(?:\s+[A-Za-z]{2,}){0,3}(?=\s*(?:[-+*/=.,]|$))"
)
_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=\d)")
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_SPECIAL_TOKEN = re.compile(r"<\|[^<|>]{1,40}\|>|</?s>")
_CALCULATED = re.compile(r"<<[^<>\n]{1,200}>>")  # GSM8K's notes of its calculator
_ANSWER = re.compile(
    r"\banswers?\b(?:[^.\n:=]|\.(?=\d)){0,80}?(?:\b(?:is|are|was|be|equals)\b|:|=)\s*"
    r"|(?:答案|答え|정답|\b(?:Ответ|respuesta|réponse|Antwort|risposta|resposta)\b)[^\n:：=\d]{0,30}?(?:[:：=是为はは은는]|\b(?:es|est|ist|è|é)\b)\s*",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|never|cannot|no|non|não|nicht)\b|\b\w+n['’]t\b|\bn['’]est\b|不是|不为|ではな", re.IGNORECASE
)
_DOUBTED = re.compile(
    r"\b(?:(?:not|n['’]t) (?:think|believe|say|mean|true|sure)|(?<!no )doubt"
    r"|(?:unlikely|false|untrue|wrong|incorrect) that)\b[^.,;!?\n]*$",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"\s*(?:ではない|じゃない|ではありません|[가이]?\s*아니|[가이]?\s*아닙|不对|不正确)"
    r"|[\s$*_)]*(?:is|was|are|seems)\s+(?:not|never|wrong|incorrect|false)\b|[\s$*_)]*(?:isn|wasn|can)['’]t\b"
)
_IN_EXPRESSION = re.compile(
    r"(?:(?<![\s*-])|(?<=[=$({\[]\s)|^)[-/^]$|\\(?:cdot|times|div|pm)\s*$|(?<![A-Za-z}])\d$"
    r"|\\(?:sqrt|[dt]?frac|[dt]?binom)\s*(?:\[[^\]]*\]\s*|\{[^{}]*\}\s*)?\{[^{}]*$"
)
_GOES_ON = re.compile(r"\s*\^|[!/]\s*[\d\\({]|\s*(?:\\cdot|\\times|\\div)(?![A-Za-z])|\s*[+*/]\s*[\d\\({]|-\d")
_FINAL_ANSWER = re.compile(r"\bfinal\s+answer\b[^.\n:=]{0,40}?(?:\b(?:is|are)\b|:|=)\s*", re.IGNORECASE)
_BROKEN = re.compile(r"(?<!\$)\$[ \t]*\n[^$A-Za-z]{1,80}\n[ \t]*\$(?!\$)|\\\([ \t]*\n[^$A-Za-z]{1,80}\n[ \t]*\\\)")
_HEDGED = re.compile(
    r"\b(?:or|vs|versus|alternatively|alternative|maybe|perhaps|possib\w+|otherwise|else|unless|another|also|other|too|case"
    r"|second|either|both|option|if|could|might)\b|或|или",
    re.IGNORECASE,
)
_STEPS = re.compile(r"\b(?:then|so|next|finally|wait|no|not|actually|hence|therefore|thus|final)\b", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:is|are|equals|get|gives|obtain)\s*$|^(?!.*(?:,|\band\b)).*=\s*$", re.DOTALL)
_BETWEEN = re.compile(r"\\(?:text|mathrm|mbox|q?quad)|\\[,;!()\[\]\\]|[$\s{}]")
_BEHIND = re.compile(
    r"\s{0,5}(?:\$|\\\)|\\\])?\s{0,5}(?:(?P<percent>\\?%|(?:percent(?:age)?|per cent|pct)\b)"
    rf"|(?P<scale>(?:{'|'.join(SCALES)})\b)"
    r"|(?P<unit>\\(?:text|mathrm|mbox)\s*\{[^{}]{1,30}\}(?:\^\{?\d\}?)?|[A-Za-z][A-Za-z/^\d ]{0,30}(?=[.,;:!?\n$]|$)))"
)
_EQUALS = re.compile(r"(?<![\\<>!:])=|\\approx(?![A-Za-z])")


@dataclass(frozen=True, slots=True)
class Extracted:
    """The answer in a text, unwrapped, and the rule that found it; `groups`: its braces only group."""

    text: str
    rule: str
    groups: bool = False


def spans(text: str, mode: Extraction = "auto") -> Iterator[tuple[str, str]]:
    """(rule, text) of what is an answer if it is, token by token, the reference: nothing else stands around it."""
    body = _seen(text)
    if mode != "boxed":
        yield "whole", body
    if (box := boxes_of(body)) is not None:
        if mode == "boxed" or (mode == "auto" and _final_answer(body) is None):
            yield "boxed", box
    elif mode == "auto" and (answers := list(_ANSWER.finditer(body))):
        yield "answer", body[answers[-1].end() :]


def extract(text: str, mode: Extraction = "auto") -> Extracted | None:
    """The answer in `text` under the policy above, or None where there is none."""
    body = _seen(text)
    if mode == "whole":
        return _extracted(body, "whole")
    box = boxes_of(body)
    if box is not None:
        later = None if mode == "boxed" else _final_answer(body)
        return later or _extracted(box, "boxed", groups=True)
    if mode == "boxed":
        return None
    if HASHES in body:
        return _extracted(_hashed(body), "marked")
    stripped = unwrapped(body)
    if parse_plain(stripped) is not None:
        return Extracted(stripped, "whole")
    return _from_prose(_BROKEN.sub(" ", plain_spelling(body[-PROSE_WINDOW_CHARS:])))


def _seen(text: str) -> str:
    """`text` without what no reader sees."""
    return _CALCULATED.sub("", _SPECIAL_TOKEN.sub(" ", text))


def _hashed(body: str) -> str:
    """What follows the last `####` on its line, with those of the lines just above: two of them are two answers."""
    marked: list[str] = []
    for line in reversed([line for line in body.splitlines() if line.strip()]):
        before, mark, after = line.rpartition(HASHES)
        if mark:
            marked.insert(0, after.strip())
        if marked and (not mark or before.strip()):
            break
    return " , ".join(dict.fromkeys(marked))


def boxes_of(text: str) -> str | None:
    """What is in the last box, or boxes that belong together; None without a box, "" where the last is never closed."""
    found = list(_BOX.finditer(text)) if "\\" in text else []
    boxes: list[tuple[int, int, str]] = []  # (start of the command, end of the box, content)
    for box in found[-MAX_BOXES:]:
        if boxes and box.start() < boxes[-1][1]:
            continue
        if not box["brace"]:
            boxes.append((box.start(), box.end(), box["bare"]))
        elif (end := closing_brace(text, box.end())) is not None:
            boxes.append((box.start(), end + 1, text[box.end() : end]))
        else:
            return ""  # cut off: what it would have said nobody knows
    if not boxes:
        return "" if found else None
    chosen = [boxes[-1]]
    for box_before in reversed(boxes[:-1]):
        if not _belong_together(text[box_before[1] : chosen[0][0]]):
            break
        chosen.insert(0, box_before)
    before, after = text[: chosen[0][0]], text[chosen[-1][1] :]
    if _IN_EXPRESSION.search(before[-40:]) or _GOES_ON.match(after) or is_denied_box(before, after):
        return ""  # it is part of something, or said not to be it
    contents = [content for _, _, content in chosen]
    contents[-1] += _behind(after, contents[-1])
    contents = [_BOX.sub(lambda box: "{" if box["brace"] else box["bare"], content) for content in contents]
    if len(contents) == 1 or len({comparable(unwrapped(content)) for content in contents}) == 1:
        return contents[-1]
    return " , ".join(contents)


def is_denied_box(before: str, after: str) -> bool:
    """Whether the words on either side of a box say that this is not it."""
    words = re.split(r"[.,;:!?\n]\s", before[-80:])[-1].replace("$", " ").lower().split()
    said = tuple(word for word in words if word != "no")  # which takes back what came before it
    return is_denied(MathRun("", said)) or _DENIED_BEHIND.match(after) is not None


def formulas_of(text: str) -> list[str]:
    """The formulas between `$`, `\\(` and `\\[` in `text`, in order."""
    return [next(part for part in found if part) for found in _FORMULA.findall(text)]


def open_box(text: str) -> str | None:
    """What is in a box that opens last and never closes, if nothing else is open in it and no line ends."""
    found = list(_BOX.finditer(text))
    if not found or not found[-1]["brace"] or closing_brace(text, found[-1].end()) is not None:
        return None
    content = text[found[-1].end() :].strip()
    return content if "\n" not in content and closing_brace(content + "}", 0) == len(content) else None


def _belong_together(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list: what is no step and names no new value does."""
    gap = _BETWEEN.sub(" ", gap)
    near = len(gap) <= MAX_GAP_CHARS
    if _HEDGED.search(gap):
        return near and not re.search(r"\b(?:wait|actually)\b", gap, re.IGNORECASE)
    if _STEPS.search(gap) or _NAMED.search(gap):
        return False
    return near and "\n\n" not in gap and re.search(r"[.!?]\s+[A-Za-z]", gap) is None


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
    return _extracted(run.text, "answer", groups=run.groups)


def _from_prose(body: str) -> Extracted | None:
    body = _ANSWER.sub(_unless_denied, body)
    body = _CJK.sub(r" \g<0> ", body)
    lines, answers = joined(body).strip(), list(_ANSWER.finditer(body))
    if not answers and "\n" not in lines and (reads_whole(lines) or _is_value_and_words(lines)):
        return _extracted(lines, "whole")
    if all(map(is_bare, lines.split("\n"))) and "=" not in lines:
        return _extracted(" , ".join(line for line in lines.split("\n") if line.strip()), "whole")
    if answers:
        rival = _rival(body, answers)
        if rival is not None:
            return _extracted(rival, "answer")
        for sentence, following in pairwise([*sentences(body[answers[-1].end() :]), ""]):
            if takes_back(following) and not has_second_thoughts(following):
                return None
            sentence = sentence.strip("*_` .")
            if (reads_whole(sentence) or _is_value_and_words(sentence)) and not has_second_thoughts(following):
                return _extracted(sentence, "answer")
            run = first(sentence, following)
            if run is not None:
                return _extracted(run.text, "answer", groups=run.groups)
            words = unwrapped(sentence.strip(EMPHASIS + " "))
            if words and len(words.split()) <= MAX_WORDS and not sentence.endswith(":"):
                return Extracted(words, "answer")
    weak: MathRun | None = None
    for sentence, following in reversed(list(pairwise([*sentences(body), ""]))):
        run = last(sentence)
        if run is not None:
            return None if takes_back(following) else _extracted(run.text, "last", groups=run.groups)
        if weak is None:
            weak = next((run for run in reversed(list(runs(sentence))) if not is_denied(run)), None)
    if weak is not None:
        return _extracted(weak.text, "last", groups=weak.groups)
    words = unwrapped(body.strip(EMPHASIS + " \n"))
    return Extracted(words, "words") if 0 < len(words.split()) <= MAX_WORDS else None


def _unless_denied(phrase: re.Match[str]) -> str:
    """The phrase before an answer, or "not", where it is said not to be one."""
    before, after = phrase.string[: phrase.start()], phrase.string[phrase.end() :]
    value = re.match(r"\S*?[\d\w$}]+?(?=[\s.,;!?]|[^\x00-\x7f]|$)", after)
    denied = _DENIED.search(phrase[0]) or _DOUBTED.search(before[-80:])
    return "not " if denied or (value and _DENIED_BEHIND.match(after, value.end())) else phrase[0]


def _rival(body: str, answers: list[re.Match[str]]) -> str | None:
    """Both of the last two answers, where the second one follows the first and does not correct it."""
    if len(answers) < 2:
        return None
    between = body[answers[-2].end() : answers[-1].start()]
    if len(between) > MAX_GAP_CHARS or "\n\n" in between or _STEPS.search(between):
        return None
    if any(map(takes_back, sentences(between))):
        return None
    one, other = (first(next(sentences(text), "")) for text in (between, body[answers[-1].end() :]))
    if one is None or other is None or comparable(one.text) == comparable(other.text):
        return None
    return f"{one.text} , {other.text}"


def _is_value_and_words(text: str) -> bool:
    """Whether `text` is a value with a few words behind it, which are a unit or make it something else: 5 too few."""
    found = _VALUE_AND_WORDS.fullmatch(text)
    return found is not None and not _CLAUSE.search(found[1])


def reads_whole(text: str) -> bool:
    """Whether `text` is mathematics to its end, with no words in it but a unit's."""
    text = text.strip(EMPHASIS + " ")
    if not text or len(text) > MAX_CHARS:
        return False
    beside = _INLINE.sub(" ", text)
    words = beside.strip(" .,") if beside != text and re.search(r"[A-Za-z]", _LISTING.sub("", beside)) else ""
    if words and parse_plain("1 " + words) is None and parse_unit(words) is None:
        return False  # $25$ for $x$ has words in it, and no variables
    text = unwrapped(text)
    try:
        return not has_words(read(text))
    except (Undecided, Unreadable):
        return False


def _extracted(text: str, rule: str, *, groups: bool = False) -> Extracted | None:
    text = text.replace('\\"', " ").strip(' \n_`"=').rstrip("\\ ")
    factorial = groups or _FACTORIAL.search(text) is not None
    text = text.strip("'") if text.startswith("'") else text
    groups = groups or grouped(text)
    text = unwrapped(text)
    if "$" in text and (plain := unwrapped(_INLINE.sub(lambda formula: f" {unwrapped(formula[0])} ", text))):
        text = plain if parse_plain(plain) is not None or split_unit(plain)[1] is not None else text
    parts = _EQUALS.split(text) if "=" in text or "approx" in text else [text]
    parts[:-1] = [part.replace("$", " ") for part in parts[:-1]]  # 2 * $9 = $18
    if text.endswith("!") and len(parts) > 1 and not factorial:
        parts[-1] = parts[-1].rstrip("!")
    bare = [_UNIT_WORDS.sub(" ", _TIMES.sub("*", part)) for part in parts]  # 60 miles - 35 miles = 25 miles, 6 x 8 = 48
    worked_out = (
        len(parts) > 1 and ARITHMETIC.fullmatch(bare[0]) is not None and parts[-1].strip() not in ("", parts[0].strip())
    )
    if text[-1:] == "!" and not factorial and (worked_out or rule in ("answer", "last")):
        text = text[:-1]  # in prose that is joy, and no factorial
    if worked_out and is_true("=".join(bare).replace("$", " ")):
        text = unwrapped(parts[-1].rstrip("!"))
    return Extracted(text, rule, groups) if text else None
