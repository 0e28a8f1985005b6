"""Makes wrong answers, and right ones, out of right answers: each by one small change.

A perturbation gives None where it does not apply. What changes the mathematics of every seed it applies to is in
`WRONG`; what changes only the writing is in `RIGHT`. A wrong one is never applied where symmetry would undo it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

Change = Callable[[str], str | None]


def _digit(text: str) -> str | None:
    """The last digit is one more."""
    found = list(re.finditer(r"\d", text))
    if not found:
        return None
    last = found[-1]
    return text[: last.start()] + str((int(last[0]) + 1) % 10 or 4) + text[last.end() :]


def _first_digit(text: str) -> str | None:
    found = re.search(r"\d", text)
    return None if found is None else text[: found.start()] + str(int(found[0]) % 9 + 1) + text[found.end() :]


def _more_digits(text: str) -> str | None:
    found = re.search(r"[1-9]\d*", text)
    return None if found is None or "." in text else text[: found.end()] + "0" + text[found.end() :]


def _sign(text: str) -> str | None:
    """The whole is negated, where a sign before it does that."""
    if (text[0] in "([{\\" and not text.startswith(("\\frac", "\\sin", "\\log"))) or "=" in text or "\\le" in text:
        return None
    if re.search(r"\\ge|<|:", text):
        return None
    if text.startswith("-"):
        return text[1:]
    return "-(" + text + ")" if re.search(r"[+\- ]", text) and "\\text" not in text and "%" not in text else "-" + text


def _inner_sign(text: str) -> str | None:
    """A plus within is a minus, or the other way round."""
    found = re.search(r"(?<=[\w)}] )[+-](?= )|(?<=\w)[+-](?=\w|\\)", text)
    if found is None:
        return None
    return text[: found.start()] + ("-" if found[0] == "+" else "+") + text[found.end() :]


def _dropped_term(text: str) -> str | None:
    found = re.fullmatch(r"([^=<(\[{]+?) [+-] [^=]+", text)
    return None if found is None or ("\\" in found[1] and text.count("{") != text.count("}")) else found[1]


def _exponent(text: str) -> str | None:
    found = re.search(r"\^\{?(\d+)", text)
    if found is None:
        return None
    return text[: found.start(1)] + str(int(found[1]) + 1) + text[found.end(1) :]


def _unit(text: str) -> str | None:
    for one, other in (("cm", "m"), ("{ m}", "{ km}"), ("km/h", "m/s"), ("%", "")):
        if one in text:
            return text.replace("\\%", "").strip() if one == "%" else text.replace(one, other)
    return None


def _bracket(text: str) -> str | None:
    """An end that was in is out."""
    swapped = {"[": "(", "]": ")"}
    for bracket, other in swapped.items():
        if bracket in text and "\\begin" not in text:
            return text.replace(bracket, other, 1)
    return None


def _order(text: str) -> str | None:
    """The first two elements of a tuple, or the two sides of a ratio, change places."""
    found = re.fullmatch(r"\(([^,]+), ([^,]+)((?:, [^,]+)*)\)", text)
    if found is not None and found[1] != found[2]:
        return f"({found[2]}, {found[1]}{found[3]})"
    found = re.fullmatch(r"(\d+) : (\d+)", text)
    return f"{found[2]} : {found[1]}" if found else None


def _extra(text: str) -> str | None:
    """One more element, or another candidate."""
    if text[0] in "([" and text[-1] in ")]" and "\\cup" not in text and "infty" not in text:
        return f"{text[:-1]}, 77{text[-1]}"
    if text.startswith("\\{"):
        return text[:-2] + ", 77\\}"
    return f"{text} or 77"


def _relation(text: str) -> str | None:
    for one, other in (("\\ge", "\\le"), ("\\le", "<"), ("= ", "= -1 + ")):
        if one in text:
            return text.replace(one, other)
    return None


def _number_in_words_around(text: str) -> str | None:
    return f"{text}, or maybe 77"


def _half_open(text: str) -> str | None:
    return "\\{" + text[1:-1] + "\\}" if re.fullmatch(r"\([^()]*\)", text) and "infty" not in text else None


WRONG: Final[tuple[tuple[str, Change], ...]] = (
    ("digit", _digit),
    ("first digit", _first_digit),
    ("a digit more", _more_digits),
    ("sign", _sign),
    ("inner sign", _inner_sign),
    ("dropped term", _dropped_term),
    ("exponent", _exponent),
    ("unit", _unit),
    ("bracket", _bracket),
    ("order", _order),
    ("one more", _extra),
    ("relation", _relation),
    ("hedge", _number_in_words_around),
    ("set for tuple", _half_open),
)

RIGHT: Final[tuple[tuple[str, Change], ...]] = (
    ("boxed", lambda text: rf"So the result is $\boxed{{{text}}}$."),
    ("displayed", lambda text: rf"\[ {text} \]"),
    ("phrase", lambda text: f"The answer is ${text}$."),
    ("blanks", lambda text: re.sub(r"(?<![A-Za-z\\]) | (?![A-Za-z])", "  ", text)),
    (
        "sized brackets",
        lambda text: re.sub(r"(?<!\\)\(", r"\\left(", text).replace(")", r"\right)") if "(" in text else None,
    ),
    ("dfrac", lambda text: text.replace(r"\frac", r"\dfrac") if r"\frac" in text else None),
    ("thin space", lambda text: text.replace(" ", r"\, ") if " " in text and "\\begin" not in text else None),
)


def perturbed(seed: str, changes: tuple[tuple[str, Change], ...]) -> Iterator[tuple[str, str]]:
    """(name of the change, changed text) for every change that applies to `seed`, without repetitions."""
    seen = {seed}
    for name, change in changes:
        text = change(seed)
        if text is not None and text not in seen:
            seen.add(text)
            yield name, text
