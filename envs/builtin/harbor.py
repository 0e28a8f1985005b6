"""Plays tasks in the format of Harbor and Terminal-Bench 2 in the sandbox.

What always holds: a task's tests run after the last turn, in a fresh sandbox, on what the episode has left in the
task's own folders: nothing that it has left elsewhere, none of its processes and none of its variables is there. The
reward is what the tests write; where they write none, or what is no number, or are not done in their time, that is a
failure and never a reward.
"""

from __future__ import annotations

import asyncio
import base64
import math
import posixpath
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from quintain.cores import cores
from quintain.envs.base import Action, Observation, Step, invalid
from quintain.envs.builtin.harbor_images import KEPT, built
from quintain.envs.builtin.harbor_tasks import OWN, HarborTask, archive, exports, read_task, task_folders
from quintain.envs.shell import COPY_BYTES, MEMORY_BYTES, ShellEnv, settled
from quintain.envs.tools import ToolError
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.messages import Message, user
from quintain.nearest import one_of
from quintain.strict_json import read_json
from quintain.task import Task, TaskSource
from quintain.verifiers.sandbox.docker import DockerSandbox
from quintain.verifiers.sandbox.interface import MEBI, Execution, Limits, Program, Sandbox, Session, Status

TESTS_S: Final = 600.0
"""How long tests may take unless the task says so."""
OURS_S: Final = 60.0
"""How long a command of ours may take, which lays files or reads them: no limit of a task's is for those."""
PART_CHARS: Final = 60_000
"""Of the solution's files, in one command."""
MADE: Final = (*OWN, "/logs/agent", "/logs/verifier")
_SOLVE: Final = "base64 -d /logs/solution | tar -xf - -C /solution; chmod +x /solution/solve.sh; /solution/solve.sh"
_TEST: Final = "chmod +x /tests/test.sh; /tests/test.sh >/logs/verifier/out 2>&1; tail -c 400 /logs/verifier/out"
_LAY: Final = 'mkdir -p "$@" && tar -xf - && find . -xtype l -delete'
"""A link that leads nowhere goes: it might lead to what is only there when the work is judged."""
_TELL: Final = (
    "cd logs/verifier && for name in reward.json reward.txt; do [ -e $name ] && echo $name && exec cat $name; done"
)


class HarborEnv(ShellEnv):
    """Tasks of Harbor's format (as Terminal-Bench 2 has them), in a shell; the reward is what their tests write."""

    splits = ("train", "heldout")
    system = "You work in a shell, with tools. Do what is asked, and then say that it is done."
    max_calls = 50
    _harbor: HarborTask
    _due: float
    _docker: DockerSandbox | None = None

    @classmethod
    def tasks(  # type: ignore[override]  # there are no tasks without a folder
        cls,
        split: str,
        *,
        path: str,
        names: tuple[str, ...] | None = None,
        heldout: str | None = None,
        sandbox: Mapping[str, Any] | None = None,
    ) -> TaskSource:
        """The task in the folder `path`, or the tasks in it, of these `names`. The split "heldout" has those in the
        folder `heldout`; without one it is the same as "train", as of a benchmark that nothing is trained on.

        Raises QuintainError, one line, for a task that cannot be played.
        """
        folders = task_folders(Path(heldout if heldout and split == "heldout" else path).resolve())
        known = [folder.name for folder in folders]
        for name in names or ():
            if name not in known:
                raise QuintainError(f"{path} has no task {name!r}{one_of(name, known)}")
        wanted = [folder for folder in folders if names is None or folder.name in names]
        tasks = [read_task(folder, has_image=_in_docker(sandbox or {})) for folder in wanted]
        return [Task(task.folder.name, (user(task.instruction),), str(task.folder)) for task in tasks]

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action] | None:
        """Bring the files of the task's solution, and run it."""
        harbor = read_task(Path(task.reference), has_image=True)
        if not (harbor.folder / "solution" / "solve.sh").is_file():
            return None
        packed = base64.b64encode(archive([(harbor.folder / "solution", ".")])).decode()
        parts = [packed[start : start + PART_CHARS] for start in range(0, len(packed), PART_CHARS)]
        commands = [f"printf %s {part} >> /logs/solution" for part in parts]
        commands.append("\n".join(["(", *exports(harbor.settings.solution.env), _SOLVE, ")"]))
        return [*(Action.call("shell", {"command": command}) for command in commands), Action.text("It is done.")]

    async def prepare(self, task: Task, *, seed: int) -> Observation:
        """Show what is to be done; the task's folders are as its Dockerfile says. Raises FailureError likewise."""
        harbor = await self._prepared(read_task(Path(task.reference), has_image=_in_docker(self._options)))
        asked = harbor.settings.environment.memory_mb
        self._limits = replace(self._limits, memory_bytes=asked * MEBI if asked else MEMORY_BYTES)
        self._harbor = harbor
        self._due = math.inf
        observation = await super().prepare(task, seed=seed)
        assert self._work is not None  # it has been made
        is_laid = await self._laid(self._work, archive(harbor.copies), harbor.workdir, *MADE)
        if is_laid and self._docker is not None:
            is_laid = (await self._ours(self._work, "cp", "-a", f"{KEPT}/.", ".")).status is Status.OK
        if not is_laid:
            raise invalid(f"the files of the task {task.id!r} do not fit into its folders", Stage.RESET)
        await self.shell(harbor.script("true", {}))
        self._due = time.monotonic() + (harbor.settings.agent.timeout_sec or math.inf)
        return observation

    async def step(self, action: Action) -> Step:
        """As for every shell; where the task's time is over, the episode is too, and is judged. An agent program that
        is not done by then has failed."""
        step = await super().step(action)
        if step.ended or self._harness is not None or time.monotonic() < self._due:
            return step
        return await self.finish(step.observation.messages, step.info, step.reward, truncated=True)

    async def verdict(self, history: Sequence[Message]) -> float:
        """What the task's tests write. Raises FailureError where they write no number."""
        left = await self._packed(*(f".{folder}/." for folder in self._harbor.folders))  # not a link in its place
        await self._leave()
        if left is None:
            return 0.0
        limits = replace(self._limits, workdir_bytes=COPY_BYTES, inodes=2 * self._limits.inodes)
        async with await self._sandbox(self._options).open(limits=limits) as session:
            if not await self._laid(session, left, self._harbor.workdir):
                return 0.0
            tests = archive([(self._harbor.folder / "tests", "tests")])
            if not await self._laid(session, tests, *MADE):
                raise invalid(f"the tests do not fit beside the work: {self._harbor.folder / 'tests'}", Stage.VERIFY)
            return await self._tested(session)

    async def _tested(self, session: Session) -> float:
        script = self._harbor.script(_TEST, self._harbor.settings.verifier.env)
        timeout_s = self._harbor.settings.verifier.timeout_sec or TESTS_S
        limits = replace(self._limits, wall_s=timeout_s, cpu_s=timeout_s * cores())
        done = settled(await session.run(Program.command("bash", "-c", script), limits=limits))
        if done.status is Status.TIMEOUT:
            raise FailureError.of(FailureKind.TIMEOUT, Stage.VERIFY, f"the tests: {done.reason}", retryable=False)
        told = await self._ours(session, "sh", "-c", _TELL)
        name, _, text = told.stdout.decode("utf-8", "replace").partition("\n")
        if not name:
            said = done.stdout.decode("utf-8", "replace") or done.reason
            raise invalid(f"the tests write no reward to /logs/verifier; they say: {said}", Stage.VERIFY)
        try:
            return reward_in(text, is_json=name == "reward.json")
        except (ValueError, OverflowError, RecursionError) as error:
            raise invalid(f"the tests write a {name} that is no reward: {error}", Stage.VERIFY) from None

    async def _laid(self, session: Session, packed: bytes, *folders: str) -> bool:
        """Whether the archive could be unpacked, where there are `folders`."""
        places = (f".{folder}" for folder in folders)
        return (await self._ours(session, "sh", "-c", _LAY, "sh", *places, stdin=packed)).status is Status.OK

    async def _ours(self, session: Session, *argv: str, stdin: bytes = b"") -> Execution:
        """What became of a command of ours. Raises FailureError where it is not done in its time."""
        limits = replace(self._limits, wall_s=OURS_S, cpu_s=OURS_S)
        done = settled(await session.run(Program.command(*argv), stdin=stdin, limits=limits))
        if done.status is Status.TIMEOUT:
            raise FailureError.of(FailureKind.TIMEOUT, Stage.SANDBOX, f"{argv[0]}: {done.reason}")
        return done

    async def close(self) -> None:
        """End the shell, and its container."""
        await super().close()
        await self._close_docker()

    async def _prepared(self, harbor: HarborTask) -> HarborTask:
        """The task, with a sandbox for it."""
        await self._leave()
        await self._close_docker()
        if _in_docker(self._options):
            url, runtime = self._options.get("engine_url"), self._options.get("runtime")
            harbor, image = await asyncio.to_thread(built, harbor, url)
            self._docker = DockerSandbox(image, slots=1, url=url, runtime=runtime, limits=self._limits)
        else:
            folders = {"folders": [*OWN, *harbor.folders]}
            self._options, self._shells = self._options | folders, self._shells | folders
        return harbor

    async def _close_docker(self) -> None:
        docker, self._docker = self._docker, None
        if docker is not None:
            await docker.close()

    def _sandbox(self, options: Mapping[str, Any]) -> Sandbox:
        return self._docker or super()._sandbox(options)

    def _bounds(self) -> Limits:
        left = self._left_s()
        if left <= 0:
            raise ToolError("raised", "the time of this task is over")
        return replace(self._limits, wall_s=min(self._limits.wall_s, left))

    def _left_s(self) -> float:
        return self._due - time.monotonic()

    def _place(self, path: str) -> str:
        place = posixpath.normpath(posixpath.join(self._harbor.workdir, path))
        is_ours = any(f"{place}/".startswith(f"{folder}/") for folder in (*OWN, *self._harbor.folders))
        return f".{place}" if is_ours else place


def _in_docker(sandbox: Mapping[str, Any]) -> bool:
    """Whether these options are of containers. Raises QuintainError for an option that those do not have."""
    if sandbox.get("backend") != "docker":
        return False
    if unknown := set(sandbox) - {"backend", "engine_url", "runtime"}:
        raise QuintainError(f"harbor builds its images: its sandbox of docker has no option {', '.join(unknown)}")
    return True


def reward_in(text: str, *, is_json: bool) -> float:
    """The reward that tests have written: a number, or in JSON an object whose `reward`, or only value, is one.

    As Harbor has it, true is 1, and a number alone is no reward in JSON. Raises ValueError, OverflowError or
    RecursionError for anything else.
    """
    parts = read_json(text) if is_json else {"reward": float(text)}
    if not isinstance(parts, dict):
        raise ValueError(f'{text.strip()[:80]!r} is no object, as {{"reward": 1}} is')
    if "reward" not in parts and len(parts) != 1:
        raise ValueError(f"it has {', '.join(parts) or 'nothing'}, and none is called reward")
    if not all(isinstance(part, (int, float)) and math.isfinite(part) for part in parts.values()):
        raise ValueError(f"{text.strip()[:80]!r} is no number, or not only numbers")
    return float(parts.get("reward", next(iter(parts.values()))))
