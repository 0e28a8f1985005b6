"""Proves an environment sound by playing it, in this process or behind a URL.

    problems = await check_environment(MathEnv)          # or EnvClient(url), or LocalClient(cls, options)

What is checked: every split has tasks and gives the same ones again; the same task, seed and actions give the same
episode; rewards are finite and messages well-formed; what is said can be sent as JSON; no info shows the reference
while the episode runs; a step after the end is refused; closing is allowed at any time and twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quintain.envs.base import Action, Environment, Observation, Step, fault_in
from quintain.envs.local import LocalClient
from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.task import Task, TaskSource, size_of

ANSWERS = ("", "0", "I do not know.")


class Client(Protocol):
    """What an environment is reached through: `EnvClient`, `LocalClient`."""

    def episode(self) -> Environment:
        """A new environment."""

    def tasks(self, split: str) -> TaskSource:
        """The tasks of `split`."""

    async def aclose(self) -> None:
        """Let go."""


@dataclass(frozen=True, slots=True)
class _Played:
    first: Observation
    steps: tuple[Step, ...]


async def check_environment(
    env: type[Environment] | Client,
    *,
    options: Mapping[str, Any] | None = None,
    splits: Sequence[str] | None = None,
    tasks: int = 3,
    answers: Sequence[str] = ANSWERS,
    max_turns: int = 8,
) -> list[str]:
    """What is wrong with `env`, a sentence each; nothing where it is sound.

    `tasks` of each split are played, with each of `answers` again and again until the end or for `max_turns`. `options`
    are for a class; `splits` are a class's own, or "train" behind a client. Raises QuintainError for wrong options.
    """
    if isinstance(env, type):
        client: Client = LocalClient(env, options)
        splits = splits or env.splits
    else:
        client, splits = env, splits or ("train",)
    problems: list[str] = []
    for split in splits:
        try:
            found = _tasks(client, split, tasks, problems)
        except (FailureError, QuintainError) as error:
            problems.append(f"split {split!r} cannot be read: {error}")
            continue
        leaks = [await _check_task(client, task, answers, max_turns, problems) for task in found]
        if leaks and all(leaks):  # one alone may be chance: a turn counter that equals the answer
            problems.append(f"split {split!r}: the info of its tasks or observations shows the reference")
    if isinstance(env, type):
        await client.aclose()
    return list(dict.fromkeys(problems))


def _tasks(client: Client, split: str, count: int, problems: list[str]) -> list[Task]:
    source, again = client.tasks(split), client.tasks(split)
    size = size_of(source)
    indices = range(count if size is None else min(size, count))
    found = [source[i] for i in indices]
    if not found:
        problems.append(f"split {split!r} has no tasks")
    if found != [again[i] for i in reversed(indices)][::-1]:
        problems.append(f"split {split!r} gives other tasks at the same index the second time")
    for task in found:
        for message in task.prompt:
            if fault := fault_in(message):
                problems.append(f"task {task.id!r} of split {split!r}: {fault}")
    return found


async def _check_task(client: Client, task: Task, answers: Sequence[str], max_turns: int, problems: list[str]) -> bool:
    """Play `task` with each answer, twice; whether its reference was to be seen."""
    told = _says(task.info, task.reference)
    for answer in answers:
        where = f"task {task.id!r} with the answer {answer!r}"
        try:
            played, again = [await _play(client, task, answer, max_turns, where, problems) for _ in range(2)]
        except FailureError as error:
            problems.append(f"{where}: {error}")
            continue
        if played != again:
            problems.append(f"{where}: the same seed and actions gave two different episodes")
        if not played.first.messages:
            problems.append(f"{where}: the first observation has no message, so there is nothing to answer")
        running = [played.first.info, *(s.info for s in played.steps if not s.ended)]
        told = told or any(_says(info, task.reference) for info in running)
        problems += [f"{where}: {fault}" for fault in _unsendable(played)]
    return told


async def _play(client: Client, task: Task, answer: str, max_turns: int, where: str, problems: list[str]) -> _Played:
    env = client.episode()
    await env.close()  # before the first reset, which is allowed
    try:
        first = await env.reset(task, seed=0)
        steps: list[Step] = []
        while len(steps) < max_turns and not (steps and steps[-1].ended):
            steps.append(await env.step(Action.text(answer)))
        if steps and steps[-1].ended and not await _refuses(env, answer):
            problems.append(f"{where}: a step after the end was answered instead of refused")
        return _Played(first, tuple(steps))
    finally:
        await env.close()
        await env.close()


async def _refuses(env: Environment, answer: str) -> bool:
    try:
        await env.step(Action.text(answer))
    except FailureError as error:
        return error.failure.kind is FailureKind.REJECTED
    return False


def _unsendable(played: _Played) -> Iterator[str]:
    from quintain.codec import to_json

    for said in (played.first, *played.steps):
        try:
            to_json(said)
        except (QuintainError, ValueError) as error:
            yield f"its {type(said).__name__} cannot be sent as JSON: {error}"


def _says(info: Any, reference: Any) -> bool:
    if reference is None:
        return False
    if isinstance(info, Mapping):
        return any(_says(value, reference) for value in info.values())
    if isinstance(info, (list, tuple)):
        return info == reference or any(_says(value, reference) for value in info)
    return bool(info == reference) or (isinstance(info, str) and info == str(reference))
