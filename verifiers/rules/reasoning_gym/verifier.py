"""The reasoning-gym verifier: the scorer of the task's own family (`reasoning-gym` on PyPI, more than 100 families).

The reference is `{"dataset": name, "entry": {…}}` with the entry as the dataset gave it, or `{"dataset": name,
"config": {"seed": 42, "size": 500, …}, "index": 7}`, from which the worker makes the entry. Prefer the entry: some
generators give another one in another process.

The answer is what is in the last `<answer>…</answer>` behind the thinking, else all of it. The scorer's number is the
score, cut to [0, 1]; some families give a small one to any answer of the right form. A scorer that raises on the
answer and not on the entry's own makes the answer `unparsable`; one that raises on both, hangs or crashes is
`crashed` or `timeout`, and no score. An answer is never evaluated as a programme, though some of the
scorers were written to do so: see `quintain.verifiers.rules.reasoning_gym.guard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from quintain.verdict import Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.options import Options, TextOptions, WorkerOptions
from quintain.verifiers.pure import bad_reference, unparsable
from quintain.verifiers.text import last_element
from quintain.verifiers.workers.verifier import PooledVerifier


class ReasoningGymOptions(WorkerOptions, TextOptions):
    """Options of the reasoning-gym verifier."""

    partial: bool = True
    """Whether scores between 0 and 1 count, in place of 1 alone."""


class ReasoningGymVerifier(PooledVerifier[ReasoningGymOptions]):
    """Scores an answer with the scorer of its family."""

    name: ClassVar[str] = "reasoning_gym"
    options_type: ClassVar[type[Options]] = ReasoningGymOptions
    check: ClassVar[str] = "quintain.verifiers.rules.reasoning_gym.score:check"
    warm_up: ClassVar[str | None] = "quintain.verifiers.rules.reasoning_gym.score:warm_up"
    memory_bytes: ClassVar[int] = 4 << 30  # an address space, of which its libraries reserve much
    needs: ClassVar[tuple[str, str] | None] = ("reasoning-gym", "reasoning-gym")

    def question(self, item: Item) -> Verdict | dict[str, Any]:
        """What the worker is asked."""
        reference = item.reference
        if not isinstance(reference, Mapping) or not isinstance(reference.get("dataset"), str):
            return bad_reference('{"dataset": name} with its "entry", or with "config" and "index"', reference)
        entry, config, index = (reference.get(key) for key in ("entry", "config", "index"))
        if entry is not None:
            if not isinstance(entry, Mapping) or "answer" not in entry:
                return bad_reference("about an entry that has its answer", entry)
        elif not isinstance(config, Mapping) or not isinstance(index, int) or isinstance(index, bool) or index < 0:
            return bad_reference('{"dataset": name} with its "entry", or with "config" and "index"', reference)
        text = self.options.answer_in(item.answer)
        if text and self.options.tag is None:
            text = (last_element(text, "answer") or text).strip("\r\n")
        if not text:
            return unparsable("there is no answer in the text")
        return {
            "dataset": reference["dataset"],
            "entry": dict(entry) if entry is not None else None,
            "config": config,
            "index": index,
            "answer": text,
            "partial": self.options.partial,
        }
