"""Reads the shape of an answer out of its text.

Shapes are read from the text, before any expression in it is: so a tuple never turns into a set, nor an equation
into its right side, because of what is in it. What always holds: shapes nest at most `MAX_DEPTH` deep and have at
most `MAX_ITEMS` parts, and text that is none of the others is a `Value`, whose expression may be unreadable.

| written | read as |
|---|---|
| `1, 2` `1; 2` `1 and 2` | a list |
| `\\{1, 2\\}` `{1, 2}` | a set. Braces in `$…$` only group: `${1, 2}$` is a list |
| `(1, 2)` | a tuple, or the open interval |
| `[1, 2)` `[1, 2]` | an interval; of three and more a tuple |
| `\\{x \\mid x > 2\\}` | its condition |
| `a = b = c`, `a < x \\le b`, `x \\in S` | a relation |
| `A \\cup B`, `A \\cap B`, `A \\setminus B` | a combination of sets |
| `7 : 32` | a ratio |
| `5 \\pm 2` | the list of the two |
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final, Literal

from quintain.verifiers.math.read.grammar import parse
from quintain.verifiers.math.read.lexer import check_size
from quintain.verifiers.math.read.numbers import parse_plain
from quintain.verifiers.math.read.shapes import (
    EMPTY,
    REALS,
    Combined,
    Kind,
    Ratio,
    Relation,
    Shape,
    ShapeGroup,
    Span,
    Value,
    Words,
    parts_of,
)
from quintain.verifiers.math.read.spelling import closing_brace, is_words, unwrapped
from quintain.verifiers.math.read.splitting import THOUSANDS, closes_early, split, split_at
from quintain.verifiers.math.read.tree import Ambiguous, Node, Op, Undecided, Unreadable, mentions, number, with_sign
from quintain.verifiers.math.read.units import split_unit

BEYOND: Final = re.compile(
    r"\\(?:sum|prod|i{1,3}nt|oint|lim|limsup|liminf|bmod|mod|det|arg|Re|Im|begin\{vmatrix\})(?![A-Za-z])"
    r"|\\frac\s*\{\s*(?:d|\\partial)\s*\}|(?<=\\operatorname\{)(?:Re|Im|arg|det|tr)(?=\})"
)
"""What math-verify is asked about. Whatever else our own grammar cannot read is text: math-verify would guess at it."""
MAX_ITEMS: Final = 200
MAX_DEPTH: Final = 8

_AND = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_LOGIC = re.compile(r"\\(?:(lor|vee)|land|wedge)(?![A-Za-z])")
"""Between relations these are words; between propositions they are what is said."""
_RELATION = re.compile(
    r"\\(?:leqslant|geqslant|leq?|geq?|neq?|lt|gt|in|approx|simeq|sim|equiv|coloneqq)(?![A-Za-z])|!=|<=|>=|:=|≈|[=<>]"
)
_OPERATORS: Final = {
    "leqslant": "<=", "leq": "<=", "le": "<=", "geqslant": ">=", "geq": ">=", "ge": ">=", "neq": "!=", "ne": "!=",
    "lt": "<", "gt": ">", "in": "in", "approx": "~", "simeq": "~", "sim": "~", "equiv": "=", "coloneqq": "=",
    ":=": "=", "≈": "~",
}  # fmt: skip
_SETS = re.compile(r"\\(?:cup|cap|setminus|backslash)(?![A-Za-z])|(?<=\})\s*\\\s*(?=\\\{)")
_CASES = re.compile(r"\\begin\{(cases|aligned|gathered)\}(.*?)\\end\{\1\}", re.DOTALL)
_BAR = re.compile(r"\\mid(?![A-Za-z])|\\vert(?![A-Za-z])|\||:")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?: \d{3})+(?!\d)")
_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=\d)")  # 6 x 8, and 2 x 10^3
_SPACED_MIXED = re.compile(r"(?<![\d.^_/)}])(\d{1,18}) (\d{1,9}) ?/ ?(\d{1,9})(?![\d.])")
_BASED = re.compile(r"(?:\\(?:text|mathrm)\s*\{|\()\s*(\d+)\s*[)}]\s*_")  # (1011)_2
_REVERSED = re.compile(r"\]([^\[\]]*)[\[\]]|\[([^\[\]]*)\[")
_PERCENT = re.compile(r"(?<=[\d)}\]])\s*\\?(?:%|\b(?:percentage|percent|per cent|pct)\b)\s*")
_NAME = re.compile(
    r"""[A-Za-z]\s*\^\s*\{?\s*-\s*1\s*\}?\s*\([^()]*\)                 # f^{-1}(x)
      | \\?[A-Za-z]+'*(?:\s*_\s*(?:\{[^{}]*\}|\w|\\[A-Za-z]+))?'*        # x, x_1, f', \alpha, AB
        (?:\s*\((?:[^()=<>+]|(?<=[\w])[+-](?=\d))*\)|\s*\[[^\[\]]*\])?   # f(x)
      | \\(?:overline|vec|mathbf|angle|triangle|mathrm|text|operatorname|overrightarrow|mathcal|frac\{d\w\})\s*
        \{?[^{}=<>]*\}?(?:\s*\([^()]*\))?
      | \|[^|]{1,20}\| | \\lvert[^|]{1,20}\\rvert
      | \\frac\s*\{[A-Za-z_' ]{1,10}\}\s*\{[A-Za-z_' ]{1,10}\} | [A-Za-z]{1,3}\s*/\s*[A-Za-z]{1,3}
      | \\(?:i{0,2}int|oint|sum|prod|lim)(?![A-Za-z])[^=]*  # what is worked out right of the equals sign
      | (?:\\text\s*\{[A-Za-z ]+\}\s*)? m?\s*\\(?:angle|triangle|square)\s*[A-Za-z ]{1,10} | \[[A-Z]{2,6}\] """,
    re.VERBOSE,
)
_OPERATION = re.compile(r"\\(?:i{0,2}int|oint|sum|prod|lim)(?![A-Za-z])")
_FUNCTION_NAME = re.compile(r"(?:sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|max|min|lim|sum|prod|int)(?![A-Za-z])")
_PARENTHESES: Final = {"(": ")", "[": "]"}


def read(text: str, *, braces_group: bool = False, depth: int = 0, inside: bool = False) -> Shape:
    """The shape of `text`, which is unwrapped. Raises `Undecided` where it is too large or ambiguous.

    `braces_group`: whether unescaped braces are only for grouping, as within `$…$`. `inside`: whether `text`
    comes from within brackets, where a comma separates.
    """
    if depth == 0:
        check_size(text)
        said = _LOGIC.sub(lambda sign: " or " if sign[1] else " and ", text) if _RELATION.search(text) else text
        return _whole(_logical(said, braces_group) or read(_tidied(said), braces_group=braces_group, depth=1), text)
    if depth > MAX_DEPTH:
        raise Undecided(f"an answer has at most {MAX_DEPTH} lists in each other")
    text = text.strip()
    groups = split(text, ";", inside=inside)
    if len(groups) > 1:
        return _group("list", groups, braces_group, depth, rows=True)
    items = split(text, ",", inside=inside)
    if len(items) > 1:
        return _group("list", items, braces_group, depth)
    relation = _relation(text, braces_group, depth)
    if relation is not None:
        return relation
    combination = _combination(text, braces_group, depth)
    if combination is not None:
        return combination
    return _bracketed(text, braces_group, depth) or _ratio(text, depth) or _value(text)


def _whole(shape: Shape, text: str) -> Shape:
    """`shape`, or all of `text` as what it is where some of it could not be read: nothing is ever dropped."""
    items = shape.items if isinstance(shape, ShapeGroup) and shape.kind == "list" else (shape,)
    broken = any(has_words(item) and not (isinstance(item, Words) and len(items) > 1) for item in items)
    return Words(text) if broken else shape


def has_words(shape: Shape) -> bool:
    """Whether anything in `shape` is text, and no mathematics."""
    if isinstance(shape, Relation):  # what a text names is what stands right of it
        sides = zip(shape.sides, shape.texts, strict=True)
        return any(has_words(side) and not is_name(text) for side, text in sides)
    return isinstance(shape, Words) or any(map(has_words, parts_of(shape)))


def _logical(text: str, braces_group: bool) -> Combined | None:
    """Inequalities joined by `or` or by `and`: the union, or the intersection, of their solutions."""
    pieces = [piece.strip() for piece in split_at(text, _AND)]
    words = {re.sub(r"[^a-z]", "", re.sub(r"\\(?:text|mathrm|textrm|mbox)", "", word)) for word in pieces[1::2]}
    op: Literal["cup", "cap"] = "cup" if words == {"or"} else "cap"
    if len(pieces) < 3 or len(pieces) > 9 or len(words) > 1:
        return None
    parts = [_relation(piece.strip(" ,"), braces_group, 1) for piece in pieces[::2]]
    if not all(isinstance(part, Relation) and not set(part.ops) & {"=", "~", "in"} for part in parts):
        return None
    return Combined(op, tuple(part for part in parts if part is not None))


def _tidied(text: str) -> str:
    text = _CASES.sub(_rows, _AND.sub(" , ", text).replace("$", " "))
    text = re.sub(r",\s*(?:,\s*)+", ", ", text)
    return re.sub(r"\\(?:langle|rangle)(?![A-Za-z])", lambda angle: "(" if "lan" in angle[0] else ")", text)


def _rows(found: re.Match[str]) -> str:
    """A system of equations in an environment, as a list; a function by cases stays as it is."""
    if "&" in found[2].replace("&=", "").replace("= &", ""):
        return found[0]
    return " , ".join(row for row in re.split(r"\\\\", found[2].replace("&", "")) if row.strip())


def _group(kind: Kind, texts: list[str], braces_group: bool, depth: int, *, rows: bool = False) -> Shape:
    if len(texts) > MAX_ITEMS:
        raise Undecided(f"an answer has at most {MAX_ITEMS} parts")
    items: list[Shape] = []
    for text in texts:
        if not text.strip():
            continue
        item = read(text, braces_group=braces_group, depth=depth + 1, inside=True)
        if rows and isinstance(item, ShapeGroup) and item.kind == "list":
            item = ShapeGroup("tuple", item.items)  # p = 5, q = 2; p = 7, q = 2
        if isinstance(item, ShapeGroup) and item.kind == "list":
            items.extend(item.items)
        else:
            items.append(item)
    if kind == "list" and len(items) == 1:
        return items[0]
    return ShapeGroup(kind, tuple(items))


def _relation(text: str, braces_group: bool, depth: int) -> Relation | Shape | None:
    pieces = split_at(text, _RELATION)
    if len(pieces) < 3:
        return None
    texts = tuple(piece.strip() for piece in pieces[::2])
    ops = tuple(_OPERATORS.get(op.lstrip("\\"), op.lstrip("\\")) for op in pieces[1::2])
    if not texts[-1]:
        return None
    sides = tuple(read(side, braces_group=braces_group, depth=depth + 1) if side else Words("") for side in texts)
    if not texts[0]:  # "= 5"
        return sides[1] if len(sides) == 2 and ops[0] in "=~" else None
    while len(ops) > 1 and ops[0] in ("<", "<=") and texts[0] in (r"-\infty", r"- \infty"):
        ops, sides, texts = ops[1:], sides[1:], texts[1:]  # says nothing
    while len(ops) > 1 and ops[-1] in ("<", "<=") and texts[-1] in (r"\infty", r"+\infty", r"+ \infty"):
        ops, sides, texts = ops[:-1], sides[:-1], texts[:-1]
    return Relation(ops, sides, texts)


def _combination(text: str, braces_group: bool, depth: int) -> Combined | None:
    pieces = split_at(text, _SETS)
    if len(pieces) < 3 or not all(piece.strip() for piece in pieces[::2]):
        return None
    ops = [op.strip().lstrip("\\") for op in pieces[1::2]]
    parts = [read(piece, braces_group=braces_group, depth=depth + 1, inside=True) for piece in pieces[::2]]
    for op in ("cup", "cap"):
        if set(ops) == {op}:
            return Combined(op, tuple(parts))
    if "cup" in ops and "cap" in ops:
        raise Undecided("unions and intersections need brackets between them")
    if "cup" in ops or "cap" in ops:
        raise Undecided("unions and differences need brackets between them")
    return Combined("minus", tuple(parts))


def _bracketed(text: str, braces_group: bool, depth: int) -> Shape | None:
    """The set, tuple or interval that `text` is, from its first to its last character."""
    inner = None
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2]
    elif text.startswith("{") and closing_brace(text, 1) == len(text) - 1:
        inner = text[1:-1]
        if braces_group:
            return read(inner, braces_group=True, depth=depth + 1)
    if inner is not None:
        if closes_early(text):
            return None
        bar = split_at(inner, _BAR)
        if len(bar) == 3 and _RELATION.search(bar[2]):
            name = bar[0].strip()
            if not re.fullmatch(r"\\?[A-Za-z]+", name) or name not in bar[2]:
                return None
            return read(bar[2], depth=depth + 1)
        if not inner.strip():
            return EMPTY
        items = _items(inner)
        found = _group("set", items, braces_group, depth)
        return found if isinstance(found, ShapeGroup) else ShapeGroup("set", (found,))
    if (reversed_ends := _REVERSED.fullmatch(text)) is not None:  # ]2, 5[ is (2, 5)
        text = f"{'(' if text[0] == ']' else '['}{reversed_ends[1]}{')' if text[-1] == '[' else ']'}"
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or closes_early(text):
        return None
    if text.startswith("[") and r"\begin" in text:
        return None
    items = _items(text[1:-1])
    if len(items) < 2:
        if text[0] == "(" and text[-1] == ")" and _structured(text[1:-1]):
            return read(text[1:-1], braces_group=braces_group, depth=depth + 1)
        return None
    if len(items) > MAX_ITEMS:
        raise Undecided(f"an answer has at most {MAX_ITEMS} parts")
    shapes = [read(item, braces_group=braces_group, depth=depth + 1, inside=True) for item in items]
    if len(shapes) == 2 and (text[0], text[-1]) != ("(", ")"):
        return Span(shapes[0], shapes[1], text[0] == "(", text[-1] == ")")
    if _PARENTHESES[text[0]] != text[-1]:
        raise Unreadable("brackets of two kinds around a tuple")
    return ShapeGroup("tuple", tuple(shapes))


def _items(text: str) -> list[str]:
    """What stands in brackets, split at semicolons, or else at commas."""
    items = split(text, ";", inside=True)
    return items if len(items) > 1 else split(text, ",", inside=True)


def _structured(text: str) -> bool:
    return len(split_at(text, _SETS)) > 1 or text.strip().startswith(("\\{", "("))


def _ratio(text: str, depth: int) -> Ratio | Words | None:
    parts = split(text, ":", inside=True)
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    read_parts = tuple(read(part, depth=depth + 1) for part in parts)
    return Ratio(read_parts, text) if all(isinstance(part, Value) for part in read_parts) else Words(text)


def _value(text: str) -> Shape:
    """The expression, or the words, that `text` is."""
    if text in (r"\emptyset", r"\varnothing", r"\{ \}"):
        return EMPTY
    if text in (r"\mathbb{R}", r"\mathbb R", r"\R", r"\Reals"):
        return REALS
    plain = parse_plain(text)
    value, unit = (text, None) if plain is not None else split_unit(text)
    value = unwrapped(value)
    percent = _PERCENT.search(value) is not None or value.endswith("%")
    if plain is None and is_words(value):
        return Words(text)
    try:
        tree = _tree(value)
    except Ambiguous:
        return Words(text)
    except Unreadable:
        return Value(value, unit, None, percent) if BEYOND.search(value) else Words(text)
    if mentions(tree, Op.EITHER):
        both = tuple(Value(value, unit, with_sign(tree, upper)) for upper in (True, False))
        return ShapeGroup("list", both)
    return Value(value, unit, tree, percent)


def _tree(text: str) -> Node:
    plain = parse_plain(text)
    if plain is not None and isinstance(plain.value, Fraction):
        return number(plain.value, decimal=plain.decimal)
    text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = _SPACED_THOUSANDS.sub(lambda found: found[0].replace(" ", ""), text)
    text = _SPACED_MIXED.sub(_mixed, text)
    text = _BASED.sub(r"\1_", text)
    text = _TIMES.sub(r"\\times ", text)
    text = _PERCENT.sub("% ", text)
    return parse(text)


def _mixed(found: re.Match[str]) -> str:
    """A whole number and a proper fraction; with an improper one these are two numbers side by side."""
    whole, above, below = found.groups()
    return rf"{whole}\frac{{{above}}}{{{below}}}" if int(above) < int(below) else found[0]


def is_name(text: str) -> bool:
    """Whether `text`, the left side of an equation, only names what the right side is: `x`, `f(2)`, `|AB|`, `(x, y)`.

    Whoever writes `x = 5` answers 5; whoever writes `2x = 10` or `x + y = 5` says something else. A sum or an integral
    to be worked out (`\\int_0^1 x dx = 1/2`) is the name of its result.
    """
    text = re.sub(r"\s+", " ", text.strip())
    if text.startswith("(") and text.endswith(")"):
        parts = text[1:-1].split(",")
        return len(parts) > 1 and all(is_name(part) for part in parts)
    if ":" in text:
        return all(is_name(part) for part in text.split(":"))
    if (_FUNCTION_NAME.match(text.lstrip("\\")) and not _OPERATION.match(text)) or text in ("e", "i", r"\pi", "pi"):
        return False
    if re.match(r"[A-Za-z]{2,}\d*$", text) and text == text.lower() and len(text) <= 3:
        return False  # xy = 6 says something about x and y
    return _NAME.fullmatch(text) is not None
