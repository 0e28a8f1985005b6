"""What the conductor counts, for metrics and for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """What the rooms around may want to know. Counts are since the start of this process.

    `wasted_tokens` were sampled and no loss will see them: those of failed trajectories and of dropped groups.
    `staleness` counts the trajectories handed to the trainer by age: the step that consumes them minus the version
    of their oldest token. `mixed` of them hold tokens of more than one version.
    """

    wasted_tokens: int
    staleness: dict[int, int]
    mixed: int
    dropped: dict[str, int]  # groups, by reason
    replaced: int  # failed members that an extra stands in for
    stragglers: int  # episodes that were ended as too slow
    concurrency_limit: int  # episodes that may run now
    running: int
    waiting: int  # episodes that wait for a place
    issued: int  # groups, in the whole run
    consumed: int  # groups, in the whole run
