"""What is trained on where nothing is sampled: files, a hub's data sets, and the trajectories of our own runs."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, field_validator, model_validator

from quintain.config.section import Above0, Positive, Section

FIELDS: Final = ("reward", "environment", "verdict", "turns", "tokens", "step", "ending")
"""What `where` may ask of a trajectory, besides `rewards.NAME`."""
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON: Final = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")

Wanted = str | float | bool | list[str | float]


class DatasetConfig(Section):
    """One data set; several make a mixture."""

    path: str | None = None
    """A file of rows (JSON lines, CSV, Parquet), or a hub's name, which `datasets` loads."""
    name: str | None = None
    """Which configuration of a hub's data set."""
    split: str = "train"
    """Which split of a hub's data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name of a column to the data's own: {prompt: question}."""
    run: str | None = None
    """A run's folder, or a file of trajectories (our Parquet; ATIF or OpenEnv's TrainingTrace in JSON lines): the
    very tokens that were sampled are trained on."""
    where: dict[str, Wanted] = Field(default_factory=dict)
    """With `run`, which trajectories: {reward: ">= 1", environment: math, verdict: correct, turns: "<= 3"}."""
    streaming: bool = False
    """Read the rows while they are trained on, and hold few; a run that is resumed reads up to its step again."""
    shuffle_buffer: Positive = 1024
    """With `streaming`, how many rows that follow each other are in an order of their own; 1 is as they are stored."""
    weight: Above0 | None = None
    """Share of the mixture; null weighs all rows of all data sets alike."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.path or self.run or ""

    @model_validator(mode="after")
    def _one_kind(self) -> DatasetConfig:
        if (self.path is None) == (self.run is None):
            raise ValueError("give exactly one of 'path' (rows) and 'run' (trajectories)")
        if self.where and self.run is None:
            raise ValueError("'where' chooses among trajectories: give 'run', or drop it")
        if self.streaming and self.path is None:
            raise ValueError("'streaming' reads rows as they are stored, trajectories are read whole: drop it")
        return self

    @field_validator("where")
    @classmethod
    def _known(cls, where: dict[str, Wanted]) -> dict[str, Wanted]:
        for name, wanted in where.items():
            if name not in FIELDS and not name.startswith("rewards."):
                raise ValueError(f"there is no '{name}' of a trajectory: expected {', '.join(FIELDS)} or rewards.NAME")
            try:
                satisfies(0.0, wanted)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return where


def _listed(data: Any) -> Any:
    """A data set by its path alone, or a single one, as a list of one."""
    if isinstance(data, str):
        return [{"path": data}]
    return [data] if isinstance(data, Mapping) else data


Datasets = Annotated[tuple[DatasetConfig, ...], BeforeValidator(_listed), Field(min_length=1)]
"""A data set, by its path or with its options, or a list of several: a mixture."""


def satisfies(value: Any, wanted: Wanted) -> bool:
    """Whether `value` is what `wanted` says: itself, one of a list, or a comparison with a number (">= 0.5").

    Nothing satisfies a comparison where there is no value (None). Raises ValueError for a comparison with no number.
    """
    if isinstance(wanted, list):
        return value in wanted
    found = _COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return bool(value == wanted)
    sign, text = found.groups()
    try:
        other: float | str = float(text)
    except ValueError:
        if sign not in ("==", "!="):
            raise ValueError(f"expected a number after {sign}, got {text!r}") from None
        other = text
    alike = isinstance(value, str) if isinstance(other, str) else isinstance(value, (int, float))
    return alike and _OPERATORS[sign](value, other)
