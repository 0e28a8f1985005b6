"""Agent programs: what they sample is recorded as it was, what they leave is judged, and nothing else is a reward."""

from __future__ import annotations

import itertools
import json
import random
import re
import shlex
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from quintain.envs import Action, LocalClient, ShellEnv, Task, user
from quintain.envs.builtin.harbor import HarborEnv
from quintain.envs.options import bind
from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.episode import EpisodeSpec, run_episode
from quintain.trajectory import Ending, Group, Trajectory, to_segments

from ..fake_engine import FakeEngine
from ..rollout.gateway.stage import CHAT, END, TOOL_CHAT, scripted
from .harbor_folders import HELLO, write_task
from .test_shell import solution
from .venvs import python_with

AGENT = """
import json, os, subprocess, sys, urllib.request
def ask(messages, page="/chat/completions", **more):
    body = json.dumps({"model": "policy", "messages": messages, **more}).encode()
    return urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + page, body).read().decode()
messages = [{"role": "user", "content": sys.argv[1]}]
while True:
    said = json.loads(ask(messages))["choices"][0]["message"]["content"]
    if said == "done": break
    shown = subprocess.run(said, shell=True, capture_output=True, text=True).stdout
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "out:" + shown}]
"""
FEW = {"shells": 1}


class Played(ShellEnv):
    """A folder with an agent in it."""

    agent: ClassVar[str] = AGENT

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        files = {"a.txt": "one\n", "json.py": "raise SystemExit('not this one')", "tool/agent.py": cls.agent}
        asked = user("Write 42 into 'out.txt'; $HOME")
        return [Task("one", (asked,), {"files": {"out.txt": "42"}}, info={"files": files})]


def playing(agent: str) -> type[Played]:
    return type("Playing", (Played,), {"agent": AGENT.partition("messages =")[0] + agent})


def spec(**more: Any) -> EpisodeSpec:
    task = Played.tasks("train")[0]
    return replace(EpisodeSpec("e", "g", task, 0, 0, 7, Sampling(max_tokens=64), 8, 4096), **more)


def says(*lines: str) -> FakeEngine:
    """One line after the other, and then it is done."""
    told = itertools.chain(lines, itertools.repeat("done"))
    return scripted(lambda _: next(told), max_length=1 << 16)


async def play(
    cls: type[ShellEnv] = Played,
    *lines: str,
    harness: dict[str, Any] | None = None,
    options: Any = None,
    chat: Any = CHAT,
    **more: Any,
) -> Trajectory:
    """What an episode comes to in which the policy says `lines`."""
    asked = {"command": "python3 tool/agent.py {task}"} | (harness or {})
    async with LocalClient(cls, FEW | {"harness": asked} | (options or {})) as client:
        wanted = spec(task=client.tasks("train")[0], **more)
        return await run_episode(wanted, make_env=client.episode, engine=says(*lines), chat=chat)


def text(ids: Any) -> str:
    return "".join(map(chr, ids)).replace(chr(END), "|")


async def test_every_token_that_a_program_samples_is_recorded_and_what_it_leaves_is_the_reward():
    made = await play(Played, "cat a.txt; ls -a", "printf 42 > out.txt")
    assert made.failure is None
    assert (made.reward, made.ending, made.info["gateway"]["forks"]) == (1.0, Ending.TERMINATED, {})
    assert [text(turn.output_ids) for turn in made.turns] == ["cat a.txt; ls -a|", "printf 42 > out.txt|", "done|"]
    assert made.prompt == spec().task.prompt  # as one argument, whatever is in it
    assert text(made.turns[0].new_ids) == "uWrite 42 into 'out.txt'; $HOME|a"
    assert text(made.turns[1].new_ids) == "uout:one\n.\n..\na.txt\njson.py\ntool\n|a"  # nothing of ours is there
    assert [turn.reward for turn in made.turns] == [0.0, 0.0, 1.0]
    assert all(len(turn.logprobs) == len(turn.output_ids) for turn in made.turns)
    assert (await play(Played, "echo 43 > out.txt")).reward == 0.0


async def test_a_program_plays_on_a_server_of_environments_too(serve):
    harness = {"command": f"python3 -c {shlex.quote(AGENT)} {{task}}"}
    async with serve("shell", options=FEW | {"harness": harness, "kinds": ["write"]}).client() as client:
        task = client.tasks("train")[0]
        engine = says(solution(task.prompt[0].text))
        made = await run_episode(spec(task=task), make_env=client, engine=engine, chat=CHAT)
        assert (made.failure, made.reward, len(made.turns)) == (None, 1.0, 2)


@pytest.mark.parametrize(
    ("agent", "kind", "says"),
    [
        ("ask(messages); raise SystemExit('it is broken')", FailureKind.CRASHED, "exit code 1.*it is broken"),
        ("ask(messages); os.kill(os.getpid(), 9)", FailureKind.CRASHED, "exit code 137"),
        ("ask(messages); os.kill(os.getppid(), 9)", FailureKind.CRASHED, "SIGKILL"),
        ("ask(messages)\nwhile True: pass", FailureKind.TIMEOUT, "it took its"),
        ("ask(messages); x = bytearray(1 << 33)", FailureKind.CRASHED, "memory|MemoryError"),
        ("ask(messages); os.write(os.open(f'/proc/{os.getppid()}/fd/1', 1), b'junkjunk')", FailureKind.INVALID, "call"),
        ("pass", FailureKind.INVALID, "ended before it asked"),
        ("try: ask(None)\nexcept OSError: pass", FailureKind.INVALID, "none of its calls was answered: .*messages"),
        ("raise SystemExit(3)", FailureKind.CRASHED, "exit code 3"),
    ],
)  # fmt: skip
async def test_a_program_that_breaks_is_a_failure_and_never_a_reward(agent, kind, says):
    begun = "messages = [{'role': 'user', 'content': 'x'}]; open('out.txt', 'w').write('42')\n"
    made = await play(playing(begun + agent), harness={"timeout_s": 4.0})
    assert made.reward is None
    assert made.failure is not None
    assert made.failure.kind is kind
    assert re.search(says, made.failure.message), made.failure.message
    assert len(made.turns) == ("ask(messages)" in agent)


FORGES = """
import socket
def code(page, body, method="POST"):
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"][:-3] + page, body, method=method)
    request.add_header("authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
    try: return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error: return error.code
found = [code(page, b'{"reward": 1.0}') for page in ("/sessions/e/reward", "/sessions", "/v1/../sessions/e/reward")]
found += [code("/metrics", None, "GET"), code("/sessions/e", None, "GET")]
for place in (("127.0.0.1", PORT), ("10.0.0.1", 80), ("169.254.169.254", 80)):
    try: socket.create_connection(place, 2)
    except OSError as error: found.append(error.errno)
print(ask([{"role": "user", "content": json.dumps(found)}]))
"""


async def test_a_program_reaches_the_policy_and_nothing_else():
    with socket.create_server(("127.0.0.1", 0)) as listening:  # on the machine's own loopback
        made = await play(playing(FORGES.replace("PORT", str(listening.getsockname()[1]))))
    assert made.failure is None
    assert made.reward == 0.0
    assert json.loads(made.prompt[0].text) == [404] * 5 + [111, 101, 101]  # refused; unreachable


async def test_sub_agents_retries_and_streams_are_chains_of_one_episode():
    agent = """
first = [{"role": "user", "content": "a"}]
said = json.loads(ask(first))["choices"][0]["message"]
ask([{"role": "system", "content": "sub"}, {"role": "user", "content": "b"}])
assert "data: [DONE]" in ask([*first, said, {"role": "user", "content": "c"}], stream=True, temperature=0.5)
short = [{"role": "user", "content": "summary"}]
counted = json.loads(ask(short, "/messages/count_tokens?beta=true"))["input_tokens"]
assert json.loads(ask(short, "/messages", max_tokens=4))["usage"]["input_tokens"] == counted
"""
    made = await play(playing(agent), "one", "two", "three", "four")
    assert made.failure is None
    assert [turn.message.text for turn in made.turns] == ["one", "three", "two", "four"]
    assert [turn.fork for turn in made.turns] == [None, None, *["agent_started_conversation"] * 2]
    assert made.info["gateway"]["order"] == [0, 2, 1, 3]
    assert made.info["gateway"]["ignored"] == {"temperature": 1}


async def test_the_runs_limits_of_turns_and_tokens_end_the_episode_truncated():
    for more, turns in (({"max_turns": 2}, 2), ({"max_length": 60}, 1)):
        made = await play(Played, *["ls"] * 9, **more)
        assert (made.ending, made.failure, len(made.turns), made.reward) == (Ending.TRUNCATED, None, turns, 0.0)
    made = await play(Played, max_length=8)
    assert made.failure is not None
    assert made.failure.kind is FailureKind.TOO_LONG


async def test_what_the_engine_cannot_do_is_a_failure_of_the_episode():
    async def fail(call: int, token: int) -> None:
        raise RuntimeError("no more")

    async with LocalClient(Played, FEW | {"harness": {"command": "python3 tool/agent.py {task}"}}) as client:
        engine = scripted("done", fail=fail)
        made = await run_episode(spec(), make_env=client.episode, engine=engine, chat=CHAT)
        assert made.reward is None
        assert made.failure is not None


async def test_a_task_of_harbors_is_played_in_its_folder_with_its_variables(tmp_path: Path):
    image = {"environment/Dockerfile": "FROM ubuntu:24.04\nWORKDIR /app\nENV SAID=Hello\nCOPY agent.py /app/\n"}
    write_task(tmp_path / "hello", HELLO | image | {"environment/agent.py": AGENT})
    options = {"path": str(tmp_path)}
    harness = {"command": "python3 agent.py {task}"}
    made = await play(HarborEnv, 'pwd; echo "$SAID, world!" > hello.txt', harness=harness, options=options)
    assert made.failure is None
    assert made.turns[1].new_ids.tolist()[5:] == list(b"/app\n\0a")
    assert made.reward == 1.0


async def test_who_cannot_answer_a_program_is_told_in_one_line():
    env = bind(Played, FEW | {"harness": {"command": "python3 tool/agent.py {task}"}})()
    await env.reset(Played.tasks("train")[0], seed=0)
    with pytest.raises(FailureError, match="only a rollout server can answer it"):
        await env.step(Action.text("ls"))
    await env.close()


BUGS = {"max(numbers)": "min(numbers)", "sum(numbers)": "len(numbers)", "numbers[-1]": "numbers[0]"}


class Repository(ShellEnv):
    """A package with a bug, drawn from the task's number, and tests that the agent never sees."""

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [cls.drawn(number) for number in range(8)]

    @staticmethod
    def drawn(number: int) -> Task:
        draw = random.Random(number)
        right, wrong = draw.choice(list(BUGS.items()))
        package, name = draw.choice(["ledger", "meter", "survey"]), draw.choice(["digest", "outline", "total"])
        rows = [[draw.randrange(9) for _ in range(4)] for _ in range(9)]
        wanted = [eval(right, {}, {"numbers": row}) for row in rows]
        source = f"def {name}(numbers):\n    return "
        files = {
            f"{package}/__init__.py": f"from {package}.figures import {name}\n",
            f"{package}/figures.py": f"{source}{wrong}\n",
        }
        hidden = f"import sys; sys.path.insert(0, 'work')\nfrom {package} import {name}\n"
        tests = {"tests.py": hidden + f"assert [*map({name}, {rows})] == {wanted}\n"}
        asked = user(f"- {package}.{name} should be {right}: mend it. Hidden tests will tell.")  # "-" is no option
        fix = f"echo {shlex.quote(source + right)} > {package}/figures.py; ls"
        reference = {"runs": [{"command": ["python3", "tests.py"], "files": tests}]}
        return Task(f"repository-{number}", (asked,), reference, info={"files": files, "fix": fix})


async def known(preset: str, *commands: str, tool: tuple[str, str], folder: Path | None = None, **sandbox: Any) -> Any:
    """What a known program's episode comes to in which the policy gives `commands` to the program's `tool`."""
    calls = [
        f"<tool_call>{json.dumps({'name': tool[0], 'arguments': {tool[1]: each}})}</tool_call>" for each in commands
    ]
    harness = {"preset": preset, "command": None} | ({"env": {"PATH": f"{folder}:/usr/bin:/bin"}} if folder else {})
    if folder:
        sandbox["readable"] = [str(folder)]
    limits = {"max_length": 1 << 16, "sampling": Sampling(max_tokens=1024)}
    return await play(Repository, *calls, harness=harness, options={"sandbox": sandbox}, chat=TOOL_CHAT, **limits)


def tiny_learner(folder: Path) -> Any:
    """A learner of a random model whose words are the stage's letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from quintain.config import parse_config
    from quintain.trainers.algorithms import algorithm_of
    from quintain.trainers.learner import Learner

    from ..tiny_llama import tiny_llama

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}))).save_pretrained(folder)
    tiny_llama(0, words=128, length=1 << 14).save_pretrained(folder)
    config = parse_config(
        f"model: {{path: {folder}, compute_dtype: float32}}\nenvironment: {{name: shell}}\n",
        ["trainer.learning_rate=0.01", "trainer.threads=1"],
    )
    return Learner(config, algorithm_of(config), checkpoints=folder / "checkpoints", logs=folder / "logs")


def likelihood(learner: Any, made: Trajectory) -> float:
    """The mean log-probability that the learner's model has for what was sampled."""
    import torch

    (segment,) = to_segments(made)
    ids = torch.tensor(segment.ids.astype(int))
    with torch.no_grad():
        logprobs = learner.model(ids[None]).logits[0, :-1].log_softmax(-1)
    return float(logprobs.gather(1, ids[1:, None])[torch.tensor(segment.mask[1:])].mean())


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first time it makes the program's environment
async def test_mini_swe_agent_mends_a_generated_repository_and_a_step_on_its_reward_trains(tmp_path: Path):
    python = python_with("mini_swe_agent", "mini-swe-agent==2.4.6")
    commands = (Repository.drawn(0).info["fix"], "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
    paid = await known("mini-swe-agent", *commands, tool=("bash", "command"), python=python)
    assert (paid.failure, paid.reward, paid.info["gateway"]["forks"]) == (None, 1.0, {})
    assert [turn.message.tool_calls[0].function.name for turn in paid.turns] == ["bash", "bash"]
    assert "config" not in text(paid.turns[1].new_ids)  # of its own, in the folder that is judged
    harness = {"command": f"python3 -c {shlex.quote(AGENT)} {{task}}"}
    unpaid = await play(Repository, "ls; ls; ls; ls; ls", harness=harness, chat=TOOL_CHAT)
    assert (unpaid.failure, unpaid.reward) == (None, 0.0)
    learner = tiny_learner(tmp_path)
    before = [likelihood(learner, made) for made in (paid, unpaid)]
    assert learner.update([Group("g", 0, (paid, unpaid))], step=0)["skipped_steps"] == 0
    gained, lost = (likelihood(learner, made) - was for made, was in zip((paid, unpaid), before, strict=True))
    assert gained > lost
    learner.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "package", "program", "tool"),
    [
        ("claude_code", "claude-agent-sdk==0.2.184", "claude_agent_sdk/_bundled/claude", ("Bash", "command")),
        ("codex", "openai-codex-cli-bin==0.163.0", "codex_cli_bin/bin/codex", ("exec_command", "cmd")),
    ],
)
async def test_claude_code_and_codex_mend_a_generated_repository(preset, package, program, tool):
    python = Path(python_with(preset, package))
    (found,) = python.parent.parent.glob(f"lib/*/site-packages/{program}")
    made = await known(preset, Repository.drawn(0).info["fix"], tool=tool, folder=found.parent)
    assert (made.failure, made.reward, made.info["gateway"]["forks"]) == (None, 1.0, {})
    assert [turn.message.text for turn in made.turns] == ["", "done"]
    assert "figures.py" not in text(made.turns[1].new_ids)


@pytest.mark.parametrize(
    ("harness", "complaint"),
    [
        ({}, "exactly one of command and preset"),
        ({"command": "x", "preset": "mini-swe-agent"}, "exactly one of command and preset"),
        ({"preset": "mini-swe"}, "there is no preset 'mini-swe'"),
        ({"command": "echo 'x"}, "cannot be read"),
        ({"command": " "}, "says nothing"),
        ({"command": "x", "timeout_s": 0}, "wall_s"),
        ({"command": "x", "timout_s": 1}, "timout_s"),
    ],
)
def test_a_wrong_harness_is_one_line(harness, complaint):
    with pytest.raises(QuintainError, match=complaint):
        bind(Played, {"harness": harness})()
