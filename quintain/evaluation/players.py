"""Who plays an evaluation's episodes: the run's rollout server, or a model behind an OpenAI-compatible endpoint.

Invariants:
- every episode asked for is kept exactly once, as soon as it has finished, a failed one too;
- an episode's seed follows from the evaluation's seed, its task and its member: not from what else is played, so an
  evaluation that goes on plays what one that was never stopped would have played.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from quintain.evaluation.episode_log import Place
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.launch.servers import Address, probed
from quintain.trajectory import Trajectory

TASKS_AT_ONCE: Final = 2048
"""Tasks of one run on the rollout server."""
RUNS_AT_ONCE: Final = 8
"""Runs on the rollout server side by side: each is one member of some tasks."""
MAX_REPLY_BYTES: Final = 16 << 20
CHECK_S: Final = 0.5

Keep = Callable[[Trajectory], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible endpoint: `url` up to and without `/chat/completions`, and the model's name there.

    `request` has further fields of every request. `concurrency` episodes run at once; a request may take `timeout_s`
    and is sent again `retries` times where that may help.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    request: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 32
    timeout_s: float = 600.0
    retries: int = 5
    send_seed: bool = False


@dataclass(frozen=True, slots=True)
class Episodes:
    """The episodes to play: their places in `split`, the evaluation's `seed`, and how long each may get."""

    split: str
    places: Sequence[Place]
    seed: int
    max_turns: int
    attempts: int
    environment: str


def member_seed(seed: int, member: int) -> int:
    """The seed of all episodes that are their task's sample `member`; the first one's is the evaluation's own."""
    from quintain.rollout.rules.order import derive_seed

    return seed if member == 0 else derive_seed(seed, "member", member)


def play_on_server(
    episodes: Episodes, server: Address, *, temperature: float, restarts: int, keep: Keep, check: Callable[[], None]
) -> None:
    """Have the rollout `server` play `episodes`; `keep` gets each as it finishes, in this or another thread.

    A server that was started again is asked anew for what it has lost, `restarts` times. `check` is called every
    second or so and may raise to end the waiting. Raises FailureError and what `check` raises.
    """
    stop, lock, broken = threading.Event(), threading.Lock(), list[BaseException]()

    def kept(trajectory: Trajectory) -> None:
        with lock:
            keep(trajectory)

    def watched() -> None:
        if stop.is_set():
            raise _Stopped
        check()

    def play(run: tuple[int, Sequence[int]]) -> None:
        try:
            watched()
            _play_run(episodes, server, *run, temperature, restarts, kept, watched)
        except _Stopped:
            pass
        except BaseException as error:  # handed on to the caller's thread, below
            broken.append(error)
            stop.set()

    with ThreadPoolExecutor(RUNS_AT_ONCE, thread_name_prefix="eval") as pool:
        try:
            for _ in pool.map(play, list(_runs(episodes.places))):
                pass
        finally:
            stop.set()
    if broken:
        raise broken[0]


class _Stopped(Exception):
    """Another thread has ended the evaluation."""


def _runs(places: Sequence[Place]) -> Iterator[tuple[int, Sequence[int]]]:
    members: dict[int, list[int]] = defaultdict(list)
    for index, member in places:
        members[member].append(index)
    for member, indices in sorted(members.items()):
        for start in range(0, len(indices), TASKS_AT_ONCE):
            yield member, indices[start : start + TASKS_AT_ONCE]


def _play_run(
    episodes: Episodes,
    server: Address,
    member: int,
    indices: Sequence[int],
    temperature: float,
    restarts: int,
    keep: Keep,
    check: Callable[[], None],
) -> None:
    """One sample of each task: they are streamed one by one as they finish."""
    from quintain.rollout.client import RolloutClient
    from quintain.rollout.wire import RunRequest

    missing = list(indices)
    with RolloutClient(server.url, server.token, poll=lambda progress: check()) as client:
        while missing:
            request = RunRequest(
                episodes.split,
                tuple(missing),
                seed=member_seed(episodes.seed, member),
                temperature=temperature,
                environment=episodes.environment,
            )
            try:
                run = client.submit(request).run
                for _, group in client.groups(run):
                    (trajectory,) = group.trajectories
                    name = f"{group.id}/{member:03d}"
                    keep(replace(trajectory, id=name, member=member))
                    missing.remove(group.index)
                    check()
                client.forget(run)
            except FailureError as error:
                if error.failure.kind is not FailureKind.LOST or restarts == 0:
                    raise
                restarts -= 1


async def play_at_endpoint(
    episodes: Episodes,
    endpoint: Endpoint,
    environment: Address,
    step_timeout_s: float,
    keep: Keep,
    check: Callable[[], None],
) -> None:
    """Play `episodes` in the environment server `environment` with the model at `endpoint`.

    `keep` gets each as it finishes. `check` is called every moment and may raise to end it. Raises what `keep` and
    `check` raise.
    """
    from quintain.calling.chat import ChatEndpoint
    from quintain.envs.client import EnvClient
    from quintain.rollout.episodes.endpoint import run_chat_episode

    chat = ChatEndpoint(
        endpoint.url,
        {"model": endpoint.model, **endpoint.request},
        who=f"the endpoint {endpoint.url}",
        stage=Stage.GENERATE,
        token=endpoint.key,
        timeout_s=endpoint.timeout_s,
        retries=endpoint.retries,
        max_reply_bytes=MAX_REPLY_BYTES,
    )
    patience_s = 2 * step_timeout_s
    client = EnvClient(environment.url, environment.token, timeout_s=patience_s, patience_s=patience_s)
    waiting = iter(episodes.places)

    async def play() -> None:
        for place in waiting:
            spec = _spec(episodes, place)
            keep(await run_chat_episode(spec, make_env=client.episode, endpoint=chat, send_seed=endpoint.send_seed))

    async def watch() -> None:
        while True:
            check()
            await asyncio.sleep(CHECK_S)

    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            players = [group.create_task(play()) for _ in range(min(endpoint.concurrency, len(episodes.places)))]
            await asyncio.gather(*players)
            watching.cancel()
    except BaseExceptionGroup as broken:
        raise _first(broken) from None
    finally:
        await chat.close()
        await client.aclose()


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _spec(episodes: Episodes, place: Place) -> Any:
    """The same episode, by name and seed, that the rollout server would play."""
    from quintain.rollout.engines.base import Sampling
    from quintain.rollout.episodes.episode import EpisodeSpec
    from quintain.rollout.rules.order import derive_seed
    from quintain.task import Task, TaskOrigin

    index, member = place
    split, group = episodes.split, f"{episodes.split}-{index}"
    return EpisodeSpec(
        id=f"{group}/{member:03d}",
        group=group,
        task=Task(f"{split}/{index}", origin=TaskOrigin(split, index)),
        index=index,
        member=member,
        seed=derive_seed(member_seed(episodes.seed, member), split, index, 0),
        sampling=Sampling(1),
        max_turns=episodes.max_turns,
        max_length=1,
        attempts=episodes.attempts,
        environment=episodes.environment,
    )


def check_endpoint(endpoint: Endpoint, key_env: str | None) -> None:
    """QuintainError, one line, where nobody answers at the endpoint or the key is refused."""
    nobody = f"--endpoint: nobody answers at {endpoint.url}"
    status = probed(endpoint.url, "/models", endpoint.key, nobody, proxied=True)
    if status in (401, 403):
        asked = f"the key in {key_env} is not accepted" if key_env else "give --key-env, a variable that holds the key"
        raise QuintainError(f"--endpoint: {endpoint.url} answered {status}: {asked}")
