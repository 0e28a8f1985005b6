"""`/metrics`: what the rollout server says of itself to Prometheus, every name with the prefix `quintain_rollout_`.

Numbers live with whoever counts them (engine, scheduler, runs, monitor) and are read when somebody asks.
"""

from __future__ import annotations

import math
from functools import partial

from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.control import Control
from quintain.rollout.server.monitor import Monitor
from quintain.rollout.server.task_runs import TaskRuns
from quintain.serving.metrics import Metrics

AGES = (0, 1, 2, 4, 8, 16)
"""Bounds of the staleness histogram, in versions."""


def rollout_metrics(
    scheduler: Scheduler, runs: TaskRuns, control: Control, monitor: Monitor, gateway: Gateway | None = None
) -> Metrics:
    """Everything that is measured, declared once."""
    metrics = Metrics("quintain_rollout_")
    stats, engine, counters = scheduler.engine.stats, monitor.engine, scheduler.counters

    def kv_usage() -> float:
        return math.nan if (usage := stats().kv_usage) is None else usage

    counter, by, gauge = metrics.counted, metrics.counted_by, metrics.gauge

    counter("output_tokens_total", "Tokens sampled.", lambda: stats().output_tokens)
    counter("prompt_tokens_total", "Prompt tokens computed.", lambda: stats().prompt_tokens)
    gauge("tokens_per_second", "Tokens sampled a second, over the last minute.", lambda: engine.tokens_per_s)
    counter("wasted_tokens_total", "Sampled tokens that no loss will see.", lambda: counters.wasted_tokens)

    counter("engine_busy_seconds_total", "Time in which the engine computed.", lambda: stats().busy_s)
    gauge("engine_idle_fraction", "Share of the last minute it computed nothing in.", lambda: engine.idle_fraction)
    gauge("engine_running", "Requests that the engine computes.", lambda: stats().running)
    gauge("engine_waiting", "Requests that wait in the engine.", lambda: stats().waiting)
    gauge("engine_kv_usage", "Share of the KV cache in use; NaN where the engine has none.", kv_usage)
    counter("engine_preemptions_total", "Requests put back for want of KV cache.", lambda: stats().preemptions)
    counter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", lambda: stats().prefix_hits)
    counter("prefix_cache_queries_total", "Prompt tokens looked up in it.", lambda: stats().prefix_queries)
    gauge("prefix_cache_hit_rate", "Hits over queries.", lambda: stats().prefix_hits / (stats().prefix_queries or 1))

    gauge("version", "Version that admission follows; -1 before the first publish.", lambda: scheduler.version)
    metrics.summary("publish_stall_seconds", "How long sampling stood still for a publish.")
    metrics.read_histogram(
        "staleness", "Trajectories handed to the trainer, by age in versions.", AGES, lambda: counters.staleness
    )
    counter("mixed_trajectories_total", "Those of them sampled by several versions.", lambda: counters.mixed)
    metrics.counter("trainer_wait_seconds_total", "Time that calls for a batch waited for it.")
    metrics.counter("batches_total", "Batches handed to the trainer.")

    gauge("episodes_running", "Episodes in flight.", scheduler.running)
    gauge("episodes_waiting", "Episodes that wait for a place.", lambda: scheduler.waiting)
    gauge("concurrency_limit", "Episodes that may run now.", lambda: scheduler.concurrency_limit)
    metrics.read("failures_total", "counter", "Failed episodes, by kind and stage.", lambda: _failures(scheduler))
    by("reason", "segments_forked_total", "Turns that do not extend the tokens so far.", lambda: scheduler.forks)
    by("reason", "groups_dropped_total", "Groups that no step will consume.", lambda: counters.dropped)
    counter("members_replaced_total", "Failed members that an extra stands in for.", lambda: counters.replaced)
    counter("stragglers_total", "Episodes that were ended as too slow.", lambda: counters.stragglers)

    gauge("runs", "Runs under way.", lambda: runs.under_way)
    gauge("result_bytes", "Finished groups of runs, kept to be fetched.", lambda: runs.results.held_bytes)
    if gateway is not None:
        _declare_sessions(metrics, gateway)
    gauge("paused", "1 while sampling is paused by an operator.", lambda: control.paused)
    gauge("draining", "1 while nothing new is admitted.", lambda: control.draining)
    for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        help = f"How late the event loop is, over the last minute: {name}."
        gauge(f"event_loop_lag_seconds_{name}", help, partial(monitor.lag.at, q))
    return metrics


def _declare_sessions(metrics: Metrics, gateway: Gateway) -> None:
    """What agents that are not ours do, apart from the episodes that are."""
    counters = gateway.counters
    counter, by = metrics.counted, metrics.counted_by

    metrics.gauge("sessions_live", "Agents' sessions that have not ended.", lambda: gateway.live)
    counter("session_turns_total", "Turns of sessions.", lambda: counters.turns)
    by("how", "sessions_ended_total", "Sessions, by how they ended.", lambda: counters.ended)
    by("kind", "session_failures_total", "Failed sessions, by kind.", lambda: counters.failures)
    by("reason", "session_forks_total", "Turns that do not extend the tokens so far.", lambda: counters.forks)


def _failures(scheduler: Scheduler) -> list[tuple[dict[str, str], float]]:
    rows = []
    for name, count in sorted(scheduler.failures.items()):
        kind, _, stage = name.partition("/")
        rows.append(({"kind": kind, "stage": stage}, float(count)))
    return rows
