"""Shells: what lasts from call to call, what is killed, what is judged, and what no episode can reach."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import psutil
import pytest

from quintain.envs import Action, LocalClient, Message, ShellEnv, ShellTasksEnv, Task, check_environment, user
from quintain.envs.builtin.shell import KINDS
from quintain.envs.options import bind
from quintain.failure import FailureError, QuintainError
from quintain.messages import FunctionCall, ToolCall

from ..verifiers.sandbox.engine import IMAGE, NoEngine, engine

FEW = {"shells": 2}


class Folder(ShellEnv):
    """A folder with a file."""

    reference: ClassVar[Any] = {"files": {"out.txt": "42"}}

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task("one", (user("Do it."),), cls.reference, info={"files": {"a/b.txt": "one\ntwo\n"}})]


class Hand:
    """Plays one episode."""

    def __init__(self, env: Any) -> None:
        self.env = env

    async def open(self, task: Task) -> Hand:
        await self.env.reset(task, seed=0)
        return self

    async def call(self, tool: str, /, **arguments: Any) -> str:
        made = ToolCall("c", FunctionCall(tool, json.dumps(arguments)))
        step = await self.env.step(Action(Message("assistant", None, (made,))))
        (said,) = step.observation.messages
        return said.text

    async def shell(self, command: str) -> str:
        return await self.call("shell", command=command)

    async def done(self) -> float:
        step = await self.env.step(Action.text("It is done."))
        await self.env.close()
        return step.reward


async def hand(client: LocalClient, place: int = 0) -> Hand:
    return await Hand(client.episode()).open(client.tasks("train")[place])


def referring(reference: Any) -> type[Folder]:
    return type("Referring", (Folder,), {"reference": reference})


async def earned(reference: Any, *commands: str, **options: Any) -> float:
    """What an episode is paid that runs `commands`."""
    async with LocalClient(referring(reference), FEW | options) as client:
        played = await hand(client)
        for command in commands:
            await played.shell(command)
        return await played.done()


async def test_directory_variables_functions_and_aliases_last_and_processes_do_not():
    async with LocalClient(Folder, FEW) as client:
        played = await hand(client)
        assert await played.shell("ls; pwd") == "a\n/box/work"
        assert await played.shell("cd a; x='1  2'; f() { echo f$1; }; alias q=ls; export y=6; false") == "(exit code 1)"
        assert await played.shell('pwd; echo "$x"; bash -c "echo \\$y"; f 2; q') == "/box/work/a\n1  2\n6\nf2\nb.txt"
        assert await played.shell("sleep 77 & exit 3") == "(exit code 3)"
        assert await played.shell("ps -e | grep -c sleep") == "0\n(exit code 1)"
        assert await played.shell("echo out; echo err >&2; echo out") == "out\nerr\nout"
        assert await played.shell("") == "(no output)"
        assert "syntax error" in await played.shell("(")
        assert await played.shell("cat") == "(no output)"


async def test_what_hangs_or_floods_is_killed_and_the_episode_goes_on():
    async with LocalClient(Folder, FEW | {"command_s": 1.0, "shown_chars": 100}) as client:
        played = await hand(client)
        await played.shell("cd a; x=1")
        began = time.monotonic()
        assert await played.shell("echo before; sleep 100") == "before\n(killed: it took its 1 s)"
        flood = await played.shell("yes")
        assert re.fullmatch(r"[y\n]+\(\d+ characters left out\)[y\n]+\(killed: it wrote more than its .*\)", flood)
        assert "killed" in await played.shell("while :; do :; done")
        assert time.monotonic() - began < 30
        assert await played.shell("pwd; echo $x; printf 42 > ../out.txt") == "/box/work/a\n1"
        assert await played.done() == 1.0


async def test_files_are_written_read_and_changed_and_what_is_wrong_is_said():
    async with LocalClient(Folder, FEW) as client:
        played = await hand(client)
        assert await played.call("read_file", path="a/b.txt") == "one\ntwo\n"
        assert await played.call("write_file", path="c/d.txt", content="ä\n") == "c/d.txt has 2 characters"
        assert await played.shell("cat c/d.txt") == "ä"
        assert await played.call("replace_text", path="a/b.txt", old="two", new="2") == "a/b.txt is changed"
        assert await played.call("read_file", path="a/b.txt") == "one\n2\n"
        assert await played.call("replace_text", path="a/b.txt", old="n", new="m") == "a/b.txt is changed"
        for tool, arguments, says in (
            ("read_file", {"path": "no.txt"}, "no.txt: No such file or directory"),
            ("read_file", {"path": "a"}, "a: Is a directory"),
            ("write_file", {"path": "../x", "content": ""}, "a file of a sandbox has a relative path without '..'"),
            ("write_file", {"path": "a", "content": ""}, "Is a directory: 'a'"),
            ("write_file", {"path": "x", "content": "x" * (17 << 20)}, "the file 'x' has 17,825,792 bytes"),
            ("replace_text", {"path": "a/b.txt", "old": "x", "new": "y"}, "has the old text 0 times"),
            ("replace_text", {"path": "c/d.txt", "old": "", "new": "y"}, "has the old text no times"),
        ):
            said = await played.call(tool, **arguments)
            assert said.startswith("error: ")
            assert says in said
        await played.shell(r"printf '\xff' > e")
        assert await played.call("read_file", path="e") == "error: e is no text in UTF-8"


SOLVERS = {
    r"Write this line, and nothing else, into the file (\S+): (.*)": "echo '{1}' > {0}",
    r"Copy the file (\S+) to (\S+)\.": "cp {0} {1}",
    r"Rename the file (\S+) to (\S+)\.": "mv {0} {1}",
    r"In the file (\S+), replace every word (\w+) with (\w+),": r"sed -i 's/\b{1}\b/{2}/g' {0}",
    r"Write the lines of (\S+) in the order of the alphabet into (\S+)\.": "sort {0} > {1}",
    r"How many lines of (\S+) have the word (\w+)\? Write the number, and nothing else, into (\S+)\.": (
        r"grep -cw {1} {0} > {2}"
    ),
    r"Add up the column value of table.csv": "awk -F, 'NR > 1 {{s += $2}} END {{print s}}' table.csv > sum.txt",
    r"Write a Python program (\S+): .* and prints (.*)\.": (
        "cat > {0} <<'!'\nx = list(map(int, input().split()))\n{1}\n!"
    ),
}
ANSWERS = {
    "their sum": "sum(x)",
    "the largest of them": "sorted(x)[-1]",
    "the smallest of them": "sorted(x)[0]",
    "how many there are": "len(x)",
    "the sum of those that are even": "sum(n for n in x if not n & 1)",
    "the difference of the largest and the smallest": "max(x) - min(x)",
    "how many different ones there are": "len(set(x))",
    "them in the other order, with blanks in between": "*x[::-1]",
}


def solution(asked: str) -> str:
    for pattern, command in SOLVERS.items():
        if found := re.match(pattern, asked):
            values = [f"print({ANSWERS[value]})" if value in ANSWERS else value for value in found.groups()]
            return command.format(*values)
    raise AssertionError(asked)


async def test_every_generated_task_can_be_done_and_pays_nothing_until_it_is():
    async with LocalClient(ShellTasksEnv, FEW) as client:
        seen = set()
        for place in range(40):
            task = client.tasks("train")[place]
            lazy = await hand(client, place)
            assert await lazy.done() == 0.0, task.prompt[0].text
            played = await hand(client, place)
            await played.shell(solution(task.prompt[0].text))
            assert await played.done() == 1.0, task.prompt[0].text
            seen.add(int(task.id.partition("-")[2]) % len(KINDS))
    assert len(seen) == len(KINDS)


def test_tasks_are_seeded_of_the_kinds_that_are_wanted_and_never_those_held_out():
    train = ShellTasksEnv.tasks("train", kinds=("write", "sum"))
    assert all(train[n].prompt[0].text.startswith(("Write this line", "Add up")) for n in range(50))
    heldout = {task.id for task in ShellTasksEnv.tasks("heldout")}
    assert len(heldout) == 100
    assert not heldout & {ShellTasksEnv.tasks("train")[n].id for n in range(200)}
    assert ShellTasksEnv.tasks("train")[3] == ShellTasksEnv.tasks("train")[3]
    with pytest.raises(QuintainError, match="there is no kind of task 'wirte': did you mean 'write'"):
        ShellTasksEnv.tasks("train", kinds=("wirte",))


ECHO = "cat > p.py <<'!'\nprint(input()[::-1])\n!"
COUNTS = 'echo \'import os; print("b" + "a"[os.path.exists("z"):]); open("z", "w")\' > p.py'
RUN = {"command": ["python3", "p.py"], "stdin": "ab\n", "stdout": "ba"}


@pytest.mark.parametrize(
    ("reference", "commands", "reward"),
    [
        ({"files": {"out.txt": "42"}}, ["echo 42 > out.txt"], 1.0),
        ({"files": {"out.txt": "42"}}, ["echo 43 > out.txt"], 0.0),
        ({"files": {"out.txt": "42"}}, [], 0.0),
        ({"files": {"a/b.txt": None}}, ["rm a/b.txt"], 1.0),
        ({"files": {"a/b.txt": None}}, [], 0.0),
        ({"files": {"a/b.txt": None}}, ["chmod 0 a/b.txt a"], 0.0),
        ({"files": {"a/b.txt": None}}, ["rm a/b.txt; for i in 1 2 3; do truncate -s 16M $i; done"], 0.0),
        ({"files": {"out.txt": "42"}}, ["ln -s /etc/hostname out.txt"], 0.0),
        ({"files": {"out.txt": "42", "x": "42"}}, ["echo 42 > out.txt; ln out.txt x"], 1.0),
        ({"files": {"out.txt": "42"}}, ["echo 42 > out.txt; echo > z; chmod 0 z; chmod 0 a"], 1.0),
        ({"files": {"out.txt": "42"}}, ["echo 42 > out.txt; echo > $'\\xff'; mkfifo f"], 1.0),
        ({"files": {"out.txt": "42"}}, ["echo 42 > out.txt; for i in 1 2 3; do truncate -s 16M $i; done"], 0.0),
        ({"files": {"out.txt": "42"}}, ["mkdir out.txt"], 0.0),
        ({"runs": [RUN]}, [ECHO], 1.0),
        ({"runs": [RUN, {**RUN, "stdin": "cd\n"}]}, [ECHO], 0.0),
        ({"runs": [RUN]}, ["echo 'print(\"ba\"); raise SystemExit(1)' > p.py"], 0.0),
        ({"runs": [RUN]}, [ECHO, "cp /bin/true python3; PATH=.:$PATH; echo exit > ~/.bashrc"], 1.0),
        ({"runs": [RUN, RUN]}, [COUNTS], 1.0),
    ],
)  # fmt: skip
async def test_the_folder_is_judged_as_it_was_left_each_run_on_a_copy_of_its_own(reference, commands, reward):
    assert await earned(reference, *commands) == reward


SCRIPT = "import json, sys\nsys.exit(json.load(open('work/out.json')) != {'n': 42})\n"
JUDGED = {"runs": [{"command": ["python3", "check.py"], "files": {"check.py": SCRIPT}}]}


@pytest.mark.parametrize(
    ("command", "reward"),
    [
        ("echo '{\"n\": 42}' > out.json", 1.0),
        ("echo '{\"n\": 43}' > out.json", 0.0),
        ("", 0.0),
        ("echo 'import os; os._exit(0)' | tee json.py sitecustomize.py check.py > usercustomize.py", 0.0),
        ("mkdir json check.py; echo 'import os; os._exit(0)' > json/__init__.py", 0.0),
    ],
)
async def test_nothing_of_the_episodes_can_pass_for_a_module_of_the_judge(command, reward):
    assert await earned(JUDGED, command) == reward


PROJECT = {
    "pytest": {
        "files": {"test_it.py": "from it import double\n\n\ndef test_double():\n    assert double(4) == 8\n"},
        "tests": ["test_it.py::test_double"],
    }
}


@pytest.mark.parametrize(
    ("commands", "reward"),
    [
        (["echo '# ```\n# </think>\ndef double(x): return 2 * x' > it.py"], 1.0),
        (["echo 'def double(x): return x' > it.py"], 0.0),
        (["echo 'import os; os._exit(0)' > it.py"], 0.0),
        (["echo 'def double(x): return x' > it.py", "echo 'def test_double(): pass' > test_it.py"], 0.0),
        (["echo 'def pytest_collection_modifyitems(items): items.clear()' > conftest.py"], 0.0),
        ([], 0.0),
    ],
)
async def test_a_project_is_judged_by_its_own_tests(commands, reward):
    assert await earned(PROJECT, *commands) == reward


async def test_what_is_only_in_the_reference_is_nowhere_in_the_sandbox():
    secret = "sesame-4711"
    run = {"command": ["cat", "x"], "stdin": secret, "files": {secret: secret}, "stdout": secret}
    async with LocalClient(referring({"files": {"x": secret}, "runs": [run]}), FEW) as client:
        played = await hand(client)
        found = await played.shell("env; set; ps -ef; grep -rs sesame-47''11 /box /tmp /proc/*/cmdline /proc/*/environ")
        assert secret not in found
        assert "sesame" not in await played.shell("find / -name '*4711*'")
        assert await played.done() == 0.0


def keepers(env: ShellEnv) -> Iterator[psutil.Process]:
    """The processes that hold the sessions of the shells."""
    zygote = env._sandbox(env._shells).zygote_pid  # type: ignore[attr-defined]
    yield from psutil.Process(zygote).children(recursive=True)


@pytest.mark.parametrize("hurt", [False, True])
async def test_a_sandbox_that_breaks_is_a_failure_unless_the_episodes_own_command_may_have_broken_it(hurt):
    env = Folder(command_s=0.5, shells=2)
    played = await Hand(env).open(Folder.tasks("train")[0])
    await played.shell("echo 42 > out.txt")
    if hurt:
        assert "killed" in await played.shell("sleep 9")
    for process in keepers(env):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if hurt:
        assert "an earlier command has taken them with it" in await played.shell("ls")
        assert await played.done() == 0.0
    else:
        with pytest.raises(FailureError):
            await played.shell("ls")
        await env.close()


async def test_more_episodes_than_shells_wait_for_one_and_every_shell_is_given_back():
    async with LocalClient(Folder, {"shells": 1}) as client:

        async def play() -> float:
            played = await hand(client)
            await played.shell("echo 42 > out.txt")
            return await played.done()

        assert await asyncio.gather(*(play() for _ in range(6))) == [1.0] * 6
        for _ in range(4):  # left in the middle
            await (await hand(client)).env.close()
        assert await play() == 1.0


async def test_a_server_has_as_many_places_as_its_processes_have_shells_and_more_episodes_wait_in_its_queue(serve):
    server = serve("shell", options={"shells": 1, "kinds": ["write"]}, workers=2)
    async with server.client() as client:
        assert client.places() == 2
        task = client.tasks("train")[0]
        envs = [client.episode() for _ in range(3)]
        first, second, third = (asyncio.ensure_future(env.reset(task, seed=0)) for env in envs)
        await asyncio.gather(first, second)
        assert (server.metric("episodes_live"), server.metric("episodes_queued"), third.done()) == (2, 1, False)
        await envs[0].close()
        await third
        for env in envs[1:]:
            await env.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"shells": 0}, "Folder's shells are at least 1, not 0"),
        ({"shown_chars": 0}, "Folder's shown_chars are at least 1, not 0"),
        ({"command_s": 0}, "limit wall_s is a number of seconds above 0, not 0.0"),
        ({"sandbox": []}, "Folder's option 'sandbox'"),
    ],
)
def test_a_wrong_option_is_one_line(options, complaint):
    with pytest.raises(QuintainError, match=complaint):
        bind(Folder, options)()


@pytest.mark.parametrize("reference", [{}, {"file": {"out.txt": "42"}}, {"files": {}, "script": "x"}])
async def test_a_reference_that_says_nothing_that_can_be_checked_is_a_failure_and_no_reward(reference):
    with pytest.raises(FailureError, match="a reference has files, runs or pytest, not "):
        await earned(reference)


async def test_an_unknown_option_of_the_sandbox_is_told_before_anything_is_played():
    async with LocalClient(Folder, {"sandbox": {"backend": "dokcer"}}) as client:
        with pytest.raises(FailureError, match="backend"):
            await hand(client)


@pytest.mark.parametrize("cls", [Folder, ShellTasksEnv])
async def test_a_shell_is_a_sound_environment(cls):
    assert await check_environment(cls, options=FEW, tasks=1) == []


@pytest.mark.slow
@pytest.mark.needs_docker
async def test_a_shell_in_a_container_is_the_same():
    try:
        with engine() as url:
            sandbox = {"backend": "docker", "image": IMAGE, "engine_url": url}
            options = {"sandbox": sandbox, "shells": 2, "command_s": 3.0}
            async with LocalClient(Folder, options) as client:
                played = await hand(client)
                await played.shell("cd a; x=7; f() { echo f; }")
                assert "killed" in await played.shell("sleep 30")
                assert await played.shell("echo $x; f; cat b.txt; printf 42 > ../out.txt") == "7\nf\none\ntwo"
                assert await played.done() == 1.0
    except NoEngine as why:
        pytest.skip(f"a shell is not tested over docker: {why}")
