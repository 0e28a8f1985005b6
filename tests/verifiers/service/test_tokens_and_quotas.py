"""Who is let in, how much each may ask for, and that nobody is kept waiting by somebody else's flood."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.failure import QuintainError
from quintain.serving.refusals import Refused, retry_after_of
from quintain.serving.tokens import ANYBODY, Principal, Role, Tokens
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.quotas import Quotas

TOKENS = {"ann": "sesame-of-ann", "bob": "sesame-of-bob"}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"}


def ask(url: str, name: str, answers: list[str], **more) -> httpx.Response:
    items = [{"answer": answer, "reference": "r"} for answer in answers]
    body = {"verifier": "probe", "items": items, **more}
    return httpx.post(f"{url}/v1/verify", json=body, headers=bearer(name), timeout=60)


def test_a_service_with_tokens_lets_nobody_else_in(serve):
    service = serve(tokens=TOKENS)
    for headers in ({}, {"authorization": "Bearer simsalabim"}, {"authorization": "Basic sesame-of-ann"}):
        for method, path in (
            ("POST", "/v1/verify"),
            ("POST", "/run_code"),
            ("GET", "/metrics"),
            ("GET", "/v1/verifiers"),
        ):
            response = httpx.request(method, f"{service.url}{path}", headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "sesame" not in response.text
    assert httpx.get(f"{service.url}/health").json() == {"status": "healthy"}
    assert httpx.get(f"{service.url}/v1/ping").json() == "pong"
    for name in TOKENS:
        assert ask(service.url, name, ["right"]).status_code == 200
        assert service.metric(f'items_total{{holder="{name}",verifier="probe"}}') == 1


def test_tokens_are_read_from_lines_with_names():
    tokens = Tokens.parsed("# who\n\nann:one\n bob:two:three\n", "the file")
    assert tokens.secrets == {"ann": "one", "bob": "two:three"}
    assert tokens.admit("Bearer two:three", Role.OPERATOR) == Principal("bob")
    assert Tokens.parsed("c2VjcmV0==", "x").secrets == {"default": "c2VjcmV0=="}
    assert Tokens().admit("", Role.OPERATOR) == Principal(ANYBODY)
    assert "one" not in repr(tokens)
    trainers = Tokens.parsed("run@trainer:s\nboss@operator:b", "x")
    assert trainers.admit("Bearer s", Role.TRAINER) == Principal("run", Role.TRAINER)
    assert trainers.admit("Bearer b", Role.OPERATOR) == Principal("boss")
    with pytest.raises(Refused, match="a trainer's token: this page wants the role operator"):
        trainers.admit("Bearer s", Role.OPERATOR)


@pytest.mark.parametrize(
    "text", ["", "# nothing", "ann:", "a b:x", "ann:x y", "ann:one\nann:two", "a:x\nb:x", "a:ü", "a@agent:x"]
)
def test_tokens_that_are_none_are_refused_without_telling_them(text):
    with pytest.raises(QuintainError, match="the file") as error:
        Tokens.parsed(text, "the file")
    assert "x y" not in str(error.value)


def refused(quotas: Quotas, holder: str, items: int, now: float) -> Refused | None:
    try:
        quotas.take(holder, items, now)
    except Refused as refusal:
        return refusal
    return None


@given(
    queue=st.integers(1, 50),
    concurrent=st.integers(1, 50),
    rate=st.none() | st.integers(1, 100),
    steps=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.floats(0, 30), st.booleans()), max_size=60),
)
def test_no_holder_and_no_flood_gets_more_than_its_share(queue, concurrent, rate, steps):
    quotas = Quotas(queue, concurrent, rate)
    inside: list[tuple[str, int]] = []
    taken: list[tuple[str, int, float]] = []
    now = 0.0
    for holder, items, later, leave in steps:
        now += later
        if leave and inside:
            quotas.give_back(*inside.pop(0))
        refusal = refused(quotas, holder, items, now)
        if refusal is not None:
            fits = items <= min(queue, concurrent) and (rate is None or items <= rate)
            assert (retry_after_of(refusal) is not None) == fits
            used_of_holder = sum(count for who, count in inside if who == holder)
            used = sum(count for _, count in inside)
            spent = sum(count for who, count, when in taken if who == holder and when > now - 60)
            why = [used_of_holder + items > concurrent, used + items > queue, rate is not None and spent + items > 0]
            assert any(why)
            continue
        inside.append((holder, items))
        taken.append((holder, items, now))
        assert quotas.inside == sum(count for _, count in inside) <= queue
        assert all(sum(count for who, count in inside if who == one) <= concurrent for one in "ab")
        if rate is not None:  # over any stretch of time: the allowance, and what it grew by
            for begin in {when for who, _, when in taken if who == holder}:
                since = sum(count for who, count, when in taken if who == holder and when >= begin)
                assert since <= rate + (now - begin) * rate / 60 + 1e-6


def test_waiting_as_long_as_a_refusal_says_is_enough():
    quotas = Quotas(100, 100, 60.0)
    quotas.take("a", 50, 0.0)
    with pytest.raises(Refused) as refusal:
        quotas.take("a", 30, 0.0)
    assert refusal.value.retry_after_s == 20.0
    with pytest.raises(Refused):
        quotas.take("a", 30, 19.0)
    quotas.take("a", 30, 20.0)
    quotas.take("b", 20, 20.0)


def test_items_over_time_are_bounded_for_each_token(serve):
    service = serve(tokens=TOKENS, limits=ServiceLimits(items_per_minute=6))
    assert ask(service.url, "ann", ["right"] * 5).status_code == 200
    refusal = ask(service.url, "ann", ["right"] * 5)
    assert refusal.status_code == 429
    assert refusal.json()["failure"]["kind"] == "overloaded"
    assert 30 < float(refusal.headers["retry-after"]) <= 40
    assert ask(service.url, "bob", ["right"] * 5).status_code == 200
    assert ask(service.url, "bob", ["right"] * 7).status_code == 413


def test_items_at_once_are_bounded_for_each_token_and_in_all(serve, tmp_path, waiting):
    service = serve(tokens=TOKENS, limits=ServiceLimits(queue_items=4, concurrent_items=3))
    held = f"wait {tmp_path / 'go'}"
    with ThreadPoolExecutor(2) as pool:
        anns = pool.submit(ask, service.url, "ann", [held, held + "1"])
        waiting(lambda: (tmp_path / "go.begun").exists(), "it has begun")
        refusal = ask(service.url, "ann", ["right"] * 2)
        assert (refusal.status_code, refusal.json()["failure"]["message"]) == (
            429,
            "this token has 2 of its 3 items at once in progress",
        )
        assert ask(service.url, "ann", ["right"]).status_code == 200  # there is one place left
        refusal = ask(service.url, "bob", ["right"] * 3)
        assert (refusal.status_code, "2 of 4 places" in refusal.text) == (429, True)
        assert float(refusal.headers["retry-after"]) > 0
        assert ask(service.url, "bob", ["right"] * 2).status_code == 200
        (tmp_path / "go").touch()
        (tmp_path / "go1").touch()
        assert [verdict["score"] for verdict in anns.result().json()["verdicts"]] == [1.0, 1.0]
    assert ask(service.url, "ann", ["right"] * 3).status_code == 200


def test_a_flood_of_one_client_keeps_no_other_waiting(serve, tmp_path, waiting):
    """Ann has hundreds of items waiting; Bob's few are taken in turns with hers as places become free."""
    service = serve(tokens=TOKENS)
    floods = [f"wait {tmp_path / str(number)}" for number in range(300)]
    with ThreadPoolExecutor(2) as pool:
        anns = pool.submit(ask, service.url, "ann", floods)
        waiting(lambda: service.metric("items_running") > 1, "all places are taken")
        lanes = int(service.metric("items_running"))
        bobs = pool.submit(ask, service.url, "bob", ["right"] * 1 + ["wrong"])
        waiting(lambda: service.metric("items_queued") >= 300 - lanes + 2, "bob's items wait")
        for number in range(3):  # a few of ann's end: every other place that is free goes to bob
            (tmp_path / str(number)).touch()
        assert [verdict["score"] for verdict in bobs.result(30).json()["verdicts"]] == [1.0, 0.0]
        assert not anns.done()
        assert service.metric("items_queued") > 200
        release = threading.Event()

        def let_go() -> None:
            for number in range(300):
                (tmp_path / str(number)).touch()
            release.set()

        pool.submit(let_go)
        assert release.wait(30)
        assert all(verdict["score"] == 1.0 for verdict in anns.result(60).json()["verdicts"])


def test_a_slow_verifier_keeps_no_other_waiting(serve, tmp_path, waiting):
    service = serve()
    with ThreadPoolExecutor(1) as pool:
        held = [f"wait {tmp_path / 'go'}{number}" for number in range(200)]
        flood = pool.submit(service.verify, "probe", held)
        waiting(lambda: (tmp_path / "go0.begun").exists(), "it has begun")
        began = time.monotonic()
        assert service.verify("exact", ["r", "x"])[0]["score"] == 1.0
        assert time.monotonic() - began < 5
        assert not flood.done()
        for number in range(200):
            (tmp_path / f"go{number}").touch()
        assert len(flood.result()) == 200
