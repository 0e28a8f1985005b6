"""What the options of all verifiers share: a frozen pydantic model, unknown names refused, one line per mistake.

A verifier class names its model as `options_type`; the model's JSON schema, field descriptions included, is what
`Verifier.options_schema` gives, and `made` is its factory. Imported only by modules that are loaded when their verifier
is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import Field, ValidationError

from quintain.documented import DocumentedModel
from quintain.failure import QuintainError
from quintain.thinking import text_after_thinking
from quintain.verifiers.base import Verifier
from quintain.verifiers.text import last_element

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Unit = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]: a score, a share."""
Mark = Annotated[str, Field(min_length=1, max_length=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Options(DocumentedModel):
    """Options of a verifier."""

    @classmethod
    def of(cls, verifier: str, options: Mapping[str, Any]) -> Self:
        """The options that `options` holds. Raises `QuintainError`, one line, for the first mistake in them."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            from quintain.config.load import problems

            line = next(problems(error, cls, options))
            raise QuintainError(f"the {verifier} verifier: {line}") from None


class EndpointOptions(Options):
    """Where somebody else's endpoint is, and how to be let in."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
    """Its address, such as `http://127.0.0.1:8000`; a chat endpoint's up to and without `/chat/completions`."""
    token_env: str | None = None
    """The environment variable that has the bearer token; the token itself is in no configuration."""

    def token(self) -> str | None:
        """The token, if there is to be one. Raises `QuintainError` where the variable is not set."""
        found = os.environ.get(self.token_env) if self.token_env else None
        if self.token_env and not found:
            raise QuintainError(f"token_env: the environment variable {self.token_env} is not set: it has the token")
        return found


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


AnyOptions = TypeVar("AnyOptions", bound=Options)


class OptionsVerifier(Verifier, Generic[AnyOptions]):
    """A verifier with options of a model, which may need a package to do its work.

    `needs`: that package, as it is called on PyPI, and the extra of ours that installs it.
    """

    options_type: ClassVar[type[Options]]
    version_text: ClassVar[str] = "1"
    needs: ClassVar[tuple[str, str] | None] = None

    def __init__(self, options: AnyOptions | None = None) -> None:
        self.options: AnyOptions = options if options is not None else self.options_type()  # type: ignore[assignment]
        if self.needs is not None and not is_installed(self.needs[0]):
            package, extra = self.needs
            raise QuintainError(
                f"the {self.name} verifier needs {package}, which is not installed: pip install 'quintain[{extra}]'"
            )

    @classmethod
    def made(cls, **options: Any) -> Self:
        """One with the named options of `options_type`."""
        return cls(cls.options_type.of(cls.name, options))  # type: ignore[arg-type]

    @property
    def version(self) -> str:
        """Our own version of the judgement, and that of the package that takes part in it."""
        return self.version_text if self.needs is None else versioned(self.version_text, self.needs[0])


def is_installed(package: str) -> bool:
    """Whether there is such a package to import, called as on PyPI."""
    return find_spec(package.replace("-", "_")) is not None


def versioned(own: str, *packages: str) -> str:
    """Our `own` version of a judgement with those of the `packages` that take part in it."""
    return "+".join([own, *(f"{package}-{version(package)}" for package in packages)])
