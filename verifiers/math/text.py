"""One spelling for what people and models write in many: Unicode to LaTeX, and no wrapping around it.

What always holds: the mathematics stays the same; time is linear in the length of the text; text that is
already plain comes back unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SYMBOLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("\u2044\u2215", "/"),
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "÷": r"\div ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∞": r"\infty ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
        "∈": r"\in ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "°": r"^\circ",
        "′": "'",
        "“": '"',
        "”": '"',
        "’": "'",
    }
)

SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
SUBSCRIPTS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")

MAX_WRAPPINGS: Final = 20
"""So many layers of wrapping are taken off: nobody writes more, and each takes a look at the whole text."""

_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\)|\{[^{}]*\})")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;: ]|quad(?![A-Za-z])|qquad(?![A-Za-z]))|~")
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_ESCAPED = re.compile(r"\\([%$#&])")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_WRAPPERS = re.compile(r"\\(?:boxed|fbox|text|textbf|textrm|textit|mathrm|mathbf|mbox|ensuremath)\s*\{")


def plain_spelling(text: str) -> str:
    """`text` with its Unicode digits, signs, fractions, exponents and roots as ASCII and LaTeX."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: "^{" + run[0].translate(SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + run[0].translate(SUBSCRIPTS) + "}", text)
    text = _ROOT.sub(lambda root: r"\sqrt{" + root[1].strip("{}") + "}", text)
    return "".join(char if char.isascii() else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    if char in SYMBOLS:
        return SYMBOLS[char]
    if "！" <= char <= "～":  # the full-width forms of ASCII
        return chr(ord(char) - ord("！") + ord("!"))
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    above, bar, below = unicodedata.normalize("NFKC", char).partition("\u2044")
    if bar and above and below:  # ½ and its like; after a whole number this is a mixed number, as in LaTeX
        return rf"\frac{{{above}}}{{{below}}}"
    return char


def unwrapped(text: str) -> str:
    """`text` without the delimiters, emphasis, boxes, spacing and full stop around the mathematics."""
    text = plain_spelling(text)
    if "\\" in text or "~" in text:
        text = _SPACING.sub(" ", text).replace(r"\!", "")
        text = _SIZING.sub("", text)
        text = _FRACTIONS.sub(r"\\frac", text)
        text = _ESCAPED.sub(r"\1", text)
    text = " ".join(text.replace("{,}", ",").split())
    for _ in range(MAX_WRAPPINGS):
        peeled = _peeled(text)
        if peeled == text:
            break
        text = peeled
    return text


def _peeled(text: str) -> str:
    text = text.strip()
    if text.endswith((".", ",", ";", ":", "?")) and text[-2:-1] != "\\":
        return text.rstrip(".,;:?")
    for opening, closing in (
        ("$$", "$$"),
        ("$", "$"),
        (r"\(", r"\)"),
        (r"\[", r"\]"),
        ("**", "**"),
        ("`", "`"),
    ):
        inner = text[len(opening) : -len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
        ):
            return inner
    wrapper = _WRAPPERS.match(text)
    start = wrapper.end() if wrapper else 1 if text.startswith("{") else 0
    if start and closing_brace(text, start) == len(text) - 1:
        return text[start:-1]
    return text


def closing_brace(text: str, start: int) -> int | None:
    """The place of the brace that closes the one just before `start`, or None; escaped braces are text."""
    depth = 1
    for brace in _BRACES.finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return brace.start()
    return None


def comparable(text: str) -> str:
    """`text` without the blanks that mean nothing: equal results are equal mathematics."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text.strip())
