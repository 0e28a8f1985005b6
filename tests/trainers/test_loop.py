"""The loop, over a stand-in rollout and a stand-in policy: order of events, stops, restarts, what is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quintain.config import parse_config
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.rollout.wire import PublishAnswer
from quintain.trainers.checkpoint import Progress
from quintain.trainers.heldout import HeldoutSplit, HeldoutTasks
from quintain.trainers.loop import Hooks, Loop, Stopped
from quintain.trainers.sources import RolloutSource
from quintain.trajectory import Ending, Finish, Group, Trajectory, Turn, VersionSpan

BASE = (
    "model: {path: x}\nenvironment: {name: math}\ntrainer: {max_steps: 4, save_steps: 2}\nevaluation: {eval_steps: 2}"
)
LOST = FailureError.of(FailureKind.LOST, Stage.GENERATE, "started again")


def group(reward: float | None = 1.0) -> Group:
    turn = Turn([1], [2], [-0.5], Finish.STOP, (VersionSpan(0, 0, 1),), assistant("x"))
    failure = None if reward is not None else Failure.of(FailureKind.TIMEOUT, Stage.STEP, "too slow")
    ending = Ending.FAILED if failure else Ending.TERMINATED
    return Group("g", 0, (Trajectory("t", "g", "k", 0, 0, 0, (turn,), ending, reward, failure),))


class World:
    """A stand-in for the rollout server and the model's side, which writes down what it is asked, in order."""

    def __init__(self, **trouble: Callable[[], None]) -> None:
        self.events: list[str] = []
        self.trouble = trouble
        self.saved: list[Progress] = []
        self.rewards: float | None = 1.0

    def _note(self, what: str) -> None:
        self.events.append(what)
        trouble = self.trouble.pop(what.replace(" ", "_"), None)
        if trouble:
            trouble()

    def batch(self, step: int) -> list[Group]:
        self._note(f"batch {step}")
        return [group(self.rewards)]

    def run_tasks(self, split: str, indices: range, *, temperature: float, seed: int, environment: str) -> list[Group]:
        self._note(f"evaluate {len(indices)}")
        return [group()]

    def admit(self, version: int) -> None:
        self._note(f"admit {version}")

    def update(self, data: list[Group], *, step: int) -> dict[str, float]:
        self._note(f"update {step}")
        return {"reward": 1.0, "num_tokens": 10.0}

    def publish(self, version: int, *, admit: bool) -> PublishAnswer:
        self._note(f"publish {version}" + ("" if admit else " closed"))
        return PublishAnswer(0.0, 0.0, 0.0)

    def save(self, progress: Progress) -> None:
        self.events.append(f"save {progress.step}")
        self.saved.append(progress)


def loop(world: World, *, text: str = BASE, progress: Progress | None = None, check: Any = None) -> Loop[Any]:
    hooks = Hooks(lambda _: None, lambda _: None, lambda *_: None, lambda _: None, check or (lambda: None))
    config = parse_config(text)
    return Loop(
        config,
        source=RolloutSource(world),
        learner=world,
        publisher=world,
        evaluator=HeldoutTasks(world, [HeldoutSplit("math", "heldout", 3)], temperature=0.0, seed=0)
        if config.evaluation
        else None,
        hooks=hooks,
        progress=progress or Progress(0, 0, 0, 0.0),
        clock=lambda: 0.0,
    )


def raising(error: Exception) -> Callable[[], None]:
    def trouble() -> None:
        raise error

    return trouble


def test_weights_are_published_before_they_are_evaluated_and_evaluated_before_they_are_trained_on() -> None:
    world = World()
    loop(world).run()
    assert world.events == [
        "publish 0 closed", "evaluate 3", "admit 0",
        "batch 0", "update 0", "publish 1",
        "batch 1", "update 1", "publish 2 closed", "evaluate 3", "admit 2", "save 2",
        "batch 2", "update 2", "publish 3",
        "batch 3", "update 3", "publish 4 closed", "evaluate 3", "save 4",
    ]  # fmt: skip


def test_a_resumed_run_goes_on_where_it_was_and_does_not_evaluate_again_at_once() -> None:
    world = World()
    result = loop(world, progress=Progress(3, 3, 24, 10.0, 0.2)).run()
    assert world.events == ["publish 3", "batch 3", "update 3", "publish 4 closed", "evaluate 3", "save 4"]
    assert result.progress.heldout_before == 0.2
    assert result.progress.consumed_groups == 25


@pytest.mark.parametrize("error", [Stopped(), QuintainError("the server is gone")])
def test_a_stop_saves_the_last_whole_step(error: Exception) -> None:
    world = World(update_1=raising(error))
    with pytest.raises(type(error)):
        loop(world).run()
    assert world.events[-2:] == ["update 1", "save 1"]
    assert world.saved[-1].version == 1


def test_a_stop_right_after_a_checkpoint_saves_nothing_again() -> None:
    world = World(batch_2=raising(Stopped()))
    with pytest.raises(Stopped):
        loop(world).run()
    assert [p.step for p in world.saved] == [2]


def test_a_rollout_server_that_started_again_gets_the_weights_and_is_asked_again() -> None:
    world = World(batch_1=raising(LOST), evaluate_3=raising(LOST), admit_2=raising(LOST))
    result = loop(world).run()
    assert result.progress.step == 4
    assert world.events[:4] == ["publish 0 closed", "evaluate 3", "publish 0 closed", "evaluate 3"]
    at = world.events.index("batch 1")
    assert world.events[at : at + 3] == ["batch 1", "publish 1", "batch 1"]
    assert world.events[world.events.index("admit 2") + 1] == "publish 2"


def test_a_refused_publish_is_tried_once_more_and_then_stops_the_run() -> None:
    refused = FailureError.of(FailureKind.INVALID, Stage.PUBLISH, "stale", retryable=True)
    world = World(publish_1=raising(refused))
    loop(world).run()
    assert world.events.count("publish 1") == 2

    class Stubborn(World):
        def publish(self, version: int, *, admit: bool) -> PublishAnswer:
            self.events.append("publish")
            raise refused

    stubborn = Stubborn()
    with pytest.raises(FailureError, match="stale"):
        loop(stubborn).run()
    assert stubborn.events == ["publish", "publish", "save 0"]


def test_a_batch_of_nothing_but_failures_stops_with_what_happened() -> None:
    world = World()
    world.rewards = None
    with pytest.raises(
        QuintainError, match="all 1 episodes of step 1 failed, 1 of them with: timeout in step: too slow"
    ):
        loop(world).run()
    assert not [event for event in world.events if event.startswith("update")]


def test_training_time_leaves_out_evaluations() -> None:
    now = [0.0]
    world = World()

    def advance(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    world.trouble = {"evaluate_3": advance(100.0), "update_0": advance(7.0), "batch_1": advance(2.0)}
    running = loop(world)
    running.clock = lambda: now[0]
    assert running.run().progress.train_wall_s == pytest.approx(9.0)


def test_without_a_publisher_and_an_evaluator_a_run_reads_trains_and_saves() -> None:
    """What trains on a dataset samples nothing."""

    class Dataset(World):
        def batch(self, step: int) -> Any:
            self._note(f"batch {step}")
            return ["example"] * 3

    world = Dataset()
    hooks = Hooks(lambda _: None, lambda _: None, lambda *_: None, lambda _: None, lambda: None)
    alone = Loop[Any](
        parse_config(BASE), source=world, learner=world, publisher=None, evaluator=None, hooks=hooks,
        progress=Progress(0, 0, 0, 0.0),
    )  # fmt: skip
    result = alone.run()
    assert world.events == [
        "batch 0", "update 0", "batch 1", "update 1", "save 2", "batch 2", "update 2", "batch 3", "update 3", "save 4",
    ]  # fmt: skip
    assert result.progress.consumed_groups == 12
    assert result.before is result.after is None
