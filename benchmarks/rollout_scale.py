"""A thousand agents at once: does the rollout server keep an engine busy, and does its event loop keep up?

1,000 episodes of 10 turns are in flight over HTTP, each turn of the environment takes 1 s with a heavy tail, and the
engine is a latency model (no GPU needed): 256 requests at a time, about three seconds each, so there is always more to
sample than there is room. The scheduler, the journal, the chat layer with a real template, the environment client
and the environment server are the real ones; the server is a process of its own.

A second case hands over a batch of 512 trajectories of 100 turns of 300 + 300 tokens, as a trainer's client fetches it
while the loop that serves it is watched.

    python benchmarks/rollout_scale.py [--episodes N] [--turns N] [--capacity N] [--batch N] [--only long]

While admission has episodes to give (from the first moment the engine is full until fewer than N episodes are in
flight), the engine's slots should never be empty. The last line is JSON: ratio `engine_busy`, the slot-seconds used by
those there were (aim: 0.95), and `bytes_vs_once`, the bytes of a long trajectory by those of its ids and its
log-probabilities stored once (aim: at most 1.2); in detail the event loop's lag in milliseconds in both cases (aim: p99
at most 20), turns per second, and this process's share of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _latency_engine import LatencyEngine
from _side import ROOT, report

from quintain.codec import pack
from quintain.messages import assistant, user
from quintain.trajectory import Ending, Finish, Trajectory, Turn, VersionSpan

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
STEP_S, PREFILL_S, TOKENS = 0.02, 0.1, 128
LONG_TURNS, LONG_TOKENS = 100, 300
CLIENT = (
    "import sys; from quintain.rollout.client import RolloutClient; print(len(RolloutClient(sys.argv[1]).batch(0)))"
)


@contextmanager
def environment_server(turns: int, seconds: float) -> Iterator[str]:
    """The address of `WaitingEnv` in a process of its own."""
    spec = f"{Path(__file__).with_name('_waiting_env.py')}:WaitingEnv"
    options = [f"--arg=turns={turns}", f"--arg=seconds={seconds}", "--workers=1", "--json", "--port=0"]
    command = [sys.executable, "-m", "quintain", "env", "serve", spec, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()


class LagMeter:
    """How late a timer of `every_s` fires, again and again: the event loop's lag, in seconds."""

    def __init__(self, every_s: float = 0.005) -> None:
        self.every_s = every_s
        self.lags: list[float] = []

    async def run(self) -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(self.every_s)
            self.lags.append(time.perf_counter() - asked - self.every_s)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.lags)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def measure(url: str, folder: Path, episodes: int, turns: int, capacity: int) -> dict[str, float]:
    """Run twice as many episodes as are in flight at once; the figures of the time in which the number holds."""
    from quintain.envs.client import EnvClient
    from quintain.rollout.chat.load import load_tokenizer
    from quintain.rollout.chat.template import TemplateChat
    from quintain.rollout.engines.base import Sampling
    from quintain.rollout.journal.journal import Journal
    from quintain.rollout.rules.order import TaskSplit
    from quintain.rollout.rules.plan import Plan, Played
    from quintain.rollout.scheduler import Scheduler

    chat = TemplateChat(load_tokenizer(str(MODEL)))
    words = [int(token) for token in chat._encode("The answer is that we go on with the next step. ")]
    engine = LatencyEngine(
        [*words, *chat.stop_ids],
        capacity=capacity,
        step_s=STEP_S,
        prefill_s=PREFILL_S,
        tokens=TOKENS,
        max_length=8192,
    )
    members = 8
    groups = 2 * episodes // members
    sampling = Sampling(4 * TOKENS)
    played = Played(TaskSplit("", "train", None, False), sampling, turns + 1)
    plan = Plan((played,), 0, groups, members, 0, 8192, 1, episodes)
    client = EnvClient(url, timeout_s=120.0, max_connections=episodes)
    journal = Journal(folder / "journal.db", members=members, identity={})
    scheduler = Scheduler(plan, engine=engine, chat=chat, make_env=lambda _: client.episode(), journal=journal)
    meter = LagMeter()
    total = groups * members

    scheduler.admit(0)
    while engine.running < capacity:  # noqa: ASYNC110 - the engine under test tells nobody
        await asyncio.sleep(0.01)
    watch = asyncio.create_task(meter.run())
    began, cpu, slots, answered = time.monotonic(), time.process_time(), engine.slot_s, engine.stats().output_tokens
    while total - journal.balance().trajectories > episodes:  # noqa: ASYNC110 - till no more can be admitted
        await asyncio.sleep(0.25)
    wall = time.monotonic() - began
    busy = (engine.slot_s - slots) / (capacity * wall)
    cpu = (time.process_time() - cpu) / wall
    tokens = (engine.stats().output_tokens - answered) / wall
    watch.cancel()
    failures = dict(scheduler.failures)
    await scheduler.close()
    await client.aclose()
    if failures:
        raise SystemExit(f"episodes failed, so nothing was measured: {failures}")
    return {
        "engine_busy": busy,
        "lag_p50_ms": 1e3 * meter.quantile(0.5),
        "lag_p99_ms": 1e3 * meter.quantile(0.99),
        "lag_max_ms": 1e3 * max(meter.lags),
        "turns_per_s": tokens / TOKENS,
        "cores": cpu,
        "wall_s": wall,
    }


def long_trajectory(name: str, group: str, index: int, member: int) -> Trajectory:
    """A hundred turns of 300 new prompt tokens and 300 sampled ones."""
    rng = np.random.default_rng([index, member])
    turns = [
        Turn(
            rng.integers(0, 150_000, LONG_TOKENS, dtype=np.int32),
            rng.integers(0, 150_000, LONG_TOKENS, dtype=np.int32),
            -rng.random(LONG_TOKENS, dtype=np.float32),
            Finish.STOP,
            (VersionSpan(0, 0, LONG_TOKENS),),
            assistant("Let me look at that."),
            (user("Go on."),),
        )
        for _ in range(LONG_TURNS)
    ]
    return Trajectory(name, group, f"train/{index}", index, member, 0, tuple(turns), Ending.TERMINATED, 0.0)


async def hand_over(folder: Path, count: int) -> dict[str, float]:
    """Record `count` long trajectories as they would finish, then serve them as a batch to a client in a process."""
    from quintain.rollout.engines.base import Sampling
    from quintain.rollout.journal.journal import Journal
    from quintain.rollout.rules.order import TaskSplit
    from quintain.rollout.rules.plan import Plan, Played
    from quintain.rollout.scheduler import Scheduler
    from quintain.rollout.server.app import rollout_app
    from quintain.serving.listen import bound_socket, url_of
    from quintain.serving.run import quiet_server

    members = 8
    played = Played(TaskSplit("", "train", None, False), Sampling(1), 1)
    plan = Plan((played,), 0, count // members, members, 0, 8192, 1, 1)
    journal = Journal(folder / "journal.db", members=members, identity={})
    meter = LagMeter()
    watch = asyncio.create_task(meter.run())
    size = 0
    for place in range(count // members):
        journal.issue(place, place, 0)
        for member in range(members):
            row = await asyncio.to_thread(long_trajectory, f"{place}/{member}", f"{place:08d}", place, member)
            packed = await asyncio.to_thread(pack, row)
            journal.record(place, row, packed=packed)
            size += len(packed)
    recorded = meter.quantile(0.99)
    engine = LatencyEngine([0], capacity=1, step_s=0.0, prefill_s=0.0, tokens=1, max_length=8192)
    scheduler = Scheduler(plan, engine=engine, chat=None, make_env=None, journal=journal)
    with bound_socket("127.0.0.1", 0) as listener:
        app = rollout_app(scheduler, trajectories=folder / "trajectories")
        server = quiet_server(app, lambda: None, grace_s=1)
        async with app.router.lifespan_context(app):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            meter.lags.clear()
            began = time.monotonic()
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CLIENT, url_of("127.0.0.1", listener), stdout=subprocess.PIPE
            )
            said, _ = await client.communicate()
            took = time.monotonic() - began
            server.should_exit = True
            await serving
    watch.cancel()
    if int(said or 0) != count // members:
        raise SystemExit(f"the client got {said!r} groups, not {count // members}")
    return {
        "bytes_vs_once": size / count / (LONG_TURNS * LONG_TOKENS * (4 + 4 + 4)),
        "long_bytes": size / count,
        "record_lag_p99_ms": 1e3 * recorded,
        "batch_lag_p99_ms": 1e3 * meter.quantile(0.99),
        "batch_lag_max_ms": 1e3 * max(meter.lags),
        "batch_s": took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--only", choices=("long",))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long = asyncio.run(hand_over(Path(folder), args.batch))
    print(
        f"{LONG_TURNS} turns of {LONG_TOKENS} + {LONG_TOKENS} tokens are {long['long_bytes'] / 1e6:.2f} MB; a batch of"
        f" {args.batch} was handed over in {long['batch_s']:.1f} s, event loop late by"
        f" {long['batch_lag_p99_ms']:.1f} ms at the 99th percentile (aim 20)"
    )
    kept = {"bytes_vs_once": long.pop("bytes_vs_once")}
    long = {name: round(value, 2) for name, value in long.items()}
    aims = {"engine_busy": 0.95, "lag_p99_ms": 20, "bytes_vs_once": 1.2, "batch_lag_p99_ms": 20}
    if args.only:
        report("rollout_scale", kept, {**long, "aims": aims})
        return
    with environment_server(args.turns, 1.0) as url, tempfile.TemporaryDirectory() as folder:
        got = asyncio.run(measure(url, Path(folder), args.episodes, args.turns, args.capacity))
    print(
        f"{args.episodes} episodes in flight, {got['turns_per_s']:.0f} turns/s: engine {got['engine_busy']:.1%} busy"
        f" (aim 95 %), event loop late by {got['lag_p99_ms']:.1f} ms at the 99th percentile (aim 20)"
    )
    detail = {name: round(value, 2) for name, value in got.items() if name != "engine_busy"}
    ratios = {"engine_busy": got["engine_busy"], **kept}
    report("rollout_scale", ratios, {**detail, **long, "aims": aims, "capacity": args.capacity})


if __name__ == "__main__":
    main()
