"""The worker pool: whatever an item does, only its own verdict shows it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.workers.pool import MAX_CHUNK, WorkerPool, chunk

GENEROUS_S = 60.0
"""A deadline that only a hanging test would reach."""


def numbered(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"do": "answer", "n": n, "right": n % 3 != 0, **more} for n in range(count)]


def assert_right(items: list[dict[str, Any]], verdicts: list[Verdict]) -> None:
    assert [(v.outcome, v.detail["n"]) for v in verdicts] == [
        (Outcome.CORRECT if item["right"] else Outcome.WRONG, item["n"]) for item in items
    ]


async def test_verdicts_come_in_the_order_of_their_items(pool: WorkerPool) -> None:
    items = numbered(500)
    assert_right(items, await pool.run(items, deadline_s=GENEROUS_S))


async def test_no_items_need_no_worker(pool: WorkerPool) -> None:
    assert await pool.run([], deadline_s=1.0) == []
    assert pool.worker_pids == ()


@pytest.mark.parametrize(
    ("deed", "outcome"),
    [
        ("segfault", Outcome.CRASHED),
        ("abort", Outcome.CRASHED),
        ("exit", Outcome.CRASHED),
        ("leave", Outcome.CRASHED),
        ("eat memory", Outcome.CRASHED),
        ("recurse", Outcome.CRASHED),
        ("overflow the stack", Outcome.CRASHED),
        ("raise", Outcome.CRASHED),
        ("be killed", Outcome.CRASHED),
        ("close its socket", Outcome.CRASHED),
        ("spin", Outcome.TIMEOUT),
    ],
)
async def test_a_catastrophe_is_the_verdict_of_exactly_its_own_item(
    pool: WorkerPool, deed: str, outcome: Outcome
) -> None:
    items = numbered(60)
    verdicts = await pool.run(
        [*items[:20], {"do": deed}, *items[20:]], deadline_s=1.0 if deed == "spin" else GENEROUS_S
    )
    bad = verdicts.pop(20)
    assert bad.outcome is outcome
    assert bad.score is None
    assert bad.failure is not None
    assert bad.failure.kind is (FailureKind.TIMEOUT if deed == "spin" else FailureKind.CRASHED)
    assert_right(items, verdicts)


async def test_five_catastrophes_among_two_hundred_change_no_other_verdict(pool: WorkerPool) -> None:
    items = numbered(195)
    deeds = ["spin", "be killed", "eat memory", "segfault", "spin"]
    places = sorted(random.Random(0).sample(range(200), k=5))
    batch = list(items)
    for place, deed in zip(places, deeds, strict=True):
        batch.insert(place, {"do": deed})
    verdicts = await pool.run(batch, deadline_s=1.0)
    bad = [verdicts.pop(place) for place in reversed(places)]
    assert [verdict.outcome for verdict in reversed(bad)] == [
        Outcome.TIMEOUT,
        Outcome.CRASHED,
        Outcome.CRASHED,
        Outcome.CRASHED,
        Outcome.TIMEOUT,
    ]
    assert_right(items, verdicts)


async def test_items_survive_the_random_killing_of_their_workers(pool: WorkerPool) -> None:
    items = numbered(400) + [{"do": "nap", "s": 0.01, "n": n, "right": True} for n in range(400, 450)]
    running = asyncio.create_task(pool.run(items, deadline_s=GENEROUS_S))
    kills, dice, killed = 0, random.Random(1), set[int]()
    while not running.done() and kills < 6:
        await asyncio.sleep(0.002)
        fresh = [pid for pid in pool.worker_pids if pid not in killed]
        if fresh and dice.random() < 0.2:
            victim = dice.choice(fresh)
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            kills += 1
    verdicts = await running
    assert kills > 0
    crashed = [v for v in verdicts if v.outcome is Outcome.CRASHED]
    # An item is given up only after its second death; six random kills hardly ever hit one item twice.
    assert len(crashed) <= kills // 2
    judged = [(item, v) for item, v in zip(items, verdicts, strict=True) if v.outcome is not Outcome.CRASHED]
    assert_right([item for item, _ in judged], [v for _, v in judged])


async def test_an_item_whose_worker_was_killed_once_is_tried_again(pool: WorkerPool, tmp_path: Path) -> None:
    [verdict] = await pool.run(
        [{"do": "be killed once", "mark": str(tmp_path / "mark"), "n": 7}], deadline_s=GENEROUS_S
    )
    assert (verdict.outcome, verdict.detail["n"]) == (Outcome.CORRECT, 7)


async def test_items_survive_the_death_of_the_zygote(pool: WorkerPool) -> None:
    items = [{"do": "nap", "s": 0.05, "n": n, "right": True} for n in range(20)]
    running = asyncio.create_task(pool.run(items, deadline_s=GENEROUS_S))
    await until(lambda: bool(pool.worker_pids))
    worker = psutil.Process(pool.worker_pids[0])
    zygote = worker.parent()
    assert zygote is not None
    zygote.kill()
    assert_right(items, await running)
    worker.wait(timeout=10)


async def test_a_worker_that_ignores_signals_is_killed_at_the_deadline(pool: WorkerPool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    [verdict] = await pool.run([{"do": "hang deaf", "mark": str(mark)}], deadline_s=0.5)
    assert verdict.outcome is Outcome.TIMEOUT
    await gone(int(mark.read_text()))


async def test_the_deadline_is_per_item_and_not_for_the_batch(pool: WorkerPool) -> None:
    items = [{"do": "nap", "s": 0.2, "n": n, "right": True} for n in range(20)]
    assert_right(items, await pool.run(items, deadline_s=1.0))


async def test_an_answer_that_came_in_time_counts_however_late_the_loop_looks(pool: WorkerPool) -> None:
    await pool.run(numbered(2), deadline_s=GENEROUS_S)
    running = asyncio.create_task(pool.run([{"do": "nap", "s": 0.1, "n": 1, "right": True}], deadline_s=0.4))
    await asyncio.sleep(0)
    os.system("sleep 1")  # noqa: ASYNC221 - the loop is meant to be blocked
    [verdict] = await running
    assert verdict.outcome is Outcome.CORRECT


async def test_a_cancelled_batch_frees_its_workers(pool: WorkerPool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hanging = asyncio.create_task(pool.run([{"do": "hang deaf", "mark": str(mark)}] * 2, deadline_s=3600.0))
    await until(lambda: mark.exists() and len(pool.worker_pids) == 2)
    before = pool.worker_pids
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    items = numbered(10)
    assert_right(items, await asyncio.wait_for(pool.run(items, deadline_s=GENEROUS_S), GENEROUS_S))
    for pid in before:
        await gone(pid)


async def test_a_small_batch_does_not_wait_for_a_large_one(pool: WorkerPool) -> None:
    await pool.run(numbered(2), deadline_s=GENEROUS_S)
    large = asyncio.create_task(
        pool.run([{"do": "nap", "s": 0.005, "n": n} for n in range(600)], deadline_s=GENEROUS_S)
    )
    await asyncio.sleep(0)
    items = numbered(10)
    assert_right(items, await pool.run(items, deadline_s=GENEROUS_S))
    assert not large.done()
    assert len(await large) == 600


async def test_a_large_item_passes_through(pool: WorkerPool) -> None:
    [verdict] = await pool.run([{"do": "answer", "n": 1, "text": "x\ud800" * 2_000_000}], deadline_s=GENEROUS_S)
    assert verdict.outcome is Outcome.CORRECT


async def test_what_a_check_prints_disturbs_nobody(pool: WorkerPool, capfd: pytest.CaptureFixture[str]) -> None:
    [verdict] = await pool.run([{"do": "print"}], deadline_s=GENEROUS_S)
    assert verdict.outcome is Outcome.CORRECT
    assert capfd.readouterr() == ("", "")


async def test_close_leaves_no_process(pool: WorkerPool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    others = set(psutil.Process().children(recursive=True))
    hanging = asyncio.create_task(pool.run([{"do": "hang deaf", "mark": str(mark)}], deadline_s=3600.0))
    await until(mark.exists)
    family = set(psutil.Process().children(recursive=True)) - others
    assert len(family) >= 2
    await pool.close()
    with pytest.raises(FailureError) as caught:
        await hanging
    assert caught.value.failure.kind is FailureKind.CANCELLED
    assert not [process for process in family if process.is_running()]
    await pool.close()
    with pytest.raises(QuintainError, match="closed"):
        await pool.run(numbered(1), deadline_s=1.0)


async def test_the_warm_up_is_inherited_by_every_worker(pool_checks: str) -> None:
    async with WorkerPool(f"{pool_checks}:warmed", warm_up=f"{pool_checks}:warm_up", size=2) as pool:
        verdicts = await pool.run([{}] * 50, deadline_s=GENEROUS_S)
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CORRECT}


@pytest.mark.parametrize(
    ("check", "warm_up", "reason"),
    [
        ("pool_checks:no_such_function", None, "no_such_function"),
        ("no_such_module:check", None, "no_such_module"),
        ("pool_checks:check", "pool_checks:fail_to_warm_up", "left_out"),
    ],
)
async def test_a_pool_that_cannot_start_says_why(
    pool_checks: str, check: str, warm_up: str | None, reason: str
) -> None:
    async with WorkerPool(check, warm_up=warm_up, size=1) as pool:
        for _ in range(2):
            with pytest.raises(QuintainError, match=reason):
                await pool.run(numbered(3), deadline_s=GENEROUS_S)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        {},
        {"outcome": "maybe"},
        {"outcome": "correct", "score": 2.0},
        "unsendable",
        {"outcome": "wrong", "score": "x"},
    ],
)
async def test_a_check_that_breaks_its_contract_has_crashed(pool_checks: str, answer: Any) -> None:
    async with WorkerPool(f"{pool_checks}:contract", size=1) as pool:
        broken, sound = await pool.run(
            [{"answer": answer}, {"answer": {"outcome": "partial", "score": 0.5}}], deadline_s=GENEROUS_S
        )
    assert broken.outcome is Outcome.CRASHED
    assert (sound.outcome, sound.score) == (Outcome.PARTIAL, 0.5)


def test_a_pool_goes_on_in_a_new_loop_once_the_old_one_is_closed(pool_checks: str) -> None:
    pool = WorkerPool(f"{pool_checks}:check", size=1)
    items = numbered(5)
    for _ in range(2):
        assert_right(items, asyncio.run(pool.run(items, deadline_s=GENEROUS_S)))
    asyncio.run(pool.close())
    assert not [p for p in psutil.Process().children() if "_zygote" in " ".join(p.cmdline())]


async def test_a_pool_refuses_a_second_loop(pool: WorkerPool) -> None:
    await pool.run(numbered(1), deadline_s=GENEROUS_S)

    def elsewhere() -> None:
        asyncio.run(pool.run(numbered(1), deadline_s=GENEROUS_S))

    with pytest.raises(QuintainError, match="event loop"):
        await asyncio.to_thread(elsewhere)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_deadline_is_a_positive_number(pool: WorkerPool, deadline_s: float) -> None:
    with pytest.raises(QuintainError, match="deadline_s"):
        await pool.run(numbered(1), deadline_s=deadline_s)


async def gone(pid: int) -> None:
    """Wait until there is no process `pid`."""
    await until(lambda: not psutil.pid_exists(pid))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does, which no event of this loop tells."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def test_a_long_queue_is_taken_in_chunks_and_its_last_items_one_by_one() -> None:
    assert chunk(1000, 2) == MAX_CHUNK
    assert [chunk(waiting, 2) for waiting in range(1, 8)] == [1] * 7
