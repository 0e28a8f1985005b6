"""Items as a client sends them: written once, in batches of a size that a service takes.

What always holds: an item that JSON cannot say has its verdict here, and costs the others nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.verdict import Verdict
from quintain.verifiers.base import Item
from quintain.verifiers.pure import bad_reference, unparsable, unreadable

Items = Sequence[Item | tuple[str, Any]]
"""Items, or pairs of an answer and its reference."""
BATCH_BYTES: Final = 4 << 20


def head_of(asked: Mapping[str, Any]) -> str:
    """A request's JSON up to its items."""
    try:
        return json.dumps(asked, allow_nan=False)[:-1] + ","
    except (TypeError, ValueError, RecursionError) as error:
        raise QuintainError(f"the options of a verifier are plain data: {error}") from None


def batches(items: Items, most: int, ready: Callable[[int, Verdict], None]) -> Iterator[dict[int, str]]:
    """The items, written, by number, some together. The verdict on one that cannot be sent is `ready` at once."""
    batch: dict[int, str] = {}
    size = 0
    for index, item in enumerate(items):
        written = _written(item)
        if isinstance(written, Verdict):
            ready(index, written)
            continue
        if batch and (len(batch) == most or size + len(written) > BATCH_BYTES):
            yield batch
            batch, size = {}, 0
        batch[index] = written
        size += len(written)
    if batch:
        yield batch


def _written(item: Item | tuple[str, Any]) -> str | Verdict:
    answer, reference = (item.answer, item.reference) if isinstance(item, Item) else item
    if (refused := unreadable(answer)) is not None:
        return refused
    try:
        answer.encode()
    except UnicodeEncodeError:
        return unparsable("half of a surrogate pair is no text")
    try:
        told = json.dumps(reference, allow_nan=False, ensure_ascii=False)
        told.encode()
    except (TypeError, ValueError, RecursionError):
        return bad_reference("plain data", reference)
    return f'{{"answer":{json.dumps(answer, ensure_ascii=False)},"reference":{told}}}'
