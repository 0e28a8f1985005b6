"""An agent program that plays an episode: it runs in the episode's sandbox, and asks the policy over HTTP.

What always holds:
- an episode of a program's is one seat, PROGRAM, whose observations are a `ProgramCall` in JSON and whose actions a
  `ProgramAnswer`: whoever samples reads the call's own API, so this knows nothing of any;
- the program reaches the policy of its episode and nothing else: no network, no other page, no reward. A call that it
  forges is a call;
- a program that crashes, is out of its time or its memory, or never asks the policy is a failure, never a reward.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from types import MappingProxyType
from typing import Any, ClassVar, Final

from quintain.cores import cores
from quintain.envs.base import Action, Observation, invalid
from quintain.envs.relay import LENGTH
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.frames import framed
from quintain.messages import user
from quintain.nearest import one_of
from quintain.verifiers.sandbox.interface import MEBI, Limits, Program, Running, Session, Status

PROGRAM: Final = "program"
"""The seat of an agent program's calls."""
MODEL: Final = "policy"
CALL_BYTES: Final = 16 * MEBI
RELAY: Final = ".quintain/relay.py"
"""A folder of its own: no module of the task's can be in its way. It is gone when the program begins."""
TOLD_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class ProgramCall:
    """What a program asks: the page, as "/v1/chat/completions", and the body."""

    path: str
    body: str


@dataclass(frozen=True, slots=True)
class ProgramAnswer:
    """What it is answered: the status of HTTP, the content type, and the body."""

    status: int
    kind: str
    body: str


@dataclass(frozen=True, slots=True)
class Preset:
    """A program that many use: its command line, and the variables that it needs."""

    command: str
    env: Mapping[str, str]


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "mini-swe-agent": Preset(
            "mini -t {task} -y --exit-immediately -m openai/{model} -l 0 -o /dev/null",
            {
                "MSWEA_CONFIGURED": "true",
                "MSWEA_COST_TRACKING": "ignore_errors",
                "MSWEA_GLOBAL_CONFIG_DIR": "/tmp/mini-swe-agent",
                "MSWEA_SILENT_STARTUP": "1",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
        ),
        "claude_code": Preset(
            "claude -p --model {model} --dangerously-skip-permissions --no-session-persistence"
            " --tools Agent,Bash,Edit,Glob,Grep,Read,Write -- {task}",
            {
                "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CONFIG_DIR": "/tmp/claude",
                "DISABLE_AUTOUPDATER": "1",
                "ENABLE_TOOL_SEARCH": "false",
                "IS_SANDBOX": "1",
            },
        ),
        "codex": Preset(
            "bash -c 'exec codex exec --dangerously-bypass-approvals-and-sandbox --skip-git-repo-check --ephemeral"
            " --disable multi_agent --disable view_image -c web_search=disabled"
            " -c model_provider=quintain -c model_providers.quintain.name=quintain"
            " -c model_providers.quintain.base_url=$OPENAI_BASE_URL -c model_providers.quintain.env_key=OPENAI_API_KEY"
            """ -m {model} -- "$1"' codex {task}""",
            {"CODEX_HOME": "/tmp"},
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Harness:
    """The option `harness`: a `command` line (no shell reads it) or a `preset`, and the variables `env` beside its own.

    `{task}` and `{model}` stand for the task's text, as one argument, and the policy's name. OPENAI_BASE_URL,
    OPENAI_API_KEY and Anthropic's likes are set. `timeout_s` bounds the whole episode of the program, `memory_mb` and
    `processes` it and all that it starts. Raises QuintainError for what makes no sense.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    command: str | None = None
    preset: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 1800.0
    memory_mb: int = 1024
    processes: int = 256

    def __post_init__(self) -> None:
        if (self.command is None) == (self.preset is None):
            raise QuintainError("a harness has exactly one of command and preset")
        if self.preset is not None and self.preset not in PRESETS:
            raise QuintainError(f"harness: there is no preset {self.preset!r}{one_of(self.preset, list(PRESETS))}")
        if not self._words():
            raise QuintainError("harness: the command says nothing: give a command line")
        self.limits(Limits())

    def argv(self, task: str) -> list[str]:
        """The command line for a task's text."""
        return [word.replace("{model}", MODEL).replace("{task}", task) for word in self._words()]

    def variables(self) -> dict[str, str]:
        """What the program finds in its environment, beside the addresses."""
        keys = {"OPENAI_API_KEY": MODEL, "ANTHROPIC_API_KEY": MODEL}  # its calls come from its own sandbox
        return keys | dict(PRESETS[self.preset].env if self.preset else {}) | dict(self.env)

    def limits(self, base: Limits, left_s: float = math.inf) -> Limits:
        """What the program may use, where a command of the policy's may use `base`."""
        wall_s, memory = min(self.timeout_s, left_s), max(self.memory_mb * MEBI, base.memory_bytes)
        return replace(base, wall_s=wall_s, cpu_s=wall_s * cores(), memory_bytes=memory, processes=self.processes)

    def _words(self) -> list[str]:
        try:
            return shlex.split(PRESETS[self.preset].command if self.preset else self.command or "")
        except ValueError as error:
            raise QuintainError(f"harness: the command {self.command!r} cannot be read: {error}") from None


class AgentProgram:
    """A program that runs in a session. Closing the session ends it."""

    def __init__(self, running: Running) -> None:
        self._running = running

    @classmethod
    async def start(cls, session: Session, harness: Harness, task: str, *, limits: Limits, state: str) -> AgentProgram:
        """Start it in the session's folder; where a shell has left a file `state`, in its state.

        Raises FailureError where the sandbox breaks.
        """
        wanted = {"command": harness.argv(task), "env": harness.variables(), "state": state}
        relay = resources.files("quintain.envs").joinpath("relay.py").read_bytes()
        program = replace(Program.python(relay, json.dumps(wanted), name=RELAY), has_loopback=True)
        return cls(await session.start(program, limits=limits))

    async def call(self) -> Observation | None:
        """What it asks next, None where it has ended well. Raises FailureError where it has ended otherwise."""
        from quintain.codec import from_json

        try:
            (size,) = LENGTH.unpack(await self._running.stdout.readexactly(LENGTH.size))
            if size > CALL_BYTES:
                raise self._broken(f"it makes a call of {size:,} bytes: at most {CALL_BYTES:,}")
            text = (await self._running.stdout.readexactly(size)).decode()
            from_json(text, ProgramCall)
        except asyncio.IncompleteReadError:
            await self._ended()
            return None
        except (ValueError, QuintainError):
            raise self._broken("what it says is no call") from None
        return Observation((user(text),), agent=PROGRAM)

    async def answer(self, action: Action) -> None:
        """Give it the answer to its call. Raises FailureError for an action that is none."""
        data = framed_answer(action)
        with contextlib.suppress(ConnectionError):  # it has ended meanwhile: the next call says how
            self._running.stdin.write(data)
            await self._running.stdin.drain()

    async def _ended(self) -> None:
        done = await self._running.wait()
        if done.failure is not None:
            raise FailureError(done.failure)
        if done.status is not Status.OK:
            said = done.stderr.decode("utf-8", "replace").strip()[-TOLD_CHARS:]
            kind = FailureKind.TIMEOUT if done.status is Status.TIMEOUT else FailureKind.CRASHED
            raise self._broken(f"{done.reason}; it says: {said or 'nothing'}", kind)

    def _broken(self, why: str, kind: FailureKind = FailureKind.INVALID) -> FailureError:
        return FailureError.of(kind, Stage.STEP, f"the agent program: {why}", retryable=False)


def framed_answer(action: Action) -> bytes:
    """The `ProgramAnswer` that `action` is, as it is sent. Raises FailureError for an action that is none."""
    from quintain.codec import from_json

    try:
        from_json(action.content, ProgramAnswer)
    except QuintainError:
        message = "an agent program plays this episode: only a rollout server can answer it, in its own API"
        raise invalid(message) from None
    return framed(action.content.encode())
