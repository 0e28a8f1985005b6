"""What the options of all verifiers share: a frozen pydantic model, unknown names refused, one line per mistake.

A verifier class names its model as `options_type`; the model's JSON schema, field descriptions included, is what
`Verifier.options_schema` gives. Imported only by modules that are loaded when their verifier is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quintain.failure import QuintainError
from quintain.verifiers.text import last_element, text_after_thinking

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]: a score, a share."""
Mark = Annotated[str, Field(min_length=1, max_length=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Options(BaseModel):
    """Options of a verifier."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    @classmethod
    def of(cls, verifier: str, options: Mapping[str, Any]) -> Self:
        """The options that `options` holds. Raises `QuintainError`, one line, for the first mistake in them."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            from quintain.config.load import problems

            line = next(problems(error, cls, options))
            raise QuintainError(f"the {verifier} verifier: {line}") from None


class WorkerOptions(Options):
    """Options of a verifier that checks in killable worker processes."""

    deadline_s: Seconds = 5.0
    """Wall time for each item; what takes longer is a `timeout`, and no score."""
    workers: Positive | None = None
    """Worker processes; one for each processor unless given."""


class ThinkingOptions(Options):
    """What of a model's text is thinking, and no answer."""

    after_thinking: bool = True
    """Only what follows the thinking counts (`</think>` and the like), and nothing where it never ends."""
    thinking: tuple[tuple[Mark, Mark], ...] = ()
    """Further pairs of texts between which the model thinks: `[["<plan>", "</plan>"]]`."""

    def body_of(self, text: str) -> str | None:
        """The part of `text` in which the answer is, or None where there is none."""
        return text_after_thinking(text, self.thinking) if self.after_thinking else text

    def answer_in(self, text: str) -> str | None:
        """That part, stripped."""
        body = self.body_of(text)
        return None if body is None else body.strip()


class TextOptions(ThinkingOptions):
    """Where in the model's text the answer is."""

    tag: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]{0,63}$")] | None = None
    """The answer is what is in the last `<tag>…</tag>`; without one there is no answer."""

    def body_of(self, text: str) -> str | None:
        body = super().body_of(text)
        return body if body is None or self.tag is None else last_element(body, self.tag)
