"""Questions and answers from a file, judged by any verifier: an environment without a line of Python.

What always holds: the split `heldout` has every row of `heldout` different prompts, which `seed` chooses, and `train`
all the others; rows keep their order. The reward is the verifier's score.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

from quintain.envs.builtin.numbered import draw
from quintain.envs.single_turn import Score, SingleTurnEnv
from quintain.failure import QuintainError
from quintain.messages import Message, user
from quintain.nearest import did_you_mean
from quintain.records import messages_in, read_rows
from quintain.task import Task, TaskSource


class DataEnv(SingleTurnEnv):
    """Prompts and answers of your own (JSON lines, CSV, Parquet), judged by the verifier you name.

    `verifier` is a verifier's name and `verifier_options` its options.
    """

    splits = ("train", "heldout")

    def __init__(
        self, *, verifier: str, verifier_options: Mapping[str, Any] | None = None, system: str | None = None
    ) -> None:
        super().__init__(system=system)
        self._verifier, self._options = verifier, dict(verifier_options or {})

    @classmethod
    def tasks(  # type: ignore[override]  # there are no tasks without a file
        cls,
        split: str,
        *,
        data: str,
        verifier: str,
        prompt: str = "prompt",
        answer: str = "answer",
        heldout: int = 200,
        seed: int = 0,
    ) -> TaskSource:
        """The rows of the file `data` as tasks. `prompt` and `answer` name its columns.

        A prompt is text, or a list of messages {"role": ..., "content": ...}; an answer is what the verifier takes as
        its reference, a number as text. Raises QuintainError, one line, for a wrong column or row, and for a `verifier`
        that does not exist.
        """
        from quintain.verifiers.registry import verifier_class

        verifier_class(verifier)  # before anything is sampled
        path = Path(data)
        tasks = [
            Task(f"{path.stem}-{number}", _prompt(row, prompt, where), _answer(row, answer, where))
            for number, row in read_rows(path, f"{{{prompt!r}: ..., {answer!r}: ...}} in JSON")
            for where in (f"{path} row {number}",)
        ]
        prompts = list(dict.fromkeys(task.prompt for task in tasks))
        if not 0 <= heldout < len(prompts):
            raise QuintainError(
                f"{path} has {len(prompts)} different prompts: heldout must leave some, not be {heldout}"
            )
        hidden = {prompts[i] for i in draw(heldout, len(prompts), f"{seed}:heldout")}
        return [task for task in tasks if (task.prompt in hidden) == (split == "heldout")]

    def score(self, answer: str, reference: Any) -> Score | Awaitable[Score]:
        """What the verifier says."""
        return self.judge(self._verifier, answer, reference, self._options)


def _prompt(row: Mapping[str, Any], column: str, where: str) -> tuple[Message, ...]:
    value = _of(row, column, where, "prompt")
    if isinstance(value, str) and value.strip():
        return (user(value),)
    try:
        return messages_in(value)
    except ValueError as error:
        raise QuintainError(f"{where}: a prompt is text or a list of messages: {error}") from None


def _answer(row: Mapping[str, Any], column: str, where: str) -> Any:
    value = _of(row, column, where, "answer")
    if value is None:
        raise QuintainError(f"{where}: {column!r} is empty")
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _of(row: Mapping[str, Any], column: str, where: str, option: str) -> Any:
    if column not in row:
        known = ", ".join(row) or "none"
        raise QuintainError(
            f"{where} has no column {column!r}{did_you_mean(column, list(row))} (its columns: {known}; the option"
            f" {option!r} names another)"
        )
    return row[column]
