"""Runs over a real socket: handed in, streamed, taken up again, cancelled, refused where there are too many."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from quintain.codec import from_builtins
from quintain.envs import Action, LocalClient, Observation, Step, Task, user
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.failure import FailureError, FailureKind
from quintain.rollout.client import RolloutClient
from quintain.rollout.journal.journal import Journal
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.task_runs import RunLimits
from quintain.rollout.wire import FRAMES, RunRequest, RunState
from quintain.serving.tokens import Tokens
from quintain.trajectory import Group

from ..fake_engine import FakeEngine, hang_on
from . import stage
from .serving import served


def tokens_of(groups: list[Group]) -> list[Any]:
    return [[[t.output_ids.tolist() for t in row.turns] for row in group.trajectories] for group in groups]


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


class Gate:
    """An engine's `fail` that holds every call from the `first`-th on until `open` is called, from any thread."""

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self._opened = threading.Event()

    async def __call__(self, call: int, token: int) -> None:
        while call >= self.first:
            if self._opened.is_set():
                return
            await asyncio.sleep(0.005)

    def open(self) -> None:
        self._opened.set()


def test_a_run_s_groups_come_in_the_order_given_and_repeat_with_their_seed(tmp_path: Path) -> None:
    with served(tmp_path) as url, RolloutClient(url) as client:
        first = client.run_tasks("heldout", [4, 2, 7], samples=3, temperature=1.0, seed=11)
        again = client.run_tasks("heldout", [7, 4, 2], samples=3, temperature=1.0, seed=11)
        other = client.run_tasks("heldout", [4, 2, 7], samples=3, temperature=1.0, seed=12)
        assert [group.index for group in first] == [4, 2, 7]
        assert all([row.member for row in group.trajectories] == [0, 1, 2] for group in first)
        assert tokens_of(first) == tokens_of([again[1], again[2], again[0]])
        assert tokens_of(first) != tokens_of(other)
        assert client.stats().runs == 0
        assert client.stats().result_bytes == 0  # what was fetched whole is not kept


def test_a_task_given_in_full_is_what_its_episode_is_about(tmp_path: Path) -> None:
    mine = [Task("mine", (user("what I ask"),)), Task("other", (user("something else"),))]
    with served(tmp_path) as url, RolloutClient(url) as client:
        groups = client.run_tasks("heldout", [3], tasks=mine, samples=2)
    assert [[row.task for row in group.trajectories] for group in groups[1:]] == [["mine"] * 2, ["other"] * 2]
    assert groups[1].trajectories[0].prompt == (user("what I ask"),)
    assert groups[0].trajectories[0].task == "heldout/3"
    assert all(row.failure is None for group in groups for row in group.trajectories)


def test_sampling_is_the_request_s_within_limits(tmp_path: Path) -> None:
    with served(tmp_path) as url, RolloutClient(url) as client:
        (short,) = client.run_tasks("heldout", [1], max_tokens=2)
        assert short.trajectories[0].output_tokens <= 2
        (experiment_s,) = client.run_tasks("heldout", [1], samples=4, temperature=None)
        assert len({tuple(t.turns[0].output_ids.tolist()) for t in experiment_s.trajectories}) > 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"indices": []}, "give indices of a split, or tasks in full"),
        ({"split": None}, "split: say of which split the indices are"),
        ({"indices": [3, -1]}, "indices: at least 0, not -1"),
        ({"samples": 0}, "samples: 1 to 4096, not 0"),
        ({"temperature": -1}, "temperature: 0 to 10, not -1"),
        ({"top_p": 0}, "top_p: above 0, up to 1, not 0"),
        ({"top_k": -2}, "top_k: at least 0"),
        ({"max_tokens": 513}, "max_tokens: 1 to 512, not 513"),
        ({"run": "a b"}, "run: 1 to 64 letters"),
        ({"sample": 2}, "no field 'sample': did you mean 'samples'?"),
        ({"indices": "all"}, "indices"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused_with_its_field(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with served(tmp_path) as url:
        answer = httpx.post(f"{url}/v1/runs", json={"split": "heldout", "indices": [1], **change})
    assert answer.status_code == 400
    assert says in answer.json()["failure"]["message"]


def test_a_stream_is_json_lines_from_a_cursor_and_says_where_it_ends(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        request = {"split": "heldout", "indices": list(range(5)), "samples": 2, "run": "mine"}
        assert httpx.post(f"{url}/v1/runs", json=request).status_code == 201
        got, cursor, end = [], 0, False
        while not end:
            *groups, last = lines(httpx.get(f"{url}/v1/runs/mine/groups?cursor={cursor}&wait_s=5"))
            assert [line["cursor"] for line in groups] == list(range(cursor + 1, cursor + 1 + len(groups)))
            got += [from_builtins(line["group"], Group) for line in groups]
            cursor, end = last["cursor"], last["end"]
        assert sorted(group.index for group in got) == list(range(5))
        assert (last["status"]["state"], last["status"]["done"], last["status"]["total"]) == ("done", 10, 10)
        whole = lines(httpx.get(f"{url}/v1/runs/mine/groups"))  # what was read is kept while there is room
        assert [line["cursor"] for line in whole] == [1, 2, 3, 4, 5, 5]
        assert httpx.get(f"{url}/v1/runs/mine/groups?cursor=6").status_code == 400
        assert httpx.get(f"{url}/v1/runs/mine/groups?cursor=-1").status_code == 400
        framed = httpx.get(f"{url}/v1/runs/mine/groups?cursor=4", headers={"accept": FRAMES})
        assert framed.headers["content-type"] == FRAMES


def test_groups_are_streamed_while_others_still_run(tmp_path: Path) -> None:
    gate = Gate(first=5)
    with served(tmp_path, engine=FakeEngine(words=128, fail=gate)) as url, RolloutClient(url) as client:
        run = client.submit(RunRequest("heldout", tuple(range(6)))).run
        stream = client.groups(run)
        early = [next(stream) for _ in range(4)]
        status = client.status(run)
        assert (status.state, status.finished, status.done) == (RunState.RUNNING, 4, 4)
        gate.open()
        late = list(stream)
        assert [cursor for cursor, _ in [*early, *late]] == [1, 2, 3, 4, 5, 6]


def test_the_same_name_and_request_are_the_same_run_and_another_request_is_refused(tmp_path: Path) -> None:
    with served(tmp_path) as url, RolloutClient(url) as client:
        request = RunRequest("heldout", (1, 2), run="once")
        client.submit(request)
        client.submit(request)
        assert len(list(client.groups("once"))) == 2
        assert client.stats().output_tokens == sum(g.trajectories[0].output_tokens for _, g in client.groups("once"))
        with pytest.raises(FailureError, match="exists with another request"):
            client.submit(RunRequest("heldout", (1, 3), run="once"))


def test_a_cancelled_run_keeps_what_it_finished_and_ends_its_episodes(tmp_path: Path) -> None:
    gate = Gate(first=3)
    with served(tmp_path, engine=FakeEngine(words=128, fail=gate)) as url, RolloutClient(url) as client:
        run = client.submit(RunRequest("heldout", tuple(range(6)))).run
        stream = client.groups(run)
        next(stream), next(stream)
        assert client.cancel(run).state is RunState.CANCELLED
        assert client.stats().running == 0
        assert [cursor for cursor, _ in zip([1, 2], client.groups(run), strict=False)] == [1, 2]
        with pytest.raises(FailureError, match="cancelled after 2 of 6 groups"):
            list(client.groups(run, 2))
        client.forget(run)
        with pytest.raises(FailureError) as caught:
            client.status(run)
        assert caught.value.failure.kind is FailureKind.LOST


def test_too_much_is_refused_with_429_and_when_to_come_back(tmp_path: Path) -> None:
    gate = Gate()
    limits = RunLimits(runs=2, episodes=10)
    with served(tmp_path, engine=FakeEngine(words=128, fail=gate), app={"limits": limits}) as url:

        def ask(count: int) -> httpx.Response:
            return httpx.post(f"{url}/v1/runs", json={"split": "heldout", "indices": list(range(count))})

        assert ask(11).status_code == 429
        assert ask(6).status_code == 201
        refused = ask(5)
        assert refused.status_code == 429
        assert float(refused.headers["retry-after"]) > 0
        assert refused.json()["failure"]["kind"] == "overloaded"
        assert ask(4).status_code == 201
        assert "2 runs are under way" in ask(1).json()["failure"]["message"]

        # the client waits until there is room
        polled = threading.Event()
        client = RolloutClient(url, poll=lambda progress: polled.set())
        waiting = threading.Thread(target=lambda: client.run_tasks("heldout", [1]))
        waiting.start()
        assert polled.wait(30)
        gate.open()
        waiting.join(30)
        assert not waiting.is_alive()
        client.close()


def test_runs_that_are_never_forgotten_are_bounded_too(tmp_path: Path) -> None:
    with served(tmp_path, app={"limits": RunLimits(kept=2)}) as url, RolloutClient(url) as client:
        for name in ("a", "b"):
            list(client.groups(client.submit(RunRequest("heldout", (1,), run=name)).run))
        refused = httpx.post(f"{url}/v1/runs", json={"split": "heldout", "indices": [1]})
        assert (refused.status_code, "2 runs are kept, forget" in refused.text) == (429, True)
        assert client.submit(RunRequest("heldout", (1,), run="a")).finished == 1  # the same as before
        client.forget("a")
        assert len(client.run_tasks("heldout", [1])) == 1


def test_results_that_nobody_fetches_stop_the_run_and_fetching_lets_it_go_on(tmp_path: Path) -> None:
    limits = RunLimits(result_bytes=20_000)
    with served(tmp_path, max_concurrency=2, app={"limits": limits}) as url, RolloutClient(url) as client:
        run = client.submit(RunRequest("heldout", tuple(range(200)), temperature=1.0)).run
        held = wait_for_standstill(lambda: client.stats().result_bytes)
        finished = client.status(run).finished
        assert limits.result_bytes <= held < 2 * limits.result_bytes
        assert finished < 200
        assert client.stats().running == 0
        # one answer gives what is kept; its last cursor, asked for in the next request, frees it
        indices: list[int] = []
        cursor, end = 0, False
        while not end:
            *groups, last = lines(httpx.get(f"{url}/v1/runs/{run}/groups?cursor={cursor}&wait_s=5"))
            indices += [line["group"]["index"] for line in groups]
            cursor, end = last["cursor"], last["end"]
            assert client.stats().result_bytes < 2 * limits.result_bytes
        assert sorted(indices) == list(range(200))
        old = httpx.get(f"{url}/v1/runs/{run}/groups?cursor=0")
        assert (old.status_code, old.json()["failure"]["kind"]) == (404, "lost")
        assert "acknowledged by a later cursor and forgotten" in old.json()["failure"]["message"]


def wait_for_standstill(read: Callable[[], int]) -> int:
    """What `read` gives once it has given the same, above 0, twenty times."""
    same, before = 0, 0
    while same < 20:
        value = read()
        same = same + 1 if value == before > 0 else 0
        before = value
    return before


def test_a_run_that_nobody_asks_about_is_forgotten_after_its_lease(tmp_path: Path) -> None:
    gate = Gate()
    limits = RunLimits(lease_s=0.1)
    engine = FakeEngine(words=128, fail=gate)
    with served(tmp_path, engine=engine, app={"limits": limits}) as url, RolloutClient(url) as client:
        client.submit(RunRequest("heldout", (1, 2), run="left-alone"))
        while client.stats().runs:
            pass  # stats is about the server: it renews nobody's lease
        assert client.stats().running == 0
        with pytest.raises(FailureError, match="no run 'left-alone'"):
            client.status("left-alone")


def test_a_hung_environment_costs_its_own_episodes_and_nobody_else_s(tmp_path: Path) -> None:
    class Hangs(stage.Words):
        async def step(self, action: Action) -> Step:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().step(action)

        async def reset(self, task: Task, *, seed: int) -> Observation:
            self.hangs = task.prompt[0].content == "q2"
            return await super().reset(task, seed=seed)

    def scheduler() -> Scheduler:
        plan = stage.plan(attempts=1)
        journal = Journal(tmp_path / "journal.db", members=plan.members, identity=stage.IDENTITY)
        client = LocalClient(Hangs, limits=EnvironmentLimits(step_s=1.0))
        engine = FakeEngine(words=128)
        return Scheduler(plan, engine=engine, chat=stage.CHAT, make_env=lambda _: client.episode(), journal=journal)

    with served(tmp_path, scheduler=scheduler) as url, RolloutClient(url) as client:
        asked = tuple(Task(f"t{i}", (user(f"q{i}"),)) for i in range(5))
        arrived = [group for _, group in client.groups(client.submit(RunRequest(tasks=asked, samples=2)).run)]
        assert [group.index for group in arrived][-1] == 2  # the others did not wait for it
        for group in arrived:
            kinds = {row.failure.kind if row.failure else None for row in group.trajectories}
            assert kinds == ({FailureKind.TIMEOUT} if group.index == 2 else {None})
        assert client.stats().failures == {"timeout/step": 2}
        assert 'quintain_rollout_failures_total{kind="timeout",stage="step"} 2' in client.metrics()


def test_every_page_but_health_wants_the_token(tmp_path: Path) -> None:
    tokens = Tokens({"trainer": "s3cret"})
    with served(tmp_path, app={"tokens": tokens}) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        pages = [
            ("GET", "/metrics"), ("GET", "/v1/stats"), ("POST", "/v1/publish"), ("POST", "/v1/admit"),
            ("GET", "/v1/batches/0"), ("POST", "/v1/pause"), ("POST", "/v1/resume"), ("POST", "/v1/drain"),
            ("POST", "/v1/runs"), ("GET", "/v1/runs/x"), ("GET", "/v1/runs/x/groups"), ("POST", "/v1/runs/x/cancel"),
            ("DELETE", "/v1/runs/x"),
        ]  # fmt: skip
        for method, path in pages:
            answer = httpx.request(method, url + path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        with pytest.raises(FailureError, match="wants its token"), RolloutClient(url, "wrong") as client:
            client.stats()
        with RolloutClient(url, "s3cret") as client:
            assert len(client.run_tasks("heldout", [1])) == 1


def test_a_run_of_a_server_that_started_again_is_lost_and_said_so(tmp_path: Path) -> None:
    never = asyncio.Event()
    with served(tmp_path, engine=FakeEngine(words=128, fail=hang_on(2, never))) as url:
        client = RolloutClient(url)
        run = client.submit(RunRequest("heldout", (1, 2))).run
        stream = client.groups(run)
        next(stream)
    with served(tmp_path, port=int(url.rpartition(":")[2])):
        with pytest.raises(FailureError) as caught:
            list(stream)
        assert caught.value.failure.kind is FailureKind.LOST
    client.close()
