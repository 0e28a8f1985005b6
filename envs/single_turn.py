"""The common case in ten lines: one question, one answer, one reward.

    class Capitals(SingleTurnEnv):
        \"""Name the capital.\"""

        system = "Answer with the city's name only."

        @classmethod
        def tasks(cls, split: str) -> TaskSource:
            cities = {"France": "Paris", "Peru": "Lima", "Kenya": "Nairobi"}
            return [Task(land, (user(f"Capital of {land}?"),), city) for land, city in cities.items()]

        def score(self, answer: str, reference: str) -> float:
            return float(answer.strip(" .") == reference)

Instead of a `score` it may name a verifier: `verifier = "math"`. What always holds: an episode is one step long; a
verifier that fails makes a failure, never a reward; neither the reference nor a verdict's detail is in any observation.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from quintain.envs.base import Action, Observation, Step, out_of_turn
from quintain.envs.judging import JudgingEnv
from quintain.failure import FailureError
from quintain.messages import system
from quintain.task import Task
from quintain.verdict import Verdict

if TYPE_CHECKING:
    from quintain.verifiers.base import Verifier

Score = float | Mapping[str, float] | Verdict
"""A reward, its named parts (the reward is their sum), or a verifier's verdict."""


class SingleTurnEnv(JudgingEnv):
    """A task's prompt, one answer, and a score: subclasses give `tasks`, and `score` or `verifier`.

    `system`, where set, is the system message before the prompt; it is an option too. `verifier` is the name
    of a verifier or one of your own.
    """

    system: str | None = None
    verifier: ClassVar[str | Verifier | None] = None
    _task: Task | None = None
    _asked: bool = False

    def __init__(self, *, system: str | None = None) -> None:
        if system is not None:
            self.system = system

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show the task's prompt, after the system message where there is one."""
        self._task, self._asked = task, False
        return Observation((system(self.system), *task.prompt) if self.system else task.prompt)

    async def step(self, action: Action) -> Step:
        """Score the answer and end. Raises FailureError where the verifier fails or the episode is over."""
        task = self._playing()
        self._asked = True
        said = self.score(action.content, task.reference)
        return scored(await said if inspect.isawaitable(said) else said)

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action] | None:
        """The reference, where it is a text; a subclass whose reference is no answer says which one is."""
        return (Action.text(task.reference),) if isinstance(task.reference, str) else None

    def _playing(self) -> Task:
        """The task that is played. Raises FailureError (rejected) where none is."""
        if self._task is None or self._asked:
            raise out_of_turn(begun=self._task is not None)
        return self._task

    def score(self, answer: str, reference: Any) -> Score | Awaitable[Score]:
        """What `answer` is worth: a float, named parts, or a verdict; `async def` or not. Asks `verifier`."""
        return self._verify(answer, reference)

    async def _verify(self, answer: str, reference: Any) -> Verdict:
        from quintain.verifiers.base import Item

        if self.verifier is None:
            raise NotImplementedError(f"{type(self).__name__} needs a `score` method or a `verifier`")
        if isinstance(self.verifier, str):
            return await self.judge(self.verifier, answer, reference)
        (verdict,) = await self.verifier.verify([Item(answer, reference)])
        return verdict


def scored(score: Score) -> Step:
    """The last step of an episode that is worth `score`. Raises FailureError where a verifier failed."""
    if isinstance(score, Verdict):
        if score.score is None:
            assert score.failure is not None  # a verdict has one or the other
            raise FailureError(score.failure)
        return Step(Observation(), score.score, True, info={"outcome": str(score.outcome)})
    if isinstance(score, Mapping):
        named = Step(Observation(), 0.0, True, info={"rewards": score}).info["rewards"]
        return Step(Observation(), sum(named.values()), True, info={"rewards": named})
    return Step(Observation(), score, True)
