"""Tasks for the code environment, from the records that datasets of programming problems are made of. Pure.

Each record becomes a prompt, a hidden reference for the verifier `code`, and visible tests where there are any:

- HumanEval: {"task_id", "prompt", "entry_point", "test"}; visible are the prompt's own `>>>` examples;
- MBPP: {"text" or "prompt", "test_list", "test_setup_code" or "test_imports"}; its first test is in the prompt, as the
  paper has it (Austin et al. 2021, arXiv:2108.07732), and is the visible one;
- programs that read and write: {"question" or "prompt", "cases": [{"stdin", "stdout"}, ...], "language"}; visible is
  the first case;
- anything that the verifier knows: {"prompt", "reference": {"kind": ...}}.

A record's own "visible", a reference of the same form, beats what is made here; null says that nothing is visible.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Mapping
from typing import Any, Final

EXPECTED: Final = (
    'a problem in JSON: {"prompt", "entry_point", "test"} as HumanEval has it, {"text", "test_list"} as MBPP,'
    ' {"question", "cases": [{"stdin", "stdout"}]}, or {"prompt", "reference": {"kind": ...}}'
)
CALLED: Final = re.compile(
    r"\bassert\s+(?:not\s+|\()*(?:(?:set|sorted|list|tuple|round|abs|len|math\.isclose)\s*\(\s*)*(\w+)\s*\("
)
QUOTES: Final = re.compile("\"\"\"|'''")
DEFINED: Final = re.compile(r"^\s*def\s+(\w+)\s*\(", re.MULTILINE)


Made = tuple[str, dict[str, Any], dict[str, Any] | None]
"""A prompt, its hidden reference, and its visible tests."""


class NoProblem(ValueError):
    """A record that is none of the known forms; the message says what it lacks."""


def problem_of(row: Mapping[str, Any]) -> Made:
    """The prompt, the hidden reference and the visible tests of a record. Raises NoProblem."""
    made: Made
    if isinstance(row.get("reference"), Mapping):
        made = _text(row, "prompt", "question", "text"), dict(row["reference"]), None
    elif "test_list" in row:
        made = _mbpp(row)
    elif "entry_point" in row:
        made = _human_eval(row)
    elif "cases" in row:
        made = _stdio(row)
    else:
        raise NoProblem("it has none of reference, test_list, entry_point and cases")
    prompt, reference, visible = made
    if "visible" not in row:
        return prompt, reference, visible
    own = row["visible"]
    if own is not None and not isinstance(own, Mapping):
        raise NoProblem("visible is a reference or null")
    return prompt, reference, None if own is None else dict(own)


def _human_eval(row: Mapping[str, Any]) -> Made:
    code, entry, tests = _text(row, "prompt"), _text(row, "entry_point"), _text(row, "test", "tests")
    reference = {"kind": "function", "entry_point": entry, "prompt": code, "tests": tests}
    examples = examples_in(code)
    visible = reference | {"tests": examples} if examples else None
    prompt = (
        f"Complete this Python function. Answer with the whole function in one ```python block.\n\n```python\n{code}```"
    )
    return prompt, reference, visible


def _mbpp(row: Mapping[str, Any]) -> Made:
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise NoProblem("test_list is a list of asserts")
    imports = row.get("test_imports")
    setup = "\n".join(imports) if isinstance(imports, list) else row.get("test_setup_code")
    entry = _entry_point(tests, row.get("code"))
    reference = {"kind": "function", "entry_point": entry, "setup": setup or "", "tests": tests}
    prompt = (
        f"{_text(row, 'text', 'prompt')}\nYour function must pass this test:\n\n    {tests[0]}\n\n"
        "Answer with the program in one ```python block."
    )
    more = row.get("challenge_test_list")
    hidden = tests + (more if isinstance(more, list) else [])
    return prompt, reference | {"tests": hidden}, reference | {"tests": tests[:1]}


def _stdio(row: Mapping[str, Any]) -> Made:
    cases = row["cases"]
    if not isinstance(cases, list) or not cases:
        raise NoProblem("cases is a list of {stdin, stdout}")
    reference = {"kind": "stdio", "cases": cases}
    reference |= {name: row[name] for name in ("language", "compare", "tolerance", "limits") if name in row}
    visible = reference | {"cases": cases[:1]} if len(cases) > 1 else None
    return _text(row, "question", "prompt", "text"), reference, visible


def examples_in(prompt: str) -> list[str]:
    """The `>>>` examples of a docstring whose results are literals, as asserts."""
    found = []
    try:
        examples = doctest.DocTestParser().get_examples(prompt)
    except ValueError:  # a prompt whose examples are laid out in a way that doctest does not read
        return []
    for example in examples:
        # the prompt is read as text, so the last result goes on to the end of the docstring
        call, result = example.source.strip(), QUOTES.split(example.want)[0].strip()
        try:
            ast.parse(call, mode="eval")
            ast.literal_eval(result)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        found.append(f"assert {call} == {result}")
    return found


def _entry_point(tests: list[str], solution: Any) -> str:
    """The function that MBPP's tests call: it defines several, and its tests name it."""
    called: list[str] = [name for test in tests for name in CALLED.findall(test)]
    defined = DEFINED.findall(solution) if isinstance(solution, str) else []
    for name in [name for name in called if name in defined] + called:
        return name
    raise NoProblem("its tests call no function that can be told")


def _text(row: Mapping[str, Any], *names: str) -> str:
    for name in names:
        if isinstance(row.get(name), str) and row[name].strip():
            found: str = row[name]
            return found
    raise NoProblem(f"it has no {' or '.join(names)}")
