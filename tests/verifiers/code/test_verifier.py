"""The code verifier as a service: many items, cancelled batches, dying sandboxes, and failures that are no scores."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from quintain.failure import QuintainError
from quintain.verdict import Outcome
from quintain.verifiers import Item, get_verifier
from quintain.verifiers.code.verifier import CodeVerifier

FUNCTION = {"kind": "function", "entry_point": "f", "tests": "def check(f): assert f(1) == 2"}
STDIO = {"kind": "stdio", "cases": [{"stdin": "", "stdout": "2"}]}


def right(number: int) -> Item:
    if number % 2:
        return Item("```python\nprint(2)\n```", STDIO)
    return Item("```python\ndef f(x): return 2\n```", FUNCTION)


def wrong(number: int) -> Item:
    if number % 2:
        return Item("```python\nprint(3)\n```", STDIO)
    return Item("```python\ndef f(x): return 3\n```", FUNCTION)


HANGING = Item("```python\nwhile True: pass\n```", STDIO)


async def test_many_items_of_all_kinds_at_once_keep_their_places() -> None:
    async with CodeVerifier.made() as verifier:
        items = [right(n) if n % 3 else wrong(n) for n in range(90)]
        batches = await asyncio.gather(verifier.verify(items), verifier.verify(items[::-1]))
    scores = [1.0 if n % 3 else 0.0 for n in range(90)]
    assert [[verdict.score for verdict in batch] for batch in batches] == [scores, scores[::-1]]


async def test_a_small_batch_does_not_wait_for_a_large_one() -> None:
    async with CodeVerifier.made(slots=1) as verifier:
        large = asyncio.create_task(verifier.verify([right(n) for n in range(80)]))
        await asyncio.sleep(0)
        assert [verdict.score for verdict in await verifier.verify([right(0), wrong(1)])] == [1.0, 0.0]
        assert not large.done()
        assert {verdict.score for verdict in await large} == {1.0}


async def test_a_cancelled_batch_ends_its_programs_and_costs_nothing_else() -> None:
    async with CodeVerifier.made(slots=2) as verifier:
        await verifier.verify([right(0), right(1)])
        batch = asyncio.create_task(verifier.verify([HANGING] * 4))
        await until(busy)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert [verdict.score for verdict in await verifier.verify([right(n) for n in range(6)])] == [1.0] * 6
        await until(lambda: not busy())


async def test_killed_processes_of_the_sandbox_change_no_verdict() -> None:
    async with CodeVerifier.made(slots=2) as verifier:
        await verifier.verify([right(0), right(1)])
        batch = asyncio.create_task(verifier.verify([right(n) if n % 3 else wrong(n) for n in range(60)]))
        for _ in range(5):
            await asyncio.sleep(0.05)  # a kill now and then, while the batch goes on
            keepers = psutil.Process(verifier_zygote(verifier)).children()
            if keepers:
                keepers[len(keepers) // 2].kill()
        verdicts = await batch
        after = await verifier.verify([right(n) for n in range(10)])
    for number, verdict in enumerate(verdicts):
        expected = 1.0 if number % 3 else 0.0
        assert verdict.score == expected or verdict.failure is not None, verdict
    assert [verdict.score for verdict in after] == [1.0] * 10


async def test_a_closed_verifier_says_so_and_leaves_no_process() -> None:
    before = set(psutil.Process().children(recursive=True))
    verifier = CodeVerifier.made()
    await verifier.verify([right(0), right(1)])
    await verifier.close()
    await verifier.close()
    assert set(psutil.Process().children(recursive=True)) <= before
    with pytest.raises(QuintainError, match="closed"):
        await verifier.verify([right(0)])


async def test_closing_ends_a_batch_that_runs() -> None:
    verifier = CodeVerifier.made(slots=1)
    batch = asyncio.create_task(verifier.verify([HANGING, HANGING, right(0)]))
    await until(busy)
    await verifier.close()
    async with asyncio.timeout(10):
        (outcome,) = await asyncio.gather(batch, return_exceptions=True)
    assert isinstance(outcome, QuintainError) or all(verdict.failure is not None for verdict in outcome)


async def test_an_interpreter_that_is_not_there_is_said_in_one_line_and_is_no_verdict() -> None:
    async with get_verifier("code", python="/no/such/python3") as verifier:
        with pytest.raises(QuintainError, match="/no/such/python3") as refused:
            await verifier.verify([right(0)])
    assert "\n" not in str(refused.value)


async def test_projects_without_pytest_are_a_failure_that_says_what_to_do() -> None:
    project = {"kind": "pytest", "files": {"test_a.py": "def test_a(): pass"}, "tests": ["test_a.py::test_a"]}
    async with get_verifier("code", pytest_python="/usr/bin/python3") as verifier:
        (verdict,) = await verifier.verify([Item("```python\nx = 1\n```", project)])
    assert verdict.score == 1.0 or (verdict.failure is not None and "pytest" in verdict.failure.message), verdict


async def test_the_version_names_the_interpreter_and_nothing_starts_before_an_item() -> None:
    before = set(psutil.Process().children(recursive=True))
    async with CodeVerifier.made() as verifier:
        assert verifier.version.startswith("2+python-3.")
        assert set(psutil.Process().children(recursive=True)) <= before
        await verifier.start()
        (verdict,) = await verifier.verify([Item("", FUNCTION)])
        assert verdict.outcome is Outcome.UNPARSABLE


async def until(true: Callable[[], bool]) -> None:
    """Wait until `true` is."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - nobody tells of other processes
            await asyncio.sleep(0.01)


def busy() -> bool:
    """Whether a descendant of this process computes."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() == psutil.STATUS_RUNNING:
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def verifier_zygote(verifier: CodeVerifier) -> int:
    """The zygote's process id."""
    pid = verifier._sandboxes.main.zygote_pid  # type: ignore[attr-defined]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGCONT)  # it is there
    return pid
