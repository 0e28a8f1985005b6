"""What the README shows is what runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quintain.config import load_config
from quintain.envs import Action, LocalClient, check_environment
from quintain.envs.registry import resolve
from quintain.messages import FunctionCall, Message, ToolCall
from quintain.trainers.datasets import read

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


async def test_the_environment_in_the_readme_is_sound_and_is_the_example(tmp_path: Path) -> None:
    (code,) = (block for block in PYTHON if "SingleTurnEnv" in block)
    assert code.partition("class ")[2].strip() in (ROOT / "examples" / "custom_env.py").read_text(encoding="utf-8")
    assert await check_environment(loaded(code, tmp_path / "mine.py").Capitals) == []


async def test_the_tool_environment_in_the_readme_is_sound_and_pays_for_what_the_tool_says(tmp_path: Path) -> None:
    (code,) = (block for block in PYTHON if "ToolEnv" in block)
    stock = loaded(code, tmp_path / "stock.py").Stock
    assert await check_environment(stock) == []
    async with LocalClient(stock) as client:
        env = client.episode()
        await env.reset(client.tasks("train")[0], seed=0)
        called = ToolCall("c", FunctionCall("look_up", '{"thing": "tea"}'))
        told = await env.step(Action(Message("assistant", None, (called,))))
        assert (await env.step(Action.text(told.observation.messages[0].text))).reward == 1.0


def loaded(code: str, file: Path) -> Any:
    """The module that `file` is with `code` in it."""
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_sound_experiment(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(file)
    if config.offline is None:
        assert config.environment.name is not None
        assert resolve(config.environment.name).splits
        return
    folder = tmp_path / file.parent.relative_to(ROOT)
    shutil.copytree(file.parent, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    (maker,) = folder.glob("make_*.py")  # what writes the rows lies beside the file
    subprocess.run([sys.executable, maker, "--rows=300"], check=True)
    monkeypatch.chdir(tmp_path)
    found = read(config)
    assert [len(part) for part in found.train] == [300]


def test_the_custom_environment_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "custom_env.py")], capture_output=True, text=True, check=True
    )
    assert "problems: none" in done.stdout
    assert "'Paris.': reward 1.2" in done.stdout


def test_every_command_and_option_in_the_readme_exists() -> None:
    commands = r"train|eval|env \w+|verify|reverify|rollout \w+|config \w+"
    shown = re.findall(rf"^    (quintain (?:{commands})[^\n]*)", README, re.MULTILINE)
    assert len(shown) >= 8
    for line in shown:
        for command in re.split(r"\s{2,}", line):
            words = command.split()
            group = 3 if words[1] in ("env", "rollout", "config") or words[1:3] == ["verify", "serve"] else 2
            help_text = subprocess.run(
                [sys.executable, "-m", *words[:group], "--help"], capture_output=True, text=True, check=True
            ).stdout
            for option in re.findall(r"--[a-z-]+", command):
                assert option in help_text, command


def test_the_service_in_the_readme_judges_as_it_is_shown() -> None:
    (code,) = (block for block in PYTHON if "VerifierClient" in block)
    ready = [sys.executable, "-m", "quintain", "verify", "serve", "--port", "0", "--json"]
    with subprocess.Popen(ready, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            names: dict[str, Any] = {}
            exec(code.replace("http://127.0.0.1:8100", url), names)
        finally:
            server.terminate()
    assert [names[name].score for name in ("right", "wrong", "verdict")] == [1.0, 0.0, 1.0]


def test_no_placeholder_is_left_in_the_readme() -> None:
    assert "@@" not in README
