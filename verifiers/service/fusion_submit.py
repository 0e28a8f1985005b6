"""SandboxFusion's `/submit`, as a question to our own code verifier.

What always holds: the data is what the request brings (`config.provided_data`): no dataset is stored here. What
could not be judged is an HTTP error with a failure, since that wire has no other way to say that nobody is wrong.

The rows that are understood, by `dataset_type`, with the field names of SandboxFusion's published datasets:
- `HumanEvalDataset`: `content` (the prompt), `test` (defines `check`), and the entry point in `entry_point`, in
  `labels`, or as what the test itself checks;
- `MBPPDataset`: `test` (assertions), `labels.test_setup_code`; the function is the one that every assertion calls;
- `CommonOJDataset`: `test`, a list of `{"input": {"stdin": …}, "output": {"stdout": …}}`;
- `LiveCodeBenchDataset`: LiveCodeBench's own record.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from quintain.failure import FailureKind, Stage
from quintain.nearest import one_of
from quintain.serving.refusals import Refused, refused
from quintain.verdict import Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.service.fusion_wire import (
    CommandStatus,
    RunStatus,
    SubmitRequest,
    command_result,
    run_result,
)
from quintain.verifiers.service.wire import VerifyRequest

FUSION_LANGUAGES: Final[Mapping[str, str]] = {"nodejs": "javascript"}
"""SandboxFusion's names of languages that have another name here."""
_CHECKED: Final = re.compile(r"^check\((\w+)\)", re.MULTILINE)
_CALLED: Final = re.compile(r"(?<![\w.])([A-Za-z_]\w*)\(")
_DEFINED: Final = re.compile(r"^(?:async )?def (\w+)", re.MULTILINE)


def verify_request(asked: SubmitRequest) -> VerifyRequest:
    """The question to the code verifier that `asked` is. Raises Refused with what is missing."""
    config = asked.config
    if config.custom_extract_logic:
        raise _wrong("custom_extract_logic is code of the client's, and is not run here: leave it out")
    reader = _READERS.get(config.dataset_type or "")
    if reader is None:
        near = one_of(config.dataset_type or "", _READERS)
        raise _wrong(f"config.dataset_type {config.dataset_type!r} is not judged here{near}")
    row = config.provided_data
    if isinstance(row, list):
        row = next((one for one in row if isinstance(one, Mapping) and one.get("id") == asked.id), None)
    if not isinstance(row, Mapping):
        raise _wrong("config.provided_data is needed, the dataset's row: no dataset is stored on this server")
    reference = reader(row)
    language = config.language or "python"
    if config.dataset_type == "CommonOJDataset":
        reference["language"] = FUSION_LANGUAGES.get(language, language)
    elif language != "python":
        raise _wrong(f"config.language: {config.dataset_type} is Python, not {language!r}")
    limits = {
        name: {"wall_s": seconds}
        for name, seconds in (("limits", config.run_timeout), ("compile_limits", config.compile_timeout))
        if seconds is not None
    }
    partial = {"partial_credit": True} if config.extra.get("run_all_cases") else {}
    return VerifyRequest("code", (Item(asked.completion, reference),), {**limits, **partial})


def result_of(asked: SubmitRequest, verdict: Verdict) -> dict[str, Any]:
    """The answer to `/submit` (`EvalResult`) that `verdict` is. Raises Refused where there is no verdict."""
    if verdict.failure is not None:
        ours = verdict.failure.kind is not FailureKind.REJECTED
        status = HTTPStatus.SERVICE_UNAVAILABLE if ours else HTTPStatus.BAD_REQUEST
        raise Refused(verdict.failure, status)
    detail = verdict.detail
    return {
        "id": asked.id,
        "accepted": verdict.score == 1.0,
        "extracted_code": str(detail.get("code", "")),
        "tests": [_case(case) for case in detail.get("cases") or [detail]],
        "full_code": None,
        "test_code": None,
        "extracted_type": None,
        "extra": {"score": verdict.score, "outcome": str(verdict.outcome), "detail": dict(detail)},
    }


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    status = case.get("status")
    passed = status == "passed"
    wall_s = case.get("wall_s")
    result = command_result(
        CommandStatus.TIME_LIMIT_EXCEEDED if status == "timeout" else CommandStatus.FINISHED,
        execution_time=float(wall_s) if isinstance(wall_s, int | float) else None,
        return_code=0 if status in ("passed", "wrong_answer") else None,
    )
    message = "" if passed else str(case.get("reason") or case.get("message") or status)
    ran = RunStatus.SUCCESS if passed else RunStatus.FAILED
    return {"passed": passed, "exec_info": run_result(ran, message, run_result=result), "test_info": dict(case)}


def _human_eval(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, tests, labels = str(row.get("content") or ""), row.get("test"), _plain(row.get("labels")) or {}
    if not isinstance(tests, str) or not tests.strip():
        raise _wrong("config.provided_data.test is the test's source, a text")
    entry = row.get("entry_point") or (labels.get("entry_point") if isinstance(labels, Mapping) else None)
    checked = _CHECKED.findall(tests) or _DEFINED.findall(prompt)[-1:]
    if not entry and not checked:
        raise _wrong("config.provided_data.entry_point is needed, the name of the function that is tested")
    return {"kind": "function", "entry_point": str(entry or checked[-1]), "prompt": prompt, "tests": tests}


def _mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    tests, labels = _plain(row.get("test")), _plain(row.get("labels")) or {}
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests) or not tests:
        raise _wrong("config.provided_data.test is a list of assertions")
    called = set.intersection(*({*_CALLED.findall(test)} for test in tests)) - set(dir(builtins))
    if len(called) != 1:
        raise _wrong("config.provided_data.test: every assertion calls one and the same function")
    setup = labels.get("test_setup_code") if isinstance(labels, Mapping) else None
    return {"kind": "function", "entry_point": called.pop(), "tests": tests, "setup": str(setup or "")}


def _stdio(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = _plain(row.get("test"))
    cases = []
    for test in tests if isinstance(tests, list) else []:
        given, wanted = (test.get("input"), test.get("output")) if isinstance(test, Mapping) else (None, None)
        if not isinstance(given, Mapping) or not isinstance(wanted, Mapping):
            raise _wrong('config.provided_data.test: each is {"input": {"stdin": …}, "output": {"stdout": …}}')
        if set(given) - {"stdin"} or set(wanted) != {"stdout"}:
            raise _wrong("config.provided_data.test: only stdin and stdout are judged here, not other files")
        cases.append({"stdin": str(given.get("stdin", "")), "stdout": str(wanted["stdout"])})
    if not cases:
        raise _wrong("config.provided_data.test is a list of at least one case")
    return {"kind": "stdio", "cases": cases}


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "HumanEvalDataset": _human_eval,
    "MBPPDataset": _mbpp,
    "CommonOJDataset": _stdio,
    "LiveCodeBenchDataset": lambda row: {**row, "kind": "livecodebench"},
}


def _plain(value: Any) -> Any:
    """`value`, or what it holds where it is JSON text, as those datasets store some fields."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _wrong(message: str) -> Refused:
    return refused(message, Stage.VERIFY, status=400)
