"""Environments of Prime Intellect's package `verifiers` (0.4), which are packages in a Python environment of their own.

    VerifiersEnvironment(id="reverse-text", python=".venvs/verifiers/bin/python")

What always holds: an episode is a process of the package's own, whose calls of the policy are recorded as an agent
program's are (`harness`), and ends with the environment; its rewards are the package's, and whatever breaks there is a
failure, never a reward. What the processes of one machine ask for with the same options is loaded once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from quintain.codec import to_json
from quintain.envs.base import Action, Environment, Observation, Step
from quintain.envs.harness import PROGRAM, ProgramCall, framed_answer
from quintain.envs.relay import LENGTH
from quintain.failure import FailureError, FailureKind, QuintainError, Stage, one_line
from quintain.frames import framed
from quintain.messages import user
from quintain.task import Task, TaskSource

LOAD_S: Final = 300.0
SAID_CHARS: Final = 300


class VerifiersEnvironment(Environment):
    """A taskset of the package `verifiers`, with its environment where it has one of a single agent.

    `id` is the package's name, `python` the interpreter that has it, and `config` what the package calls the
    environment's configuration (`{"taskset": {...}}`). Agents chat with the tasks' tools in the process of the episode,
    unless the configuration gives them a harness and a runtime. Of the first `most` tasks the last `heldout` are held
    out.
    """

    splits = ("train", "heldout")

    def __init__(self, *, id: str, python: str, config: Mapping[str, Any] | None = None, most: int = 1000) -> None:
        self._place = (id, python, dict(config or {}), most)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    def tasks(  # type: ignore[override]  # there is no package that goes without saying
        cls,
        split: str,
        *,
        id: str,
        python: str,
        config: Mapping[str, Any] | None = None,
        most: int = 1000,
        heldout: int = 100,
    ) -> TaskSource:
        """The tasks of `split`. Raises QuintainError, one line, where the package cannot be loaded."""
        with host_of(id, python, dict(config or {}), most) as asking:
            asking.sendall(framed(b"{}"))
            with asking.makefile("rb") as file:
                told = json.loads(file.read(*LENGTH.unpack(file.read(LENGTH.size))))["tasks"]
        if not 0 <= heldout < len(told):
            raise QuintainError(
                f"VerifiersEnvironment's heldout is less than the {len(told)} tasks of {id!r}: {heldout}"
            )
        made = [
            Task(f"{id}-{n}", (user(each["prompt"]),), info={"task": n, "name": each["name"]})
            for n, each in enumerate(told)
        ]
        return made[len(made) - heldout :] if split == "heldout" else made[: len(made) - heldout]

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Begin the episode: what it asks the policy first. Raises FailureError."""
        await self.close()
        try:
            connection = await asyncio.to_thread(host_of, *self._place)
            self._reader, self._writer = await asyncio.open_unix_connection(sock=connection)
        except (OSError, QuintainError) as error:
            raise _broken(str(error), Stage.RESET) from None
        self._writer.write(framed(json.dumps({"task": task.info["task"]}).encode()))
        return (await self._next(Stage.RESET)).observation

    async def step(self, action: Action) -> Step:
        """Give the episode the answer to its call. Raises FailureError."""
        if self._writer is None:
            raise _broken("a step before the first reset: reset first", Stage.STEP)
        self._writer.write(framed_answer(action))
        return await self._next(Stage.STEP)

    async def close(self) -> None:
        """End the episode's process."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _next(self, stage: Stage) -> Step:
        """What the episode asks next, or what it is worth."""
        assert self._reader is not None
        try:
            (size,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            frame = json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise _broken("its process has ended", stage) from None
        if "call" in frame:
            return Step(Observation((user(to_json(ProgramCall(**frame["call"]))),), agent=PROGRAM), 0.0, False)
        if "failure" in frame["end"] or stage is Stage.RESET:
            raise _broken(one_line(frame["end"].get("failure", "it ended before it asked the policy anything")), stage)
        rewards: dict[str, float] = frame["end"]["rewards"]
        return Step(Observation(), sum(rewards.values()), True, info={"rewards": rewards})


def host_of(id: str, python: str, config: Mapping[str, Any], most: int) -> socket.socket:
    """A connection to the process that plays `id`: it is started where there is none, and ends with whoever started it.

    Raises QuintainError, one line, where it cannot be.
    """
    asked = json.dumps({"id": id, "config": config, "most": most}, sort_keys=True)
    folder = Path(tempfile.gettempdir()) / f"quintain-verifiers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise QuintainError(f"{folder} belongs to somebody else: set TMPDIR to a folder of your own")
    key = hashlib.blake2b(f"{python}\0{asked}\0{os.environ.get('PYTHONPATH')}".encode(), digest_size=12).hexdigest()
    place = folder / key
    with open(folder / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return _connected(place)
        place.unlink(missing_ok=True)
        program = resources.files("quintain.envs").joinpath("prime_verifiers_host.py")
        if (wrong := _wrong_with([python, str(program), str(place), asked])) is not None:
            raise QuintainError(f"the environment {id!r} of verifiers cannot be loaded with {python}: {wrong}")
        return _connected(place)


def _connected(place: Path) -> socket.socket:
    asking = socket.socket(socket.AF_UNIX)
    try:
        asking.connect(str(place))
    except OSError:
        asking.close()
        raise
    return asking


def _wrong_with(command: list[str]) -> str | None:
    """Run what leaves a process behind that ends with this one; why it cannot, None where it can."""
    theirs, ours = os.pipe()  # ours is never closed but by the end of this process
    try:
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=LOAD_S, check=False)
        wrong = done.stderr.strip().rpartition("\n")[2][-SAID_CHARS:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    os.close(theirs)
    if wrong is not None:
        os.close(ours)
    return wrong


def _broken(why: str, stage: Stage) -> FailureError:
    return FailureError.of(FailureKind.CRASHED, stage, f"the environment of verifiers: {why}")
