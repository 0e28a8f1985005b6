"""A stage for the rollout's tests: a toy environment, a chat over bytes, a plan, and the fake engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from quintain.codec import unpack
from quintain.envs import Action, EndlessTasks, Environment, LocalClient, Observation, Step, Task, TaskSource, user
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.engines.base import Engine, Sampling, Weights
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.order import TaskSplit
from quintain.rollout.rules.plan import Plan, Played
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.weights.canary import Canary
from quintain.trajectory import Group

from ..fake_engine import FakeEngine, FakeModel

IDENTITY: dict[str, object] = {"seed": 0}


class Words(Environment):
    """Asks `turns` questions; `trouble` names the place and the way in which it breaks."""

    def __init__(self, turns: int = 1, trouble: str = "") -> None:
        self.left, self.trouble = turns, trouble

    @classmethod
    def tasks(cls, split: str) -> TaskSource:
        return EndlessTasks(lambda index: Task(f"{split}-{index}", (user(f"q{index}"),)))

    async def reset(self, task: Task, *, seed: int) -> Observation:
        if self.trouble == "reset":
            raise RuntimeError("no reset")
        return Observation(task.prompt)

    async def step(self, action: Action) -> Step:
        self.left -= 1
        if self.trouble == "step" or (self.trouble == "late" and self.left == 0):
            raise RuntimeError("no step")
        return Step(Observation((user(f"{self.left} left"),)), 0.25, self.left <= 0, info={"rewards": {"part": 0.25}})


class ByteTokenizer:
    """Characters are tokens; 0 ends a turn. A stand-in for a transformers tokenizer with a chat template."""

    chat_template = "roles"
    name_or_path = "bytes"
    eos_token_id = 0
    all_special_ids = (0,)
    added_tokens_decoder: ClassVar[dict[int, str]] = {0: chr(0)}

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        text = "".join(f"{m['role'][0]}{m['content']}{chr(0)}" for m in messages)
        return text + ("a" if options["add_generation_prompt"] else "")

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(letter) % 128 for letter in text]

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(chr(i) for i in ids)


CHAT = TemplateChat(ByteTokenizer())


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "seed": 5, "groups": 2, "members": 3, "max_staleness": 0, "max_length": 512, "attempts": 2,
        "max_concurrency": 64,
    }  # fmt: skip
    changes.setdefault("plays", (played(**{name: changes.pop(name) for name in PLAYED if name in changes}),))
    return Plan(**{**fields, **changes})


PLAYED = (
    "environment", "split", "size", "shuffle", "weight", "sampling", "max_turns", "reward_weights", "curriculum",
    "places",
)  # fmt: skip


def played(**changes: Any) -> Played:
    """An environment of a plan."""
    fields = {"environment": "", "split": "train", "size": None, "shuffle": True, "weight": 1.0, "reward_weights": None}
    fields |= {"sampling": Sampling(8), "max_turns": 8, "curriculum": None, "places": None}
    of = SimpleNamespace(**{**fields, **changes})
    split = TaskSplit(of.environment, of.split, of.size, of.shuffle, of.weight, of.curriculum)
    return Played(split, of.sampling, of.max_turns, of.reward_weights, of.places)


def scheduler(folder: Path, *, engine: Engine | None = None, options: Any = None, **changes: Any) -> Scheduler:
    made = plan(**changes)
    client = LocalClient(Words, options or {})
    journal = Journal(folder / "journal.db", members=made.members, identity=IDENTITY)
    return Scheduler(
        made,
        engine=engine or FakeEngine(words=128),
        chat=CHAT,
        make_env=lambda _: client.episode(),
        journal=journal,
    )


async def batch_of(made: Scheduler, step: int, wait_s: float) -> list[Group] | None:
    """The groups of `step` as the trainer gets them, None where they are not complete in time."""
    places = await made.batch(step, wait_s)
    return None if places is None else [unpack(made.journal.group(place), Group) for place in places]


def weights(folder: Path, version: int) -> Weights:
    """A folder of weights for the fake engine: any bytes are a model."""
    path = folder / f"v{version}"
    path.mkdir(exist_ok=True)
    (path / "model.safetensors").write_bytes(json.dumps({"version": version}).encode())
    return Weights(path, version)


def canary(published: Weights, tolerance: float = 1e-6) -> Canary:
    """What a trainer that holds `published` says of two fixed rows."""
    model = FakeModel.of(published.path, 128)
    rows = (CHAT.first([user("hello")]), CHAT.first([user("and more of it")]))
    return Canary(rows, tuple(model.score(row) for row in rows), tolerance)
