"""What references ask, and what no reference may be."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from typing import Any

import pytest

from quintain.verifiers.code.livecodebench import PRELUDE
from quintain.verifiers.code.reference import BadReference, Case, FunctionTask, StdioTask, task_of, tightened
from quintain.verifiers.sandbox.interface import Limits

CASES = [{"input": "1\n2", "output": "3", "testtype": "stdin"}]
CALLS = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_a_body_of_tests_and_a_list_of_tests_are_told_apart() -> None:
    one = task_of({"kind": "function", "entry_point": "f", "tests": "assert f(1) == 2"})
    assert one == FunctionTask("f", tests=("assert f(1) == 2",))
    many = task_of({"kind": "function", "entry_point": "f", "tests": ["assert f(1) == 2"], "setup": "import math"})
    assert many == FunctionTask("f", setup="import math", tests=("assert f(1) == 2",), listed=True)


def test_livecodebench_cases_come_plain_as_json_and_compressed() -> None:
    expected = StdioTask((Case(b"1\n2", b"3"),), "python", "numbers", 0.0, PRELUDE)
    for cases in (CASES, json.dumps(CASES), packed(json.dumps(CASES))):
        assert task_of({"kind": "livecodebench", "public_test_cases": "[]", "private_test_cases": cases}) == expected


def test_livecodebench_functions_take_one_argument_a_line() -> None:
    record = {"kind": "livecodebench", "public_test_cases": json.dumps(CALLS), "metadata": '{"func_name": "add"}'}
    task = task_of(record)
    assert isinstance(task, FunctionTask)
    assert (task.entry_point, task.listed) == ("add", True)
    assert task.cases == ({"args": [[1, 2], 3], "accepts": [[4, 5]]},)


def test_input_output_has_programs_and_functions() -> None:
    programs = task_of({"kind": "livecodebench", "input_output": {"inputs": [["1", "2"]], "outputs": ["3"]}})
    assert isinstance(programs, StdioTask)
    assert programs.cases == (Case(b"1\n2", b"3"),)
    functions = task_of(
        {"kind": "livecodebench", "input_output": json.dumps({"fn_name": "f", "inputs": [[1, 2]], "outputs": [[3]]})}
    )
    assert isinstance(functions, FunctionTask)
    assert functions.cases == ({"args": [1, 2], "accepts": [[3], 3]},)


class Evil:
    """What a pickle may ask for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


BAD: list[Any] = [
    {},
    {"kind": "function"},
    {"kind": "function", "entry_point": "f"},
    {"kind": "function", "entry_point": "a b", "tests": "x"},
    {"kind": "function", "entry_point": "f", "tests": []},
    {"kind": "function", "entry_point": "f", "tests": [1]},
    {"kind": "function", "entry_point": "f", "tests": "x", "cases": [{"args": [], "expected": 1}]},
    {"kind": "function", "entry_point": "f", "cases": [{"args": 1, "expected": 1}]},
    {"kind": "function", "entry_point": "f", "cases": [{"args": []}]},
    {"kind": "stdio"},
    {"kind": "stdio", "cases": []},
    {"kind": "stdio", "cases": [{"stdin": "a"}]},
    {"kind": "stdio", "cases": [{"stdin": 1, "stdout": "a"}]},
    {"kind": "stdio", "cases": [{"stdin": "\ud800", "stdout": "a"}]},
    {"kind": "stdio", "cases": [{"stdout": "a"}], "compare": "close"},
    {"kind": "stdio", "cases": [{"stdout": "a"}], "tolerance": 2},
    {"kind": "stdio", "cases": [{"stdout": "a"}], "limits": {"wall": 1}},
    {"kind": "stdio", "cases": [{"stdout": "a"}], "limits": {"wall_s": float("nan")}},
    {"kind": "pytest"},
    {"kind": "pytest", "files": {"../a.py": ""}, "tests": ["../a.py::test"]},
    {"kind": "pytest", "files": {"a.py": ""}, "tests": ["b.py::test"]},
    {"kind": "pytest", "files": {"a.py": ""}, "tests": ["a.py"]},
    {"kind": "pytest", "files": {"a.py": ""}, "tests": ["a.py::t", "a.py::t"]},
    {"kind": "livecodebench"},
    {"kind": "livecodebench", "public_test_cases": [*CASES, *CALLS], "metadata": {"func_name": "f"}},
    {"kind": "livecodebench", "public_test_cases": CALLS},
    {"kind": "livecodebench", "private_test_cases": "no base64"},
    {"kind": "livecodebench", "private_test_cases": packed(Evil())},
    {"kind": "livecodebench", "private_test_cases": packed([1])},
    {"kind": "livecodebench", "input_output": {"inputs": ["1"], "outputs": []}},
]


REFERENCES = [None, 5, "x", [], object(), *BAD]


@pytest.mark.parametrize("reference", REFERENCES, ids=range(len(REFERENCES)))
def test_what_cannot_be_used_is_refused_in_one_line(reference: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadReference) as refused:
        task_of(reference)
    assert "\n" not in str(refused.value)
    assert "executed" not in capsys.readouterr().out


def test_limits_of_a_reference_only_tighten() -> None:
    limits = Limits(wall_s=5.0, memory_bytes=100)
    assert tightened(limits, {"wall_s": 2, "memory_bytes": 50}) == Limits(wall_s=2, memory_bytes=50)
    assert tightened(limits, {"wall_s": 9, "memory_bytes": 200}) == limits
