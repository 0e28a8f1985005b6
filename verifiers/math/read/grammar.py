"""Reads one expression, in LaTeX or as typed into a programme, into a tree.

The grammar is small and strict. What always holds:
- every character is read: text that is left over, or stands in the way, makes the whole unreadable, and
  `4\\sqrt(2)` is never 4;
- two numbers with nothing but a blank between them are refused, not multiplied;
- time and depth are bounded by the guards of `check_size`, whatever the text.

Conventions: `1/2x` is (1/2)x; `\\sin 2x` is sin(2x), `\\sin(x) y` is sin(x)·y; `\\sin^2 x` is (sin x)^2, and
`\\sin^{-1}` the inverse function; `\\log` is the natural or the decimal logarithm, whichever makes the two sides
equal; `x^10` is x to the tenth; `e` and `i` are the constants unless they have an index; f, g and h before a
parenthesis are functions, other letters are factors.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from quintain.verifiers.math.read.lexer import MAX_LITERAL_DIGITS, Cursor, Token, check_size, literal, tokens
from quintain.verifiers.math.read.spelling import word_set
from quintain.verifiers.math.read.tree import (
    INFINITY,
    ONE,
    PI,
    Ambiguous,
    Node,
    Op,
    Undecided,
    Unreadable,
    number,
    symbol,
)

MAX_MATRIX_SIDE: Final = 12
MAX_ALTERNATIVES: Final = 4
FUNCTIONS: Final = word_set(
    "sin cos tan cot sec csc cis arcsin arccos arctan arccot sinh cosh tanh ln log lg exp abs floor ceil gcd "
    "lcm max min binom gamma factorial re im conj"
)
_INVERSES: Final = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_NAMED: Final = {
    "pi": PI,
    "infty": INFINITY,
    "infinity": INFINITY,
    "inf": INFINITY,
    "mathrm{e}": Node(Op.CONSTANT, (), "e"),
}
_BASE_WORDS: Final = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASES: Final = {
    f"{opening}{word}{closing}": str(base)
    for base, word in enumerate(_BASE_WORDS.split(), 2)
    for opening, closing in (("", ""), ("text{", "}"), ("mathrm{", "}"))
}
_GREEK: Final = word_set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho "
    "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega "
    "ell hbar emptyset mathbb{R} mathbb{Z} mathbb{N} mathbb{Q} mathbb{C}"
)
_ACCENTS: Final = word_set(
    "vec overline bar hat tilde mathbf boldsymbol bm overrightarrow widehat mathcal mathbb mathfrak mathit"
)
_FONTS: Final = word_set("mathrm text textrm textbf mathbf rm operatorname operatorname* mathit mathsf")
_OTHER_NAMES: Final = {
    "arsinh": "arcsinh",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "tg": "tan",
    "varphi": "phi",
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "varrho": "rho",
    "varsigma": "sigma",
}
_FIGURES: Final = word_set("triangle angle measuredangle square odot parallelogram")
"""What says what the letters behind it name: `\\triangle ABC` is one thing."""
_NOT_PRIMARY: Final = word_set(
    "cdot times ast div pm mp rfloor rceil rvert right le ge leq geq ne neq in cup cap setminus circ degree mid"
)
_OPENING: Final = {"(": ")", "[": "]", "{": "}"}
_DELIMITED: Final = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil"), "lvert": ("rvert", "abs")}


def parse(text: str) -> Node:
    """The tree of `text`. Raises `Unreadable` where it is none, `Undecided` where it is ambiguous or too large."""
    check_size(text)
    parser = _Parser(tokens(text))
    node = parser.sum()
    if parser.next.kind != "end":
        raise Unreadable(f"{parser.next.text!r} in an expression")
    return node


class _Parser(Cursor):
    """Recursive descent: a method for each level of binding, then one for each kind of operand."""

    def sum(self) -> Node:
        terms = [self._signed()]
        alternatives = 0
        while self._is("+", "-", "pm", "mp"):
            sign = self._take().text
            term = self._signed()
            if sign in ("pm", "mp"):
                alternatives += 1
                if alternatives > MAX_ALTERNATIVES:
                    raise Undecided(f"an expression has at most {MAX_ALTERNATIVES} signs \\pm")
                before = terms[0] if len(terms) == 1 else Node(Op.ADD, tuple(terms))
                terms = [Node(Op.EITHER, (before, term), "+" if sign == "pm" else "-")]
            else:
                terms.append(term if sign == "+" else Node(Op.NEG, (term,)))
        return terms[0] if len(terms) == 1 else Node(Op.ADD, tuple(terms))

    def _signed(self) -> Node:
        if self._is("+", "-", "pm", "mp"):
            sign = self._take().text
            self._deeper()
            term = self._signed()
            self._depth -= 1
            if sign in ("pm", "mp"):
                return Node(Op.EITHER, (number(0), term), "+" if sign == "pm" else "-")
            return term if sign == "+" else Node(Op.NEG, (term,))
        return self._product()

    def _product(self) -> Node:
        factors = [self._power()]  # flat, so that a long product is no deep tree
        while True:
            if self._is("*", "cdot", "times", "ast"):
                self._take()
                factors.append(self._factor())
            elif self._is("/", "div"):
                self._take()
                divisor = self._factor()
                if len(factors) == 1 and factors[0].op is not Op.DIV:
                    factors = [Node(Op.DIV, (factors[0], divisor))]
                else:
                    factors.append(Node(Op.DIV, (ONE, divisor)))
            elif self.next.kind == "number":
                raise Ambiguous("two numbers side by side")
            elif self._starts_primary():
                factors.append(self._power())
            else:
                return factors[0] if len(factors) == 1 else Node(Op.MUL, tuple(factors))

    def _factor(self) -> Node:
        if self._is("+", "-"):
            sign = self._take().text
            factor = self._power()
            return factor if sign == "+" else Node(Op.NEG, (factor,))
        return self._power()

    def _power(self) -> Node:
        base = self._postfix(self._primary())
        if self._is("^"):
            self._take()
            self._deeper()
            if self._is("circ", "degree"):
                self._take()
                base = _degrees(base)
            else:
                exponent = self._exponent()
                base = _degrees(base) if exponent is None else Node(Op.POW, (base, exponent))
            self._depth -= 1
            base = self._postfix(base)
        return base

    def _exponent(self) -> Node | None:
        """What is raised, or None for a degree sign."""
        if self._is("{"):
            self._take()
            if self._is("circ"):
                self._take()
                self._expect("}")
                return None
            if self._is("prime"):
                raise Unreadable("a derivative")
            inside = self.sum()
            self._expect("}")
            return inside
        return self._factor()

    def _postfix(self, node: Node) -> Node:
        depth = self._depth
        while True:
            self._deeper()
            if self._is("!"):
                self._take()
                if self._is("!"):
                    raise Unreadable("a double factorial")
                node = Node(Op.CALL, (node,), "factorial")
            elif self._is("%"):
                self._take()
                node = Node(Op.DIV, (node, number(100)))
            elif self._is("degree"):
                self._take()
                node = _degrees(node)
            else:
                self._depth = depth
                return node

    def _matrix(self, cells: str) -> Node:
        rows = [row for row in re.split(r"\\\\|\\cr(?![A-Za-z])", cells) if row.strip() and row.strip() != r"\hline"]
        found = [tuple(parse(cell) for cell in row.split("&")) for row in rows]
        if not found or len({len(row) for row in found}) != 1:
            raise Unreadable("a matrix has rows of one length")
        if len(found) > MAX_MATRIX_SIDE or len(found[0]) > MAX_MATRIX_SIDE:
            raise Undecided(f"a matrix has at most {MAX_MATRIX_SIDE} rows and columns")
        return Node(Op.MATRIX, tuple(Node(Op.ROW, row) for row in found))

    # Operands

    def _primary(self) -> Node:
        self._deeper()
        node = self._value(self._take())
        self._depth -= 1
        return node

    def _value(self, token: Token) -> Node:
        if token.kind == "number":
            return self._number(token.text)
        if token.kind == "matrix":
            return self._matrix(token.text)
        if token.kind == "letter":
            return self._letter(token.text)
        if token.kind in ("name", "command"):
            return self._command(token.text, latex=token.kind == "command")
        if token.kind == "sign" and token.text in _OPENING:
            self._place -= 1
            return self._group(token.text)
        if token.kind == "sign" and token.text == "|" and not self._bars:
            inside = self._inside(self._bars + 1)
            self._expect("|")
            return Node(Op.CALL, (inside,), "abs")
        raise Unreadable(f"{token.text!r} in the place of a value")

    def _starts_primary(self) -> bool:
        token = self.next
        if token.kind in ("number", "letter", "name", "matrix"):
            return True
        if token.kind == "sign":
            return token.text in "([{" or (token.text == "|" and not self._bars)
        return token.kind == "command" and token.text not in _NOT_PRIMARY

    def _group(self, opening: str) -> Node:
        self._expect(opening)
        inside = self._inside(0)
        self._expect(_OPENING[opening])
        return inside

    def _inside(self, bars: int) -> Node:
        """A whole expression within so many open bars, of which the next one closes the last."""
        before, self._bars = self._bars, bars
        inside = self.sum()
        self._bars = before
        return inside

    def _argument(self) -> Node:
        """The argument of a LaTeX command: a group, or one digit, letter or command."""
        if self._is("{"):
            return self._group("{")
        token = self.next
        if token.kind == "number":
            if len(token.text) > 1 and token.text.isdigit():
                self._tokens[self._place] = Token("number", token.text[1:])
                return number(int(token.text[0]))
            self._take()
            return literal(token.text)
        if token.kind in ("letter", "name", "command"):
            return self._primary()
        raise Unreadable(f"expected an argument, not {token.text!r}")

    # Numbers and names

    def _number(self, text: str) -> Node:
        if self._is("_"):
            self._take()
            base = self._index()
            return symbol(f"{text}_{_BASES.get(base, base)}")  # digits in another base: a name, equal to itself
        if text.isdigit() and self._is("frac"):
            mixed = self._mixed(int(text) if len(text) <= MAX_LITERAL_DIGITS else 0)
            if mixed is not None:
                return mixed
        if self._is("overline") and "." in text:
            self._take()
            repeat = self._index()
            if not repeat.isdigit() or len(repeat) + len(text) > MAX_LITERAL_DIGITS:
                raise Unreadable("a repeating decimal has digits under its bar")
            places = len(text.partition(".")[2])
            start = Fraction(text.rstrip(".") if places == 0 else text)
            return number(start + Fraction(int(repeat), (10 ** len(repeat) - 1) * 10**places))
        return literal(text)

    def _mixed(self, whole: int) -> Node | None:
        """The mixed number that ends here with a proper fraction of whole numbers, or None."""
        start = self._place
        texts = [token.text for token in self._tokens[start : start + 7]]
        if texts[1:2] == ["{"] and len(texts) == 7 and (texts[3], texts[4], texts[6]) == ("}", "{", "}"):
            top, bottom, length = texts[2], texts[5], 7
        elif self._tokens[start + 1].kind == "number" and len(texts[1]) == 2:
            top, bottom, length = texts[1][0], texts[1][1], 2
        else:
            return None
        if not (top.isdigit() and bottom.isdigit() and len(top) + len(bottom) < 40 and 0 < int(top) < int(bottom)):
            return None
        self._place += length
        return number(whole + Fraction(int(top), int(bottom)))

    def _letter(self, letter: str) -> Node:
        if self._is("_"):
            self._take()
            index = self._index()
            if letter == "C" and (chosen := self._chosen(index)) is not None:
                return chosen
            name = symbol(f"{letter}_{index}")
        elif letter in "ei":
            return Node(Op.CONSTANT, (), letter)
        else:
            name = symbol(letter)
        name = self._primed(name)
        if letter in "fgh" and self._is("("):
            return Node(Op.APPLY, self._arguments(), name.value)
        return name

    def _primed(self, name: Node) -> Node:
        """`name` with the primes behind it, which make it another."""
        while self._is("'"):
            self._take()
            name = symbol(f"{name.value}'")
        return name

    def _chosen(self, index: str) -> Node | None:
        """`C_{10}^3`, the binomial coefficient of 10 and 3; None where it cannot be one."""
        texts = [token.text for token in self._tokens[self._place : self._place + 4]]
        upper = texts[2] if texts[1:2] == ["{"] and texts[3:] == ["}"] else (texts[1:2] or [""])[0]
        if texts[:1] != ["^"] or not (index.isdigit() and upper.isdigit() and len(index) < 6):
            return None
        if int(upper) > int(index):
            return None
        self._place += 4 if texts[1] == "{" else 2
        return Node(Op.CALL, (number(int(index)), number(int(upper))), "binom")

    def _arguments(self) -> tuple[Node, ...]:
        self._expect("(")
        args = [self._inside(0)]
        while self._is(","):
            self._take()
            args.append(self._inside(0))
        self._expect(")")
        return tuple(args)

    def _index(self) -> str:
        """The text of a subscript, or of what stands under a bar; fonts and braces aside."""
        if not self._is("{"):
            token = self._take()
            if token.kind not in ("number", "letter", "command", "name"):
                raise Unreadable("an index is a number or a name")
            if token.text in _FONTS and self._is("{"):
                return self._index()
            return _OTHER_NAMES.get(token.text, token.text)
        depth, parts = 0, list[str]()
        while True:
            token = self._take()
            if token.kind == "end":
                raise Unreadable("an index that does not end")
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0:
                return "".join(parts)
            if token.text not in "{}" and token.text not in _FONTS:
                parts.append(_OTHER_NAMES.get(token.text, token.text))

    # Commands and functions

    def _command(self, name: str, *, latex: bool) -> Node:
        name = _OTHER_NAMES.get(name, name)
        if name in _NAMED:
            return _NAMED[name]
        if name == "frac":
            above, below = self._argument(), self._argument()
            if above == symbol("d") and below.op is Op.MUL and below.args[0] == above:
                raise Unreadable("a derivative")
            return Node(Op.DIV, (above, below))
        if name == "sqrt":
            return self._root()
        if name == "cbrt":
            return Node(Op.ROOT, (self._group("(") if self._is("(") else self._argument(), number(3)))
        if name in ("binom", "dbinom", "tbinom") and latex:
            return Node(Op.CALL, (self._argument(), self._argument()), "binom")
        if name in _DELIMITED:
            closing, function = _DELIMITED[name]
            inside = self._inside(0)
            self._expect(closing)
            return Node(Op.CALL, (inside,), function)
        if name == "Gamma" and self._is("("):
            return Node(Op.CALL, self._arguments(), "gamma")
        if name in FUNCTIONS and name not in ("gamma", "factorial"):
            return self._function(name)
        if name in _FONTS and self._is("{"):
            return self._upright()
        if name in _ACCENTS:
            return symbol(f"{name}({self._index()})")
        if name in _GREEK:
            if self._is("_"):
                self._take()
                name += "_" + self._index()
            return self._primed(symbol(name))
        if name in _FIGURES:
            letters = ""
            while self.next.kind == "letter" and not letters[3:]:
                letters += self._take().text
            return symbol(f"{name} {letters}")
        raise Unreadable(f"the command \\{name}")

    def _upright(self) -> Node:
        """What is in `\\mathrm{}` or `\\operatorname{}`: a function, a constant, or a name."""
        name = self._index()
        if name in FUNCTIONS:
            return self._function(name)
        if name in ("e", "i"):
            return Node(Op.CONSTANT, (), name)
        if name.isdigit():
            return literal(name)
        if name.isalpha():
            return symbol(name)
        raise Unreadable(f"the name {name!r}")

    def _root(self) -> Node:
        index = number(2)
        if self._is("["):
            index = self._group("[")
        if self._is("("):
            return Node(Op.ROOT, (self._group("("), index))
        if self.next.kind == "number":  # \sqrt 12 and \sqrt12 are what their writers say: the root of 12
            return Node(Op.ROOT, (literal(self._take().text), index))
        return Node(Op.ROOT, (self._argument(), index))

    def _function(self, name: str) -> Node:
        power = base = None
        for _ in range(2):
            if self._is("_") and base is None:
                self._take()
                base = self._argument()
            elif self._is("^") and power is None:
                self._take()
                power = self._exponent()
        if name in _INVERSES and power is not None and power in (number(-1), Node(Op.NEG, (ONE,))):
            name, power = _INVERSES[name], None
        args = self._function_arguments()
        if name in ("max", "min", "gcd", "lcm") and len(args) < 2:
            raise Unreadable(f"the {name} of one thing")  # `max at x` has words in it
        if base is not None:
            if name != "log":
                raise Unreadable(f"a base of {name}")
            args = (*args, base)
        elif name == "lg":
            name, args = "log", (*args, number(10))
        call = Node(Op.CALL, args, name)
        if name == "cis":
            sine = Node(Op.MUL, (Node(Op.CONSTANT, (), "i"), Node(Op.CALL, args, "sin")))
            call = Node(Op.ADD, (Node(Op.CALL, args, "cos"), sine))
        return call if power is None else Node(Op.POW, (call, power))

    def _function_arguments(self) -> tuple[Node, ...]:
        if self._is("("):
            return self._arguments()
        if self._is("{"):
            return (self._group("{"),)
        if self._is("["):
            return (self._group("["),)
        sign = self._is("-") and self._take().text == "-"
        arg = self._power()
        while self._starts_primary() and self.next.kind != "number" and self.next.text not in FUNCTIONS:
            arg = Node(Op.MUL, (arg, self._power()))
        return (Node(Op.NEG, (arg,)) if sign else arg,)


def _degrees(node: Node) -> Node:
    return Node(Op.DIV, (Node(Op.MUL, (node, PI)), number(180)))
