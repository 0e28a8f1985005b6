# What no environment should do is what is tested here:
# ruff: noqa: ASYNC110, ASYNC220, ASYNC230, ASYNC240, ASYNC251
"""Environments for the tests: a sound one of several turns, and one that misbehaves on request."""

from __future__ import annotations

import asyncio
import copy
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from quintain.cores import cores
from quintain.envs import (
    Action,
    EndlessTasks,
    Environment,
    McpTools,
    Message,
    Observation,
    SingleTurnEnv,
    Step,
    Task,
    TaskSource,
    ToolEnv,
    Verdict,
    tool,
    user,
)
from quintain.failure import QuintainError
from quintain.verdict import Outcome

REFERENCE = "the-hidden-reference-7391"


class Guess(Environment):
    """Guess a number between 1 and 9; three turns at most."""

    splits = ("train", "heldout")

    def __init__(self, *, turns: int = 3) -> None:
        self._turns = turns

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self._target, self._left, self._rng = task.reference, self._turns, random.Random(seed)
        return Observation((*task.prompt, user(f"Hint {self._rng.randint(0, 99)}.")), info={"turns": self._left})

    async def step(self, action: Action) -> Step:
        self._left -= 1
        if action.content == str(self._target):
            return Step(Observation(), 1, True, info={"rewards": {"found": 1, "late": 0.0}})
        said = Observation((user(f"No. Hint {self._rng.randint(0, 99)}."),))
        return Step(said, -0.125, False, truncated=self._left == 0, info={"left": self._left})

    @classmethod
    def tasks(cls, split: str, *, first: int = 1) -> TaskSource:
        def make(index: int) -> Task:
            return Task(f"{split}-{index}", (user("Guess my number."),), (index + first) % 9 + 1)

        return EndlessTasks(make) if split == "train" else [make(i) for i in range(7)]


class Drawing(Guess):
    """Draws what nobody can draw again, so a fork of it is a copy; `fork` says how one is made."""

    def __init__(self, *, fork: str = "copy") -> None:
        super().__init__()
        self._fork = fork

    async def step(self, action: Action) -> Step:
        return replace(await super().step(action), info={"drawn": self._chance.random()})

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self._chance = random.Random(os.urandom(8))
        return await super().reset(task, seed=seed)

    async def fork(self) -> Environment | None:
        if self._fork == "raise":
            raise ValueError("no copies today")
        return {"copy": copy.deepcopy(self), "itself": self}[self._fork]


class Probe(Environment):
    """Does what it is told, most of which no environment should."""

    splits = ("train",)

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self._task = task
        self._turn = 0
        if task.id == "raise":
            raise ValueError(f"expected {task.reference}")
        if task.id == "hang":
            await asyncio.sleep(3600)
        if task.id == "block":
            while True:
                pass
        if task.id == "exit":
            os._exit(3)
        if task.id == "quit":
            sys.exit("bye")
        return Observation(task.prompt, info={"pid": os.getpid(), "seed": seed})

    async def step(self, action: Action) -> Step:
        self._turn += 1
        word, _, rest = action.content.partition(" ")
        if word == "hang":
            if rest:
                Path(rest).touch()  # "I hang now"
            await asyncio.sleep(3600)
        elif word == "deaf":
            await deaf()
        elif word == "block":
            while True:
                pass
        elif word == "sleep":
            time.sleep(float(rest))
        elif word == "exit":
            os._exit(3)
        elif word == "quit":
            sys.exit("bye")
        elif word == "raise":
            raise ValueError(f"expected {self._task.reference}")
        elif word == "complain":
            raise ValueError(f"cannot {rest}")
        elif word == "nothing":
            return None  # type: ignore[return-value]
        elif word == "unsendable":
            return self._said("x", info={"x": object()})
        elif word == "surrogate":
            return self._said("\ud800")
        elif word == "malformed":
            return Step(Observation((Message("user", 5),)), 0.0, False)  # type: ignore[arg-type]
        elif word == "reward":
            return self._said("x", reward=float(rest))
        elif word == "end":
            return self._said("bye", reward=1.0, ended=True)
        elif word == "random":
            return self._said(str(random.random()))
        elif word == "cores":
            return self._said(str(cores()))
        elif word == "print":
            print(rest, flush=True)
        elif word == "spawn":
            child = subprocess.Popen(["sleep", "1000"])
            return self._said(str(child.pid))
        elif word == "wait":  # for a file, without blocking
            gate, *begun = rest.split(" ")
            for path in begun:
                Path(path).touch()
            while not Path(gate).exists():
                await asyncio.sleep(0.01)
        elif word == "count":  # how often was this run? one byte a time
            with open(rest, "ab") as file:
                file.write(b".")
        return self._said(action.content)

    def _said(self, text: str, *, reward: float = 0.0, ended: bool = False, info: dict | None = None) -> Step:
        return Step(Observation((user(text),)), reward, ended, info=info or {"turn": self._turn})

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task(name, (user(f"task {name}"),), REFERENCE) for name in ("plain", "raise", "hang", "block")]


async def deaf() -> None:
    """Go on for ever, whoever cancels it."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


class Slow(Environment):
    """Its tasks take for ever to read in one split, and are broken in others."""

    splits = ("train", "slow", "broken", "complaint")

    async def reset(self, task: Task, *, seed: int) -> Observation:
        return Observation(task.prompt)

    async def step(self, action: Action) -> Step:
        return Step(Observation(), 0.0, True)

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        if split == "broken":
            return EndlessTasks(lambda index: {}[REFERENCE])
        if split == "complaint":
            return EndlessTasks(lambda index: complain())
        if split == "slow":
            return EndlessTasks(lambda index: time.sleep(3600))
        return [Task("only", (user("Hello."),), REFERENCE)]


def complain() -> Task:
    raise QuintainError("the data is missing: fetch it first")


class Undecided(SingleTurnEnv):
    """Its verifier always fails."""

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task("only", (user("Hello."),), REFERENCE)]

    def score(self, answer: str, reference: str) -> Verdict:
        return Verdict.failed(Outcome.TIMEOUT, "the check took too long")


class Stuck(ToolEnv):
    """Tools that do not come back, and one that does."""

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task("one", (user("Go."),), "")]

    @tool
    def block(self) -> str:
        """Block the loop."""
        time.sleep(600)
        return ""

    @tool
    async def never(self) -> str:
        """Never return."""
        await asyncio.Event().wait()
        return ""

    @tool
    def go(self) -> str:
        """Return."""
        return "gone"

    def score(self, answer: str, reference: str) -> float:
        return 1.0


class AddingServer(ToolEnv):
    """A sum, with the tools of an MCP server."""

    splits = ("train", "heldout")
    verifier = "math"

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task("sum", (user("What is 20 + 22?"),), "42")]

    def toolbox(self) -> McpTools:
        return McpTools([sys.executable, str(Path(__file__).with_name("mcp_server.py")), "stdio"])


class Bidding(Environment):
    """Two bidders, each told only what concerns it; a bid is how many words one says, and the longer one wins."""

    rounds = 3

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task("lot", (user("lot"),))]

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self.bids: dict[str, int] = {"ann": 0, "bob": 0}
        self.turns = 0
        return Observation((user("you are ann"),), agent="ann")

    async def step(self, action: Action) -> Step:
        acting, other = ("ann", "bob") if self.turns % 2 == 0 else ("bob", "ann")
        self.bids[acting] += len(action.content)
        self.turns += 1
        if self.turns == 2 * self.rounds:
            wins = self.bids[acting] > self.bids[other]
            return Step(Observation(), float(wins), True, others={other: float(not wins)})
        told = "you are bob" if self.turns == 1 else f"round {self.turns // 2}"
        return Step(Observation((user(told),), agent=other), 0.0, False)
