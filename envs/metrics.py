"""Counters and gauges in Prometheus' text format.

Every name is declared once, with its help, before it is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

Kind = Literal["counter", "gauge", "summary"]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Numbers of one server. Names carry the prefix `quintain_env_`."""

    def __init__(self, prefix: str = "quintain_env_") -> None:
        self._prefix = prefix
        self._declared: dict[str, tuple[Kind, str]] = {}
        self._values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._gauges: dict[str, Callable[[], float]] = {}

    def counter(self, name: str, help: str) -> None:
        """Declare a counter."""
        self._declared[name] = ("counter", help)

    def summary(self, name: str, help: str) -> None:
        """Declare a summary: a sum and a count."""
        self._declared[name] = ("summary", help)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Declare a gauge that is read when asked for."""
        self._declared[name] = ("gauge", help)
        self._gauges[name] = read

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._check(name, "counter")
        self._values[name][_labelled(name, labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a summary."""
        self._check(name, "summary")
        self._values[name][_labelled(f"{name}_sum", labels)] += value
        self._values[name][_labelled(f"{name}_count", labels)] += 1

    def render(self) -> str:
        """All of them as Prometheus reads them."""
        lines = []
        for name, (kind, help) in self._declared.items():
            lines += [f"# HELP {self._prefix}{name} {help}", f"# TYPE {self._prefix}{name} {kind}"]
            values = {name: self._gauges[name]()} if kind == "gauge" else self._values[name]
            lines += [f"{self._prefix}{labelled} {value:g}" for labelled, value in sorted(values.items())]
        return "\n".join(lines) + "\n"

    def _check(self, name: str, kind: Kind) -> None:
        if name not in self._declared or self._declared[name][0] != kind:
            raise KeyError(f"no {kind} {name!r} was declared")


def _labelled(name: str, labels: dict[str, str]) -> str:
    if not labels:
        return name
    inner = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
