"""Rows: what is trained on, whatever it was made of, and the counts of the whole batch that a loss divides by.

Invariants: a failure is in no row and in no count; the counts are of the whole batch, before anything is left out of
the forward pass, so that results do not depend on how a batch is cut; a column has one number for each policy token
of its row.

Shapes: T policy tokens of a row, N trajectories of a batch, K named rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quintain.arrays import Ints
from quintain.config.trainer import OnlineConfig
from quintain.failure import QuintainError
from quintain.trajectory import Group, Segment, Trajectory, by_seat, to_segments

Floats = NDArray[np.floating[Any]]
SOFT_OVERLONG = "soft_overlong"
"""The named reward that `soft_punish_cache` gives."""
ENVIRONMENT = "environment"
"""The column that is 1 at tokens which the environment wrote, of a row that is `observing`."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A segment and what is known of its policy tokens."""

    segment: Segment
    prefix: int
    """Rows with equal ones may share a token tree."""
    unit: int
    """Rows with equal ones are never split over micro-batches (the two of a preference pair)."""
    trajectory: int = -1
    """The episode it is of, as an index into `Rows.episodes`; -1: a row of a dataset."""
    masked: bool = False
    """Counted, but not trained on (a truncated completion)."""
    columns: Mapping[str, Floats] = field(default_factory=dict)
    """[T] each: what passes found (`Pass`) and what credit gave (advantage, return ...)."""
    teacher: Segment | None = None
    """The same policy tokens after another prompt, the one of a policy that is its own teacher."""

    @property
    def tokens(self) -> int:
        """T: how many policy tokens there are; the environment's count too, where the row is `observing`."""
        return int(self.segment.mask.sum())

    @property
    def environment_tokens(self) -> int:
        """How many of them the environment wrote."""
        return int(self.columns[ENVIRONMENT].sum()) if ENVIRONMENT in self.columns else 0

    def observing(self) -> Row:
        """The row with what the environment wrote after the policy's first words among its tokens; there its columns
        are 0, and `ENVIRONMENT` is 1."""
        policy = self.segment.mask
        mask = policy | (np.cumsum(policy) > 0)
        ours = policy[mask]

        def spread(values: Floats) -> Floats:
            full = np.zeros(len(ours), values.dtype)
            full[ours] = values
            return full

        columns = {name: spread(values) for name, values in self.columns.items()}
        return replace(
            self,
            segment=replace(self.segment, mask=mask),
            columns={**columns, ENVIRONMENT: (~ours).astype(np.float32)},
        )

    @property
    def log_ratio_to_reference(self) -> Floats | None:
        """[T]: old − ref, the k1 estimate of KL(policy ‖ reference) at each token; None where no pass has given it."""
        return self.columns["old"] - self.columns["ref"] if "old" in self.columns and "ref" in self.columns else None

    def having(self, columns: Mapping[str, ArrayLike]) -> Row:
        """The row with more columns: [T] each, or one number for all tokens."""
        full = {name: np.broadcast_to(np.asarray(values), (self.tokens,)) for name, values in columns.items()}
        return replace(self, columns={**self.columns, **full})


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a loss needs to know of the whole batch of an optimiser step, over all micro-batches and ranks.

    rows: rows of the batch, those with an empty mask, and those left out of micro-batches because they are inert,
        included; rows of failed trajectories are not rows of the batch.
    tokens: the policy's, of those same rows; those of masked rows (truncated completions) are not.
    environment_tokens: those that the environment wrote, of rows that are `observing`.
    units: how many units (`Row.unit`) those rows make up: pairs, where rows are paired.
    max_completion_length: the length limit in tokens, L_max of Dr. GRPO.
    entropy_threshold: the least entropy of a token that is trained on, in nats; None: any.
    """

    rows: int
    tokens: int
    max_completion_length: int
    units: int = 0
    environment_tokens: int = 0
    entropy_threshold: float | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.tokens, self.units) < 0 or self.max_completion_length < 1:
            raise ValueError(
                "totals: expected rows, tokens and units of at least 0, max_completion_length of at least 1; "
                f"got {self.rows}, {self.tokens}, {self.units} and {self.max_completion_length}"
            )

    def of(self, rows: Sequence[Row]) -> Totals:
        """The same with the counts of `rows`."""
        tokens, theirs = (
            sum(each for row, each in zip(rows, counts, strict=True) if not row.masked)
            for counts in ([row.tokens for row in rows], [row.environment_tokens for row in rows])
        )
        units = len({row.unit for row in rows})
        return replace(self, rows=len(rows), tokens=tokens - theirs, units=units, environment_tokens=theirs)


@dataclass(frozen=True, slots=True, eq=False)
class BatchEpisodes:
    """The N trajectories of a batch, failed ones included: what credit is given for. Of several seats each has its own.

    reward [N, K] float64: the named parts, or the whole (K = 1); NaN where failed. names: of the parts, none for the
    whole. group [N]: equal for those of one task, and of one seat there. failed [N] bool.
    """

    reward: NDArray[np.float64]
    names: tuple[str, ...]
    group: NDArray[np.int64]
    failed: NDArray[np.bool_]

    def total(self, weights: Mapping[str, float] | None) -> NDArray[np.float64]:
        """[N]: the weighted sum of the rewards; NaN where failed."""
        total: NDArray[np.float64] = self.reward @ np.array(
            [weights[name] for name in self.names] if weights else [1.0]
        )
        return total


NO_EPISODES = BatchEpisodes(np.empty((0, 1)), (), np.empty(0, np.int64), np.empty(0, np.bool_))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of a step, the counts of the whole batch, what to log, and the episodes that the rows are of."""

    rows: tuple[Row, ...]
    totals: Totals
    metrics: dict[str, float]
    episodes: BatchEpisodes = NO_EPISODES

    def having(self, columns: Sequence[Mapping[str, ArrayLike]], metrics: Mapping[str, float] | None = None) -> Rows:
        """The same with more columns, those of one row after the other, and more metrics."""
        rows = tuple(row.having(more) for row, more in zip(self.rows, columns, strict=True))
        return replace(self, rows=rows, metrics={**self.metrics, **(metrics or {})})

    def crediting(self, advantage: ArrayLike, metrics: Mapping[str, float]) -> Rows:
        """The same with each episode's advantage [N] on all of its policy tokens."""
        values = np.asarray(advantage, np.float32)
        return self.having([{"advantage": values[row.trajectory]} for row in self.rows], metrics)

    def sums(self, per_row: Iterable[Floats | None]) -> NDArray[np.float64]:
        """[N]: what each row's tokens add up to, [T] or None for nothing, summed over the rows of each episode."""
        sums = np.zeros(len(self.episodes.failed))
        for row, values in zip(self.rows, per_row, strict=True):
            sums[row.trajectory] += 0.0 if values is None else values.sum(dtype=np.float64)
        return sums

    def trained(self, inert: Callable[[Row], bool]) -> tuple[Row, ...]:
        """The rows that need a forward pass: all that are neither masked nor `inert`."""
        return tuple(row for row in self.rows if not row.masked and not inert(row))

    def dealt(self, parts: int, *, seed: Sequence[int]) -> list[Rows]:
        """Whole units in random order, dealt into so many minibatches of their own counts; one is all as it is."""
        if parts == 1:
            return [self]
        units = sorted({row.unit for row in self.rows})
        order = np.random.default_rng(seed).permutation(len(units))
        part_of = {units[at]: place % parts for place, at in enumerate(order)}
        dealt = [tuple(row for row in self.rows if part_of[row.unit] == part) for part in range(parts)]
        return [replace(self, rows=rows, totals=self.totals.of(rows)) for rows in dealt if rows]


def unsampled(ids: Ints, mask: NDArray[np.bool_]) -> Segment:
    """A sequence that nobody sampled: `mask` [L] says which of `ids` [L] are looked at."""
    nothing = np.zeros(len(ids), np.float32)
    return Segment(ids, mask, nothing, np.full(len(ids), -1, np.int32), nothing)


def episode_rows(groups: Sequence[Group], config: OnlineConfig, *, version: int, longest: int) -> Rows:
    """One row for each segment of `groups`, without credit; `version` is the trainer's, `longest` a turn's limit, the
    L_max of Totals.

    Credit is given for the rewards that `config` names, or for the episode's reward as it is; what it takes off for
    length is taken off. Rows that a limit cut short are masked where it says so. QuintainError where the environment
    does not give a reward that is named.
    """
    names, cache = tuple(config.reward_weights or ()), config.soft_punish_cache
    mask_truncated = getattr(config, "mask_truncated_completions", False)
    members = credited(groups)
    if cache is not None:
        members = [(g, punished(row, longest, cache)) for g, row in members]
    trajectories = [trajectory for _, trajectory in members]
    made = [
        (segment, g, n, mask_truncated and trajectory.truncated)
        for n, (g, trajectory) in enumerate(members)
        if trajectory.failure is None
        for segment in to_segments(trajectory)
    ]
    rows = tuple(Row(segment, g, i, n, masked) for i, (segment, g, n, masked) in enumerate(made))
    episodes = BatchEpisodes(
        _rewards(trajectories, names),
        names,
        np.array([g for g, _ in members], np.int64),
        np.array([row.failure is not None for row in trajectories], np.bool_),
    )
    totals = Totals(rows=0, tokens=0, max_completion_length=longest).of(rows)
    return Rows(rows, totals, described(trajectories, rows, version), episodes)


def punished(trajectory: Trajectory, longest: int, cache: int) -> Trajectory:
    """`trajectory` with each turn's reward lower by how much of its last `cache` tokens before `longest` it used: by 1
    where it used all (DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13)."""
    if trajectory.reward is None:
        return trajectory
    used = [min(1.0, max(0.0, (len(turn.output_ids) - longest + cache) / cache)) for turn in trajectory.turns]
    return replace(
        trajectory,
        turns=tuple(replace(turn, reward=turn.reward - u) for turn, u in zip(trajectory.turns, used, strict=True)),
        reward=trajectory.reward - sum(used),
        rewards={**trajectory.rewards, SOFT_OVERLONG: -sum(used)},
    )


def credited(groups: Sequence[Group]) -> list[tuple[int, Trajectory]]:
    """The trajectories that credit is given for, those of several seats apart, and for each who it is compared with."""
    labels: dict[tuple[int, str], int] = {}
    return [
        (labels.setdefault((g, agent), len(labels)), played)
        for g, group in enumerate(groups)
        for row in group.trajectories
        for agent, played in by_seat(row).items()
    ]


def turns_of(row: Row) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which turn of `row` each policy token is of [T], and each turn's reward. A turn is an unbroken run of tokens."""
    at = np.flatnonzero(row.segment.mask)
    turn = (np.cumsum(np.diff(at, prepend=-2) > 1) - 1).astype(np.int64)
    return turn, np.bincount(turn, weights=row.segment.rewards[at]).astype(np.float64)


def per_row(values: NDArray[Any], rows: Sequence[Row]) -> list[NDArray[Any]]:
    """`values` of the tokens of rows that follow each other, as those [T] of each."""
    return np.split(values, np.cumsum([row.tokens for row in rows], dtype=np.int64))[:-1]


def episode_spans(rows: Sequence[Row]) -> dict[int, slice]:
    """Where the tokens of each episode are where those of `rows` follow each other, as the rows of an episode do."""
    spans: dict[int, slice] = {}
    at = 0
    for row in rows:
        start = spans[row.trajectory].start if row.trajectory in spans else at
        at += row.tokens
        spans[row.trajectory] = slice(start, at)
    return spans


def _rewards(rows: Sequence[Trajectory], names: Sequence[str]) -> NDArray[np.float64]:
    """[N, K]: the named parts, or the whole reward; NaN where the trajectory failed."""
    table = np.full((len(rows), max(1, len(names))), np.nan)
    for i, row in enumerate(rows):
        if row.failure is not None:
            continue
        if not names:
            table[i, 0] = row.reward
            continue
        for k, name in enumerate(names):
            if name not in row.rewards:
                known = ", ".join(row.rewards) or "none"
                raise QuintainError(
                    f"trainer.reward_weights: the environment gives no reward '{name}' (it gives {known})"
                )
            table[i, k] = row.rewards[name]
    return table


def described(trajectories: Sequence[Trajectory], rows: Sequence[Row], version: int) -> dict[str, float]:
    """Lengths, endings and staleness, under TRL's names where it has them."""
    lived = [row for row in trajectories if row.failure is None]
    out = {"failures": float(len(trajectories) - len(lived)), "segments_forked": float(len(rows) - len(lived))}
    if not lived:
        return out
    lengths = np.array([row.output_tokens for row in lived])
    cut = np.array([row.truncated for row in lived])
    lags = np.concatenate([version - row.segment.versions[row.segment.mask] for row in rows]) if rows else np.zeros(1)
    return out | {
        "num_tokens": float(lengths.sum()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(cut.mean()),
        "completions/mean_terminated_length": float(lengths[~cut].mean()) if (~cut).any() else 0.0,
        "staleness/mean": float(lags.mean()),
        "staleness/max": float(lags.max()),
        "turns/mean": float(np.mean([len(row.turns) for row in lived])),
    }
