"""What the page on environments shows is what runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from quintain.config import parse_config
from quintain.envs import Action, Environment, LocalClient, Message, check_environment
from quintain.envs.options import bind
from quintain.envs.registry import resolve
from quintain.messages import FunctionCall, ToolCall

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def page(tmp_path: Path) -> ModuleType:
    """All of the page's code, as one module."""
    file = tmp_path / "page.py"
    file.write_text("from __future__ import annotations\n" + "\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location("environments_page", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
async def test_every_environment_of_the_page_is_sound(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    classes = [c for c in vars(page).values() if isinstance(c, type) and issubclass(c, Environment)]
    own = [cls for cls in classes if cls.__module__ == page.__name__]
    assert len(own) == len(re.findall(r"^class \w+\([\w, ]*(?:Env|Environment)\):", "\n".join(BLOCKS), re.MULTILINE))
    for cls in own:
        assert await check_environment(cls) == [], cls


async def test_the_wrapped_calculator_of_the_page_is_in_a_hurry(page: ModuleType) -> None:
    async with LocalClient(page.Hurried) as client:
        task = client.tasks("train")[0]
        call = Message("assistant", None, (ToolCall("c", FunctionCall("calculate", '{"expression": "1"}')),))
        for turns, reward in (([call, call, call], -0.3), ([call, task.reference], 0.9)):
            env = client.episode()
            await env.reset(task, seed=0)
            steps = [await env.step(Action(t) if isinstance(t, Message) else Action.text(t)) for t in turns]
            assert steps[-1].ended
            assert sum(step.reward for step in steps) == pytest.approx(reward)


async def test_the_conversation_of_the_page_ends_as_it_is_told(page: ModuleType) -> None:
    for said, reward, end in (("At 7:30.", 1.0, "goal"), ("At lunch.", 0.0, "left")):
        async with LocalClient(page.Hotel) as client:
            env = client.episode()
            first = await env.reset(client.tasks("train")[0], seed=0)
            assert first.messages[-1].text == "When is breakfast?"
            step = await env.step(Action.text(said))
            assert (step.reward, step.info["end"]) == (reward, end)


def test_what_the_page_configures_has_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "questions.jsonl").write_text('{"question": "a?", "answer": "a"}\n{"question": "b?", "answer": "b"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a?", "answer": "a"}\n' * 2)
    monkeypatch.chdir(tmp_path)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    configured = [parse_config(yaml.safe_dump({"model": {"path": "m"}, **block})) for block in blocks]
    played = [one for config in configured for one in config.plays]
    for environment in played[:-1]:  # the last one's file would need more prompts than it holds out
        assert environment.name is not None
        assert bind(resolve(environment.name), environment.args).tasks("train")[0].prompt
    assert [one.curriculum is not None for one in played] == [False] * 4 + [True]


def test_every_command_of_the_page_names_an_environment_and_options_that_there_are(page: ModuleType) -> None:
    commands = re.findall(r"^    quintain eval (.*)$", PAGE.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 3
    for words in map(shlex.split, commands):
        name, set_ = words[words.index("--env") + 1], words[words.index("--set") + 1]
        config = parse_config(f"model: {{path: m}}\nenvironment: {{name: '{name}'}}", [set_])
        cls = page.Hotel if name == "hotel.py:Hotel" else resolve(name)
        assert bind(cls, config.plays[0].args).tasks("train")[0].id


async def test_the_seats_of_the_page_are_paid_against_each_other(page: ModuleType) -> None:
    for guess, reward in (("7", 1.0), ("8", 0.0)):
        async with LocalClient(page.Bluff) as client:
            env = client.episode()
            assert (await env.reset(client.tasks("train")[0], seed=0)).agent == "keeper"
            assert (await env.step(Action.text("7"))).observation.agent == "guesser"
            step = await env.step(Action.text(guess))
            assert (step.reward, step.others) == (reward, {"keeper": 1.0 - reward})


async def test_the_server_of_the_page_adds(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    async with LocalClient(page.Adding) as client:
        env = client.episode()
        await env.reset(client.tasks("train")[0], seed=0)
        call = ToolCall("c", FunctionCall("add", '{"a": 20, "b": 22}'))
        told = await env.step(Action(Message("assistant", None, (call,))))
        assert told.observation.messages[0].text == "42"


async def test_the_shells_of_the_page_are_paid_for_what_is_left_in_the_folder(page: ModuleType) -> None:
    for cls, command, reward in (
        (page.Doubling, "echo 'print(2 * int(input()))' > double.py", 1.0),
        (page.Doubling, "echo 'print(8)' > double.py", 0.0),
        (page.Tidy, "rm *.log", 1.0),
        (page.Tidy, "rm *", 0.0),
    ):
        async with LocalClient(cls, {"shells": 1}) as client:
            env = client.episode()
            await env.reset(client.tasks("train")[0], seed=0)
            call = ToolCall("c", FunctionCall("shell", json.dumps({"command": command})))
            await env.step(Action(Message("assistant", None, (call,))))
            assert (await env.step(Action.text("Done."))).reward == reward
