"""A turn that grows in pieces: whatever happens between them, the spans tile what is kept."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.vllm.answer import PartialCompletion
from quintain.rollout.engines.vllm.dialect import Chunk
from quintain.trajectory import Finish, check_spans

PROMPT = np.array([7, 8], dtype=np.int32)


def chunk(*ids: int) -> Chunk:
    return Chunk(ids, [-float(token) for token in ids])


def answer(limit: int = 10, stop: int = 99) -> PartialCompletion:
    return PartialCompletion(PROMPT, Sampling(limit, stop_ids=(stop,)), limit)


def spans(done: PartialCompletion) -> list[tuple[int, int, int]]:
    return [(span.version, span.start, span.end) for span in done.completion().versions]


def test_one_attempt_is_one_span_and_ends_at_the_limit() -> None:
    turn = answer(3)
    turn.begin(4, moved=False)
    assert turn.add(chunk(1, 2)) == 2
    assert turn.finish is None
    assert turn.add(chunk(3, 5)) == 1
    assert turn.finish is Finish.LENGTH
    assert spans(turn) == [(4, 0, 3)]
    assert turn.completion().logprobs.tolist() == [-1, -2, -3]


def test_a_stop_id_ends_it_and_what_a_server_sends_after_it_is_dropped() -> None:
    turn = answer()
    turn.begin(0, moved=False)
    assert turn.add(chunk(1, 99, 3)) == 2
    assert (turn.finish, turn.ids) == (Finish.STOP, [1, 99])


def test_what_is_given_up_takes_the_stop_string_that_it_completed_with_it() -> None:
    turn = PartialCompletion(PROMPT, Sampling(10, stop_ids=(99,), said=lambda ids: list(ids)[-2:] == [2, 3]), 10)
    turn.begin(0, moved=False)
    turn.add(chunk(1, 2))
    turn.mark()
    assert turn.add(chunk(3, 4)) == 1
    assert (turn.finish, turn.said_stop) == (Finish.STOP, True)
    assert turn.interrupt() == 1
    assert (turn.finish, turn.said_stop, turn.ids) == (None, False, [1, 2])


def test_the_last_allowed_token_may_be_the_stop() -> None:
    turn = answer(1)
    turn.begin(0, moved=False)
    turn.add(chunk(99))
    assert turn.finish is Finish.STOP


def test_a_move_begins_a_span_of_its_own_and_a_pause_only_where_the_version_changed() -> None:
    turn = answer(6)
    for version, moved in ((1, False), (1, False), (1, True), (2, False)):
        turn.begin(version, moved=moved)
        turn.add(chunk(1))
        turn.interrupt()
    turn.begin(2, moved=False)
    turn.add(chunk(1, 1))
    assert turn.so_far == [7, 8, 1, 1, 1, 1, 1, 1]
    assert spans(turn) == [(1, 0, 2), (1, 2, 3), (2, 3, 6)]


def test_an_attempt_without_a_token_leaves_no_span() -> None:
    turn = answer(2)
    turn.begin(1, moved=False)
    turn.begin(2, moved=True)
    turn.begin(3, moved=False)
    turn.add(chunk(1, 1))
    assert spans(turn) == [(3, 0, 2)]


def test_under_keep_the_server_says_where_the_versions_changed() -> None:
    turn = answer(5)
    turn.begin(1, moved=False)
    turn.add(chunk(1, 1, 1))
    turn.mark()
    turn.add(chunk(1, 1))
    assert turn.settle([("t-1", 0), ("t-2", 3)], lambda label: int(label[2:]))
    assert spans(turn) == [(1, 0, 3), (2, 3, 5)]


def test_under_keep_tokens_whose_version_nobody_can_say_are_given_up() -> None:
    turn = answer(5)
    turn.begin(1, moved=False)
    turn.add(chunk(1, 1))
    turn.mark()
    turn.add(chunk(2, 2))
    turn.mark()
    assert turn.interrupt() == 2
    assert turn.ids == [1, 1]
    turn.begin(3, moved=True)
    turn.add(chunk(4, 4, 4))
    assert spans(turn) == [(1, 0, 2), (3, 2, 5)]


def test_a_word_about_versions_that_does_not_fit_is_not_taken() -> None:
    for told in ([], [("t-1", 1)], [("other", 0)]):
        turn = answer(5)
        turn.begin(1, moved=False)
        turn.mark()
        turn.add(chunk(1, 1, 1, 1, 1))
        assert not turn.settle(told, lambda label: int(label[2:]) if label.startswith("t-") else None)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 4), st.booleans(), st.integers(0, 4)), max_size=8
    )
)
def test_whatever_happens_the_spans_tile_the_tokens_and_only_grow(
    pieces: list[tuple[int, bool, int, bool, int]],
) -> None:
    turn, version = answer(200), 0
    for step, moved, before, paused, after in pieces:
        version += step
        turn.begin(version, moved=moved)
        kept = len(turn.ids)
        turn.add(chunk(*[1] * before))
        if paused:
            turn.mark()
        turn.add(chunk(*[1] * after))
        lost = turn.interrupt()
        assert lost == (after if paused else 0)
        assert len(turn.ids) == kept + before + (0 if paused else after)
    turn.begin(version, moved=False)
    turn.add(chunk(*[1] * turn.left))
    done = turn.completion()
    check_spans(done.versions, 200)
    assert [span.version for span in done.versions] == sorted(span.version for span in done.versions)
