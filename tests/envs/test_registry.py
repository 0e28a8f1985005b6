"""Environments are found by name, module and file, and what is not found is one line."""

from __future__ import annotations

import re
import sys

import pytest

from quintain.envs import MathEnv, list_envs, resolve
from quintain.failure import QuintainError

SOUND = '''
from dataclasses import dataclass
from quintain.envs import SingleTurnEnv, Task, user
from neighbour import ANSWER


@dataclass(frozen=True)
class Settings:
    answer: str = ANSWER


class Mine(SingleTurnEnv):
    """My environment.

    With a longer story.
    """

    @classmethod
    def tasks(cls, split):
        return [Task("one", (user("?"),), Settings().answer)]


class Half(SingleTurnEnv):
    pass


class Other:
    pass
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "neighbour.py").write_text("ANSWER = 'yes'\n")
    path = tmp_path / "mine.py"
    path.write_text(SOUND)
    return path


def test_the_built_in_environments_are_listed_with_what_they_are():
    assert list_envs()["math"].startswith("Arithmetic")


def test_a_name_a_module_and_a_file_give_the_class(file):
    assert resolve("math") is MathEnv
    assert resolve("quintain.envs.builtin.math:MathEnv") is MathEnv
    assert resolve(f"{file}:Mine").tasks("train")[0].reference == "yes"


def test_a_file_is_loaded_once_however_often_it_is_asked_for(file):
    assert resolve(f"{file}:Mine") is resolve(f"{file}:Mine")


def test_a_module_in_the_current_folder_is_found(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert resolve("mine:Mine").__name__ == "Mine"
    sys.modules.pop("mine")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            "mth",
            "there is no environment 'mth': did you mean 'math'? (known: calculator, code, data, gymnasium, harbor, m",
        ),
        ("quintain.envs.nowhere:MathEnv", "there is no module 'quintain.envs.nowhere'"),
        (
            "quintain.envs.builtin.math:MathsEnv",
            "no 'MathsEnv' there: did you mean 'MathEnv'? (its environments: MathEnv)",
        ),
        (
            "quintain.envs.builtin.numbered:hashed",
            "is no environment: it must be a subclass of quintain.envs.Environment",
        ),
        ("/nowhere/env.py:Env", "there is no file /nowhere/env.py"),
        ("{file}:Min", "no 'Min' there: did you mean 'Mine'? (its environments: Mine, Half)"),
        ("{file}:Half", "is not finished: it lacks tasks"),
        ("{file}:Other", "is no environment"),
    ],
)
def test_what_is_not_there_is_one_line_that_helps(file, spec, complaint):
    with pytest.raises(QuintainError, match=re.escape(complaint)) as error:
        resolve(spec.replace("{file}", str(file)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import not_a_module_of_anybody\n", "ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path, text, complaint):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(QuintainError, match=f"importing .*broken.py(:1)? failed: {complaint}"):
        resolve(f"{path}:Env")


def test_a_module_that_lacks_a_dependency_names_it(file, monkeypatch):
    (file.parent / "needy.py").write_text("import not_a_module_of_anybody\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(QuintainError, match="needs 'not_a_module_of_anybody', which is not installed"):
        resolve("needy:Env")


def test_an_async_tasks_method_is_refused(tmp_path):
    path = tmp_path / "late.py"
    path.write_text(
        "from quintain.envs import SingleTurnEnv\n"
        "class Late(SingleTurnEnv):\n"
        "    @classmethod\n"
        "    async def tasks(cls, split):\n"
        "        return []\n"
    )
    with pytest.raises(QuintainError, match="`tasks` must be a plain classmethod"):
        resolve(f"{path}:Late")
