"""Which texts only name what stands right of their equals sign: `x`, `f(2)`, `|AB|`, `(x, y)`; never a sum.

Whoever writes `x = 5` answers 5; whoever writes `2x = 10` or `x + y = 5` says something else. A sum or an integral
to be worked out (`\\int_0^1 x dx = 1/2`) is the name of its result.
"""

from __future__ import annotations

import re

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


def is_name(text: str) -> bool:
    """Whether `text`, the left side of an equation, only names what the right side is."""
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
