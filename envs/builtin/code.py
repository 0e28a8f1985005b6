"""Programming problems, judged by their tests in a sandbox: one attempt, or several with a word on each.

What always holds: the reward is what the hidden tests say about one attempt, the last; visible tests pay nothing and
only say how an attempt did; no hidden test and nothing of its run is in any observation; a sandbox that breaks is a
failure, never a reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from quintain.envs.base import Action, Observation, Step, out_of_turn
from quintain.envs.builtin.code_tasks import EXPECTED, NoProblem, problem_of
from quintain.envs.builtin.numbered import draw
from quintain.envs.judging import JudgingEnv
from quintain.failure import FailureError, QuintainError
from quintain.messages import system, user
from quintain.records import read_rows
from quintain.task import Task, TaskSource
from quintain.verdict import Outcome, Verdict

MAX_CASES_TOLD: Final = 5
MAX_TOLD_CHARS: Final = 300


class CodeEnv(JudgingEnv):
    """Programming problems of your own (HumanEval, MBPP, stdin/stdout): reward 1 where the hidden tests pass.

    `turns` is how many attempts there are. After each but the last, the visible tests are run: where they pass, or
    there are none, the attempt is final; else the policy is told which failed, and tries again. `code` are options of
    the verifier `code`; with `partial_credit` the reward is the share of hidden tests passed.
    """

    splits = ("train", "heldout")

    def __init__(self, *, system: str | None = None, turns: int = 1, code: Mapping[str, Any] | None = None) -> None:
        if turns < 1:
            raise QuintainError(f"CodeEnv's option 'turns' is at least 1, not {turns}")
        self._system, self._turns = system, turns
        self._code = dict(code or {})
        self._task: Task | None = None
        self._left = 0

    @classmethod
    def tasks(  # type: ignore[override]  # there are no problems without a file
        cls, split: str, *, data: str, heldout: int = 16, seed: int = 0
    ) -> TaskSource:
        """The problems of the file `data` (see `quintain.records` and `quintain.envs.builtin.code_tasks`).

        `heldout` of them, chosen by `seed`, are the split `heldout`, and `train` has the others.
        """
        path = Path(data)
        problems = [_task(path, line, row) for line, row in read_rows(path, EXPECTED)]
        if not problems:
            raise QuintainError(f"{path} has no problems: expected {EXPECTED}, one a line")
        if not 0 <= heldout < len(problems):
            raise QuintainError(f"{path} has {len(problems)} problems: heldout must leave some, not be {heldout}")
        hidden = set(draw(heldout, len(problems), f"{seed}:heldout"))
        return [task for at, task in enumerate(problems) if (at in hidden) == (split == "heldout")]

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show the problem, after the system message where there is one."""
        self._task, self._left = task, self._turns
        return Observation((system(self._system), *task.prompt) if self._system else task.prompt)

    async def step(self, action: Action) -> Step:
        """Judge an attempt. Raises FailureError where the sandbox breaks, or the episode is over."""
        if self._task is None or self._left == 0:
            raise out_of_turn(begun=self._task is not None)
        visible = self._task.reference["visible"]
        if self._left > 1 and visible is not None:
            tried = _settled(await self.judge("code", action.content, visible, self._code | {"partial_credit": True}))
            if tried.outcome is not Outcome.CORRECT:
                self._left -= 1
                told = user(feedback(tried, visible, self._left))
                return Step(Observation((told,)), 0.0, False, info={"visible": str(tried.detail.get("status", ""))})
        self._left = 0
        verdict = _settled(await self.judge("code", action.content, self._task.reference["hidden"], self._code))
        assert verdict.score is not None
        info = {"outcome": str(verdict.outcome), "status": str(verdict.detail.get("status", ""))}
        return Step(Observation(), verdict.score, True, info=info)


def feedback(verdict: Verdict, visible: Mapping[str, Any], left: int) -> str:
    """What the policy is told of an attempt that failed `visible` tests; `left` attempts remain. Pure."""
    detail = verdict.detail
    lines = []
    if detail.get("total"):
        lines.append(f"Your program passes {detail.get('passed', 0)} of {detail['total']} visible tests.")
    failed = [case for case in detail.get("cases", ()) if case.get("status") != "passed"]
    for case in failed[:MAX_CASES_TOLD]:
        said = case.get("message") or case.get("reason") or ""
        lines.append(f"- {_shown(visible, case.get('index'))}: {case.get('status', 'failed').replace('_', ' ')}")
        if said:
            lines[-1] += f" ({_cut(str(said))})"
    if not failed:
        lines.append(f"It fails: {_cut(str(detail.get('reason') or detail.get('status') or verdict.outcome))}")
    lines.append(f"Correct it, and answer with the whole program in one code block ({left} more to try).")
    return "\n".join(lines)


def _shown(visible: Mapping[str, Any], index: Any) -> str:
    """The visible test of that number, in words."""
    tests = visible.get("cases") if visible.get("kind") == "stdio" else visible.get("tests")
    if not isinstance(tests, list) or not isinstance(index, int) or not 0 <= index < len(tests):
        return f"test {index}"
    if isinstance(tests[index], Mapping):
        case = tests[index]
        return f"for the input {_cut(str(case.get('stdin', '')))!r}, expected {_cut(str(case.get('stdout', '')))!r}"
    return _cut(str(tests[index]))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TOLD_CHARS else text[:MAX_TOLD_CHARS] + "…"


def _settled(verdict: Verdict) -> Verdict:
    """`verdict`, which has a score; else raises FailureError."""
    if verdict.failure is not None:
        raise FailureError(verdict.failure)
    return verdict


def _task(path: Path, line: int, row: Mapping[str, Any]) -> Task:
    try:
        prompt, reference, visible = problem_of(row)
    except NoProblem as error:
        raise QuintainError(f"{path} line {line}: {error}; expected {EXPECTED}") from None
    name = row.get("task_id")
    shown = str(name) if isinstance(name, (str, int)) else f"{path.stem}-{line}"
    return Task(shown, (user(prompt),), {"hidden": reference, "visible": visible})
