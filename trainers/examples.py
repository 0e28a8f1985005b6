"""Items of a data set as examples: the tokens, and which of them are trained on.

Invariants: what is trained on is said by spans of tokens, never by a template; an example of which nothing would be
trained on is counted (`RenderedExamples.dropped`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quintain.arrays import Floats, Ints, as_ints
from quintain.failure import FailureError, QuintainError
from quintain.rollout.chat.base import Chat
from quintain.trainers.batches.tree import shared_prefix
from quintain.trainers.data_items import DataItem, Text
from quintain.trainers.rows import Row, Rows, Totals, unsampled

Span = tuple[int, int]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An item as tokens: one sequence, or chosen and rejected.

    ids: [L] each. trained: of each sequence, the spans [start, end) of tokens that are trained on, never its first
    token; of steps, the last token of each. label, margin, labels: as `DataItem` has them. prompt: how many tokens of
    every sequence are the prompt's. ref: of each sequence, the reference's log-probabilities of what is trained on,
    where they were computed before.
    """

    where: str
    ids: tuple[Ints, ...]
    trained: tuple[tuple[Span, ...], ...]
    prompt: int = 0
    label: bool | None = None
    margin: float | None = None
    labels: tuple[bool, ...] = ()
    ref: tuple[Floats, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.ids))


def example_rows(data: Sequence[Example], *, counted: int | None = None) -> Rows:
    """A row for each sequence of each example, which is a unit of its own.

    The counts are of the tokens of all sequences, or of those at place `counted` in their examples.
    """
    rows = [
        sequence_row(ids, mask_of(ids, spans), unit, {"ref": example.ref[place]} if example.ref else {})
        for unit, example in enumerate(data)
        for place, (ids, spans) in enumerate(zip(example.ids, example.trained, strict=True))
    ]
    places = [place for example in data for place in range(len(example.ids))]
    tokens = sum(row.tokens for row, place in zip(rows, places, strict=True) if counted in (None, place))
    return Rows(tuple(rows), counts_of(rows, tokens), {"num_tokens": float(sum(example.tokens for example in data))})


def counts_of(rows: Sequence[Row], tokens: int) -> Totals:
    """What a loss divides by: the counts of `rows`, and `tokens`."""
    longest = max((len(row.segment.ids) for row in rows), default=1)
    return Totals(rows=len(rows), tokens=tokens, units=len({row.unit for row in rows}), max_completion_length=longest)


def sequence_row(ids: Ints, mask: Mask, unit: int, columns: Mapping[str, Floats]) -> Row:
    """The row of a sequence that nobody sampled: `mask` [L] says which of `ids` [L] are trained on."""
    return Row(unsampled(ids, mask), unit, unit, columns=columns)


def mask_of(ids: Ints, spans: Sequence[Span]) -> Mask:
    """[L] bool: true within `spans`."""
    mask = np.zeros(len(ids), np.bool_)
    for start, end in spans:
        mask[start:end] = True
    return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """How items become tokens.

    max_length: what is longer is cut at its end. completion_only_loss: train on completions alone; None: where there
    are prompts. assistant_only_loss: train on what assistants say alone. judged: answers are judged whole, so that
    none may be cut, and read up to their last token that is no padding. step_separator: put after each step.
    """

    max_length: int | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    judged: bool = False
    step_separator: str = "\n"
    train_on_last_step_only: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class RenderedExamples:
    """Examples, how many items were cut, and how many are left out: nothing was left to train on, first at `lost`."""

    examples: tuple[Example, ...]
    cut: int = 0
    dropped: int = 0
    lost: str = ""


def cut_examples(examples: Iterable[Example], options: RenderOptions) -> RenderedExamples:
    """`examples` within the longest that `options` allow."""
    limit = options.max_length
    kept, cut, lost = [], 0, []
    for example in examples:
        if limit is not None and any(len(ids) > limit for ids in example.ids):
            example, cut = _cut(example, limit, whole=options.judged), cut + 1
        if all(example.trained):
            kept.append(example)
        else:
            lost.append(example.where)
    return RenderedExamples(tuple(kept), cut, len(lost), lost[0] if lost else "")


class Renderer:
    """Renders items with a model's tokenizer; `chat` gives its chat layer, asked only where there are messages."""

    def __init__(self, tokenizer: Any, chat: Callable[[], Chat], options: RenderOptions) -> None:
        self._tokenizer, self._load_chat, self._options = tokenizer, chat, options
        self._chat: Chat | None = None

    def render(self, items: Sequence[DataItem], *, check: Callable[[], None] = lambda: None) -> RenderedExamples:
        """All of `items`; `check` is called now and then and may raise. QuintainError at an item that has no form."""
        examples = []
        for number, item in enumerate(items):
            if number % 100 == 0:
                check()
            try:
                examples.append(self._example(item))
            except FailureError as error:
                raise QuintainError(f"{item.where}: {error.failure.message}") from None
        return cut_examples(examples, self._options)

    def _example(self, item: DataItem) -> Example:
        if item.labels:
            return self._stepped(item)
        rendered = [self._ids(item, answer) for answer in item.answers]
        if self._options.judged:
            rendered = [(self._unpadded(ids), start, said) for ids, start, said in rendered]
        at = min(start for _, start, _ in rendered)
        trained = tuple(self._spans(item, ids, at, said) for ids, _, said in rendered)
        return Example(item.where, tuple(ids for ids, _, _ in rendered), trained, at, item.label, item.margin)

    def _ids(self, item: DataItem, answer: Text) -> tuple[Ints, int, tuple[Span, ...]]:
        """(ids [L] of prompt and answer, where the answer begins, the spans of what assistants say in them)."""
        if isinstance(answer, str):
            prompt = item.prompt if isinstance(item.prompt, str) else ""
            ids = self._encode(prompt + self._ended(answer))
            return ids, shared_prefix(self._encode(prompt), ids) if prompt else 0, ()
        chat = self.chat
        before = item.prompt if isinstance(item.prompt, tuple) else ()
        whole = (*before, *answer)
        ids, spans = chat.spans(whole, item.tools)
        said = tuple((s.start, s.end) for s in spans if whole[s.message].role == "assistant" and s.end > s.start)
        return ids, shared_prefix(chat.first(before, item.tools), ids) if before else 0, said

    def _spans(self, item: DataItem, ids: Ints, at: int, said: tuple[Span, ...]) -> tuple[Span, ...]:
        options = self._options
        if options.completion_only_loss and item.prompt is None:
            raise QuintainError(
                f"{item.where}: completion_only_loss needs 'prompt' and 'completion', and there are none"
            )
        only = item.prompt is not None and options.completion_only_loss is not False
        start = max(1, at if only else 1)
        if not options.assistant_only_loss:
            return ((start, len(ids)),) if start < len(ids) else ()
        if not said:
            raise QuintainError(f"{item.where}: assistant_only_loss, and no assistant says anything")
        return tuple((max(a, start), b) for a, b in said if max(a, start) < b)

    def _stepped(self, item: DataItem) -> Example:
        """Prompt and steps, each with the separator behind it, whose last token is the step's (as TRL does)."""
        tokenizer = self._tokenizer

        def plain(text: Text | None) -> list[int]:
            found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return found

        separator = plain(self._options.step_separator)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids, spans = [*start, *plain(item.prompt)], []
        prompt = len(ids)
        for step in item.answers:
            ids += [*plain(step), *separator]
            spans.append((len(ids) - 1, len(ids)))
        labels = item.labels
        if self._options.train_on_last_step_only:
            spans, labels = spans[-1:], labels[-1:]
        return Example(item.where, (as_ints(ids),), (tuple(spans),), prompt, labels=labels)

    def _unpadded(self, ids: Ints) -> Ints:
        """`ids` up to the last that is no padding, at which transformers' classifiers read their score."""
        words = np.flatnonzero(ids != padding(self._tokenizer))
        return ids[: words[-1] + 1] if len(words) else ids[:1]

    def _encode(self, text: str) -> Ints:
        return as_ints(self._tokenizer(text)["input_ids"])

    def _ended(self, text: str) -> str:
        eos = self._tokenizer.eos_token
        if eos is None:
            raise QuintainError(
                f"the tokenizer of {self._tokenizer.name_or_path!r} has no eos token, so nothing would end a text:"
                " give it one, or train on chats"
            )
        return text if text.endswith(eos) else text + str(eos)

    @property
    def chat(self) -> Chat:
        """The chat layer."""
        if self._chat is None:
            self._chat = self._load_chat()
        return self._chat


def padding(tokenizer: Any) -> int | None:
    """What a classifier takes for padding: the tokenizer's own token for it, or its end of text where it has none."""
    found: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return found


def _cut(example: Example, limit: int, *, whole: bool) -> Example:
    """`example` with sequences of at most `limit` tokens; of steps, those that are whole; nothing of `whole` ones."""
    trained = tuple(
        tuple((start, min(end, limit)) for start, end in spans if start < limit and not whole)
        for spans in example.trained
    )
    labels = example.labels[: len(trained[0])]
    return replace(example, ids=tuple(ids[:limit] for ids in example.ids), trained=trained, labels=labels)
