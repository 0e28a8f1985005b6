"""What every section of an experiment shares: unknown keys are errors, values are frozen once read.

A run is resumed with the experiment it began with. What may be another one then is marked so, option by option: where
things run, how many of them, how long to wait and what to keep, but nothing that decides what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, Field

from quintain.documented import DocumentedModel

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Above0
Url = Annotated[str, Field(pattern="^https?://"), AfterValidator(lambda url: url.rstrip("/"))]
"""A server's address, to which paths are added."""

_MARK: Final = "may_change_on_resume"
T = TypeVar("T")
MayChange = Annotated[T, Field(json_schema_extra={_MARK: True})]
"""An option that may change when a run is resumed; the JSON schema says so too."""


class Section(DocumentedModel):
    """A section of the file."""

    def fixed(self, name: str) -> str | None:
        """Why the option `name` may not change when a run is resumed, empty where that needs no words; None: it may."""
        extra = type(self).model_fields[name].json_schema_extra
        return None if isinstance(extra, dict) and extra.get(_MARK) else ""


@dataclass(frozen=True, slots=True)
class Change:
    """An option that was changed and may not be: its path, both values, and why, or ""."""

    path: str
    before: Any
    now: Any
    why: str


def forbidden_changes(before: Section, now: Section, at: str = "") -> Iterator[Change]:
    """What makes `now` another experiment than `before`, a run's own.

    Sections of two classes differ in the option that chose the class, which both have.
    """
    for name in [name for name in type(now).model_fields if name in type(before).model_fields]:
        why, was, is_now = before.fixed(name), getattr(before, name), getattr(now, name)
        if why is None or was == is_now:
            continue
        if isinstance(was, Section) and isinstance(is_now, Section):
            yield from forbidden_changes(was, is_now, f"{at}{name}.")
        elif isinstance(was, list) and isinstance(is_now, list) and len(was) == len(is_now) and _sections(was, is_now):
            for place, (old, new) in enumerate(zip(was, is_now, strict=True)):
                yield from forbidden_changes(old, new, f"{at}{name}.{place}.")
        elif isinstance(was, Mapping) and isinstance(is_now, Mapping):
            for key in [key for key in {**was, **is_now} if was.get(key) != is_now.get(key)]:
                yield Change(f"{at}{name}.{key}", was.get(key), is_now.get(key), why)
        else:
            yield Change(f"{at}{name}", was, is_now, why)


def _sections(*lists: list[Any]) -> bool:
    return all(isinstance(entry, Section) for entries in lists for entry in entries)
