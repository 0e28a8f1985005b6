"""Environments of Prime Intellect's package `verifiers`, played by the package itself in an environment of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from quintain.envs import LocalClient
from quintain.envs.options import bind
from quintain.envs.prime_verifiers import VerifiersEnvironment
from quintain.failure import FailureKind, QuintainError
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.episode import run_episode
from quintain.trajectory import Ending, to_segments

from ..rollout.gateway.stage import TOOL_CHAT
from .test_harness import says, spec, text
from .venvs import python_with

PACKAGE = '''
import verifiers.v1 as vf
from {0}.tools import Letters

class Data(vf.TaskData):
    answer: str

class ReverseTask(vf.Task[Data]):
    @classmethod
    def toolsets(cls, config):
        return [Letters(vf.ToolsetConfig())]

    @vf.reward(weight=2.0)
    async def exact(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

class ReverseConfig(vf.TasksetConfig):
    words: list[str] = ["one"]

class Reverse(vf.Taskset[ReverseTask, ReverseConfig]):
    def load(self):
        for word in self.config.words:
            data = Data(prompt=f"Reverse {{word}}", system_prompt="One word.", answer=word[::-1], name=word)
            yield ReverseTask(data, self.config.task)

class ConversationConfig(vf.EnvConfig):
    speaker: vf.AgentConfig = vf.AgentConfig()

class Conversation(vf.Env[ConversationConfig]):
    """Asks once more."""

    async def run(self, task, agents):
        if task.data.name == "broken":
            raise ValueError("no such word")
        async with agents.speaker.interaction(task) as talk:
            await talk.turn()
            await talk.turn("Once more.")
        talk.trace.record_reward("spoke", 1.0, 0.5)

__all__ = ["Conversation", "Reverse"]
'''
TOOLS = '''
import verifiers.v1 as vf

class Letters(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    def turned(self, word: str) -> str:
        """The word from its end on."""
        return word[::-1]

if __name__ == "__main__":
    Letters.run()
'''


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first time it makes the package's environment
async def test_a_package_of_verifiers_is_played_token_by_token_and_pays_what_it_pays(tmp_path: Path, monkeypatch):
    (tmp_path / "reverse_talk").mkdir()
    (tmp_path / "reverse_talk" / "__init__.py").write_text(PACKAGE.format("reverse_talk"))
    (tmp_path / "reverse_talk" / "tools.py").write_text(TOOLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = {"taskset": {"words": ["stone", "broken", "last"]}}
    python = python_with("verifiers", "verifiers==0.4.0")
    options = {"id": "reverse-talk", "python": python, "config": words, "heldout": 1}
    asked = spec(sampling=Sampling(max_tokens=256))
    async with LocalClient(VerifiersEnvironment, options) as client:
        good, broken = client.tasks("train")
        assert [task.prompt[0].text for task in client.tasks("heldout")] == ["Reverse last"]
        call = f"<tool_call>{json.dumps({'name': 'letters_turned', 'arguments': {'word': 'stone'}})}</tool_call>"
        engine = says(call, "enots, I think", "enots")
        made = await run_episode(replace(asked, task=good), make_env=client.episode, engine=engine, chat=TOOL_CHAT)
        assert (made.failure, made.ending) == (None, Ending.TERMINATED)
        assert (made.reward, made.rewards) == (2.5, {"exact": 2.0, "spoke": 0.5})
        (segment,) = to_segments(made)
        begun = "Tletters_turned|sOne word.|uReverse stone|a"
        assert text(segment.ids) == f"{begun}{call}|tenots|aenots, I think|uOnce more.|aenots|"
        made = await run_episode(replace(asked, task=broken), make_env=client.episode, engine=says(), chat=TOOL_CHAT)
        assert made.reward is None
        assert made.failure is not None
        assert (made.failure.kind, "ValueError: no such word" in made.failure.message) == (FailureKind.CRASHED, True)
        env, before = client.episode(), processes(python)
        await env.reset(good, seed=0)
        playing = processes(python) - before
        await env.close()
        assert playing
        assert not psutil.wait_procs(playing, timeout=30)[1]


def processes(python: str) -> set[psutil.Process]:
    return {each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [""])[0] == python}


@pytest.mark.parametrize(
    ("program", "complaint"),
    [("echo 'no package' >&2; exit 1", "cannot be loaded with .*: no package$"), (None, "No such file")],
)
def test_a_package_that_cannot_be_loaded_is_one_line(program, complaint, tmp_path: Path):
    python = tmp_path / "python"
    if program:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
    with pytest.raises(QuintainError, match=complaint):
        bind(VerifiersEnvironment, {"id": "x", "python": str(python)}).tasks("train")
