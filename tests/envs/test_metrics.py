"""The numbers are in the format that Prometheus reads."""

from __future__ import annotations

import pytest

from quintain.envs.metrics import Metrics


def test_counters_summaries_and_gauges_are_rendered_with_their_labels():
    metrics = Metrics("x_")
    metrics.counter("events_total", "Events.")
    metrics.summary("call_seconds", "Calls.")
    metrics.gauge("live", "Live.", lambda: 3)
    metrics.add("events_total", kind='a "b"\\\n')
    metrics.add("events_total", 2, kind="c")
    metrics.observe("call_seconds", 0.25, op="step")
    metrics.observe("call_seconds", 0.5, op="step")
    assert metrics.render().splitlines() == [
        "# HELP x_events_total Events.",
        "# TYPE x_events_total counter",
        'x_events_total{kind="a \\"b\\"\\\\\\n"} 1',
        'x_events_total{kind="c"} 2',
        "# HELP x_call_seconds Calls.",
        "# TYPE x_call_seconds summary",
        'x_call_seconds_count{op="step"} 2',
        'x_call_seconds_sum{op="step"} 0.75',
        "# HELP x_live Live.",
        "# TYPE x_live gauge",
        "x_live 3",
    ]


def test_what_was_not_declared_cannot_be_counted():
    with pytest.raises(KeyError, match="no counter 'nothing' was declared"):
        Metrics().add("nothing")
