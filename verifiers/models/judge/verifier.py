"""The judge: a language model behind any OpenAI-compatible endpoint decides.

Two tasks:
- `reference`: does the answer agree with the reference? The reference is a text, or `{"reference": text, "prompt":
  text}` with the question that was asked. Score 1 for yes, 0 for no.
- `pair`: is the answer better than another one? The reference is `{"other": text, "prompt": text}`. Score 1 for
  better, 0 for worse, 0.5 for a tie.

A judge favours what it sees first, so it is asked in both orders (`both_orders`); where the two replies disagree,
`disagreement` says what follows: `fail` (the default: nobody knows, so no score), `tie` (0.5) or `worse` (the lower).

The reply must be one label and nothing else. A refusal, an explanation, a made-up label, an error, a timeout: each is
asked again up to `attempts` times, and then is a `Failure` and never a zero. How an answer is kept from writing its own
verdict: `quintain.verifiers.models.judge.prompt`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from quintain.calling.chat import ChatEndpoint
from quintain.failure import Failure, FailureError, FailureKind, Stage
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item
from quintain.verifiers.models.judge.prompt import (
    NONCE_BYTES,
    Label,
    Question,
    label_of,
    pair_question,
    reference_question,
)
from quintain.verifiers.options import (
    Count,
    EndpointOptions,
    Options,
    OptionsVerifier,
    Positive,
    Seconds,
    ThinkingOptions,
)
from quintain.verifiers.pure import bad_reference, crashed, unparsable, unreadable
from quintain.verifiers.text import shown

MAX_REPLY_BYTES: Final = 1 << 20
SCORES: Final[Mapping[Label, float]] = {"yes": 1.0, "no": 0.0, "tie": 0.5}


class JudgeOptions(EndpointOptions, ThinkingOptions):
    """Options of the judge."""

    model: Annotated[str, Field(min_length=1)]
    """The model's name there."""
    task: Literal["reference", "pair"] = "reference"
    """Whether the answer is compared with a reference, or with another answer."""
    criteria: Annotated[str, Field(max_length=10_000)] = "Judge the substance, not the style."
    """What else the judge is told about the comparison."""
    both_orders: bool = True
    """Whether it is asked twice, with what is compared in the other order."""
    disagreement: Literal["fail", "tie", "worse"] = "fail"
    """What two different replies make: a failure, the score 0.5, or the lower of the two scores."""
    attempts: Positive = 2
    """How often it is asked, with a new nonce, where the reply is no label."""
    retries: Count = 3
    """How often a request is sent again that found no connection, a busy server or an error of the server's."""
    timeout_s: Seconds = 60.0
    """How long one request may take."""
    deadline_s: Seconds = 180.0
    """How long one item may take, all requests and pauses included."""
    concurrency: Positive = 16
    """How many requests may be under way at once."""
    max_tokens: Positive = 32
    """How long the reply may be; a model that reasons before it replies needs more."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """The sampling temperature."""
    max_chars: Positive = 50_000
    """A longer answer is not shown to the judge: it is unparsable."""


class JudgeVerifier(OptionsVerifier[JudgeOptions]):
    """Asks a language model for its verdict. It belongs to the event loop of its first use."""

    name: ClassVar[str] = "judge"
    options_type: ClassVar[type[Options]] = JudgeOptions
    cost: Cost = Cost.REMOTE

    def __init__(self, options: JudgeOptions) -> None:
        super().__init__(options)
        self._endpoint = ChatEndpoint(
            options.url,
            {"model": options.model, "temperature": options.temperature, "max_tokens": options.max_tokens},
            who="the judge",
            stage=Stage.VERIFY,
            token=options.token(),
            timeout_s=options.timeout_s,
            retries=options.retries,
            max_reply_bytes=MAX_REPLY_BYTES,
        )
        self._free = asyncio.Semaphore(options.concurrency)

    @property
    def version(self) -> str:
        """Our own version of the question, and the model's name: who answers to it is not ours to know."""
        return f"1+{self.options.model}"

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order; items are asked about at the same time."""
        allowed_s = self.options.deadline_s if deadline_s is None else deadline_s
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._judged(item, allowed_s)) for item in items]
        return [task.result() for task in tasks]

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    async def _judged(self, item: Item, allowed_s: float) -> Verdict:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(allowed_s):
                verdict = await self._judge(item)
        except TimeoutError:
            verdict = Verdict.failed(Outcome.TIMEOUT, f"the judge took more than {allowed_s:g} s")
        except FailureError as error:
            verdict = Verdict.unfinished(error.failure)
        except Exception as error:  # the boundary: a flaw in asking about one item costs that item
            verdict = crashed(error)
        return replace(verdict, elapsed_s=time.perf_counter() - started)

    async def _judge(self, item: Item) -> Verdict:
        asked = _asked(item.reference, self.options.task)
        if asked is None:
            keys = '{"other": text}' if self.options.task == "pair" else 'a text, or {"reference": text}'
            return bad_reference(f'{keys}, with its "prompt" where there is one', item.reference)
        refused = unreadable(item.answer)
        if refused is not None:
            return refused
        answer = self.options.answer_in(item.answer)
        if not answer:
            return unparsable("there is no answer in the text")
        if len(answer) > self.options.max_chars:
            return unparsable(
                f"the answer has {len(answer):,} characters, at most {self.options.max_chars:,} are judged"
            )
        orders = (False, True) if self.options.both_orders else (False,)
        async with asyncio.TaskGroup() as group:  # both at once: neither may know of the other
            tasks = [group.create_task(self._label(answer, *asked, swapped=swapped)) for swapped in orders]
        return self._verdict([task.result() for task in tasks])

    async def _label(self, answer: str, other: str, prompt: str | None, *, swapped: bool) -> Label | Failure:
        """The judge's label, or why there is none."""
        reply = ""
        for _ in range(self.options.attempts):
            question = self._question(answer, other, prompt, swapped=swapped)
            try:
                async with self._free:
                    said = (await self._endpoint.complete(question.messages)).message.get("content")
            except FailureError as error:
                return error.failure
            if not isinstance(said, str):
                return Failure.of(FailureKind.INVALID, Stage.VERIFY, "the judge: its reply has no text")
            reply = said
            label = label_of(reply, question)
            if label is not None:
                return label
        message = f"the judge gave no label in {self.options.attempts} attempts, but: {shown(reply)}"
        return Failure.of(FailureKind.INVALID, Stage.VERIFY, message)

    def _question(self, answer: str, other: str, prompt: str | None, *, swapped: bool) -> Question:
        nonce = secrets.token_hex(NONCE_BYTES)
        while nonce in answer or nonce in other or nonce in (prompt or ""):
            nonce = secrets.token_hex(NONCE_BYTES)
        make = pair_question if self.options.task == "pair" else reference_question
        answer, other, task = (text.encode("utf-8", "replace").decode() for text in (answer, other, prompt or ""))
        return make(answer, other, task or None, self.options.criteria, nonce=nonce, swapped=swapped)

    def _verdict(self, labels: Sequence[Label | Failure]) -> Verdict:
        found: list[Label] = []
        for label in labels:
            if isinstance(label, Failure):
                return Verdict.unfinished(label)
            found.append(label)
        scores = [SCORES[label] for label in found]
        if len(set(scores)) == 1:
            return Verdict.scored(scores[0], labels=found)
        if self.options.disagreement == "fail":
            message = f"the judge disagrees with itself: {' and '.join(found)} in the two orders"
            return Verdict.unfinished(Failure.of(FailureKind.INVALID, Stage.VERIFY, message))
        return Verdict.scored(0.5 if self.options.disagreement == "tie" else min(scores), labels=found)


def _asked(reference: Any, task: str) -> tuple[str, str | None] | None:
    """What the answer is compared with, and the prompt, or None where `reference` does not say."""
    key = "other" if task == "pair" else "reference"
    if isinstance(reference, str) and task == "reference":
        reference = {key: reference}
    if not isinstance(reference, Mapping):
        return None
    other, prompt = reference.get(key), reference.get("prompt")
    if not isinstance(other, str) or not other.strip() or not (prompt is None or isinstance(prompt, str)):
        return None
    return other, prompt
