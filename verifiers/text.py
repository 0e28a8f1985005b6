"""Parts of a model's text, and text that is fit to be shown. Pure, linear in the text."""

from __future__ import annotations

import re
from typing import Final

SHOWN_CHARS: Final = 200
MAX_ANSWER_CHARS: Final = 4 << 20
"""No verifier reads a longer answer: it is unparsable."""

_QUOTES: Final = str.maketrans("\u2018\u2019\u201a\u201b\u2032\u201c\u201d\u201e\u201f", "'''''" + '"' * 4)


_TAKEN_BACK: Final = re.compile(
    r"\W*(?:(?:oh|hm+|wait|oops|sorry|actually|but)\b\W*)*"
    r"(?:(?:no|nope)\b\s*(?:[,.!;:\u2013\u2014-]|$)|scratch that\b"
    r"|i(?:'m| am| was) (?:wrong|mistaken)\b|i made an? (?:mistake|error)\b"
    r"|(?:that|this|it|which)(?: answer| result)?(?:'s| is| was| seems| looks)(?: \w+ly)?"
    r" (?:wrong|incorrect|false|mistaken|an? (?:mistake|error)|not (?:right|correct|true|it))\b"
    r"|(?:that|this|it)(?: answer| result)? (?:isn't|wasn't|can't be|cannot be) (?:right|correct|true|it)\b)",
    re.IGNORECASE,
)


def straight_quotes(text: str) -> str:
    """`text` with typographic quotation marks and apostrophes as ASCII has them."""
    return text.translate(_QUOTES)


def takes_back(sentence: str) -> bool:
    """Whether `sentence`, the one behind an answer, takes it back: "Wait, no, 6.", "That is wrong."."""
    return _TAKEN_BACK.match(straight_quotes(sentence)) is not None


def last_element(text: str, tag: str) -> str | None:
    """What is in the last complete `<tag>…</tag>` of `text`, or None."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(tag) + 2 : end]


def shown(value: object, limit: int = SHOWN_CHARS) -> str:
    """`value` as text for a verdict's detail: at most `limit` characters, fit for UTF-8 and for one line of a log."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def texts_of(reference: object) -> list[str] | None:
    """The accepted answers that `reference` names: a text or a list of texts, none of them empty; else None."""
    texts = [reference] if isinstance(reference, str) else reference
    if not isinstance(texts, (list, tuple)) or not texts:
        return None
    return [text for text in texts] if all(isinstance(text, str) and text.strip() for text in texts) else None
