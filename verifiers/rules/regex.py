"""The regex verifier: does the answer match a regular expression?

Python's `re` may take exponential time on a hostile answer, and holds the interpreter while it does. So both the
compilation and the match run in a worker process that is killed at the item's deadline: the verdict is then
`timeout`, a failure and no score, and nothing else waits for it.

Two uses:
- without a `pattern` in the options, the reference is the pattern, and the score says whether the answer matches;
- with one, the reference (a text, or a list of which any will do) is what the pattern must find in the answer:
  its first group, or the whole match where it has none; of several matches, the one that `take` names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from quintain.failure import QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.options import Options, Seconds, TextOptions, WorkerOptions
from quintain.verifiers.pure import bad_reference, unparsable
from quintain.verifiers.text import shown, texts_of
from quintain.verifiers.workers.verifier import PooledVerifier

MAX_PATTERN_CHARS: Final = 10_000


class RegexOptions(WorkerOptions, TextOptions):
    """Options of the regex verifier."""

    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)] | None = None
    """What to look for, in the syntax of Python's `re`; unless given, the reference is the pattern."""
    where: Literal["anywhere", "whole"] = "anywhere"
    """Whether a match anywhere in the answer will do, or it must be the whole answer."""
    take: Literal["first", "last"] = "last"
    """Which of several matches is compared with the reference, where `pattern` is given."""
    flags: Annotated[str, Field(pattern="^[aimsx]*$")] = ""
    """Letters of `re`'s flags: a (ASCII), i (ignore case), m (multiline), s (dot matches all), x (verbose)."""
    deadline_s: Seconds = 2.0
    """Wall time for each item; what takes longer is a `timeout`, and no score."""


class RegexVerifier(PooledVerifier[RegexOptions]):
    """Judges whether an answer matches, in killable workers."""

    name: ClassVar[str] = "regex"
    options_type: ClassVar[type[Options]] = RegexOptions
    check: ClassVar[str] = "quintain.verifiers.rules.regex:check"

    def __init__(self, options: RegexOptions | None = None) -> None:
        super().__init__(options)
        if self.options.pattern is not None:
            try:
                re.compile(self.options.pattern, flags_of(self.options.flags))
            except (re.error, OverflowError, RecursionError) as error:
                raise QuintainError(f"the regex verifier: pattern is no regular expression: {error}") from None

    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """What the worker is asked."""
        pattern, wanted = self.options.pattern, None
        if pattern is None:
            pattern = item.reference
            if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_CHARS:
                return bad_reference(
                    f"a regular expression of at most {MAX_PATTERN_CHARS:,} characters", item.reference
                )
        else:
            wanted = texts_of(item.reference)
            if wanted is None:
                return bad_reference("a text that is not empty, or a list of such texts", item.reference)
        text = self.options.answer_in(item.answer)
        if not text:
            return unparsable("there is no answer in the text")
        return {
            "pattern": pattern,
            "flags": self.options.flags,
            "whole": self.options.where == "whole",
            "first": self.options.take == "first",
            "text": text,
            "wanted": wanted,
        }


def flags_of(letters: str) -> re.RegexFlag:
    """`re`'s flags for `letters`."""
    flags = re.RegexFlag(0)
    for letter in letters:
        flags |= re.RegexFlag[letter.upper()]
    return flags


def check(item: dict[str, Any]) -> dict[str, Any]:
    """The verdict on what `RegexVerifier.question` asks. Runs in a worker: it may take for ever."""
    try:
        pattern = re.compile(item["pattern"], flags_of(item["flags"]))
    except (re.error, OverflowError, RecursionError) as error:
        return {
            "outcome": Outcome.BAD_REFERENCE,
            "message": f"the reference is no regular expression: {shown(str(error))}",
        }
    found = _match(pattern, item)
    if item["wanted"] is None:
        return {"outcome": Outcome.CORRECT if found else Outcome.WRONG, "detail": {"match": found and shown(found[0])}}
    if found is None:
        return {"outcome": Outcome.UNPARSABLE, "detail": {"reason": "the pattern matches nothing in the answer"}}
    taken = (found[1 if pattern.groups else 0] or "").strip()
    right = taken in (text.strip() for text in item["wanted"])
    return {"outcome": Outcome.CORRECT if right else Outcome.WRONG, "detail": {"match": shown(taken)}}


def _match(pattern: re.Pattern[str], item: dict[str, Any]) -> re.Match[str] | None:
    if item["whole"]:
        return pattern.fullmatch(item["text"])
    if item["first"] or item["wanted"] is None:
        return pattern.search(item["text"])
    last = None
    for last in pattern.finditer(item["text"]):  # noqa: B007 - the last one is wanted
        pass
    return last
