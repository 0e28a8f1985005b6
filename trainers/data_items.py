"""Rows of a data set as items: what their columns say, checked before a tokenizer or a model is loaded.

TRL's formats, found from the columns: text and chats, with prompt or without; pairs (`chosen`, `rejected`), whose
prompt may be implicit; labelled completions; completions in labelled steps. And ATIF documents, as chats. What always
holds: a row that cannot be used is told with its place and its column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any

from quintain.failure import QuintainError, one_line
from quintain.messages import Message, ToolSpec
from quintain.nearest import did_you_mean
from quintain.records import messages_in, tools_in
from quintain.rollout.journal.exchange import chat_in

Text = str | tuple[Message, ...]


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


def each_item(rows: Iterable[tuple[str, Mapping[str, Any]]], kind: Form) -> Iterator[DataItem]:
    """The rows of a data set, each with its place, as items. QuintainError, one line, at the first that is none."""
    for where, row in rows:
        yield from _items(where, {k: v for k, v in row.items() if v is not None}, kind)


def items_of(rows: Iterable[tuple[str, Mapping[str, Any]]], kind: Form, *, most: int | None = None) -> list[DataItem]:
    """All items of a data set, or the first `most`. QuintainError also where nothing can be learned from them."""
    items = list(islice(each_item(rows, kind), most))
    labels = {item.label for item in items}
    if kind is Form.LABELLED and len(labels) == 1:
        raise QuintainError(f"{items[0].where}: every 'label' is {labels.pop()}: nothing can be learned from one kind")
    return items


def _items(where: str, row: Mapping[str, Any], kind: Form) -> list[DataItem]:
    if kind is Form.TEXT and str(row.get("schema_version")).startswith("ATIF-"):
        try:
            row = chat_in(row)
        except (LookupError, TypeError, AttributeError) as error:
            raise QuintainError(f"{where}: this is no ATIF document: {type(error).__name__}: {error}") from None
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
