"""Rows of a data set as examples: what the columns say, checked, and then the tokens that are trained on.

TRL's formats, found from the columns: text and chats, with prompt or without; pairs (`chosen`, `rejected`), whose
prompt may be implicit; labelled completions; completions in labelled steps. Invariants: a row that cannot be used is
told with its place and its column, before a tokenizer or a model is loaded; what is trained on is said by spans of
tokens, never by a template; an example of which nothing would be trained on is counted (`RenderedExamples.dropped`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from quintain.codec import Floats, Ints, as_ints
from quintain.failure import FailureError, QuintainError, one_line
from quintain.messages import Message, ToolSpec
from quintain.nearest import did_you_mean
from quintain.records import messages_in, tools_in
from quintain.rollout.chat.base import Chat
from quintain.trainers.rows import Row, Rows, Totals
from quintain.trajectory import Segment

Text = str | tuple[Message, ...]
Span = tuple[int, int]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Form(StrEnum):
    """What an algorithm learns from."""

    TEXT = "text"  # text, messages, or prompt and completion
    PAIR = "pair"  # chosen and rejected
    LABELLED = "labelled"  # prompt, completion and label; pairs are taken apart
    STEPS = "steps"  # prompt, completions and labels


EXPECTED = {
    Form.TEXT: "'messages', 'text', or 'prompt' and 'completion'",
    Form.PAIR: "'chosen' and 'rejected', with 'prompt' unless they begin alike",
    Form.LABELLED: "'prompt', 'completion' and 'label', or pairs ('chosen' and 'rejected')",
    Form.STEPS: "'prompt', 'completions' and 'labels'",
}


@dataclass(frozen=True, slots=True)
class DataItem:
    """A row that has been read: its answers to `prompt` (None: none, all is trained on), each text or messages.

    label: of the one answer. margin: by how much the first of two is preferred. labels: one for each step, which the
    answers are. where: the row's file and place.
    """

    where: str
    prompt: Text | None
    answers: tuple[Text, ...]
    tools: tuple[ToolSpec, ...] = ()
    label: bool | None = None
    margin: float | None = None
    labels: tuple[bool, ...] = ()


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
    nothing = np.zeros(len(ids), np.float32)
    return Row(Segment(ids, mask, nothing, np.full(len(ids), -1, np.int32), nothing), unit, unit, columns=columns)


def mask_of(ids: Ints, spans: Sequence[Span]) -> Mask:
    """[L] bool: true within `spans`."""
    mask = np.zeros(len(ids), np.bool_)
    for start, end in spans:
        mask[start:end] = True
    return mask


# What the columns say


def items_of(rows: Iterable[tuple[str, Mapping[str, Any]]], kind: Form) -> list[DataItem]:
    """The rows of a data set, each with its place, as items. QuintainError, one line, at the first that is none."""
    items = [
        item for where, row in rows for item in _items(where, {k: v for k, v in row.items() if v is not None}, kind)
    ]
    labels = {item.label for item in items}
    if kind is Form.LABELLED and len(labels) == 1:
        raise QuintainError(f"{items[0].where}: every 'label' is {labels.pop()}: nothing can be learned from one kind")
    return items


def _items(where: str, row: Mapping[str, Any], kind: Form) -> list[DataItem]:
    tools = _read(where, row, "tools", tools_in) if "tools" in row else ()
    pair = "chosen" in row and "rejected" in row
    if kind is Form.TEXT and ("messages" in row or "text" in row):
        name = "messages" if "messages" in row else "text"
        text = _read(where, row, name, messages_in) if name == "messages" else _text(where, row, name)
        return [DataItem(where, None, (text,), tools)]
    if kind is Form.TEXT and {"prompt", "completion"} <= set(row):
        prompt, (completion,) = _texts(where, row, "prompt", "completion")
        return [DataItem(where, prompt, (completion,), tools)]
    if kind is Form.PAIR and pair:
        return [_pair(where, row, tools)]
    if kind is Form.LABELLED and pair:
        item = _pair(where, row, tools)
        return [replace(item, answers=(x,), label=good) for x, good in zip(item.answers, (True, False), strict=True)]
    if kind is Form.LABELLED and {"prompt", "completion", "label"} <= set(row):
        prompt, (completion,) = _texts(where, row, "prompt", "completion")
        return [DataItem(where, prompt, (completion,), tools, label=_flag(where, "label", row["label"]))]
    if kind is Form.STEPS and {"prompt", "completions", "labels"} <= set(row):
        return [_steps(where, row)]
    known = ", ".join(row) or "none"
    wanted = ("prompt", "completion", "messages", "text", "chosen", "rejected", "label", "completions", "labels")
    near = next((near for name in row if name not in wanted and (near := did_you_mean(name, wanted))), "")
    raise QuintainError(
        f"{where}: expected {EXPECTED[kind]}; its columns are {known}{near}; 'columns' gives other names"
    )


def _pair(where: str, row: Mapping[str, Any], tools: tuple[ToolSpec, ...]) -> DataItem:
    if "prompt" in row:
        prompt, answers = _texts(where, row, "prompt", "chosen", "rejected")
    else:
        _, answers = _texts(where, row, None, "chosen", "rejected")
        prompt, answers = _implicit(where, *answers)
    if answers[0] == answers[1]:
        raise QuintainError(
            f"{where}: 'chosen' and 'rejected' are the same, so neither is preferred: leave the row out"
        )
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float))):
        raise QuintainError(f"{where}: 'margin' is a number, not {margin!r}")
    return DataItem(where, prompt, answers, tools, margin=None if margin is None else float(margin))


def _implicit(where: str, chosen: Text, rejected: Text) -> tuple[Text, tuple[Text, Text]]:
    """What `chosen` and `rejected` have in common at their beginning, and what each goes on with (as TRL does)."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and 0 < at < min(len(chosen), len(rejected)) and chosen[at - 1] == " ":
        at -= 1  # the blank belongs to what follows
    if chosen != rejected and min(len(chosen), len(rejected)) == at:
        at = max(0, at - 1)  # one is the beginning of the other: it keeps its last word
    if at == 0 and chosen != rejected:
        raise QuintainError(f"{where}: 'chosen' and 'rejected' begin differently, so there is no prompt: add 'prompt'")
    return chosen[:at], (chosen[at:], rejected[at:])


def _steps(where: str, row: Mapping[str, Any]) -> DataItem:
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step for step in steps):
        raise QuintainError(f"{where}: 'completions' is a list of steps, each text, not {one_line(repr(steps), 80)}")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise QuintainError(
            f"{where}: 'labels' has one label for each of {len(steps)} steps, not {one_line(repr(labels), 80)}"
        )
    flags = tuple(_flag(where, "labels", label) for label in labels)
    return DataItem(where, _text(where, row, "prompt"), tuple(steps), labels=flags)


def _texts(where: str, row: Mapping[str, Any], prompt: str | None, *answers: str) -> tuple[Text, tuple[Text, ...]]:
    """The columns `prompt` and `answers`, all text or all messages."""
    names = [*([prompt] if prompt else []), *answers]
    chat = {name: not isinstance(row[name], str) for name in names}
    if len(set(chat.values())) > 1:
        kinds = ", ".join(f"{name!r} is {'messages' if is_chat else 'text'}" for name, is_chat in chat.items())
        raise QuintainError(f"{where}: {kinds}: all of them are text, or all of them messages")
    found = [_read(where, row, name, messages_in) if chat[name] else _text(where, row, name) for name in names]
    return (found[0], tuple(found[1:])) if prompt else ("", tuple(found))


def _text(where: str, row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, str) and not value.strip():
        raise QuintainError(f"{where}: {name!r} is empty")
    if not isinstance(value, str):
        raise QuintainError(f"{where}: {name!r} is text, not {one_line(repr(value), 80)}")
    return value


def _flag(where: str, name: str, value: Any) -> bool:
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise QuintainError(f"{where}: {name!r} is true or false, not {one_line(repr(value), 80)}")


def _read(where: str, row: Mapping[str, Any], name: str, reader: Callable[[Any], Any]) -> Any:
    try:
        return reader(row[name])
    except ValueError as error:
        raise QuintainError(f"{where}: {name!r}: {error}") from None


# Tokens


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
            return ids, _shared(self._encode(prompt), ids) if prompt else 0, ()
        chat = self.chat
        before = item.prompt if isinstance(item.prompt, tuple) else ()
        whole = (*before, *answer)
        ids, spans = chat.spans(whole, item.tools)
        said = tuple((s.start, s.end) for s in spans if whole[s.message].role == "assistant" and s.end > s.start)
        return ids, _shared(chat.first(before, item.tools), ids) if before else 0, said

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


def _shared(left: Ints, right: Ints) -> int:
    """How many ids `left` and `right` have in common at their beginning."""
    size = min(len(left), len(right))
    differs = np.flatnonzero(left[:size] != right[:size])
    return int(differs[0]) if len(differs) else size


def _cut(example: Example, limit: int, *, whole: bool) -> Example:
    """`example` with sequences of at most `limit` tokens; of steps, those that are whole; nothing of `whole` ones."""
    trained = tuple(
        tuple((start, min(end, limit)) for start, end in spans if start < limit and not whole)
        for spans in example.trained
    )
    labels = example.labels[: len(trained[0])]
    return replace(example, ids=tuple(ids[:limit] for ids in example.ids), trained=trained, labels=labels)
