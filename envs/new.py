"""The first files of an environment of one's own: sound, tested, and short enough to be changed into what is wanted.

What always holds: what is written passes `quintain env check` and its own tests as it is; nothing that is there is
written over.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from quintain.failure import QuintainError
from quintain.nearest import one_of

KINDS: Final = ("single-turn", "tool", "chat", "shell")

_TESTS: Final = '''\
"""What the environment promises: run with pytest."""

import asyncio

from {name} import {cls}

from quintain.envs import LocalClient, check_environment


def test_the_environment_is_sound():
    assert asyncio.run(check_environment({cls})) == []


def test_the_solution_of_a_task_earns_1():
    async def earned() -> float:
        async with LocalClient({cls}) as client:
            env, task = client.episode(), client.tasks("train")[0]
            await env.reset(task, seed=0)
            return sum([(await env.step(action)).reward for action in {cls}.solution(task)])

    assert asyncio.run(earned()) == 1.0
'''

_RUN: Final = """\
# quintain train {name}.yaml
name: {name}

model:
  path: models/SmolLM2-135M-Instruct  # a folder with a model of your own

environment:
  name: {name}.py:{cls}

trainer:
  max_steps: 10
  prompts_per_step: 4
  num_generations: 8
"""


def class_name(name: str) -> str:
    """What the class of the environment `name` is called."""
    return "".join(part.capitalize() for part in name.split("_"))


def write_new(folder: Path, name: str, kind: str) -> list[Path]:
    """Write the files of the environment `name`, of one of `KINDS`, into the new folder `folder / name`; their paths.

    Raises QuintainError where the name is none, or the folder is there.
    """
    if not (name.isidentifier() and name.islower()):
        raise QuintainError(f"a name is lower-case letters, digits and '_', such as word_count, not {name!r}")
    if kind not in KINDS:
        raise QuintainError(f"there is no kind {kind!r}{one_of(kind, list(KINDS))}")
    home, cls = folder / name, class_name(name)
    if home.exists():
        raise QuintainError(f"{home} is there already: choose another name, or remove it")
    source = files("quintain.envs.templates").joinpath(f"{kind.replace('-', '_')}.py").read_text(encoding="utf-8")
    texts = {
        f"{name}.py": source.replace(f"New{kind.title().replace('-', '')}", cls),
        f"test_{name}.py": _TESTS.format(name=name, cls=cls),
        f"{name}.yaml": _RUN.format(name=name, cls=cls),
    }
    home.mkdir(parents=True)
    for file, text in texts.items():
        (home / file).write_text(text, encoding="utf-8")
    return [home / file for file in texts]
