"""The parts that decide: what a client may ask, what is remembered, which verifiers are kept, what a job does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.codec import to_json
from quintain.failure import FailureError, FailureKind, QuintainError
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import Refused, retry_after_of
from quintain.verdict import Outcome, Verdict
from quintain.verifiers import Item
from quintain.verifiers.registry import BUILT_IN
from quintain.verifiers.service.cache import ENTRY_BYTES, VerdictCache, key_of, key_prefix
from quintain.verifiers.service.job import Batching
from quintain.verifiers.service.jobs import Jobs
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.policy import OPERATOR_OPTIONS, AccessPolicy, option_names
from quintain.verifiers.service.wire import VerifyRequest
from quintain.verifiers.shared import Verifiers

LIMITS = ServiceLimits()


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_nothing_that_points_somewhere_is_a_clients_to_set(name):
    """An option that is new must be put on one side: what clients may set, or what only the operator does."""
    suspicious = (
        "url",
        "path",
        "file",
        "dir",
        "folder",
        "host",
        "port",
        "command",
        "env",
        "python",
        "unsafe",
        "socket",
    )
    for option in option_names(name):
        if option not in OPERATOR_OPTIONS:
            assert not any(word in option for word in suspicious), f"{name}.{option}"
    assert set(option_names("judge")) & {"url", "token_env"} <= OPERATOR_OPTIONS
    assert {"backend", "unsafe", "languages", "image", "engine_url", "slots"} <= OPERATOR_OPTIONS


def test_a_name_that_the_operator_misspells_is_said_at_the_start():
    with pytest.raises(QuintainError, match=r"no verifier 'jugde' to allow or set.*did you mean 'judge'"):
        AccessPolicy(frozenset({"jugde"}))
    with pytest.raises(QuintainError, match="no verifier 'sqll'"):
        AccessPolicy(presets={"sqll": {}})
    with pytest.raises(QuintainError, match=r"no option 'database' to allow.*did you mean 'databases'"):
        AccessPolicy(frozenset({"sql.database"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": {"wall_s": 1e9}}, "limits.wall_s must be more than 0 and at most 300"),
        ({"limits": {"memory_bytes": 1 << 40}}, "limits.memory_bytes"),
        ({"limits": {"processes": 100_000}}, "limits.processes"),
        ({"limits": {"output_bytes": 1 << 33}}, "limits.output_bytes"),
        ({"compile_limits": {"wall_s": 1e9}}, "compile_limits.wall_s"),
        ({"backend": "process"}, "backend"),
        ({"backend": "process", "unsafe": True}, "operator"),
        ({"languages": {"x": {"file": "x", "run": ["sh"]}}}, "languages"),
        ({"engine_url": "tcp://10.0.0.1"}, "engine_url"),
        ({"slots": 5}, "slots"),
    ],
)
def test_code_runs_where_and_as_large_as_the_operator_has_it(options, message):
    with pytest.raises(QuintainError, match=message):
        AccessPolicy().options("code", options, LIMITS)
    with pytest.raises(QuintainError, match=message):
        AccessPolicy().options("rubric", {"parts": [{"verifier": "code", "options": options}]}, LIMITS)
    assert AccessPolicy().options("code", {"limits": {"wall_s": 20}}, LIMITS) == {"limits": {"wall_s": 20}}


def test_the_number_of_workers_is_the_operators_wherever_there_are_some():
    policy = AccessPolicy(workers=3)
    assert policy.options("math", {}, LIMITS) == {"workers": 3}
    assert policy.options("exact", {}, LIMITS) == {}
    parts = [{"verifier": "math"}, {"verifier": "exact"}]
    made = policy.options("rubric", {"parts": parts}, LIMITS)["parts"]
    assert [part["options"] for part in made] == [{"workers": 3}, {}]


verdicts = st.builds(
    lambda score, text: Verdict.scored(score, text=text), st.sampled_from([0.0, 0.5, 1.0]), st.text("ab", max_size=50)
)


@given(st.lists(st.tuples(st.integers(0, 12), verdicts), max_size=60), st.integers(300, 2000))
def test_a_cache_remembers_the_last_used_within_its_bytes(entries, most):
    cache = VerdictCache(most)
    model: dict[bytes, tuple[Outcome, str]] = {}
    for number, verdict in entries:
        key = str(number).encode()
        found = cache.get(key)
        assert found == model.get(key)
        text = to_json(verdict)
        size = len(text.encode()) + ENTRY_BYTES
        cache.put(key, verdict, text)
        if found is not None:
            model[key] = model.pop(key)
        elif size <= most:
            model[key] = (verdict.outcome, text)
            while sum(len(told.encode()) + ENTRY_BYTES for _, told in model.values()) > most:
                del model[next(iter(model))]
        assert cache.bytes == sum(len(told.encode()) + ENTRY_BYTES for _, told in model.values()) <= most
        assert len(cache) == len(model)


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict.failed(Outcome.CRASHED, "x"),
        Verdict.failed(Outcome.BAD_REFERENCE, "x"),
        Verdict(0.0, Outcome.TIMEOUT),
        Verdict(0.0, Outcome.CRASHED),
    ],
)
def test_what_another_time_might_change_is_not_remembered(verdict):
    cache = VerdictCache(10_000)
    cache.put(b"k", verdict, to_json(verdict))
    assert cache.get(b"k") is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.tuples(st.text(max_size=5), PLAIN), st.tuples(st.text(max_size=5), PLAIN))
def test_two_items_have_one_key_only_if_they_are_the_same(one, other):
    prefix = key_prefix("math", "1", {})
    same = key_of(prefix, Item(*one)) == key_of(prefix, Item(*other))
    assert same == (repr(sorted_deep(one)) == repr(sorted_deep(other)))


def sorted_deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_deep(value[key]) for key in sorted(value)}
    return [sorted_deep(one) for one in value] if isinstance(value, list | tuple) else value


def test_the_verifier_its_version_and_its_options_are_in_the_key():
    item = Item("a", "b")
    prefixes = [("math", "1", {}), ("exact", "1", {}), ("math", "2", {}), ("math", "1", {"x": 1})]
    assert len({key_of(key_prefix(*prefix), item) for prefix in prefixes}) == 4


async def test_the_verifier_that_was_idle_longest_makes_room_and_one_in_use_never(probe):
    kept = Verifiers(2)
    first, second = kept.take(probe, {"version": "1"}), kept.take(probe, {"version": "2"})
    with pytest.raises(Refused) as full:
        kept.take(probe, {"version": "3"})
    assert full.value.failure.kind is FailureKind.OVERLOADED
    assert retry_after_of(full.value)
    kept.give_back(second)
    kept.give_back(first)
    assert kept.take(probe, {"version": "1"}) is first
    third = kept.take(probe, {"version": "3"})
    with pytest.raises(QuintainError):
        kept.take("nothing", {})
    await kept.close()
    closed: list[Any] = [one.verifier for one in (first, second, third)]
    assert all(verifier.closed for verifier in closed)


async def test_a_verifier_that_was_got_is_kept_until_all_are_closed(probe):
    kept = Verifiers(1)
    mine = kept.get(probe)
    assert kept.get(probe) is mine
    with pytest.raises(FailureError):
        kept.get(probe, {"version": "2"})
    await kept.close()
    assert kept.get(probe) is not mine
    await kept.close()


async def judge(jobs: Jobs, holder: str, *answers: str, **more: Any) -> list[Outcome]:
    items = tuple(Item(answer) for answer in answers)
    async with jobs.job(VerifyRequest("probe", items, **more), holder) as job:
        return [encoded.outcome for encoded in await job.all()]


async def test_holders_of_tokens_take_turns_in_a_verifiers_line(probe, tmp_path, monkeypatch, waiting):
    """However many of Ann's items wait, each second item that begins is Bob's, as long as he has some."""
    monkeypatch.setattr("quintain.verifiers.service.jobs.batching_of", lambda cost: Batching(batch=1, consumers=1))
    jobs, gate = Jobs(AccessPolicy(), LIMITS, Metrics("x_")), tmp_path / "go"
    held = asyncio.create_task(judge(jobs, "zoe", f"wait {gate}"))
    await asyncio.to_thread(waiting, gate.with_suffix(".begun").exists)
    (verifier,) = [job._verifier for job in jobs._live]
    anns = asyncio.create_task(judge(jobs, "ann", *(f"ann {n}" for n in range(50))))
    bobs = asyncio.create_task(judge(jobs, "bob", *(f"bob {n}" for n in range(10))))
    await asyncio.to_thread(waiting, lambda: jobs.quotas.inside == 61)
    gate.touch()
    outcomes = await asyncio.gather(held, anns, bobs)
    assert {outcome for found in outcomes for outcome in found} == {Outcome.CORRECT}
    turns = [answer.split()[0] for answer in verifier.order[1:]]
    assert turns[:20].count("bob") >= 9
    assert [answer for answer in verifier.order if answer.startswith("ann")] == [f"ann {n}" for n in range(50)]
    assert (jobs.quotas.inside, jobs.running) == (0, 0)
    await jobs.close()


async def test_a_job_that_is_cancelled_gives_everything_back(probe, tmp_path, waiting):
    jobs, gate = Jobs(AccessPolicy(), LIMITS, Metrics("x_")), tmp_path / "never"
    job = asyncio.create_task(judge(jobs, "ann", "right", *(f"wait {gate} {n}" for n in range(99))))
    await asyncio.to_thread(waiting, lambda: any(tmp_path.glob("*.begun")))
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert jobs.quotas.inside == 0
    assert await judge(jobs, "bob", "right", "wrong") == [Outcome.CORRECT, Outcome.WRONG]
    await jobs.close()
    assert jobs.running == 0


async def test_a_reference_that_is_nested_too_deeply_is_no_accident(probe):
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    jobs = Jobs(AccessPolicy(), LIMITS, Metrics("x_"))
    asked = VerifyRequest("probe", (Item("right", deep), Item("right")))
    async with jobs.job(asked, "ann") as job:
        assert [encoded.outcome for encoded in await job.all()] == [Outcome.BAD_REFERENCE, Outcome.CORRECT]
    await jobs.close()


@pytest.mark.parametrize("field", ["queue_items", "timeout_s", "grace_s", "cache_bytes"])
def test_a_limit_is_more_than_zero(field):
    with pytest.raises(QuintainError, match=f"{field} must be more than 0"):
        ServiceLimits(**{field: 0})
