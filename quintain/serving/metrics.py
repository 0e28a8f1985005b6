"""Counters, gauges, summaries and histograms in Prometheus' text format.

Every name is declared once, with its help, before it is counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

Kind = Literal["counter", "gauge", "summary", "histogram"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Numbers of one server. Names carry the `prefix`, such as `quintain_env_`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._declared: dict[str, tuple[Kind, str]] = {}
        self._values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._readers: dict[str, Callable[[], dict[str, float]]] = {}
        self._bounds: dict[str, tuple[float, ...]] = {}

    def counter(self, name: str, help: str) -> None:
        """Declare a counter."""
        self._declared[name] = ("counter", help)

    def summary(self, name: str, help: str) -> None:
        """Declare a summary: a sum and a count."""
        self._declared[name] = ("summary", help)

    def histogram(self, name: str, help: str, bounds: Sequence[float]) -> None:
        """Declare a histogram: a sum, a count, and how many observations were at most each of `bounds`."""
        self._declared[name] = ("histogram", help)
        self._bounds[name] = tuple(sorted(bounds))

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Declare a gauge that is read when asked for."""
        self.read(name, "gauge", help, lambda: [({}, read())])

    def counted(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Declare a counter that somebody else keeps."""
        self.read(name, "counter", help, lambda: [({}, read())])

    def counted_by(self, label: str, name: str, help: str, read: Callable[[], Mapping[Any, float]]) -> None:
        """Declare counters that somebody else keeps, by `label`."""
        self.read(name, "counter", help, lambda: [({label: str(key)}, n) for key, n in sorted(read().items())])

    def read(
        self,
        name: str,
        kind: Literal["counter", "gauge"],
        help: str,
        read: Callable[[], Iterable[tuple[Mapping[str, str], float]]],
    ) -> None:
        """Declare values by their labels that somebody else keeps, and that are read when asked for."""
        self._declared[name] = (kind, help)
        self._readers[name] = lambda: {_labelled(name, labels): value for labels, value in read()}

    def read_histogram(
        self, name: str, help: str, bounds: Sequence[float], read: Callable[[], Mapping[int, int]]
    ) -> None:
        """Declare a histogram of which somebody else keeps the counts, by value."""
        self._declared[name] = ("histogram", help)

        def rows() -> dict[str, float]:
            counts = read()
            rows: dict[str, float] = {}
            for bound in sorted(bounds):
                below = sum(count for value, count in counts.items() if value <= bound)
                rows[_labelled(f"{name}_bucket", {"le": _number(bound)})] = below
            total = sum(counts.values())
            rows[_labelled(f"{name}_bucket", {"le": "+Inf"})] = total
            rows[f"{name}_sum"] = sum(value * count for value, count in counts.items())
            rows[f"{name}_count"] = total
            return rows

        self._readers[name] = rows

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._check(name, "counter")
        self._values[name][_labelled(name, labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a summary or a histogram."""
        self._check(name, "summary", "histogram")
        if name in self._bounds:
            self._count(name, value, labels)
        self._values[name][_labelled(f"{name}_sum", labels)] += value
        self._values[name][_labelled(f"{name}_count", labels)] += 1

    def render(self) -> str:
        """All of them as Prometheus reads them."""
        lines = []
        for name, (kind, help) in self._declared.items():
            lines += [f"# HELP {self._prefix}{name} {help}", f"# TYPE {self._prefix}{name} {kind}"]
            values = self._readers[name]() if name in self._readers else self._values[name]
            ordered = values.items() if kind == "histogram" else sorted(values.items())  # buckets: in their own order
            lines += [f"{self._prefix}{labelled} {_number(value)}" for labelled, value in ordered]
        return "\n".join(lines) + "\n"

    def _count(self, name: str, value: float, labels: dict[str, str]) -> None:
        values, bounds = self._values[name], self._bounds[name]
        for place, bound in enumerate([*map(_number, bounds), "+Inf"]):
            values[_labelled(f"{name}_bucket", {**labels, "le": bound})] += place >= bisect_left(bounds, value)

    def _check(self, name: str, *kinds: Kind) -> None:
        if name in self._readers or name not in self._declared or self._declared[name][0] not in kinds:
            raise KeyError(f"no {kinds[0]} {name!r} was declared")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.15g}"  # Prometheus' numbers are doubles: a count of millions is told to the last digit


def _labelled(name: str, labels: Mapping[str, str]) -> str:
    return _written(name, tuple(labels.items())) if labels else name


@lru_cache(4096)  # every request counts something
def _written(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels))
    return f"{name}{{{inner}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
