"""What an operator asks of a running server: pause, resume, drain; and the figures it gives."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.client import RolloutClient
from quintain.rollout.wire import RunRequest

from ..fake_engine import FakeEngine
from .serving import served
from .stage import canary, weights
from .test_server_runs import Gate


def value(text: str, name: str) -> float:
    """The value of one series in Prometheus' text."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"quintain_rollout_{name} ")]
    return float(line.split()[-1])


def test_a_paused_server_samples_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with served(tmp_path, engine=FakeEngine(words=128, token_s=0.002)) as url, RolloutClient(url) as client:
        assert client.pause().paused
        run = client.submit(RunRequest("heldout", (1, 2, 3))).run
        answer = httpx.get(f"{url}/v1/runs/{run}/groups?wait_s=0.3")
        assert (len(answer.text.splitlines()), client.stats().output_tokens) == (1, 0)
        assert value(client.metrics(), "paused") == 1
        assert not client.resume().paused
        assert len(list(client.groups(run))) == 3


def test_a_publish_while_paused_leaves_the_server_paused_with_the_new_weights(tmp_path: Path) -> None:
    with served(tmp_path) as url, RolloutClient(url) as client:
        client.pause()
        published = weights(tmp_path, 4)
        client.publish(published, canary(published), admit=False)
        run = client.submit(RunRequest("heldout", (1,))).run
        httpx.get(f"{url}/v1/runs/{run}/groups?wait_s=0.2")
        assert client.stats().output_tokens == 0
        client.resume()
        ((_, group),) = client.groups(run)
        assert {span.version for turn in group.trajectories[0].turns for span in turn.versions} == {4}


def test_after_a_refused_publish_nobody_can_resume_before_one_is_accepted(tmp_path: Path) -> None:
    engine = FakeEngine(words=128, stale=True)
    with served(tmp_path, engine=engine) as url, RolloutClient(url) as client:
        published = weights(tmp_path, 1)
        with pytest.raises(FailureError):
            client.publish(published, canary(published))
        with pytest.raises(FailureError, match="until a publish is accepted") as caught:
            client.resume()
        assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.INVALID, Stage.PUBLISH)
        engine._stale = False
        client.publish(published, canary(published))
        client.resume()
        assert len(client.batch(0)) == 2


def test_draining_finishes_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    gate = Gate(first=3)
    engine = FakeEngine(words=128, fail=gate)
    with served(tmp_path, engine=engine) as url, RolloutClient(url) as client:
        published = weights(tmp_path, 0)
        client.publish(published, canary(published))  # starts 2 groups of 3
        run = client.submit(RunRequest("heldout", (1, 2))).run
        report = client.drain(wait=False)
        assert not report.drained
        assert (report.issued, report.runs_left > 0, report.running > 0) == (2, True, True)
        assert client.health().draining
        with pytest.raises(FailureError, match="draining") as caught:
            client.submit(RunRequest("heldout", (3,)))
        assert caught.value.failure.kind is FailureKind.UNREACHABLE
        with pytest.raises(FailureError, match="draining"):
            client.admit(1)
        later = weights(tmp_path, 1)
        client.publish(later, canary(later))  # may come: it starts nothing
        threading.Timer(0.2, gate.open).start()
        report = client.drain()
        assert report.drained
        assert (report.running, report.waiting, report.runs_left) == (0, 0, 0)
        assert (report.issued, report.completed, report.consumed) == (2, 2, 0)
        assert len(list(client.groups(run))) == 2  # what finished is handed over
        assert [len(group.trajectories) for group in client.batch(0)] == [3, 3]
        with pytest.raises(FailureError, match="draining"):
            client.batch(1)  # nothing more will come
        client.resume()
        client.admit(1)
        assert len(client.batch(1)) == 2


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (1, "version 1 is not published yet"),
        (2**63 - 2, f"version {2**63 - 2} is not published yet"),
        (-1, "version -1 is before 0, which was admitted"),
        (-(2**63), f"version -{2**63} is before 0"),
    ],
)
def test_a_version_that_nobody_published_or_that_is_past_is_not_admitted(
    tmp_path: Path, version: int, said: str
) -> None:
    with served(tmp_path) as url, RolloutClient(url) as client:
        published = weights(tmp_path, 0)
        client.publish(published, canary(published))
        with pytest.raises(FailureError, match=said) as caught:
            client.admit(version)
        assert not caught.value.failure.retryable
        assert len(client.batch(0)) == 2  # and nothing else has changed


def test_the_metrics_are_those_of_what_happened(tmp_path: Path) -> None:
    with served(tmp_path) as url, RolloutClient(url) as client:
        published = weights(tmp_path, 0)
        client.publish(published, canary(published))
        groups = client.batch(0)
        text = client.metrics()
        stats = client.stats()
        assert value(text, "output_tokens_total") == sum(t.output_tokens for g in groups for t in g.trajectories)
        assert value(text, "prompt_tokens_total") == stats.prompt_tokens
        assert value(text, "batches_total") == 1
        assert value(text, "version") == 0
        assert value(text, "trainer_wait_seconds_total") >= 0
        assert value(text, "publish_stall_seconds_count") == 1
        assert 0 <= value(text, "engine_idle_fraction") <= 1
        assert value(text, "event_loop_lag_seconds_p50") <= value(text, "event_loop_lag_seconds_p99")
        assert 'requests_total{route="POST /v1/publish",status="200"} 1' in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))


def test_the_trainer_s_wait_is_counted(tmp_path: Path) -> None:
    gate = Gate()
    with served(tmp_path, engine=FakeEngine(words=128, fail=gate)) as url, RolloutClient(url) as client:
        published = weights(tmp_path, 0)
        client.publish(published, canary(published))
        assert httpx.get(f"{url}/v1/batches/0?wait_s=0.5").status_code == 202
        assert value(client.metrics(), "trainer_wait_seconds_total") >= 0.4
        gate.open()
        client.batch(0)
