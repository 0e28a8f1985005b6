"""The pure parts of the embedded engine: the cohort's gate, the batcher's plans, the sampler and the slots."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transformers import TopKLogitsWarper, TopPLogitsWarper

from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.embedded.batcher import BatchLimits, Cohort, admit, plan
from quintain.rollout.engines.embedded.decoder import DecodeRow
from quintain.rollout.engines.embedded.engine import _rank
from quintain.rollout.engines.embedded.kv import KVCache, padded_rows, padded_tokens
from quintain.rollout.engines.embedded.sampler import draw, uniform

# --- the cohort -------------------------------------------------------------------------------------------------


class CohortMachine(RuleBasedStateMachine):
    """Sessions come, submit, and end in any order; an engine asks its gate after every event."""

    @initialize()
    def begin(self) -> None:
        self.gate = Cohort(patience_s=5.0)
        self.able: set[int] = set()
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.born = 0

    @rule()
    def session_begins(self) -> None:
        self.able.add(self.born)
        self.born += 1

    @precondition(lambda self: self.able - set(self.waiting) - set(self.running))
    @rule(data=st.data())
    def session_submits(self, data: st.DataObject) -> None:
        idle = sorted(self.able - set(self.waiting) - set(self.running))
        self.waiting.append(data.draw(st.sampled_from(idle)))

    @precondition(lambda self: self.able - set(self.waiting) - set(self.running))
    @rule(data=st.data())
    def session_ends(self, data: st.DataObject) -> None:
        idle = sorted(self.able - set(self.waiting) - set(self.running))
        self.able.discard(data.draw(st.sampled_from(idle)))

    @rule()
    def engine_finishes_the_cohort(self) -> None:
        self.running = []

    @invariant()
    def a_cohort_starts_whole_or_not_at_all(self) -> None:
        self.gate.expected = len(self.able)
        everybody = bool(self.waiting) and set(self.waiting) == self.able
        assert self.gate.ready(len(self.waiting), len(self.running), 4.9) == (everybody and not self.running)
        assert self.gate.ready(len(self.waiting), len(self.running), 5.0) == (bool(self.waiting) and not self.running)
        if self.gate.ready(len(self.waiting), len(self.running)):
            self.running, self.waiting = self.waiting, []


TestCohort = CohortMachine.TestCase


@given(
    st.lists(st.tuples(st.text(max_size=3), st.lists(st.integers(0, 9), max_size=3), st.integers()), max_size=8),
    st.randoms(),
)
def test_the_order_of_a_cohort_does_not_depend_on_who_came_first(asked, random) -> None:
    rows = [(session, DecodeRow(prompt, Sampling(1, seed=seed), 1)) for session, prompt, seed in asked]
    shuffled = random.sample(rows, len(rows))
    assert [*map(_rank, sorted(shuffled, key=_rank))] == [*map(_rank, sorted(rows, key=_rank))]


# --- the batcher ------------------------------------------------------------------------------------------------

prompts_st = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=20)


@given(prompts_st, st.integers(1, 40))
def test_every_row_is_read_once_from_its_own_prompt_and_each_prompt_once(prompts, budget) -> None:
    readings = plan(prompts, BatchLimits(rows=8, cache_tokens=1000, prefill_tokens=budget))
    rows = [row for reading in readings for row in reading.rows]
    assert sorted(rows) == list(range(len(prompts)))
    read = Counter(prompt for reading in readings for prompt in reading.prompts)
    assert set(read.values()) == {1}
    for reading in readings:
        for row, source in zip(reading.rows, reading.source, strict=True):
            assert list(reading.prompts[source]) == prompts[row]


@given(prompts_st, st.integers(1, 40))
def test_a_prefill_stays_within_its_tokens_unless_it_is_a_single_prompt(prompts, budget) -> None:
    for reading in plan(prompts, BatchLimits(rows=8, cache_tokens=1000, prefill_tokens=budget)):
        padded = len(reading.prompts) * max(map(len, reading.prompts))
        assert padded <= budget or len(reading.prompts) == 1


@given(
    st.lists(st.integers(1, 300), max_size=20), st.lists(st.integers(1, 300), max_size=6), st.integers(1, 8),
    st.integers(1, 3000),
)  # fmt: skip
def test_what_is_admitted_fits_and_one_row_always_does(waiting, running, rows, cache_tokens) -> None:
    running = running[:rows]
    count = admit(waiting, running, BatchLimits(rows, cache_tokens, 100))
    everything = [*running, *waiting[:count]]
    assert len(everything) <= max(rows, len(running))
    if count and len(everything) > 1:
        assert padded_rows(len(everything)) * padded_tokens(max(everything)) <= cache_tokens
    if waiting and not running:
        assert count >= 1


# --- the sampler ------------------------------------------------------------------------------------------------


def logits_of(rows: int, words: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, words, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


@pytest.mark.parametrize("words", [5, 128, 300, 49_152])
def test_a_draw_inverts_the_cumulative_distribution(words: int) -> None:
    rows = [Sampling(9, temperature=t, seed=s) for s, t in enumerate([1.0, 0.7, 1.3, 1.0, 2.0, 0.3, 1.0, 1.0, 1.0])]
    logits = logits_of(len(rows), words)
    drawn = draw(logits, rows, list(range(len(rows))))
    for index, row in enumerate(rows):
        scaled = logits[index].double().numpy() / row.temperature
        exact = np.exp(scaled - np.logaddexp.reduce(scaled))
        upper = exact.cumsum()[drawn.ids[index]]
        # The token's interval of the distribution holds the uniform number (float32 weights: to 1e-6).
        assert upper - exact[drawn.ids[index]] - 1e-6 <= uniform(row.seed, index) <= upper + 1e-6
        assert drawn.logprobs[index] == pytest.approx(np.log(exact[drawn.ids[index]]), abs=5e-6)


def test_the_frequencies_of_many_seeds_are_the_distribution() -> None:
    logits = logits_of(1, 11)
    count = 20_000
    drawn = draw(logits.expand(count, -1), [Sampling(1, seed=seed) for seed in range(count)], [0] * count)
    observed = np.bincount(drawn.ids, minlength=11)
    expected = logits[0].softmax(-1).numpy() * count
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 29.6  # 10 degrees of freedom, one in a thousand


def test_uniform_numbers_differ_by_seed_and_by_position_and_fill_the_unit_interval() -> None:
    numbers = np.array([[uniform(seed, at) for at in range(64)] for seed in [*range(64), -1, 2**63]])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    assert abs(numbers.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.05


def test_a_row_draws_the_same_in_any_company() -> None:
    logits = logits_of(40, 700)
    rows = [
        Sampling(9, temperature=[0.0, 1.0, 0.6][i % 3], top_k=[0, 0, 5][i % 3], top_p=[1.0, 0.8][i % 2], seed=i)
        for i in range(40)
    ]
    together = draw(logits, rows, [3] * 40)
    for index, row in enumerate(rows):
        alone = draw(logits[index : index + 1], [row], [3])
        assert alone.ids == [together.ids[index]]
        assert alone.logprobs == pytest.approx([together.logprobs[index]], abs=1e-6)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (7, 1.0), (0, 0.9), (0, 0.2), (0, 1e-6), (20, 0.7), (5000, 0.99)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_narrowed_distributions_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    words, count = 3000, 400
    logits = logits_of(1, words)
    warped = logits / temperature
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    exact = warped.log_softmax(-1)[0]
    rows = [Sampling(1, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed) for seed in range(count)]
    drawn = draw(logits.expand(count, -1), rows, [0] * count)
    torch.testing.assert_close(torch.tensor(drawn.logprobs), exact[drawn.ids], atol=5e-6, rtol=0)
    assert torch.isfinite(exact[drawn.ids]).all()


def test_a_nucleus_wider_than_the_first_guess_is_still_exact() -> None:
    logits = torch.zeros(1, 5000)
    drawn = draw(logits, [Sampling(1, top_p=0.5)], [0])
    assert drawn.logprobs[0] == pytest.approx(-np.log(2500), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_likeliest_word_and_reports_temperature_one(dtype: torch.dtype) -> None:
    logits = logits_of(33, 1000, dtype=dtype) * 1e-3  # weights that all round to about one
    drawn = draw(logits, [Sampling(1, temperature=0, seed=seed) for seed in range(33)], [0] * 33)
    top = logits.float().amax(-1)
    assert torch.equal(logits.float()[torch.arange(33), drawn.ids], top)
    torch.testing.assert_close(
        torch.tensor(drawn.logprobs), logits.float().log_softmax(-1)[torch.arange(33), drawn.ids], atol=5e-6, rtol=0
    )


def test_a_word_without_weight_is_never_drawn() -> None:
    logits = torch.full((1, 400), -torch.inf)
    logits[0, [3, 250]] = 0.0
    seeds = range(300)
    drawn = draw(logits.expand(300, -1), [Sampling(1, seed=seed) for seed in seeds], [0] * 300)
    assert set(drawn.ids) == {3, 250}
    assert drawn.logprobs == pytest.approx([-np.log(2)] * 300)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told_by_their_logprob_and_spoil_no_neighbour(bad, temperature) -> None:
    logits = logits_of(3, 300)
    logits[1, 7] = bad
    drawn = draw(logits, [Sampling(1, temperature=temperature, seed=seed) for seed in range(3)], [0] * 3)
    assert [np.isnan(value) for value in drawn.logprobs] == [False, True, False]


def test_the_logits_are_not_changed_by_drawing_from_them() -> None:
    logits = logits_of(4, 256)
    before = logits.clone()
    draw(logits, [Sampling(1, top_p=0.5, seed=seed) for seed in range(4)], [0] * 4)
    assert torch.equal(logits, before)


# --- the slots --------------------------------------------------------------------------------------------------

LAYERS, HEADS, SIZE = 2, 3, 4


def part(lengths: list[int], generator: torch.Generator) -> list[torch.Tensor]:
    """A prefill of prompts of `lengths`: padded on the right with rubbish."""
    shape = (len(lengths), HEADS, max(lengths), SIZE)
    parts = [torch.randn(shape, generator=generator) for _ in range(LAYERS)]
    for index, length in enumerate(lengths):
        for layer in parts:
            layer[index, :, length:] = torch.nan
    return parts


class SlotsMachine(RuleBasedStateMachine):
    """Rows are admitted, stepped and dropped; a list of plain tensors says what each must hold."""

    @initialize()
    def begin(self) -> None:
        self.slots = KVCache()
        self.model: list[list[torch.Tensor]] = []  # row -> keys of each layer [H, length, D]; values are twice those
        self.generator = torch.Generator().manual_seed(0)

    @rule(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3), copies=st.integers(1, 4))
    def admit(self, lengths: list[int], copies: int) -> None:
        keys = part(lengths, self.generator)
        source = [prompt for prompt in range(len(lengths)) for _ in range(copies)]
        self.slots.admit(keys, [2 * layer for layer in keys], source, [lengths[prompt] for prompt in source])
        self.model += [[layer[prompt, :, : lengths[prompt]] for layer in keys] for prompt in source]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(range(len(self.model))), unique=True, min_size=1))
        order = self.slots.drop(gone)
        assert sorted(order) == [row for row in range(len(self.model)) if row not in gone]
        self.model = [self.model[row] for row in order]

    @precondition(lambda self: self.model)
    @rule()
    def step(self) -> None:
        mask = self.slots.begin_step()
        rows = len(self.model)
        for index, row in enumerate(self.model):
            length = row[0].shape[1]
            assert torch.equal(mask[index, 0, 0] == 0, torch.arange(self.slots.tokens) <= length)
        for layer in range(LAYERS):
            new = torch.randn(self.slots.rows, HEADS, SIZE, generator=self.generator)
            keys, values = self.slots.write(layer, new, 2 * new)
            assert keys.is_contiguous()
            assert values.is_contiguous()
            for index in range(rows):
                held = torch.cat([self.model[index][layer], new[index][:, None]], 1)
                self.model[index][layer] = held
                beyond = held.shape[1]
                assert torch.equal(keys[index, :, :beyond], held)
                assert torch.equal(values[index, :, :beyond], 2 * held)
                assert not keys[index, :, beyond:].any()
                assert not values[index, :, beyond:].any()
        self.slots.end_step()

    @invariant()
    def lengths_are_what_the_rows_hold(self) -> None:
        assert self.slots.lengths == [row[0].shape[1] for row in self.model]


TestSlots = SlotsMachine.TestCase
TestSlots.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_the_time_dimension_shrinks_when_the_longest_row_leaves() -> None:
    slots = KVCache()
    keys = part([200, 5], torch.Generator().manual_seed(0))
    slots.admit(keys, keys, [0, 1], [200, 5])
    slots.begin_step()
    assert slots.tokens == padded_tokens(201)
    slots.drop([0])
    slots.begin_step()
    assert slots.tokens == padded_tokens(6)


def test_rows_that_could_not_be_admitted_leave_those_that_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = KVCache()
    keys = part([5], torch.Generator().manual_seed(0))
    slots.admit(keys, keys, [0], [5])

    def full(*args: object) -> torch.Tensor:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(slots, "_moved", full)
        with pytest.raises(MemoryError):
            slots.admit(keys, keys, [0] * 9, [5] * 9)
    assert slots.lengths == [5]
    slots.begin_step()
    held, _ = slots.write(0, torch.zeros(1, HEADS, SIZE), torch.zeros(1, HEADS, SIZE))
    assert torch.equal(held[0, :, :5], keys[0][0])
