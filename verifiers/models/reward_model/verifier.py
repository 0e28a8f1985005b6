"""The reward model: a transformers sequence classifier gives each answer a number x, mapped into [0, 1].

The reference is what the answer answers: the prompt's text, `{"prompt": text}`, or `{"messages": [{"role", "content"},
…]}`; None for a model that reads the answer alone. Where the tokenizer has a chat template, the model reads the
conversation with the answer as the assistant's message, else the prompt and the answer as a pair of texts.

`sigmoid`: the score is 1 / (1 + exp(-(x - center) / scale)). `linear`: (x - low) / (high - low), cut to [0, 1].

What always holds, beyond what holds for every verifier: the model is loaded and used in one thread of its own, so
the event loop stays free, at the first item; a batch that fails is judged again item by item. A forward pass
cannot be interrupted: past its deadline the items are a `timeout`, and the thread is free when the pass is over.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from quintain.failure import QuintainError, one_line
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item
from quintain.verifiers.options import Count, Finite, Options, OptionsVerifier, Positive, Seconds, ThinkingOptions
from quintain.verifiers.pure import bad_reference, crashed, unparsable, unreadable
from quintain.verifiers.text import shown

if TYPE_CHECKING:
    from quintain.verifiers.models.reward_model.classifier import Classifier

T = TypeVar("T")


class RewardModelOptions(ThinkingOptions):
    """Options of the reward model."""

    model: Annotated[str, Field(min_length=1)]
    """A folder with the model and its tokenizer, or a name that transformers knows."""
    label: Count | None = None
    """Which logit is the reward; needed where the model has more than one."""
    map: Literal["sigmoid", "linear"] = "sigmoid"
    """How the model's number becomes a score."""
    center: Finite = 0.0
    """`sigmoid`: the number whose score is 0.5."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """`sigmoid`: how far from the centre the score is 0.73."""
    low: Finite = 0.0
    """`linear`: the number whose score is 0."""
    high: Finite = 1.0
    """`linear`: the number whose score is 1."""
    batch_size: Positive = 16
    """How many answers are scored in one forward pass."""
    max_tokens: Positive = 4096
    """A longer conversation is not scored: the answer is unparsable. Nothing is cut off in silence."""
    device: Annotated[str, Field(pattern=r"^[a-z]+(:\d+)?$")] = "cpu"
    """Where the model is."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The numbers it computes with."""
    deadline_s: Seconds = 120.0
    """Wall time for a forward pass; more is a `timeout` for the answers in it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high is above low ({self.low:g}), not {self.high:g}")
        return self


class RewardModelVerifier(OptionsVerifier[RewardModelOptions]):
    """Scores answers with a model."""

    name: ClassVar[str] = "reward_model"
    options_type: ClassVar[type[Options]] = RewardModelOptions
    cost: Cost = Cost.MODEL
    needs: ClassVar[tuple[str, str] | None] = ("transformers", "train")

    def __init__(self, options: RewardModelOptions) -> None:
        super().__init__(options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._turn = asyncio.Lock()
        self._classifier: Classifier | None = None
        self._closed = False

    @property
    def version(self) -> str:
        """Our own version of the judgement, and the model's name: whether it was trained further, nobody tells us."""
        return f"1+{self.options.model}"

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order. Raises `QuintainError` where the model cannot be loaded."""
        if self._closed:
            raise QuintainError("this reward model is closed: make a new one")
        verdicts: dict[int, Verdict] = {}
        conversations: dict[int, list[dict[str, str]]] = {}
        for index, item in enumerate(items):
            found = self._conversation(item)
            if isinstance(found, Verdict):
                verdicts[index] = found
            else:
                conversations[index] = found
        if conversations:
            await self._score(conversations, verdicts, self.options.deadline_s if deadline_s is None else deadline_s)
        return [verdicts[index] for index in range(len(items))]

    async def close(self) -> None:
        """End the thread, once its pass is over, and let go of the model."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
        self._classifier = None

    def _conversation(self, item: Item) -> Verdict | list[dict[str, str]]:
        refused = unreadable(item.answer)
        if refused is not None:
            return refused
        messages = _messages(item.reference)
        if messages is None:
            return bad_reference('the prompt\'s text, {"prompt": text}, {"messages": […]} or None', item.reference)
        answer = self.options.answer_in(item.answer)
        if not answer:
            return unparsable("there is no answer in the text")
        messages = [*messages, {"role": "assistant", "content": answer}]
        return [
            {key: text.encode("utf-8", "replace").decode() for key, text in message.items()} for message in messages
        ]

    async def _score(
        self, conversations: Mapping[int, list[dict[str, str]]], verdicts: dict[int, Verdict], deadline_s: float
    ) -> None:
        """Put a verdict for each of `conversations` into `verdicts`."""
        async with self._turn:
            if self._classifier is None:
                self._classifier = await self._in_thread(self._load)
        classifier = self._classifier
        rows: dict[int, list[int]] = {}
        for index, messages in conversations.items():
            try:
                row = await self._in_thread(partial(classifier.tokens, messages))
            except Exception as error:  # the boundary: whatever the tokenizer's template raises is this item's
                verdicts[index] = crashed(error)
                continue
            if len(row) <= self.options.max_tokens:
                rows[index] = row
            else:
                why = f"it is {len(row):,} tokens long, and at most {self.options.max_tokens:,} are scored"
                verdicts[index] = unparsable(why)
        by_length = sorted(rows, key=lambda index: len(rows[index]))  # rows of like length need little padding
        for start in range(0, len(by_length), self.options.batch_size):
            batch = by_length[start : start + self.options.batch_size]
            verdicts.update(await self._pass(classifier, {index: rows[index] for index in batch}, deadline_s))

    async def _pass(
        self, classifier: Classifier, rows: Mapping[int, list[int]], deadline_s: float
    ) -> dict[int, Verdict]:
        """The verdicts on `rows`, which go through the model together."""
        async with self._turn:
            started = time.perf_counter()
            try:
                async with asyncio.timeout(deadline_s):
                    rewards = await self._in_thread(partial(classifier.rewards, [*rows.values()]))
            except TimeoutError:
                late = Verdict.failed(Outcome.TIMEOUT, f"the forward pass took more than its {deadline_s:g} s")
                return dict.fromkeys(rows, late)
            except Exception as error:  # the boundary: out of memory, or a row the model cannot take
                failed = crashed(error)
                rewards = None
            elapsed_s = (time.perf_counter() - started) / len(rows)
        if rewards is not None:
            return {
                index: replace(self._verdict(reward), elapsed_s=elapsed_s)
                for index, reward in zip(rows, rewards, strict=True)
            }
        if len(rows) == 1:
            return dict.fromkeys(rows, failed)
        alone = [await self._pass(classifier, {index: row}, deadline_s) for index, row in rows.items()]
        return {index: verdict for verdicts in alone for index, verdict in verdicts.items()}

    def _verdict(self, reward: float) -> Verdict:
        if not math.isfinite(reward):
            return Verdict.failed(Outcome.CRASHED, f"the reward model gave {reward}")
        return Verdict.scored(mapped(reward, self.options), reward=reward)

    def _load(self) -> Classifier:
        from quintain.verifiers.models.reward_model.classifier import Classifier

        options = self.options
        try:
            return Classifier(options.model, label=options.label, device=options.device, dtype=options.dtype)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise QuintainError(
                f"the reward model {options.model!r} cannot be loaded: {one_line(shown(str(error)))}"
            ) from None

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def mapped(reward: float, options: RewardModelOptions) -> float:
    """The score in [0, 1] of a model's number."""
    if options.map == "linear":
        return min(max((reward - options.low) / (options.high - options.low), 0.0), 1.0)
    x = (reward - options.center) / options.scale
    small = math.exp(-abs(x))
    return 1.0 / (1.0 + small) if x >= 0 else small / (1.0 + small)


def _messages(reference: Any) -> list[dict[str, str]] | None:
    """The conversation before the answer, or None where `reference` does not say."""
    if reference is None:
        return []
    if isinstance(reference, Mapping) and isinstance(reference.get("messages"), (list, tuple)):
        found = [
            {"role": message["role"], "content": message["content"]}
            for message in reference["messages"]
            if isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ]
        return found if len(found) == len(reference["messages"]) else None
    prompt = reference.get("prompt") if isinstance(reference, Mapping) else reference
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt.strip() else None
