"""What a reference asks: the kinds of tests there are, read from plain data. Pure.

What always holds: what `task_of` gives can be run as it is; anything that it cannot read raises BadReference, with
what was expected. Whether tests compile is found out only inside the sandbox.

    {"kind": "function", "entry_point": "add", "prompt": "…", "tests": "def check(candidate): …"}      HumanEval
    {"kind": "function", "entry_point": "add", "tests": ["assert add(1, 2) == 3", …], "setup": "…"}    MBPP
    {"kind": "function", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}, …]}
    {"kind": "stdio", "cases": [{"stdin": "…", "stdout": "…"}, …], "language": "cpp", "compare": "tokens"}
    {"kind": "livecodebench", "public_test_cases": …, "private_test_cases": …, "metadata": …, "starter_code": …}
    {"kind": "pytest", "files": {"tests/test_a.py": "…"}, "tests": ["tests/test_a.py::test_one", …], "path": "a.py"}

All but the last may have `"limits": {"wall_s": …, "memory_bytes": …}`, which can only tighten those of the options.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.verifiers.code.compare import Policy
from quintain.verifiers.sandbox.interface import Limits, check_path

POLICIES: Final = frozenset(typing.get_args(Policy))
LIMITS: Final = ("wall_s", "memory_bytes")
KINDS: Final = "function, stdio, livecodebench or pytest"


class BadReference(ValueError):
    """The reference cannot be used; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class FunctionTask:
    """Tests that call a function: a body of `tests`, or (`listed`) several and `cases`."""

    entry_point: str
    prompt: str = ""
    setup: str = ""
    tests: tuple[str, ...] = ()
    cases: tuple[Mapping[str, Any], ...] = ()
    listed: bool = False
    prelude: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """What a program reads, and what it must write."""

    stdin: bytes
    stdout: bytes


@dataclass(frozen=True, slots=True)
class StdioTask:
    """A program and its cases; language and comparison are those of the options where None."""

    cases: tuple[Case, ...]
    language: str | None = None
    compare: Policy | None = None
    tolerance: float | None = None
    prelude: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProjectTask:
    """A project: its own `files`, the ids of its `tests`, and the path of a solution that names none itself."""

    files: Mapping[str, bytes]
    tests: tuple[str, ...]
    path: str = "solution.py"
    limits: Mapping[str, float] = field(default_factory=dict)


Task = FunctionTask | StdioTask | ProjectTask


def task_of(reference: object) -> Task:
    """What `reference` asks. Raises BadReference."""
    fields = mapping(reference, 'a mapping with a "kind"')
    kind = fields.get("kind")
    if kind == "function":
        return function_task(fields)
    if kind == "stdio":
        return stdio_task(fields)
    if kind == "pytest":
        return project_task(fields)
    if kind == "livecodebench":
        from quintain.verifiers.code.livecodebench import task_of_record

        return task_of_record(fields)
    raise BadReference(f"a reference's kind is {KINDS}, not {str(kind)[:50]!r}")


def function_task(fields: Mapping[str, Any]) -> FunctionTask:
    """HumanEval's and MBPP's form, and plain cases."""
    entry = text(fields, "entry_point")
    if not entry.isidentifier():
        raise BadReference(f"entry_point is the name of a function, not {entry[:50]!r}")
    prompt, setup = text(fields, "prompt", ""), text(fields, "setup", "")
    tests, cases = fields.get("tests"), fields.get("cases")
    if isinstance(cases, (list, tuple)) and cases and tests is None:
        found = tuple(function_case(case) for case in cases)
        return FunctionTask(entry, prompt, setup, (), found, True, limits=limits_of(fields))
    if isinstance(tests, str) and tests.strip() and cases is None:
        return FunctionTask(entry, prompt, setup, (tests,), limits=limits_of(fields))
    if isinstance(tests, (list, tuple)) and tests and cases is None and all(isinstance(each, str) for each in tests):
        return FunctionTask(entry, prompt, setup, tuple(tests), (), True, limits=limits_of(fields))
    raise BadReference("a function has tests, a text or a list of texts, or cases, a list of mappings")


def function_case(case: object) -> Mapping[str, Any]:
    """One call and its result, both JSON."""
    fields = mapping(case, "a case of a function")
    if not isinstance(fields.get("args"), (list, tuple)) or "expected" not in fields:
        raise BadReference("a case of a function has args, a list, and expected")
    return {"args": list(fields["args"]), "accepts": [fields["expected"]]}


def stdio_task(fields: Mapping[str, Any]) -> StdioTask:
    """Programs by what they read and write."""
    cases = fields.get("cases")
    if not isinstance(cases, (list, tuple)) or not cases:
        raise BadReference("stdio tests have cases, a list that is not empty")
    compare, tolerance, language = fields.get("compare"), fields.get("tolerance"), fields.get("language")
    if compare is not None and compare not in POLICIES:
        raise BadReference(f"compare is one of {', '.join(sorted(POLICIES))}, not {str(compare)[:50]!r}")
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 <= tolerance < 1):
        raise BadReference(f"tolerance is a number in [0, 1), not {str(tolerance)[:50]!r}")
    if language is not None and not isinstance(language, str):
        raise BadReference("language is the name of one of the option languages")
    return StdioTask(tuple(stdio_case(case) for case in cases), language, compare, tolerance, limits=limits_of(fields))


def stdio_case(case: object) -> Case:
    """One run of a program."""
    fields = mapping(case, "a case")
    return Case(octets(text(fields, "stdin", "")), octets(text(fields, "stdout")))


def project_task(fields: Mapping[str, Any]) -> ProjectTask:
    """A project with pytest tests."""
    files = mapping(fields.get("files"), "files: paths and their contents")
    tests = fields.get("tests")
    if not isinstance(tests, (list, tuple)) or not tests or not all(isinstance(each, str) for each in tests):
        raise BadReference("pytest tests are a list of ids, as tests/test_a.py::test_one")
    if len(set(tests)) != len(tests):
        raise BadReference("every test id is there once")
    kept = {path_of(path): octets(text(files, path)) for path in files}
    for test in tests:
        path, _, name = test.partition("::")
        if path not in kept or not name:
            raise BadReference(f"the test {test[:100]!r} is in none of the files")
    return ProjectTask(kept, tuple(tests), path_of(text(fields, "path", "solution.py")), limits=limits_of(fields))


def limits_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """The limits that the reference brings."""
    limits = mapping(fields.get("limits", {}), "limits: a mapping")
    for name, value in limits.items():
        if name not in LIMITS:
            raise BadReference(f"limits are {' and '.join(LIMITS)}, not {str(name)[:50]!r}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 62:
            raise BadReference(f"a limit is a number above 0, not {str(value)[:50]!r}")
    return dict(limits)


def tightened(limits: Limits, own: Mapping[str, float]) -> Limits:
    """`limits`, where a reference's `own` are tighter these."""
    from dataclasses import replace

    wall_s = min(limits.wall_s, own.get("wall_s", limits.wall_s))
    memory_bytes = min(limits.memory_bytes, int(own.get("memory_bytes", limits.memory_bytes)) or 1)
    return replace(limits, wall_s=wall_s, memory_bytes=memory_bytes) if own else limits


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """`value`, which is a mapping of texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise BadReference(f"expected {what}, not {type(value).__name__}")
    return value


def text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """The text called `name`."""
    value = fields.get(name, default)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise BadReference(f"{name[:50]} is a text, not {type(value).__name__}")
    return value


def octets(value: str) -> bytes:
    """`value` in UTF-8."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadReference("a text with lone surrogates cannot be written to a file") from None


def path_of(path: str) -> str:
    """`path`, which is relative and stays inside."""
    try:
        return check_path(path)
    except QuintainError as error:
        raise BadReference(str(error)) from None


def listed(value: object, what: str) -> Sequence[Any]:
    """`value`, which is a list that is not empty."""
    if not isinstance(value, (list, tuple)) or not value:
        raise BadReference(f"{what} is a list that is not empty, not {type(value).__name__}")
    return value
