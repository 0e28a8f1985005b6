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

_NAMED_SYMBOLS: Final = (
    "×times ·cdot ⋅cdot ∙cdot ÷div ±pm ∓mp ≤le ≥ge ≠ne ≈approx ∞infty πpi θtheta αalpha βbeta ∪cup ∩cap ∅emptyset "
    "∈in √sqrt ΩOmega ∠angle △triangle ∖setminus ⟨langle ⟩rangle ≡equiv γgamma δdelta εepsilon λlambda μmu µmu "
    "σsigma φphi ωomega"
)
"""A character and the command that it is."""

SYMBOLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("\u2044\u2215\u29f8", "/"),
        **{found[0]: rf"\{found[1:]} " for found in _NAMED_SYMBOLS.split()},
        **{letter: rf"\mathbb{{{plain}}}" for letter, plain in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
        **dict(zip("∣٫٬′’“”", "|.,''\"\"", strict=True)),
        "°": r"^\circ",
        "。": ". ",
    }
)

SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
SUBSCRIPTS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")

MAX_WRAPPINGS: Final = 20
"""So many layers of wrapping are taken off: nobody writes more, and each takes a look at the whole text."""

_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_HIGHER_ROOT = re.compile(r"([∛∜])\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\)|\{[^{}]*\})")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z]|\([^()]*\)|\{[^{}]*\})")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad|hspace\s*\{[^{}]*\}|h?phantom\s*\{[^{}]*\}|thinspace|enspace)|~")
_NO_SPACE = re.compile(r"(?<=,)\s+(?=\\!)|\\!\s*")
_SIZING = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|mathstrut)(?![A-Za-z])\.?")
_SIZED_BAR = re.compile(r"\\(?:[bB]igg?)?(?=[lr])(left|right|l|r)\s*\|")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z{}%$#&,;!])")
_MATHEMATICS: Final = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_FRACTIONS = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SWITCHES = re.compile(r"\\(?:color\s*\{[^{}]*\}|(?:bf|rm|it|sf|tt|bfseries|boldmath)(?![A-Za-z])\s*)")
_CHOOSE = re.compile(r"\{\s*([^{}]{1,50}?)\s*\\choose(?![A-Za-z])\s*([^{}]{1,50}?)\s*\}")
_ESCAPED = re.compile(r"\\(?:text|mathrm)\s*\{\s*\\?([%$])\s*\}|\\([%$#&])")
_SCALED = re.compile(
    r"\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*(hundred|thousand|million|billion|trillion|percent|per cent|pct)\s*\}"
)
_MODULO = re.compile(r"\(\s*\\(?:b|p)?mod(?![A-Za-z])\s*([^()]{1,30}?)\s*\)")
_CASE = re.compile(r",?\s*&\s*(?:\\text\s*\{\s*(?:if|for|when)\s*\})?\s*")
_REPEATING = re.compile(r"(\d*\.\d*?)(\d)\2\2+(?:\.\.\.|\\[lc]?dots)")
_PRIME = re.compile(r"\^\s*(?:\\prime(?![A-Za-z])|\{\s*\\prime\s*\})")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_NOON = re.compile(
    r"(?<=\d)\s*(?:\\(?:text|mathrm)\s*\{\s*)?(?:([ap])\.\s?m\b\.?|(?<=[ {])([ap])m\b|(?<=\d)([AP])M\b)(?:\s*\})?",
    re.IGNORECASE,
)
_FONTS: Final = (
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|bold(?:symbol)?|bm|emph"
    r"|operatorname\*?)(?![A-Za-z])\s*"
)
_FONT = re.compile(_FONTS)
_DELIMITER = re.compile(r"\$|\\[()\[\]]")
_PIECE = re.compile(rf"(?P<font>{_FONTS})|\\[A-Za-z]+|\\.|\d+|[^\W\d_]+|\S", re.DOTALL)
_COMMAND = re.compile(
    r"_\s*\{(?:[^{}]|\{[^{}]*\})*\}|\\(?:begin|end)\s*\{[^{}]*\}(?:\s*\{[rlc|\s]+\})?|\\[A-Za-z]+|_[A-Za-z0-9]+"
)
_LETTERS = re.compile(r"[A-Za-z]+")
_OTHER_LETTERS = re.compile(r"[^\W\d_\x00-\x7f]{2,}|[A-Za-z]{2,}'[a-z]")
_MAYBE_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,}|(?<!\S)[A-Za-z]{2}(?![^\s.,;:!?)])")
_TWO_WORDS = re.compile(r"(?<![A-Za-z])([A-Za-z]{2,})[,;:]?\s+(?=([A-Za-z]{2,}))")
FUNCTIONS: Final = re.compile(
    r"(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|lg|exp|sqrt|cbrt|lim|max|min|gcd|lcm|mod|det|abs|floor|ceil"
    r"|binom|cis|pi|inf(?:inity)?|theta|alpha|beta|and|or"
)
"""The words of mathematics: a run of letters that is one of these is neither a word of a language nor a product."""
_BRACED_COMMA = re.compile(r" ?\{ ?, ?\} ?")
_ALL_REALS = re.compile(r"(?:the set of )?all real(?:s| numbers)|the set of real numbers", re.IGNORECASE)
_CHOSEN = re.compile(
    r"(?<![\w)\]}])(?:\{\})?\^\s*\{?(\d+)\}?\s*([CP])_\s*\{?(\d+)\}?|(?<![\w.{}^])(\d+)([CP])(\d+)(?!\w)", re.ASCII
)
_OF_SET = re.compile(r"\\(max|min|gcd|lcm)\s*\\\{([^{}]*)\\\}")
_GLUED = re.compile(r"(?<=[\d)\]}])(or|and)(?=[-A-Z(\[\d\\])")  # x = 1or x = 2
_SIMPLE = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_DELIMITERS: Final = (*_MATHEMATICS, ("**", "**"), ("`", "`"))
_FIRST: Final = ("$", "\\", "*", "`", "{")
_SEPARATOR = re.compile(r"[,;]|\\mid(?![A-Za-z])|\|")
_UNENDED = re.compile(r",\s*\.{2,}$|(?<![\d.])\d+\.{2,}$")  # 1, 2, ... names more than two numbers
_WRAPPERS = re.compile(r"\\(?:boxed|fbox|underline|text|textbf|textrm|textit|mathrm|mathbf|mbox|ensuremath)\s*\{")


def word_set(words: str) -> frozenset[str]:
    """The words in `words`, for tables of them."""
    return frozenset(words.split())


def plain_spelling(text: str) -> str:
    """`text` with its Unicode digits, signs, fractions, exponents and roots as ASCII and LaTeX."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: "^{" + run[0].translate(SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + run[0].translate(SUBSCRIPTS) + "}", text)
    text = _HIGHER_ROOT.sub(lambda root: rf"\sqrt[{3 if root[1] == '∛' else 4}]{{{root[2].strip('{}')}}}", text)
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
    compatible = unicodedata.normalize("NFKC", char)
    above, bar, below = compatible.partition("\u2044")
    if bar and above and below:  # ½ and its like; after a whole number this is a mixed number, as in LaTeX
        return rf"\frac{{{above}}}{{{below}}}"
    if char != compatible and (compatible.isascii() or compatible in SYMBOLS):  # 𝑥, ㎝, 𝜋
        return SYMBOLS.get(compatible, compatible)
    return char


def unwrapped(text: str) -> str:
    """`text` without the delimiters, emphasis, boxes, spacing and full stop around the mathematics."""
    if _SIMPLE.fullmatch(text):
        return text
    text = respelled(text)
    for _ in range(MAX_WRAPPINGS):
        peeled = _peeled(text)
        if peeled == text:
            break
        text = peeled
    return r"\mathbb{R}" if "eal" in text and _ALL_REALS.fullmatch(text) else text


def respelled(text: str) -> str:
    """`text` in the one spelling: LaTeX's sizes and blanks, and what is escaped without need, are gone."""
    text = plain_spelling(text)
    if "\\" in text or "~" in text:
        if r"\\" in text and r"\begin" not in text:  # escaped twice on its way here
            text = _DOUBLED.sub(r"\\", text)
        text = _SPACING.sub(" ", _NO_SPACE.sub("", text))
        text = _SIZING.sub("", _SIZED_BAR.sub(lambda bar: rf"\{bar[1][0].lower()}vert ", text))
        text = _FRACTIONS.sub(r"\\frac", text)
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", _SWITCHES.sub("", text))
        text = _PRIME.sub("'", _SCALED.sub(r" \1", text))
        text = _ESCAPED.sub(r"\1\2", text)
        text = _MODULO.sub(r"\\pmod{\1}", _CASE.sub("& ", text) if "cases" in text else text)
    text = " ".join(text.split())
    if "..." in text or "dots" in text:
        text = _REPEATING.sub(r"\1\\overline{\2}", text)
    if "m" in text or "M" in text:
        text = _NOON.sub(lambda noon: f" {(noon[1] or noon[2] or noon[3]).lower()}m", text)
    if "C" in text or "P" in text:
        text = _CHOSEN.sub(_chosen, text)
    if "{" in text:
        text = _OF_SET.sub(r"\\\1(\2)", text)
        text = _BRACED_COMMA.sub(",", text)
    if "or" in text or "and" in text:
        text = _GLUED.sub(r" \1 ", text)
    return text


def _chosen(found: re.Match[str]) -> str:
    """`{}^{10}C_3` and `10P3`: combinations, or arrangements."""
    above, kind, below = (one or other for one, other in zip(found.groups()[:3], found.groups()[3:], strict=True))
    return rf"\binom{{{above}}}{{{below}}}" + (rf" \cdot {below}!" if kind == "P" else "")


def _peeled(text: str) -> str:
    text = text.strip()
    if text.endswith((".", ",", ";", ":", "?")) and text[-2:-1] != "\\" and not _UNENDED.search(text):
        return text.rstrip(".,;:?")
    if not text.startswith(_FIRST):
        return text
    for opening, closing in _DELIMITERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner:
                return inner
    wrapper = _WRAPPERS.match(text)
    start = wrapper.end() if wrapper else 1 if text.startswith("{") else 0
    if start and closing_brace(text, start) == len(text) - 1 and (wrapper or not _SEPARATOR.search(text)):
        return text[start:-1]
    return text


def grouped(text: str) -> bool:
    """Whether `text` is LaTeX between its delimiters, where `{1, 2}` is 1, 2 in a group and no set."""
    text = text.strip().rstrip(".").rstrip()
    return any(
        text.startswith(opening) and text.endswith(closing) and len(text) > len(opening)
        for opening, closing in _MATHEMATICS
    )


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


def tokens_of(text: str) -> tuple[str, ...]:
    """What `text` is compared by: every word, sign, bracket, comparison and digit; blanks, fonts and `$` aside."""
    found: list[str] = []
    opened: list[int] = []  # places of open braces in `found`; -1 for one that only sets a font
    font = False
    for piece in _PIECE.finditer(_DELIMITER.sub(" ", unwrapped(text))):
        if piece["font"] is not None:
            font = True
            continue
        token = piece[0]
        if token == "{":
            opened.append(-1 if font else len(found))
            if font:
                font = False
                continue
        elif token == "}" and opened:
            start = opened.pop()
            if start < 0:
                continue
            if len(found) - start == 2:  # braces around one token only group
                del found[start]
                continue
        font = False
        found.append(token)
    return tuple(found)


def same_words(one: str, other: str) -> bool:
    """Whether two texts that are no mathematics have the same tokens; a capital at the beginning of words is none."""
    left, right = ([_uncapitalised(token) for token in tokens_of(text)] for text in (one, other))
    return left == right and left != []


def is_a_word(text: str) -> bool:
    """Whether `text` is one run of letters and no more: it may be a product, and it may be a word."""
    found = tokens_of(text)
    return len(found) == 1 and found[0].isalpha() and len(found[0]) > 1


def are_words(one: str, other: str) -> bool:
    """Whether both are a run of four letters or more, which are compared as words: live is not evil."""
    return all(text.isalpha() and len(text) > 3 for text in (one, other))


def _uncapitalised(token: str) -> str:
    return token.casefold() if len(token) > 2 or (token.istitle() and len(token) > 1) else token


def is_words(text: str) -> bool:
    """Whether `text`, without its unit, has words of a language in it, and is so no product of variables.

    A run of five letters and more is a word, and so are two runs of two letters and more side by side: `mgh + 1` and
    `2 as` are products, `the sum` is not. So is whatever is written in another alphabet.
    """
    if _OTHER_LETTERS.search(text):
        return True
    bare = _bare(text)
    if any(len(run) > 4 and not FUNCTIONS.fullmatch(run) for run in _LETTERS.findall(bare)):
        return True
    return any(not any(FUNCTIONS.fullmatch(word) for word in pair.groups()) for pair in _TWO_WORDS.finditer(bare))


def _bare(text: str) -> str:
    """`text` without its commands and indexes."""
    return _COMMAND.sub(" ", _FONT.sub("", text) if "\\" in text else text)


def keeps_words(one: str, other: str) -> bool:
    """Whether every letter of what may be a word in `one` is in `other` too: `0 if odd` is a product, and is not 0."""
    bare, letters = _bare(one), _bare(other)
    runs = (run for run in _MAYBE_WORD.findall(bare) if not FUNCTIONS.fullmatch(run))
    return all(set(run) <= set(letters) for run in runs)


def comparable(text: str) -> str:
    """`text` without the blanks that mean nothing: equal results are equal mathematics."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", text.strip())
