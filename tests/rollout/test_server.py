"""The rollout server over a real socket, driven by the trainer's client."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from quintain.codec import pack
from quintain.failure import FailureError, FailureKind, Stage
from quintain.rollout.client import RolloutClient
from quintain.rollout.journal.parquet import read_trajectories
from quintain.rollout.weights.canary import Canary
from quintain.rollout.wire import BatchProgress

from ..fake_engine import FakeEngine, hang_on
from .serving import served
from .stage import canary, weights


def test_a_trainer_publishes_takes_batches_and_evaluates(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        client = RolloutClient(url)
        assert client.health().version == -1
        published = weights(tmp_path, 0)
        answer = client.publish(published, canary(published), admit=False)
        assert answer.mismatch_max <= 1e-6
        evaluated = client.run_tasks("heldout", [4, 2], samples=2)
        assert [group.index for group in evaluated] == [4, 2]
        client.admit(0)
        groups = client.batch(0)
        assert [len(group.trajectories) for group in groups] == [3, 3]
        rows = read_trajectories(tmp_path / "trajectories" / "step-000000.parquet")
        assert [pack(row.trajectory) for row in rows] == [pack(t) for g in groups for t in g.trajectories]
        stats = client.stats()
        assert (stats.version, stats.running) == (0, 0)
        assert stats.output_tokens == sum(t.output_tokens for g in [*groups, *evaluated] for t in g.trajectories)
        assert f"quintain_rollout_output_tokens_total {stats.output_tokens}" in httpx.get(f"{url}/metrics").text
        client.close()


def test_waiting_reports_progress_and_can_be_given_up(tmp_path: Path) -> None:
    class GiveUp(Exception):
        pass

    seen: list[BatchProgress] = []

    def poll(progress: BatchProgress | None) -> None:
        assert progress is not None
        seen.append(progress)
        raise GiveUp

    never = asyncio.Event()
    with served(tmp_path, engine=FakeEngine(words=128, fail=hang_on(6, never))) as url:
        client = RolloutClient(url, poll=poll)
        published = weights(tmp_path, 0)
        client.publish(published, canary(published))
        with pytest.raises(GiveUp):
            client.batch(0)
        assert seen == [BatchProgress(5, 6)]
        client.close()


def test_a_refused_publish_carries_its_failure(tmp_path: Path) -> None:
    with served(tmp_path, engine=FakeEngine(words=128, stale=True)) as url:
        client = RolloutClient(url)
        published = weights(tmp_path, 3)
        with pytest.raises(FailureError, match="weights of version 3") as caught:
            client.publish(published, canary(published))
        assert (caught.value.failure.kind, caught.value.failure.stage) == (FailureKind.INVALID, Stage.PUBLISH)
        client.close()


def test_a_server_that_started_again_says_it_needs_weights_and_keeps_its_journal(tmp_path: Path) -> None:
    published = weights(tmp_path, 0)
    with served(tmp_path) as url:
        client = RolloutClient(url)
        client.publish(published, canary(published))
        first = client.batch(0)
    port = int(url.rpartition(":")[2])
    with served(tmp_path, port=port):
        with pytest.raises(FailureError) as caught:
            client.batch(1)
        assert caught.value.failure.kind is FailureKind.LOST
        again = client.batch(0)  # what was taken needs no weights
        assert [t.id for g in again for t in g.trajectories] == [t.id for g in first for t in g.trajectories]
        client.close()


def test_a_server_that_is_gone_is_unreachable_after_the_client_s_patience(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(FailureError) as caught:
        RolloutClient(url, patience_s=0.3).health()
    assert caught.value.failure.kind is FailureKind.UNREACHABLE


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/publish", b"\x80", 400),
        ("POST", "/v1/admit", b"not msgpack", 400),
        ("GET", "/v1/runs/unknown", b"", 404),
        ("GET", "/v1/batches/0?wait_s=soon", b"", 400),
    ],
)
def test_a_malformed_request_gets_a_failure_and_no_stack(
    tmp_path: Path, method: str, path: str, body: bytes, status: int
) -> None:
    with served(tmp_path) as url:
        answer = httpx.request(method, url + path, content=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"failure"}
    assert "Traceback" not in answer.text


def test_a_canary_of_other_rows_than_scored_is_refused() -> None:
    from quintain.arrays import as_floats, as_ints
    from quintain.rollout.weights.canary import compare

    rows = (as_ints([1, 2]),)
    with pytest.raises(ValueError, match="zip"):
        compare(Canary(rows, (as_floats([-1.0]),), 1.0), [])
