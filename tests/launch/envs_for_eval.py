"""Environments for the tests of evaluations."""

from __future__ import annotations

import json

from quintain.envs import Action, Environment, Observation, SingleTurnEnv, Step, Task, TaskSource, user
from quintain.messages import FunctionSpec, Message, ToolSpec


class Guess(SingleTurnEnv):
    """Say the number that is asked for. Task 3 breaks the environment where `breaks` says so."""

    splits = ("train", "heldout")

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.breaks = breaks

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task(f"{split}-{n}", (user(f"Say {n}."),), reference=str(n)) for n in range(8)]

    def score(self, answer: str, reference: str) -> dict[str, float]:
        if self.breaks and reference == "3":
            raise RuntimeError("the environment is broken")
        return {"right": float(answer == reference), "brief": 0.5 * (len(answer) < 3)}


class Calculator(Environment):
    """A sum that takes a call of the tool `add` and then its result."""

    splits = ("heldout",)

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return [Task(f"sum-{n}", (user(f"What is {n} + 1?"),), reference=str(n + 1)) for n in range(3)]

    async def reset(self, task: Task, *, seed: int) -> Observation:
        self.reference = task.reference
        parameters = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
        return Observation(task.prompt, (ToolSpec(FunctionSpec("add", "Adds.", parameters)),))

    async def step(self, action: Action) -> Step:
        if action.message.tool_calls:
            (call,) = action.message.tool_calls
            given = json.loads(call.function.arguments)
            result = Message("tool", str(given["a"] + given["b"]), tool_call_id=call.id)
            return Step(Observation((result,)), 0.0, False)
        return Step(Observation(), float(action.content == self.reference), True)
