"""Sessions over a backend in this process, with a clock that tests set."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintain.envs import Action, Environment, FailureError, Observation, Step, Task, user
from quintain.envs.options import bind
from quintain.envs.registry import resolve
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.serving.sessions import Sessions
from quintain.envs.serving.wire import CreateEpisode, ForkRequest, StepRequest
from quintain.envs.workers.host import Host
from quintain.envs.workers.pool import Inline
from quintain.failure import Failure, FailureKind, QuintainError, Stage
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import retry_after_of, status_of

SAMPLES = Path(__file__).parent / "samples.py"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Table:
    """Sessions and what is around them."""

    def __init__(self, env: str | type[Environment] = f"{SAMPLES}:Probe", **limits) -> None:
        self.clock = Clock()
        self.metrics = Metrics("quintain_env_")
        self.host = Host(bind(resolve(env) if isinstance(env, str) else env), "probe")
        self.sessions = Sessions(Inline(self.host), EnvironmentLimits(**limits), self.metrics, clock=self.clock)

    async def create(self, episode_id: str, task: int = 0) -> dict:
        return json.loads(await self.sessions.create(CreateEpisode("train", task, episode_id=episode_id)))

    async def step(self, episode_id: str, turn: int, text: str) -> dict:
        return json.loads(await self.sessions.step(episode_id, StepRequest(turn, Action.text(text))))

    def metric(self, name: str) -> float:
        lines = [line for line in self.metrics.render().splitlines() if line.startswith(f"quintain_env_{name} ")]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    async def until(self, holds) -> None:
        """Let the event loop turn until something is so."""
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline
            await asyncio.sleep(0)


def refusal(error) -> tuple[int, FailureKind]:
    return status_of(error.value), error.value.failure.kind


async def test_an_episode_is_played_turn_by_turn():
    table = Table()
    created = await table.create("e")
    assert (created["episode_id"], created["turn"], created["state"]) == ("e", 0, "running")
    assert created["observation"]["messages"][0]["content"] == "task plain"
    first = await table.step("e", 0, "hello")
    assert (first["turn"], first["state"], first["terminated"]) == (1, "running", False)
    last = await table.step("e", 1, "end")
    assert (last["turn"], last["state"], last["reward"]) == (2, "done", 1.0)


async def test_the_same_turn_with_the_same_action_is_run_once_however_often_it_is_asked_for(tmp_path):
    table, runs, gate = Table(), tmp_path / "runs", tmp_path / "gate"
    await table.create("e")
    first = await table.step("e", 0, f"count {runs}")
    assert await table.step("e", 0, f"count {runs}") == first
    waiting = [asyncio.create_task(table.step("e", 1, f"wait {gate}")) for _ in range(3)]
    await asyncio.sleep(0)
    gate.touch()
    answers = await asyncio.gather(*waiting)
    assert answers[0] == answers[1] == answers[2]
    assert runs.read_bytes() == b"."
    assert table.metric("replays_total") == 3


async def test_a_failed_turn_is_answered_with_the_same_failure_again():
    table = Table()
    await table.create("e")
    for _ in range(2):
        with pytest.raises(FailureError, match="ValueError: cannot fly") as error:
            await table.step("e", 0, "complain fly")
        assert refusal(error) == (500, FailureKind.CRASHED)
    with pytest.raises(FailureError, match="cannot fly") as error:
        await table.step("e", 1, "hello")
    assert refusal(error) == (409, FailureKind.CRASHED)


@pytest.mark.parametrize(
    ("turn", "text", "why"),
    [
        (0, "other", "turn 0 was already played, with another action"),
        (2, "hello", "turn 2 is out of order: the next turn is 1"),
        (-1, "hello", "turn -1 is out of order"),
    ],
)
async def test_a_conflicting_turn_is_refused_with_409(turn, text, why):
    table = Table()
    await table.create("e")
    await table.step("e", 0, "hello")
    with pytest.raises(FailureError, match=why) as error:
        await table.step("e", turn, text)
    assert refusal(error) == (409, FailureKind.REJECTED)


async def test_a_step_after_the_end_or_on_a_closed_episode_is_refused_with_409():
    table = Table()
    await table.create("e")
    await table.step("e", 0, "end")
    with pytest.raises(FailureError, match="the episode has ended") as error:
        await table.step("e", 1, "more")
    assert refusal(error) == (409, FailureKind.REJECTED)
    table.sessions.close("e")
    with pytest.raises(FailureError, match="the episode is closed") as error:
        await table.step("e", 0, "end")
    assert refusal(error) == (409, FailureKind.REJECTED)


async def test_creating_again_with_the_same_id_gives_the_same_episode_and_another_request_is_refused():
    table = Table()
    assert await table.create("e") == await table.create("e")
    assert table.metric("episodes_live") == 1
    with pytest.raises(FailureError, match="created by another request") as error:
        await table.create("e", task=1)
    assert refusal(error) == (409, FailureKind.REJECTED)


async def test_episodes_beyond_the_slots_wait_in_line_and_those_beyond_the_line_are_refused():
    table = Table(max_episodes=1, queue=3)
    await table.create("first")
    begun: list[str] = []

    async def wait_for_slot(name: str) -> None:
        await table.create(name)
        begun.append(name)

    waiting = []
    for name in "abc":
        waiting.append(asyncio.create_task(wait_for_slot(name)))
        await table.until(lambda: table.metric("episodes_queued") == len(waiting))
    with pytest.raises(FailureError, match="all 1 slots are taken and 3 episodes wait") as error:
        await table.create("d")
    assert refusal(error) == (429, FailureKind.OVERLOADED)
    assert retry_after_of(error.value) > 0

    await table.step("first", 0, "end")  # an end frees the slot
    await table.until(lambda: begun == ["a"])
    table.sessions.close("a")  # closing does
    await table.until(lambda: begun == ["a", "b"])
    with pytest.raises(FailureError):
        await table.step("b", 0, "complain x")  # failing does
    await table.until(lambda: begun == ["a", "b", "c"])
    assert table.metric("episodes_live") == 1


async def test_an_episode_that_waits_too_long_is_refused_and_may_ask_again():
    table = Table(max_episodes=1, queue_s=0.01)
    await table.create("first")
    with pytest.raises(FailureError, match=r"no slot came free within 0\.01 s") as error:
        await table.create("second")
    assert refusal(error) == (429, FailureKind.OVERLOADED)
    table.sessions.close("first")
    await table.until(lambda: table.metric("episodes_live") == 0)
    assert (await table.create("second"))["state"] == "running"


async def test_an_episode_that_is_closed_in_the_queue_leaves_it():
    table = Table(max_episodes=1)
    await table.create("first")
    second = asyncio.create_task(table.create("second"))
    await table.until(lambda: table.metric("episodes_queued") == 1)
    table.sessions.close("second")
    with pytest.raises(FailureError, match="closed"):
        await second
    assert (table.metric("episodes_queued"), table.metric("episodes_live")) == (0, 1)


async def test_closing_cancels_the_step_in_progress_and_frees_the_slot():
    table = Table(max_episodes=1)
    await table.create("e")
    step = asyncio.create_task(table.step("e", 0, "hang"))
    await asyncio.sleep(0)
    table.sessions.close("e")
    with pytest.raises(FailureError, match="closed meanwhile") as error:
        await step
    assert refusal(error) == (409, FailureKind.CANCELLED)
    assert (await table.create("next"))["state"] == "running"


async def test_a_lease_runs_out_only_when_nobody_touches_the_episode():
    table = Table(lease_s=10, max_episodes=1)
    await table.create("e")
    for table.clock.now in (9, 18, 27):
        table.sessions.sweep()
        table.sessions.status("e")
    table.clock.now = 36
    await table.step("e", 0, "hello")
    table.clock.now = 45.9
    table.sessions.sweep()
    assert table.sessions.status("e").state == "running"
    table.clock.now += 10
    table.sessions.sweep()
    with pytest.raises(FailureError) as error:
        table.sessions.status("e")
    assert refusal(error) == (404, FailureKind.LOST)
    assert table.metric('episodes_total{how="expired"}') == 1
    assert (await table.create("next"))["state"] == "running"


async def test_a_lease_does_not_run_while_the_environment_works():
    table = Table(lease_s=10)
    await table.create("e")
    step = asyncio.create_task(table.step("e", 0, "hang"))
    await asyncio.sleep(0)
    table.clock.now = 1000
    table.sessions.sweep()
    assert table.sessions.status("e").state == "running"
    table.sessions.close("e")
    with pytest.raises(FailureError):
        await step


async def test_the_answers_of_ended_episodes_are_kept_for_a_bounded_number_of_them():
    table = Table(finished=2)
    for name in ("a", "b", "c"):
        await table.create(name)
        await table.step(name, 0, "end")
    assert table.metric("episodes_known") == 2
    assert (await table.step("c", 0, "end"))["reward"] == 1.0
    with pytest.raises(FailureError) as error:
        await table.step("a", 0, "end")
    assert refusal(error) == (404, FailureKind.LOST)


async def test_an_environment_that_dies_while_idle_gives_its_failure_to_the_next_step():
    table = Table(max_episodes=1)
    await table.create("e")
    table.sessions._lost({"e", "unknown"}, Failure.of(FailureKind.CRASHED, Stage.STEP, "the process died"))
    with pytest.raises(FailureError, match="the process died") as error:
        await table.step("e", 0, "hello")
    assert refusal(error) == (409, FailureKind.CRASHED)
    assert table.sessions.status("e").failure.kind is FailureKind.CRASHED
    assert (await table.create("next"))["state"] == "running"


async def test_a_mistake_of_the_backend_fails_the_episode_and_is_logged(monkeypatch, caplog):
    table = Table()
    await table.create("e")

    async def call(request, deadline):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(table.sessions._backend, "call", call)
    with pytest.raises(FailureError, match="the server made a mistake") as error:
        await table.step("e", 0, "hello")
    assert refusal(error) == (500, FailureKind.CRASHED)
    assert "a mistake" in caplog.text


async def test_every_environment_is_closed_when_the_sessions_stop():
    table = Table()
    await table.create("e")
    assert table.host._live
    await table.sessions.stop()
    assert not table.host._live


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (CreateEpisode(), "give a task, or a split and an index"),
        (CreateEpisode("train"), "give a task, or a split and an index"),
        (CreateEpisode(index=1), "give a task, or a split and an index"),
        (CreateEpisode("train", -1), "a task's index is at least 0, not -1"),
        (CreateEpisode("train", 0, episode_id="a/b"), "an episode_id is 1 to 64 letters"),
        (CreateEpisode("train", 0, episode_id=""), "an episode_id is 1 to 64 letters"),
    ],
)
async def test_a_create_that_makes_no_sense_is_refused(request_, why):
    with pytest.raises(FailureError, match=why) as error:
        await Table().sessions.create(request_)
    assert refusal(error) == (400, FailureKind.REJECTED)


def test_a_limit_that_allows_nothing_is_a_mistake():
    with pytest.raises(QuintainError, match="the limit step_s must be more than 0, not 0"):
        EnvironmentLimits(step_s=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=40), st.integers(1, 6))
@settings(deadline=None)
def test_the_answers_of_ended_episodes_are_bounded_in_number_and_in_bytes(events, finished):
    async def live() -> None:
        table = Table(finished=finished, finished_bytes=1500)
        for number, (how, size) in enumerate(events):
            name = f"e{number}"
            await table.create(name)
            await table.step(name, 0, "x" * size)
            if how == 0:
                table.sessions.close(name)
            elif how == 1:
                table.clock.now += 601  # its lease runs out
                table.sessions.sweep()
            else:
                ended = await table.step(name, 1, "end")
                assert ended["state"] == "done"  # whoever ended it is answered, whatever is kept
                if how == 3 and table.metric("answers_bytes"):
                    assert await table.step(name, 1, "end") == ended
            assert table.metric("answers_bytes") <= 1500
            assert table.metric("episodes_known") <= finished
        kept = [record for record in table.sessions._records.values() if record.episode.answers]
        assert table.metric("answers_bytes") == sum(
            len(record.opened) + sum(map(len, record.episode.answers)) for record in kept
        )
        await table.until(lambda: not table.metric("episodes_live"))

    asyncio.run(live())


class Slow(Environment):
    """Counts, and takes its time to fork."""

    begun, gate = asyncio.Event(), asyncio.Event()
    count = 0

    async def reset(self, task, *, seed):
        return Observation(task.prompt)

    async def step(self, action):
        self.count += 1
        return Step(Observation((user(str(self.count)),)), 0.0, False)

    async def fork(self):
        self.begun.set()
        await self.gate.wait()
        return copy.copy(self)

    @classmethod
    def tasks(cls, split):
        return [Task("one", (user("?"),))]


async def test_a_step_waits_while_its_environment_makes_another():
    table = Table(Slow)
    await table.create("e")
    forking = asyncio.create_task(table.sessions.fork("e", ForkRequest(0, "f")))
    await Slow.begun.wait()
    stepping = asyncio.create_task(table.step("e", 0, "x"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not stepping.done()
    Slow.gate.set()
    assert (await forking).turn == 0
    step = await stepping
    assert (await table.step("f", 0, "x")) == step | {"episode_id": "f"}
    assert (await table.sessions.fork("e", ForkRequest(1, "g"))).turn == 1
    assert (await table.step("g", 0, "x")) == step | {"episode_id": "g"}
    assert (await table.step("g", 1, "x"))["observation"]["messages"][0]["content"] == "2"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=30), st.integers(1, 3))
@settings(deadline=None)
def test_a_token_has_at_most_its_episodes_open_and_the_others_go_on(events, most):
    async def live() -> None:
        table, mine = Table(token_episodes=most, max_episodes=4), {"a": [], "b": []}
        for number, (holder, how) in enumerate(events):
            if how == 0 and mine[holder]:
                name = mine[holder].pop(0)
                await table.step(name, 0, "end")
            elif how == 1 and mine[holder]:
                table.sessions.close(mine[holder].pop())
            else:
                request = CreateEpisode("train", 0, episode_id=f"e{number}")
                if len(mine[holder]) < most and sum(map(len, mine.values())) < 4:  # at once: one may still be closing
                    await table.sessions.create(request, holder)
                    mine[holder].append(f"e{number}")
                elif len(mine[holder]) == most:
                    with pytest.raises(FailureError, match=f"this token has {most} episodes open") as error:
                        await table.sessions.create(request, holder)
                    assert refusal(error) == (429, FailureKind.OVERLOADED)
        await table.sessions.stop()

    asyncio.run(live())


async def test_the_holders_of_tokens_take_turns_where_their_episodes_wait():
    table, begun = Table(max_episodes=1), []
    await table.create("first")

    async def play(name: str, holder: str) -> None:
        await table.sessions.create(CreateEpisode("train", 0, episode_id=name), holder)
        begun.append(name)
        table.sessions.close(name)

    waiting = [asyncio.create_task(play(f"{holder}{n}", holder)) for holder in "ab" for n in range(3)]
    await table.until(lambda: table.metric("episodes_queued") == 6)
    table.sessions.close("first")
    await asyncio.gather(*waiting)
    assert begun == ["a0", "b0", "a1", "b1", "a2", "b2"]


async def test_after_a_thousand_episodes_that_somebody_broke_off_none_is_left():
    table = Table(max_episodes=8)
    for number in range(1000):
        await table.create(f"e{number}")
        await table.step(f"e{number}", 0, "hello")
        table.sessions.close(f"e{number}")
    await table.until(lambda: not table.metric("episodes_live"))
    assert table.metric("answers_bytes") == table.metric("episodes_queued") == 0
    assert not table.host._live
