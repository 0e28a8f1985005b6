"""The rubric: one score from several verifiers, itself a verifier, so rubrics nest.

    verifier: rubric
    mode: gate
    parts:
      - {verifier: format, gate: true, options: {tags: [answer]}}
      - verifier: rubric
        options:
          mode: weighted_sum
          parts:
            - {verifier: math, weight: 0.9}
            - {verifier: length, weight: 0.1, options: {kind: soft_overlong, maximum: 500}}

The modes are defined in `quintain.verifiers.rubric.plan`. A part gets the item's reference, or with `reference_key`
the entry of that name in it. Parts are asked from cheap to dear (`Verifier.cost`), each about all the items of the
batch that it still matters for, and no more is asked once a score is decided. The verdict's detail has each part's
own score, outcome and detail, or that it was not asked. Where a part fails and the score is not decided without it,
the rubric's verdict is that failure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from quintain.failure import QuintainError
from quintain.verdict import Outcome, Verdict
from quintain.verifiers.base import Cost, Item, Verifier
from quintain.verifiers.options import Options, OptionsVerifier, Unit
from quintain.verifiers.registry import get_verifier
from quintain.verifiers.rubric.plan import FAILED, Finding, Mode, Part, decided, next_part

MAX_DEPTH: Final = 8


class PartOptions(Options):
    """One part of a rubric."""

    verifier: Annotated[str, Field(min_length=1)]
    """The name of a verifier, `rubric` among them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its options."""
    weight: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """Its weight in a weighted sum or a sequence, relative to the others'."""
    gate: bool = False
    """In the mode `gate`: whether it opens the way for the one part that is no gate."""
    passes_at: Unit = 1.0
    """The score from which a gate is open, or a step of a sequence has passed."""
    reference_key: str | None = None
    """The entry of the item's reference that is this part's reference; all of it unless given."""
    name: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    """What the verdict's detail calls it; the verifier's name unless given."""


class RubricOptions(Options):
    """Options of a rubric."""

    mode: Mode = "weighted_sum"
    """How the parts make one score: `weighted_sum`, `gate`, `sequence` or `maximum`."""
    parts: Annotated[tuple[PartOptions, ...], Field(min_length=1, max_length=32)]
    """The parts, at least one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        gates = sum(part.gate for part in self.parts)
        if self.mode == "gate" and not 0 < gates == len(self.parts) - 1:
            raise ValueError(f"gate: all parts but one are gates, not {gates} of {len(self.parts)}")
        if self.mode != "gate" and gates:
            raise ValueError(f"gate: only the mode gate has gates, not {self.mode}")
        return self


class RubricVerifier(OptionsVerifier[RubricOptions]):
    """Judges with several verifiers. It owns them, and closes them."""

    name: ClassVar[str] = "rubric"
    options_type: ClassVar[type[Options]] = RubricOptions

    def __init__(self, options: RubricOptions) -> None:
        super().__init__(options)
        _check_depth(options.parts, MAX_DEPTH)
        self._verifiers = [_made(part) for part in options.parts]
        self.cost = Cost(max(verifier.cost for verifier in self._verifiers))
        self._names = _names(options.parts)
        self._parts = [
            Part(weight=part.weight, passes_at=part.passes_at, gate=part.gate, cost=verifier.cost)
            for part, verifier in zip(options.parts, self._verifiers, strict=True)
        ]

    @property
    def version(self) -> str:
        """Our own version of the judgement, and the parts' in brackets."""
        return f"1({', '.join(f'{one.name} {one.version}' for one in self._verifiers)})"

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        """A verdict for each of `items`, in order; `deadline_s` bounds each item in each part."""
        found: list[dict[int, Verdict]] = [{} for _ in items]
        waiting = [index for index in range(len(items)) if self._decided(found[index]) is None]
        while waiting:
            asked: dict[int, list[int]] = defaultdict(list)
            for index in waiting:
                asked[next_part(self.options.mode, self._parts, _findings(found[index]))].append(index)
            # The cheapest part first, then look again: all items have the same parts, so there is mostly one.
            place = min(asked, key=lambda place: (self._parts[place].cost, place))
            verdicts = await self._ask(place, [items[index] for index in asked[place]], deadline_s)
            for index, verdict in zip(asked[place], verdicts, strict=True):
                found[index][place] = verdict
            waiting = [index for index in waiting if self._decided(found[index]) is None]
        return [self._verdict(verdicts) for verdicts in found]

    async def close(self) -> None:
        """Close the parts."""
        for verifier in self._verifiers:
            await verifier.close()

    async def _ask(self, place: int, items: Sequence[Item], deadline_s: float | None) -> list[Verdict]:
        """The verdicts of one part, which gets its own reference."""
        key = self.options.parts[place].reference_key
        if key is None:
            return await self._verifiers[place].verify(items, deadline_s=deadline_s)
        has_key = [isinstance(item.reference, Mapping) and key in item.reference for item in items]
        own = [Item(item.answer, item.reference[key]) for item, has in zip(items, has_key, strict=True) if has]
        asked = iter(await self._verifiers[place].verify(own, deadline_s=deadline_s))
        missing = Verdict.failed(Outcome.BAD_REFERENCE, f"a reference is a mapping with the key {key!r}")
        return [next(asked) if has else missing for has in has_key]

    def _decided(self, verdicts: Mapping[int, Verdict]) -> Finding | None:
        return decided(self.options.mode, self._parts, _findings(verdicts))

    def _verdict(self, verdicts: Mapping[int, Verdict]) -> Verdict:
        result = self._decided(verdicts)
        assert result is not None
        detail: dict[str, Any] = {
            "mode": self.options.mode,
            "parts": [self._told(place, verdicts.get(place)) for place in range(len(self._parts))],
        }
        elapsed_s = sum(verdict.elapsed_s for verdict in verdicts.values())
        if result is not FAILED:
            return Verdict.scored(result, elapsed_s=elapsed_s, **detail)
        place, broken = next((place, verdict) for place, verdict in verdicts.items() if verdict.failure is not None)
        detail["failed_part"] = self._names[place]
        return Verdict(None, broken.outcome, broken.failure, elapsed_s, detail)

    def _told(self, place: int, verdict: Verdict | None) -> dict[str, Any]:
        told: dict[str, Any] = {"name": self._names[place], "weight": self._parts[place].weight}
        if verdict is None:
            return told | {"asked": False}
        told |= {"asked": True, "score": verdict.score, "outcome": str(verdict.outcome), "detail": dict(verdict.detail)}
        return told if verdict.failure is None else told | {"failure": str(verdict.failure)}


def _findings(verdicts: Mapping[int, Verdict]) -> dict[int, Finding]:
    return {place: FAILED if verdict.score is None else verdict.score for place, verdict in verdicts.items()}


def _names(parts: Sequence[PartOptions]) -> list[str]:
    """A different name for each part."""
    names, seen = [], Counter[str]()
    for part in parts:
        name = part.name or part.verifier
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def _made(part: PartOptions) -> Verifier:
    try:
        return get_verifier(part.verifier, **part.options)
    except QuintainError as error:
        raise QuintainError(f"in a rubric: {error}") from None


def _check_depth(parts: Sequence[PartOptions], depth: int) -> None:
    """Refuse rubrics within rubrics without end, which YAML's aliases can write."""
    if depth == 0:
        raise QuintainError(f"rubrics nest at most {MAX_DEPTH} deep")
    for part in parts:
        if part.verifier == "rubric":
            _check_depth(RubricOptions.of("rubric", part.options).parts, depth - 1)
