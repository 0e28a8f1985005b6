"""SandboxFusion's wire: the field names and values of its `/run_code` and `/submit`, as its documentation has them.

Source: https://bytedance.github.io/SandboxFusion (API reference). Fields that are not listed are ignored, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RunStatus(StrEnum):
    """What became of a request."""

    SUCCESS = "Success"  # every command ended with exit code 0
    FAILED = "Failed"  # one did not
    SANDBOX_ERROR = "SandboxError"  # the sandbox broke: this says nothing about the code


class CommandStatus(StrEnum):
    """What became of one command."""

    FINISHED = "Finished"
    TIME_LIMIT_EXCEEDED = "TimeLimitExceeded"
    ERROR = "Error"


@dataclass(frozen=True, slots=True)
class RunCodeRequest:
    """`POST /run_code`. Times are seconds; `files` are base64 by path, and so are those fetched afterwards."""

    code: str
    language: str
    compile_timeout: float = 10.0
    run_timeout: float = 10.0
    memory_limit_MB: int = -1  # below 0: the server's own limit
    stdin: str | None = None
    files: Mapping[str, str | None] = field(default_factory=dict)
    fetch_files: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


def command_result(
    status: CommandStatus,
    execution_time: float | None = None,
    return_code: int | None = None,
    stdout: str | None = None,
    stderr: str | None = None,
) -> dict[str, Any]:
    """What is answered of one command (`CommandRunResult`)."""
    return {
        "status": status,
        "execution_time": execution_time,
        "return_code": return_code,
        "stdout": stdout,
        "stderr": stderr,
    }


def run_result(status: RunStatus, message: str = "", **more: Any) -> dict[str, Any]:
    """The answer to `/run_code` (`RunCodeResponse`). `message` says what hit a limit, or what broke."""
    empty: dict[str, Any] = {"compile_result": None, "run_result": None, "executor_pod_name": None, "files": {}}
    return {"status": status, "message": message, **empty, **more}


@dataclass(frozen=True, slots=True)
class SubmitConfig:
    """How a submission is judged; `provided_data` is the row of the dataset."""

    dataset_type: str | None = None
    language: str | None = None
    compile_timeout: float | None = None
    run_timeout: float | None = None
    provided_data: Any = None
    custom_extract_logic: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """`POST /submit`: judge `completion`, the model's whole text."""

    dataset: str
    id: int | str
    completion: str
    config: SubmitConfig
