"""Importing the room is cheap, and its names are there."""

from __future__ import annotations

import subprocess
import sys

import quintain.envs

HEAVY = ("torch", "httpx", "starlette", "uvicorn", "gymnasium", "numpy", "pydantic", "sympy", "transformers")


def imported_by(code: str) -> set[str]:
    """The top-level modules that a new process has after `code`."""
    script = f"{code}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_room_imports_nothing_heavy():
    assert not imported_by("import quintain.envs") & set(HEAVY)


def test_writing_an_environment_imports_nothing_heavy():
    code = "from quintain.envs import Environment, SingleTurnEnv, Observation, Action, Step, Task, MathEnv, user"
    assert not imported_by(code) & set(HEAVY)


def test_a_client_needs_no_server_and_no_torch():
    assert not imported_by("from quintain.envs import EnvClient") & {
        "torch",
        "starlette",
        "uvicorn",
        "gymnasium",
        "httpx",
    }


def test_a_server_and_its_workers_start_without_numpy():
    server = imported_by(
        "import quintain.envs.serving.server, quintain.envs.workers.pool, quintain.verifiers.service.app"
    )
    worker = imported_by("import quintain.envs.workers.host; from quintain.envs import MathEnv, ShellEnv")
    assert not server & {"torch", "numpy", "gymnasium", "sympy", "transformers"}
    assert not worker & {*HEAVY} - {"pydantic"}


def test_every_public_name_is_there():
    for name in quintain.envs.__all__:
        assert getattr(quintain.envs, name) is not None
    assert set(quintain.envs.__all__) <= set(dir(quintain.envs))


def test_what_is_not_there_is_an_attribute_error():
    assert not hasattr(quintain.envs, "Enviroment")
