"""The service's wire, spoken by hand to a real one: answers, streams, refusals, and what is never said."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from quintain.failure import FailureKind, Stage
from quintain.verifiers.registry import BUILT_IN
from quintain.verifiers.service.limits import ServiceLimits


def failure(response: httpx.Response) -> tuple[int, str, str]:
    assert set(response.json()) == {"failure"}
    said = response.json()["failure"]
    assert set(said) == {"kind", "stage", "message", "retryable"}
    FailureKind(said["kind"])
    Stage(said["stage"])
    assert "\n" not in said["message"]
    assert "Traceback" not in response.text
    return response.status_code, said["kind"], said["message"]


def items(*answers: str, reference: Any = "4") -> list[dict[str, Any]]:
    return [{"answer": answer, "reference": reference} for answer in answers]


def test_verdicts_come_in_the_order_of_the_items(service):
    asked = {"verifier": "math", "items": items("It is 4", "5", ""), "deadline_s": 5}
    verdicts = service.post("/v1/verify", asked).json()["verdicts"]
    assert [verdict["outcome"] for verdict in verdicts] == ["correct", "wrong", "unparsable"]
    assert [verdict["score"] for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert set(verdicts[0]) == {"score", "outcome", "failure", "elapsed_s", "detail"}


def test_the_order_is_the_items_whoever_is_ready_first(service, tmp_path):
    answers = [f"wait {tmp_path / 'go'}", "right", "wrong"]
    with httpx.stream("POST", f"{service.url}/v1/verify", **streamed(answers), timeout=60) as response:
        lines = (json.loads(line) for line in response.iter_lines())
        early = [next(lines), next(lines)]  # they are there while the first still waits
        assert {line["index"]: line["verdict"]["score"] for line in early} == {1: 1.0, 2: 0.0}
        (tmp_path / "go").touch()
        assert next(lines)["index"] == 0
        assert next(lines) == {"count": 3, "done": True}
        assert list(lines) == []
    assert response.headers["content-type"].startswith("application/x-ndjson")
    (tmp_path / "go").unlink()
    (tmp_path / "go").touch()
    assert [verdict["score"] for verdict in service.verify("probe", answers)] == [1.0, 1.0, 0.0]


def streamed(answers: list[str], **more: Any) -> dict[str, Any]:
    return {
        "json": {"verifier": "probe", "items": items(*answers), **more},
        "headers": {"accept": "application/x-ndjson"},
    }


def test_the_field_stream_asks_for_a_stream_too(service):
    response = service.post("/v1/verify", {"verifier": "exact", "items": items("4"), "stream": True})
    verdict, end = (json.loads(line) for line in response.text.splitlines())
    assert (verdict["index"], verdict["verdict"]["score"], end) == (0, 1.0, {"count": 1, "done": True})


def test_no_items_have_no_verdicts(service):
    assert service.post("/v1/verify", {"verifier": "exact", "items": []}).json() == {"verdicts": []}
    assert service.post("/v1/verify", {"verifier": "exact", "items": [], "stream": True}).json() == {
        "count": 0,
        "done": True,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_finished_in_time_failed_and_has_no_score_and_the_rest_keeps_its_verdict(
    service, tmp_path, waiting, stream
):
    began = time.monotonic()
    asked = {"verifier": "probe", "items": items("right", f"wait {tmp_path / 'never'}", "wrong"), "timeout_s": 0.3}
    response = service.post("/v1/verify", {**asked, "stream": stream})
    assert time.monotonic() - began < 5
    if stream:
        lines = [json.loads(line) for line in response.text.splitlines()]
        verdicts = {line["index"]: line["verdict"] for line in lines[:-1]}
        assert lines[-1] == {"count": 3, "done": True}
    else:
        verdicts = dict(enumerate(response.json()["verdicts"]))
    assert [verdicts[index]["score"] for index in range(3)] == [1.0, None, 0.0]
    assert verdicts[1]["outcome"] == "timeout"
    assert verdicts[1]["failure"]["kind"] == "timeout"
    assert verdicts[1]["failure"]["retryable"]
    waiting(lambda: (tmp_path / "never.cancelled").exists(), "its item was ended")


def test_a_verifier_that_breaks_fails_its_own_items_only(service):
    verdicts = service.verify("probe", ["raise", "right", "short", "weird", "fail", "wrong"])
    assert [verdict["score"] for verdict in verdicts] == [None, 1.0, None, None, None, 0.0]
    kinds = [verdict["failure"] and verdict["failure"]["kind"] for verdict in verdicts]
    assert kinds == ["crashed", None, "invalid", "invalid", "crashed", None]
    assert "told to" in verdicts[0]["failure"]["message"]


SQL = {"verifier": "sql", "items": []}
DEEP: Any = {"verifier": "exact"}
for _ in range(3):
    DEEP = {"verifier": "rubric", "options": {"parts": [DEEP] * 5}}


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"{", 400, "rejected", "must be JSON"),
        (b"[]", 400, "rejected", "JSON object"),
        (b'{"verifier": "exact", "items": NaN}', 400, "rejected", "NaN"),
        ({"verifier": "mth", "items": []}, 400, "rejected", "did you mean 'math'?"),
        ({"verifier": "math", "item": []}, 400, "rejected", "did you mean 'items'?"),
        ({"verifier": "exact", "items": [], "options": {"nfk": True}}, 400, "rejected", "nfkc"),
        ({"verifier": "math", "items": [{"reference": "4"}]}, 400, "rejected", "items.0.answer"),
        ({"verifier": "exact", "items": [], "deadline_s": 0}, 400, "rejected", "deadline_s must be more than 0"),
        ({"verifier": "exact", "items": [], "deadline_s": 301}, 400, "rejected", "at most 300"),
        ({"verifier": "exact", "items": [], "timeout_s": -1}, 400, "rejected", "timeout_s must be more than 0"),
        ({"verifier": "math", "items": [], "options": {"deadline_s": 1e6}}, 400, "rejected", "at most 300"),
        ({"verifier": "math", "items": [], "options": {"workers": 99}}, 400, "rejected", "operator"),
        ({"verifier": "judge", "items": []}, 400, "rejected", "--allow judge"),
        ({"verifier": "reward_model", "items": []}, 400, "rejected", "--allow reward_model"),
        ({**SQL, "options": {"databases": "/etc"}}, 400, "rejected", "--set sql.databases"),
        (
            {"verifier": "rubric", "items": [], "options": {"parts": [{"verifier": "judge"}]}},
            400,
            "rejected",
            "--allow judge",
        ),
        (
            {
                "verifier": "rubric",
                "items": [],
                "options": {
                    "parts": [
                        {
                            "verifier": "rubric",
                            "options": {"parts": [{"verifier": "sql", "options": {"databases": "/"}}]},
                        }
                    ]
                },
            },
            400,
            "rejected",
            "--set sql.databases",
        ),
        ({"items": [], **DEEP}, 400, "rejected", "at most 64 parts"),
        ({"verifier": "exact", "items": [], "options": {"tag": "x" * 300_000}}, 400, "rejected", "262144 bytes"),
        ({"verifier": "exact", "items": items("") * 4097}, 413, "too_long", "at most 4096 items"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_one_line(service, body, status, kind, message):
    if isinstance(body, bytes):
        response = httpx.post(f"{service.url}/v1/verify", content=body, timeout=60)
    else:
        response = service.post("/v1/verify", body)
    assert failure(response)[:2] == (status, kind)
    assert message in failure(response)[2]
    assert service.metric("items_queued") == 0


def test_a_page_that_is_not_there_names_those_that_are(service):
    status, kind, message = failure(service.get("/v2/verify"))
    assert (status, kind) == (404, "rejected")
    for page in ("/v1/verify", "/v1/verifiers", "/run_code", "/submit", "/v1/ping", "/health", "/metrics"):
        assert page in message
    assert service.get("/v1/verify").status_code == 405


def test_the_list_of_verifiers_has_their_costs_versions_and_schemas(service):
    told = {info["name"]: info for info in service.get("/v1/verifiers").json()["verifiers"]}
    assert set(BUILT_IN) <= set(told)
    math, judge = told["math"], told["judge"]
    assert math["available"]
    assert math["cost"] == "worker"
    assert "math-verify" in math["version"]
    assert math["options"]["properties"]["deadline_s"]["default"] == 5.0
    assert math["operator_options"] == ["workers"]
    assert math["description"].endswith(".")
    assert not judge["available"]
    assert "--allow judge" in judge["problem"]
    assert {"url", "token_env"} <= set(judge["operator_options"])
    assert told["format"]["options"]["additionalProperties"] is False


def test_options_that_the_operator_set_are_under_those_of_clients(serve):
    service = serve(presets={"exact": {"case_sensitive": False}, "sql": {"databases": "/"}})
    assert service.verify("exact", ["R"])[0]["score"] == 1.0
    assert service.verify("exact", ["R"], options={"case_sensitive": True})[0]["score"] == 0.0
    refusal = service.post("/v1/verify", {"verifier": "sql", "items": [], "options": {"databases": "/tmp"}})
    assert failure(refusal)[0] == 400
    assert service.post("/v1/verify", {"verifier": "sql", "items": []}).status_code == 200


def test_what_the_operator_allows_clients_may_set(serve):
    service = serve(allow=("sql.databases", "judge"))
    assert service.post("/v1/verify", {**SQL, "options": {"databases": "/"}}).status_code == 200
    judged = {"verifier": "judge", "items": [], "options": {"url": "http://127.0.0.1:9"}}
    assert "--set judge.url" in failure(service.post("/v1/verify", judged))[2]


def test_metrics_count_requests_verdicts_latencies_and_the_cache(serve):
    service = serve()
    service.verify("exact", ["r", "r", "x"])
    service.verify("exact", ["r", "y"])
    assert service.metric('verdicts_total{outcome="correct",verifier="exact"}') == 3
    assert service.metric('verdicts_total{outcome="wrong",verifier="exact"}') == 2
    assert service.metric('requests_total{route="POST /v1/verify",status="200"}') == 2
    assert service.metric('cache_hits_total{verifier="exact"}') == 1
    assert service.metric('cache_misses_total{verifier="exact"}') == 4
    assert service.metric('verify_seconds_bucket{le="+Inf",verifier="exact"}') == 2
    assert service.metric('verify_seconds_count{verifier="exact"}') == 2
    assert service.metric('items_total{holder="anybody",verifier="exact"}') == 5
    assert service.metric("items_queued") == service.metric("items_running") == 0
    assert service.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_what_was_judged_is_not_judged_again_unless_it_failed_or_the_version_changed(service):
    first = service.verify("probe", ["right once"])
    assert service.verify("probe", ["right once"]) == first
    assert service.verify("probe", ["right once"] * 3) == first * 3
    calls = first[0]["detail"]["calls"]
    (again,) = service.verify("probe", ["right once"], options={"version": "2"})
    assert again["detail"]["calls"] == 1  # another verifier: nothing it has judged before
    for answer in ("late", "raise"):
        service.verify("probe", [answer])
        service.verify("probe", [answer])
    assert service.verify("probe", ["right twice"])[0]["detail"]["calls"] == calls + 5
    remote = {"cost": "REMOTE"}
    assert [service.verify("probe", ["right"], options=remote)[0]["detail"]["calls"] for _ in range(2)] == [1, 2]


def test_the_same_item_in_one_request_is_judged_once(service):
    verdicts = service.verify("probe", ["right same", "wrong same", "right same"], options={"version": "same"})
    assert [verdict["score"] for verdict in verdicts] == [1.0, 0.0, 1.0]
    assert service.verify("probe", ["right other"], options={"version": "same"})[0]["detail"]["calls"] == 3


def test_a_request_is_read_only_up_to_its_limits(serve):
    limits = ServiceLimits(body_bytes=10_000, waiting_bytes=15_000, read_s=0.5)
    service = serve(limits=limits)
    assert failure(service.post("/v1/verify", {"verifier": "exact", "items": items("x" * 11_000)}))[:2] == (
        413,
        "too_long",
    )

    def trickle():
        yield b'{"verifier": "exact", '
        time.sleep(2)
        yield b'"items": []}'

    began = time.monotonic()
    response = httpx.post(f"{service.url}/v1/verify", content=trickle(), timeout=60)
    assert failure(response)[:2] == (408, "timeout")
    assert time.monotonic() - began < 10
    assert service.verify("exact", ["r"])[0]["score"] == 1.0


def test_requests_that_would_fill_the_memory_are_told_to_come_back(serve, tmp_path):
    service = serve(limits=ServiceLimits(body_bytes=10_000, waiting_bytes=15_000))
    asked = {"verifier": "probe", "items": items(f"wait {tmp_path / 'go'}", reference="x" * 9_000)}
    with httpx.stream("POST", f"{service.url}/v1/verify", json={**asked, "stream": True}, timeout=60) as held:
        refusal = service.post("/v1/verify", asked)
        assert failure(refusal)[:2] == (429, "overloaded")
        assert float(refusal.headers["retry-after"]) > 0
        (tmp_path / "go").touch()
        assert '"done":true' in held.read().decode()
    assert service.post("/v1/verify", asked).status_code == 200
