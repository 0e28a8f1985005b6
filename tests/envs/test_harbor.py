"""Tasks of Harbor's format: what they pay, what cannot be forged, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.envs import Action, HarborEnv, LocalClient, Step
from quintain.envs.builtin.harbor import reward_in
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.verifiers.shared import Verifiers

from ..verifiers.sandbox.engine import IMAGE, NoEngine, engine
from .harbor_folders import BINARY, HELLO, REWARD, TASKS, write_task, write_tasks

FEW = {"shells": 2}
in_module = pytest.mark.asyncio(loop_scope="module")
DONE = Action.text("It is done.")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def verifiers() -> AsyncIterator[Verifiers]:
    """The sandboxes that the episodes of this module share."""
    shared = Verifiers()
    yield shared
    await shared.close()


async def last(verifiers: Verifiers, path: Path, *commands: str, **options: Any) -> Step:
    """The last step of an episode that runs `commands`."""
    env = HarborEnv(**FEW | options)
    env.verifiers = verifiers
    await env.reset(HarborEnv.tasks("train", path=str(path), sandbox=options.get("sandbox"))[0], seed=0)
    try:
        for action in [*(Action.call("shell", {"command": command}) for command in commands), DONE]:
            step = await env.step(action)
            if step.ended:
                return step
    finally:
        await env.close()
    raise AssertionError("the episode has no end")


async def earned(verifiers: Verifiers, path: Path, *commands: str) -> float:
    return (await last(verifiers, path, *commands)).reward


@pytest.mark.parametrize(
    ("name", "commands", "reward"),
    [
        ("hello", ["echo 'Hello, world!' > hello.txt"], 1.0),
        ("hello", ["cd /; echo 'Hello, world!' > /app/hello.txt; mkdir /app/empty; mkfifo /app/pipe"], 1.0),
        ("hello", ["echo 'Hello, world!' > /app/x; chmod 0 /app/x; ln -s x /app/hello.txt"], 1.0),
        ("hello", ["echo 'Hello!' > hello.txt"], 0.0),
        ("hello", [], 0.0),
        ("half", ["echo 'Hello!' > hello.txt"], 0.5),
        ("half", ["echo 'Hello, world!' > hello.txt"], 1.0),
        ("half", [], 0.0),
        ("binary", ["twice data/all.bin > twice.bin; cp bin/twice copy; ln -s copy linked"], 1.0),
        ("binary", ["twice data/all.bin > twice.bin; cat bin/twice > copy; ln -s copy linked"], 0.0),
    ],
)  # fmt: skip
@in_module
async def test_an_episode_is_paid_what_the_tests_of_its_task_write(verifiers, tmp_path, name, commands, reward):
    assert await earned(verifiers, write_task(tmp_path / name, TASKS[name]), *commands) == reward


async def test_the_solution_of_every_task_earns_one(tmp_path):
    options = {"path": str(write_tasks(tmp_path)), **FEW}
    async with LocalClient(HarborEnv, options) as client:
        for task in HarborEnv.tasks("train", path=str(tmp_path)):
            env = client.episode()
            await env.reset(task, seed=0)
            assert [(await env.step(action)).reward for action in HarborEnv.solution(task)][-1] == 1.0, task.id
            await env.close()


WRITES = "echo 1 > /logs/verifier/reward.txt; echo '{\"reward\": 1}' > /logs/verifier/reward.json"


@pytest.mark.parametrize(
    "command",
    [
        WRITES,
        f"echo '{WRITES}' > /tests/test.sh; chmod 555 /tests/test.sh /tests",
        f"(while :; do {WRITES}; done) & setsid nohup sh -c 'while :; do cp /tests/hello.txt /app; done' & disown -a",
        "mkdir bin; printf '#!/bin/sh\\nexit 0' > bin/cmp; chmod +x bin/cmp; export PATH=/app/bin:$PATH BASH_ENV=~/.b;"
        " echo 'PATH=/app/bin:$PATH; cmp() { :; }' | tee ~/.b ~/.profile /tmp/.shell; alias cmp=true",
        "ln -s /tests/hello.txt hello.txt",
        "ln -s ../tests deeper; ln -s deeper/hello.txt hello.txt; ln -s /proc/self/cwd/../tests/hello.txt other",
        "cd ~; mv app old; ln -s /tests app",
        "cd ~; mv app old; ln -s tests app; ln -s /app/hello.txt tests/hello.txt; cp /app/* old",
        "cd ~; rm -r app; ln -s . app; mkdir -p tests; echo 1 > tests/hello.txt",
        "cd ~; mv app logs; ln -s logs/app app",
        "rm -rf /app ~/app",
        "rm -rf ~/* ~/.* /tmp/*",
    ],
)  # fmt: skip
@in_module
async def test_no_forged_reward_is_paid(verifiers, tmp_path, command):
    assert await earned(verifiers, write_task(tmp_path / "hello", HELLO), command) == 0.0


TELLS = "echo '{}' > /logs/verifier/{}\n"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo a test failed; exit 1", "the tests write no reward to /logs/verifier; they say: a test failed"),
        ("mkdir /logs/verifier/reward.txt", "a reward.txt that is no reward"),
        ("> /logs/verifier/reward.txt", "a reward.txt that is no reward"),
        (TELLS.format("nan", "reward.txt"), "'nan' is no number"),
        (TELLS.format("one", "reward.txt"), "a reward.txt that is no reward"),
        (TELLS.format("1", "reward.txt") + TELLS.format("{", "reward.json"), "a reward.json that is no reward"),
        ("printf '\\xff' > /logs/verifier/reward.txt", "a reward.txt that is no reward"),
    ],
)
@in_module
async def test_tests_that_write_no_number_are_a_failure_and_no_reward(verifiers, tmp_path, script, complaint):
    with pytest.raises(FailureError) as caught:
        await earned(verifiers, write_task(tmp_path / "task", HELLO | {"tests/test.sh": script}))
    failure = caught.value.failure
    assert (failure.kind, failure.stage) == (FailureKind.INVALID, Stage.VERIFY)
    assert complaint in failure.message


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"reward": 0.5, "style": 1}', 0.5),
        ('{"accuracy": 1}', 1.0),
        ('{"reward": -1}', -1.0),
        ('{"reward": true}', 1.0),
        ('{"reward": false, "style": true}', 0.0),
        ("true", None),
        ("0.25", None),
        ("{}", None),
        ("[1]", None),
        ("null", None),
        ('"1"', None),
        ("NaN", None),
        ("1e999", None),
        ("1" + "0" * 400, None),
        ('{"a": 1, "b": 1}', None),
        ('{"reward": 1, "note": "good"}', None),
        ('{"reward": {"a": 1}}', None),
        ("[" * 100_000, None),
    ],
)
def test_a_reward_in_json_is_a_number_or_an_object_of_numbers_that_names_one(text, reward):
    if reward is None:
        with pytest.raises((ValueError, OverflowError, RecursionError)):
            reward_in(text, is_json=True)
    else:
        assert reward_in(text, is_json=True) == reward


@in_module
async def test_tests_that_are_not_done_in_their_time_are_a_failure(verifiers, tmp_path):
    slow = {
        "task.toml": "[verifier]\ntimeout_sec = 0.5\n",
        "tests/test.sh": TELLS.format(1, "reward.txt") + "sleep 600",
    }
    with pytest.raises(FailureError, match=r"timeout in verify: the tests: it took its 0\.5 s"):
        await earned(verifiers, write_task(tmp_path / "slow", HELLO | slow))


@in_module
async def test_files_that_do_not_fit_into_the_folder_of_a_task_are_a_failure(verifiers, tmp_path):
    large = docker("FROM ubuntu\nWORKDIR /app\nCOPY large .\n") | {"environment/large": bytes(17 << 20)}
    with pytest.raises(FailureError, match="the files of the task 'large' do not fit into its folders"):
        await earned(verifiers, write_task(tmp_path / "large", HELLO | large))


@in_module
async def test_an_episode_ends_with_the_time_of_its_task_and_is_judged(verifiers, tmp_path):
    folder = write_task(tmp_path / "hasty", HELLO | {"task.toml": "[agent]\ntimeout_sec = 0.5\n"})
    step = await last(verifiers, folder, "sleep 600", "echo never")
    assert (step.terminated, step.truncated, step.reward) == (False, True, 0.0)
    assert re.search("killed: it took its|the time of this task is over", step.observation.messages[0].text)


async def test_files_and_variables_are_those_of_the_dockerfile_and_paths_begin_in_its_work_folder(tmp_path):
    async with LocalClient(HarborEnv, {"path": str(write_task(tmp_path / "binary", BINARY)), **FEW}) as client:
        env = client.episode()
        await env.reset(client.tasks("train")[0], seed=0)

        async def call(tool: str, **arguments: str) -> str:
            return (await env.step(Action.call(tool, arguments))).observation.messages[0].text

        assert await call("shell", command='pwd; echo "$SAID"; which twice; ls /app /tests') == (
            "/app\nHello  there\n/app/bin/twice\n/app:\nbin\ndata\n\n/tests:"
        )
        assert await call("write_file", path="a/b.txt", content="one") == "a/b.txt has 3 characters"
        assert await call("replace_text", path="/app/a/b.txt", old="one", new="two") == "/app/a/b.txt is changed"
        assert await call("shell", command="cd a; cat b.txt") == "two"
        assert await call("read_file", path="a/b.txt") == "two"
        assert "root" in await call("read_file", path="/etc/passwd")
        assert "has a relative path without '..', not '/etc/x'" in await call("write_file", path="/etc/x", content="")
        await env.close()


def toml(text: str) -> dict[str, str | None]:
    return {"task.toml": text}


def docker(text: str) -> dict[str, str | None]:
    return {"environment/Dockerfile": text}


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"tests/test.sh": None}, "task has no tests/test.sh, which a task of Harbor's format has"),
        ({"instruction.md": None}, "task has no instruction.md"),
        ({"instruction.md": " \n"}, "instruction.md is empty"),
        ({"instruction.md": b"\xff"}, "instruction.md cannot be read: 'utf-8' codec"),
        ({"environment/Dockerfile": None}, "task has no environment/Dockerfile"),
        ({"environment/docker-compose.yaml": "x"}, "docker-compose.yaml: tasks with that are not played here"),
        (toml("[verifier"), "task.toml: Expected ']'"),
        (toml("[verifier]\ntimeout_sec = -1"), "task.toml: verifier.timeout_sec: Input should be greater than 0"),
        (toml("verifier = 3"), "task.toml: verifier: Input should be"),
        (toml("[environment]\ngpus = 1"), "task.toml: tasks with environment.gpus are not played here"),
        (toml("[[steps]]\nname = 'a'"), "task.toml: tasks with steps are not played here"),
        (toml("[environment]\nos = 'windows'"), "environment.os other than linux"),
        (toml("[verifier]\nenvironment_mode = 'separate'"), "tasks with a separate verifier are"),
        (toml("[verifier.env]\nKEY = '${OPENAI_API_KEY}'"), "tasks with the variable KEY of the host are"),
        (toml("[environment]\nworkdir = '/etc'"), "its WORKDIR is a folder such as /app, not /etc"),
        (docker("FROM ubuntu\n"), "its WORKDIR is a folder such as /app, not /"),
        (docker("WORKDIR /app\n"), "Dockerfile has no FROM"),
        (docker("\n# a\n\nFROM ubuntu\nRUN apt-get \\\n  update\n"), "Dockerfile:5: RUN apt-get update needs"),
        (docker("FROM nvidia/cuda:12\n"), "Dockerfile:1: FROM nvidia/cuda:12 needs an image: give sandbox: {backend"),
        (docker("FROM ubuntu\nFROM debian\n"), "Dockerfile:2: FROM debian needs"),
        (docker("FROM ubuntu\nUSER root\n"), "Dockerfile:2: USER root needs an image"),
        (docker("FROM ubuntu\nWORKDIR /app\nCOPY no.txt ."), "Dockerfile:3: COPY no.txt . needs an image"),
        (docker("FROM ubuntu\nWORKDIR /app\nCOPY ../task.toml ."), "Dockerfile:3: COPY ../task.toml . needs"),
        (docker("FROM ubuntu\nWORKDIR /app\nCOPY --from=x Dockerfile ."), "Dockerfile:3: COPY --from=x"),
        (docker("FROM ubuntu\nWORKDIR /app\nCOPY . /usr/share\n"), "Dockerfile:3: COPY . /usr/share needs"),
        (docker("FROM ubuntu\nWORKDIR /app\nCOPY . /tests\n"), "Dockerfile:3: COPY . /tests needs"),
        (docker("FROM ubuntu\nWORKDIR $HERE\n"), "Dockerfile:2: $HERE: 'HERE' needs an image"),
        (docker("FROM ubuntu\nENV A='\n"), "Dockerfile:2: A=': No closing quotation"),
        (docker("FROM ubuntu\nWORKDIR\n"), "Dockerfile:2: WORKDIR needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_is_refused_in_one_line_with_the_file(tmp_path, files, complaint):
    folder = write_task(tmp_path / "task", HELLO | files)
    with pytest.raises(QuintainError) as caught:
        HarborEnv.tasks("train", path=str(folder))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_tasks_is_a_data_set_and_another_one_is_held_out(tmp_path):
    folder = write_tasks(tmp_path / "many")
    names = lambda split, **options: [t.id for t in HarborEnv.tasks(split, path=str(folder), **options)]  # noqa: E731
    assert names("train") == names("heldout") == ["binary", "half", "hello"]
    assert names("train", names=("hello",)) == ["hello"]
    assert names("heldout", heldout=str(folder / "half")) == ["half"]
    assert (
        HarborEnv.tasks("train", path=str(folder / "hello"))[0].prompt[0].text == "Write Hello, world! into hello.txt."
    )
    for path, complaint in (
        (tmp_path / "no", "no is no folder: give a task of Harbor's format"),
        (tmp_path, "has no task, a folder with task.toml: give a task"),
    ):
        with pytest.raises(QuintainError, match=complaint):
            HarborEnv.tasks("train", path=str(path))
    with pytest.raises(QuintainError, match="has no task 'helo': did you mean 'hello'"):
        names("train", names=("helo",))


@in_module
async def test_a_task_is_played_in_the_sandbox_of_namespaces_only(verifiers, tmp_path):
    with pytest.raises(QuintainError, match="folders are for backend namespaces, not for process"):
        await last(verifiers, write_task(tmp_path / "hello", HELLO), sandbox={"backend": "process", "unsafe": True})


def harbors_rewards(folder: Path) -> Callable[[Path], dict[str, float]]:
    """What Harbor itself reads in a folder of /logs/verifier, with the lines of its verifier that do so.

    Harbor needs Python 3.12, for f-strings of several lines; these become lines of their own.
    """
    wheel = ["--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-qq", *wheel, "harbor==0.26.0"], check=True)
    source = (folder / "harbor" / "verifier" / "verifier.py").read_text()
    read = source[source.index("    def _parse_reward_text") : source.index("    def _resolve_tests")]
    read = "class Verifier:\n" + re.sub(r"\{\s*\n\s*([^{}\n]+?)\s*\n\s*\}", r"{\1}", read)
    errors = source[source.index("class VerifierOutputParseError") : source.index("class Verifier(")]
    theirs: dict[str, Any] = {"json": json, "math": math}
    for part in (errors, read, (folder / "harbor" / "models" / "verifier" / "result.py").read_text()):
        exec(part, theirs)

    def rewards(told: Path) -> dict[str, float]:
        verifier = theirs["Verifier"]()
        paths = {"reward_json_path": told / "reward.json", "reward_text_path": told / "reward.txt"}
        verifier.trial_paths = SimpleNamespace(**paths)
        is_json = paths["reward_json_path"].exists()
        said = verifier._parse_reward_json() if is_json else verifier._parse_reward_text()
        return theirs["VerifierResult"](rewards=said).rewards

    return rewards


@pytest.mark.slow
async def test_harbor_itself_reads_the_same_rewards_and_fails_where_it_reads_none(tmp_path, monkeypatch):
    theirs, told = harbors_rewards(tmp_path / "harbor"), tmp_path / "told"

    def harbor_says(text: str, *, is_json: bool) -> dict[str, float] | None:
        shutil.rmtree(told, ignore_errors=True)
        told.mkdir()
        (told / ("reward.json" if is_json else "reward.txt")).write_text(text)
        try:
            return theirs(told)
        except Exception:
            return None

    def ours(text: str, *, is_json: bool) -> float | None:
        try:
            return reward_in(text, is_json=is_json)
        except (ValueError, OverflowError, RecursionError):
            return None

    values = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.none(), st.just([1]))
    written = st.one_of(values, st.dictionaries(st.sampled_from(["reward", "style"]), values)).map(json.dumps)

    @given(st.one_of(written, st.text(max_size=6), st.floats().map(str)), st.booleans())
    @settings(deadline=None)
    def agree(text: str, is_json: bool) -> None:
        said, reward = harbor_says(text, is_json=is_json), ours(text, is_json=is_json)
        if said is None:
            assert reward is None
        elif reward is None:  # what Harbor leaves open: which of several is meant
            assert ("reward" not in said and len(said) != 1) or any(abs(part) > 1e308 for part in said.values())
        else:
            assert reward == said.get("reward", next(iter(said.values())))

    agree()
    read: list[tuple[str, bool]] = []

    def reading(text: str, *, is_json: bool) -> float:
        read.append((text, is_json))
        return reward_in(text, is_json=is_json)

    monkeypatch.setattr("quintain.envs.builtin.harbor.reward_in", reading)
    folder = write_tasks(tmp_path / "many")
    async with LocalClient(HarborEnv, {"path": str(folder), **FEW}) as client:
        for task in client.tasks("train"):
            for actions, reward in ((HarborEnv.solution(task), 1.0), ([Action.text("Nothing.")], 0.0)):
                env = client.episode()
                await env.reset(task, seed=0)
                steps = [await env.step(action) for action in actions]
                await env.close()
                text, is_json = read.pop()
                said = harbor_says(text, is_json=is_json)
                assert (steps[-1].reward, said["reward"]) == (reward, reward), task.id
    assert not read


BUILT = HELLO | docker(
    f"FROM {IMAGE}\nENV SAID=hi\nRUN mkdir -m 700 /app && echo Hello > /app/word\nWORKDIR /app/deep\n"
)
BUILT["tests/test.sh"] = "#!/bin/bash\n" + REWARD.format(
    "cmp hello.txt /tests/hello.txt && [ $SAID ] && [ ! -e ../word ]"
)


@pytest.mark.slow
@pytest.mark.needs_docker
async def test_a_task_with_an_image_of_its_own_is_played_in_containers(tmp_path):
    folder = write_task(tmp_path / "built", BUILT)
    try:
        with engine() as url:
            sandbox = {"backend": "docker", "engine_url": url}

            async def paid(*commands: str) -> float:
                return (await last(Verifiers(), folder, *commands, sandbox=sandbox)).reward

            (task,) = HarborEnv.tasks("train", path=str(folder), sandbox=sandbox)
            solve = [
                json.loads(action.message.tool_calls[0].function.arguments)["command"]
                for action in HarborEnv.solution(task)[:-1]
            ]
            assert await paid(*solve, "read -r word < ../word; [ $word$PWD = Hello/app/deep ] && rm ../word") == 1.0
            assert await paid("rm ../word; ln -s /tests/hello.txt hello.txt; echo 1 > /logs/verifier/reward.txt") == 0.0
            write_task(folder, docker(f"FROM {IMAGE}\nRUN echo no >&2; exit 7\nWORKDIR /app\n"))
            with pytest.raises(
                QuintainError, match=r"environment/Dockerfile cannot be built: .* returned a non-zero code: 7"
            ):
                await paid()
    except NoEngine as why:
        pytest.skip(f"tasks are not played in docker: {why}")


def test_options_of_a_sandbox_that_harbor_chooses_itself_are_refused(tmp_path):
    with pytest.raises(QuintainError, match="its sandbox of docker has no option image"):
        HarborEnv.tasks("train", path=str(write_task(tmp_path, HELLO)), sandbox={"backend": "docker", "image": "x"})
