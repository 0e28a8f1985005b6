"""How much of the time asynchronous training can save does it save?

The trainer's loop, its client, the rollout server (HTTP, in a thread), the scheduler and the journal are the real
ones; the engine is a latency model with room for an eighth of a batch at a time and the optimiser step is a wait, so
that both durations are known. Synchronous training (`max_staleness: 0`) takes T_gen + T_train a step. With
`max_staleness: 1` the next batch is sampled meanwhile, and a step cannot take less than the longer of the two.

    python benchmarks/async_bound.py [--steps N] [--train-s SECONDS]

The last line is JSON: ratio `of_bound`, the speed-up measured divided by (T_gen + T_train) / max(T_gen, T_train)
(aim: 0.9); in detail the seconds per step of both, and the greatest staleness that was consumed. T_gen is what the
synchronous run waited for its batches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from _latency_engine import LatencyEngine
from _side import ROOT, report
from rollout_scale import environment_server

from quintain.arrays import as_floats, as_ints
from quintain.config import ExperimentConfig
from quintain.envs import user
from quintain.envs.client import EnvClient
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.client import RolloutClient
from quintain.rollout.engines.base import Sampling, Weights
from quintain.rollout.journal.journal import Journal
from quintain.rollout.rules.order import TaskSplit
from quintain.rollout.rules.plan import Plan, Played
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.app import rollout_app
from quintain.rollout.weights.canary import Canary
from quintain.rollout.wire import PublishAnswer
from quintain.serving.listen import bound_socket
from quintain.trainers.checkpoint import Progress
from quintain.trainers.heldout import Evaluation
from quintain.trainers.loop import Hooks, Loop
from quintain.trainers.sources import RolloutSource
from quintain.trajectory import Group

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
GROUPS, MEMBERS = 8, 8
WARM_UP = 2  # steps that are not counted: the first has nothing to overlap with


class Waits:
    """A policy whose optimiser step takes `seconds`; it notes how old what it consumed was."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.oldest = seconds, 0

    def update(self, data: Sequence[Group], *, step: int) -> dict[str, float]:
        spans = (s for g in data for t in g.trajectories for turn in t.turns for s in turn.versions)
        self.oldest = max(self.oldest, *(step - span.version for span in spans))
        time.sleep(self.seconds)
        return {}

    def save(self, progress: Progress) -> None:
        pass


class Publishes:
    """Puts version after version in force; the latency model has no weights, its canary always sings."""

    def __init__(self, client: RolloutClient, folder: Path) -> None:
        self.client, self.folder = client, folder

    def publish(self, version: int, *, admit: bool) -> PublishAnswer:
        canary = Canary((as_ints([1, 2]),), (as_floats([-1.0]),), 1e-3)  # what the latency model says of any row
        return self.client.publish(Weights(self.folder, version), canary, admit=admit)

    def admit(self, version: int) -> None:
        self.client.admit(version)


def run(folder: Path, url: str, *, staleness: int, steps: int, train_s: float) -> tuple[float, float, int]:
    """Seconds per step, seconds of it that the trainer waited for its batch, and the greatest age consumed."""
    folder.mkdir()
    chat = TemplateChat(load_tokenizer(str(MODEL)))
    words = [*chat.first([user("hello")])[1:], *chat.stop_ids]
    engine = LatencyEngine(words, capacity=8, step_s=0.004, prefill_s=0.01, tokens=24, max_length=2048)
    plan = Plan(
        (Played(TaskSplit("", "train", None, False), Sampling(64), 4),), 0, GROUPS, MEMBERS, staleness, 2048, 1, 256
    )
    client = EnvClient(url)
    journal = Journal(folder / "journal.db", members=MEMBERS, identity={})
    scheduler = Scheduler(plan, engine=engine, chat=chat, make_env=lambda _: client.episode(), journal=journal)
    with bound_socket("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(rollout_app(scheduler), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        rollout = RolloutClient(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            return _train(rollout, folder, steps=steps, train_s=train_s)
        finally:
            rollout.close()
            server.should_exit = True
            thread.join()


def _train(rollout: RolloutClient, folder: Path, *, steps: int, train_s: float) -> tuple[float, float, int]:
    trainer = {"max_steps": steps, "prompts_per_step": GROUPS, "num_generations": MEMBERS}
    config = ExperimentConfig.model_validate(
        {"model": {"path": str(MODEL)}, "environment": {"name": "math"}, "trainer": trainer}
    )
    ends: list[float] = []
    waited: list[float] = []

    def stepped(step: int, metrics: dict[str, float]) -> None:
        ends.append(time.monotonic())
        waited.append(metrics["rollout_s"])

    def nothing(*args: object) -> None:
        pass

    def evaluated(result: Evaluation) -> None:
        raise AssertionError(result)

    policy = Waits(train_s)
    hooks = Hooks(nothing, nothing, stepped, evaluated, nothing)
    loop = Loop(
        config,
        source=RolloutSource(rollout),
        learner=policy,
        publisher=Publishes(rollout, folder),
        evaluator=None,
        hooks=hooks,
        progress=Progress(0, 0, 0, 0.0),
    )
    loop.run()
    per_step = (ends[-1] - ends[WARM_UP - 1]) / (steps - WARM_UP)
    return per_step, statistics.mean(waited[WARM_UP:]), policy.oldest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--train-s", type=float, default=1.0)
    args = parser.parse_args()
    with environment_server(turns=1, seconds=0.0) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sync_s, gen_s, _ = run(folder / "sync", url, staleness=0, steps=args.steps, train_s=args.train_s)
        async_s, _, oldest = run(folder / "async", url, staleness=1, steps=args.steps, train_s=args.train_s)
    bound = (gen_s + args.train_s) / max(gen_s, args.train_s)
    ratio = sync_s / async_s / bound
    print(
        f"synchronous {sync_s:.3f} s a step ({gen_s:.3f} s sampling), asynchronous {async_s:.3f} s:"
        f" {sync_s / async_s:.2f} times faster where {bound:.2f} is the bound; staleness up to {oldest}"
    )
    detail = {"sync_step_s": sync_s, "async_step_s": async_s, "t_gen_s": gen_s, "t_train_s": args.train_s}
    rounded = {name: round(value, 4) for name, value in detail.items()}
    report(
        "async_bound", {"of_bound": ratio}, {**rounded, "bound": round(bound, 3), "staleness_max": oldest, "aim": 0.9}
    )


if __name__ == "__main__":
    main()
