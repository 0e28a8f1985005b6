"""The numbers are in the format that Prometheus reads."""

from __future__ import annotations

import pytest

from quintain.serving.metrics import Metrics


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
        Metrics("x_").add("nothing")


def test_a_histogram_counts_what_is_at_most_each_bound():
    metrics = Metrics("x_")
    metrics.histogram("seconds", "Times.", [1, 0.1, 10])
    for value in (0.05, 0.1, 0.5, 100):
        metrics.observe("seconds", value, of="a")
    metrics.observe("seconds", 1, of="b")
    lines = metrics.render().splitlines()
    assert lines[1] == "# TYPE x_seconds histogram"
    assert [line for line in lines if 'of="a"' in line] == [
        'x_seconds_bucket{le="0.1",of="a"} 2',
        'x_seconds_bucket{le="1",of="a"} 3',
        'x_seconds_bucket{le="10",of="a"} 3',
        'x_seconds_bucket{le="+Inf",of="a"} 4',
        'x_seconds_sum{of="a"} 100.65',
        'x_seconds_count{of="a"} 4',
    ]
    assert 'x_seconds_bucket{le="1",of="b"} 1' in lines
    assert 'x_seconds_bucket{le="0.1",of="b"} 0' in lines


def test_large_counts_are_told_to_the_last_digit():
    metrics = Metrics("x_")
    metrics.counter("events_total", "Events.")
    metrics.add("events_total", 123_456_789)
    assert metrics.render().splitlines()[-1] == "x_events_total 123456789"


def test_what_others_count_is_read_when_it_is_asked_for():
    metrics = Metrics("x_")
    failures = {"timeout": 1}
    ages: dict[int, int] = {}
    metrics.read("failures_total", "counter", "F.", lambda: [({"kind": kind}, n) for kind, n in failures.items()])
    metrics.read_histogram("age", "Ages.", [2, 0], lambda: ages)
    metrics.gauge("unknown", "U.", lambda: float("nan"))
    failures["crashed"] = 2
    ages.update({0: 3, 1: 2, 5: 1})
    assert [line for line in metrics.render().splitlines() if not line.startswith("#")] == [
        'x_failures_total{kind="crashed"} 2',
        'x_failures_total{kind="timeout"} 1',
        'x_age_bucket{le="0"} 3',
        'x_age_bucket{le="2"} 5',
        'x_age_bucket{le="+Inf"} 6',
        "x_age_sum 7",
        "x_age_count 6",
        "x_unknown NaN",
    ]
    with pytest.raises(KeyError):
        metrics.add("failures_total")
