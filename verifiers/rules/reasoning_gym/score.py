"""Scoring an answer with reasoning-gym, in a worker: its scorers may raise, hang, or eat memory."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import cache
from typing import Any, Final

import reasoning_gym
from reasoning_gym.factory import DATASETS

from quintain.nearest import one_of
from quintain.verdict import Outcome
from quintain.verifiers.rules.reasoning_gym.guard import install
from quintain.verifiers.text import shown

OF_TUPLES: Final = frozenset({"arc_agi", "rearc"})
"""Families whose scorers compare with tuples, which JSON does not have."""
TRUTH_OF_ANY_TEXT: Final = frozenset({"game_of_life_halting"})
"""Families whose scorers compare `bool(text)`, true of every answer: here the texts are compared."""
OF_ANY_NUMBER_WITHIN: Final = frozenset({"gsm_symbolic"})
"""Families whose scorers take a number wherever it stands ("not 20", "20 or 21", "-20"): here it stands alone."""
_NUMBER = re.compile(r"\$?([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\.?")
COMPOSITE: Final = "composite"
"""A mixture of families: each of its entries names its own."""


def warm_up() -> None:
    """Put the guards up, before any worker is forked."""
    install()


@cache
def dataset(name: str) -> Any:
    """The dataset called `name` with its default configuration, whose scorer reads everything from the entry."""
    install()  # it may have been imported since
    return reasoning_gym.create_dataset(name, size=1, seed=0)


def check(item: dict[str, Any]) -> dict[str, Any]:
    """The verdict on `{"dataset", "entry" or "config" and "index", "answer", "partial"}`."""
    name = item["dataset"]
    if name not in DATASETS:
        return _bad(f"there is no dataset {shown(name, 80)}{one_of(name, sorted(DATASETS))}")
    try:
        if item["entry"] is None:
            source = reasoning_gym.create_dataset(name, **item["config"])
            entry = source[item["index"]]
        else:
            entry = item["entry"]
            name = entry["metadata"]["source_dataset"] if name == COMPOSITE else name
            entry = _with_tuples(entry) if name in OF_TUPLES else entry
            source = dataset(name)
    except Exception as error:  # the boundary: whatever the generator does, it is no answer's fault
        return _bad(shown(f"{type(error).__name__}: {error}"))
    install()
    if name in TRUTH_OF_ANY_TEXT:
        score: float | Exception = float(item["answer"].strip().lower() == str(entry["answer"]).strip().lower())
    elif name in OF_ANY_NUMBER_WITHIN:
        score = float(_number(item["answer"]) is not None and _number(item["answer"]) == _number(str(entry["answer"])))
    else:
        score = _scored(source, item["answer"], entry)
    if isinstance(score, Exception):
        reason = shown(f"the scorer of {name} raised {type(score).__name__}: {score}")
        own = entry.get("answer")
        if isinstance(own, str) and not isinstance(_scored(source, own, entry), Exception):
            return {"outcome": Outcome.UNPARSABLE, "detail": {"reason": reason}}
        return {"outcome": Outcome.CRASHED, "message": reason}
    if not item["partial"] and score < 1.0:
        score = 0.0
    outcome = Outcome.CORRECT if score == 1.0 else Outcome.WRONG if score == 0.0 else Outcome.PARTIAL
    return {"outcome": outcome, "score": score, "detail": {"dataset": name, "answer": shown(item["answer"])}}


def _scored(source: Any, answer: str, entry: Any) -> float | Exception:
    """The scorer's number, cut to [0, 1], or what it raised."""
    try:
        score = float(source.score_answer(answer, entry))
    except MemoryError:
        raise
    except Exception as error:  # the boundary: what scorers raise becomes a verdict
        return error
    return min(max(score, 0.0), 1.0) if math.isfinite(score) else ValueError(f"a score of {score}")


def _number(text: str) -> Decimal | None:
    """The number that is all of `text`."""
    found = _NUMBER.fullmatch(text.strip())
    return None if found is None else Decimal(found[1].replace(",", ""))


def _with_tuples(value: Any) -> Any:
    """`value` with tuples for lists, as it was before it went through JSON."""
    if isinstance(value, dict):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, (list, tuple)) else value


def _bad(message: str) -> dict[str, Any]:
    return {"outcome": Outcome.BAD_REFERENCE, "message": message}
