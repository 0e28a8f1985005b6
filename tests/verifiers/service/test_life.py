"""How a service and its clients end: gracefully, with their launcher, or killed. Nothing is left, nobody else pays."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from quintain.verifiers.service.limits import ServiceLimits

HARD = r"$\frac{1}{2} x^2$"  # nothing that the fast path of math can decide
SQUARE = r"\frac{x^2}{2}"
CATASTROPHE = {"answer": "a" * 60 + "!", "reference": "(a+)+$"}


def with_workers(service):
    """Start worker processes of two verifiers, and give the service's processes."""
    for verifier, item in (
        ("math", {"answer": HARD, "reference": SQUARE}),
        ("regex", {"answer": "a", "reference": "a"}),
    ):
        (verdict,) = service.post("/v1/verify", {"verifier": verifier, "items": [item]}).json()["verdicts"]
        assert verdict["score"] == 1.0
    processes = service.tree()
    assert len(processes) >= 5  # the service, and for each verifier what makes workers, and a worker
    return processes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_within_the_grace_time_and_nothing_new_is_begun(serve, gone, tmp_path, waiting, number):
    service = serve(limits=ServiceLimits(grace_s=20))
    processes = with_workers(service)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(service.verify, "probe", [f"wait {tmp_path / 'go'}", "right"])
        waiting(lambda: (tmp_path / "go.begun").exists(), "it has begun")
        service.process.send_signal(number)
        waiting(lambda: not listens(service.port), "it accepts nothing more")
        (tmp_path / "go").touch()
        assert [verdict["score"] for verdict in running.result()] == [1.0, 1.0]
    assert service.process.wait(20) == 0
    assert gone(processes) == []
    assert service.log.read_text() == ""


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_what_takes_longer_than_the_grace_time_failed_and_is_answered(serve, gone, tmp_path, waiting):
    service = serve(limits=ServiceLimits(grace_s=0.5))
    processes = with_workers(service)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(service.verify, "probe", ["right", f"wait {tmp_path / 'never'}"])
        waiting(lambda: (tmp_path / "never.begun").exists(), "it has begun")
        service.process.send_signal(signal.SIGTERM)
        done, late = running.result()
    assert done["score"] == 1.0
    assert late["score"] is None
    assert late["failure"] == {
        "kind": "unreachable",
        "stage": "verify",
        "message": "the server is stopping",
        "retryable": True,
    }
    assert service.process.wait(20) == 0
    assert gone(processes) == []


def test_the_service_ends_with_its_launcher(serve, gone):
    service = serve()
    processes = with_workers(service)
    service.lifeline.close()
    assert gone(processes) == []
    assert service.process.wait(20) == 0


def test_a_killed_service_leaves_no_process(serve, gone):
    service = serve()
    processes = with_workers(service)
    os.kill(service.process.pid, signal.SIGKILL)
    assert gone(processes) == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_in_the_middle_frees_its_places_and_ends_its_items(serve, tmp_path, waiting, stream):
    service = serve()
    items = [{"answer": f"wait {tmp_path / str(number)}", "reference": None} for number in range(200)]
    body = json.dumps({"verifier": "probe", "items": items, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        head = f"POST /v1/verify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        waiting(lambda: (tmp_path / "0.begun").exists(), "it has begun")
        running = service.metric("items_running")
        assert service.metric("items_queued") == 200 - running > 0
    waiting(lambda: (tmp_path / "0.cancelled").exists(), "its items are ended")
    service.wait_metric("items_queued", 0)
    service.wait_metric("items_running", 0)
    assert len(list(tmp_path.glob("*.begun"))) == running  # those that waited were never begun
    assert service.verify("probe", ["right", "wrong"])[0]["score"] == 1.0


def test_a_client_that_hangs_up_costs_its_neighbours_in_the_same_workers_nothing(serve):
    service = serve(workers=1)
    asked = {"verifier": "regex", "items": [CATASTROPHE] * 1, "options": {"deadline_s": 60}}
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        body = json.dumps(asked).encode()
        head = f"POST /v1/verify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        service.wait_metric("items_running", 1)
    good = {"verifier": "regex", "items": [{"answer": "abc", "reference": "b"}], "options": {"deadline_s": 60}}
    response = httpx.post(f"{service.url}/v1/verify", json=good, timeout=20)  # far less than the other's 60 s
    assert response.json()["verdicts"][0]["score"] == 1.0
    service.wait_metric("items_running", 0)


def test_workers_killed_in_the_middle_cost_no_verdict(serve):
    service = serve(workers=2)
    with_workers(service)
    items = [{"answer": rf"$\frac{{{number}}}{{2}} x^2$", "reference": SQUARE} for number in range(1, 301)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service.post, "/v1/verify", {"verifier": "math", "items": items})
        while not service.metric("items_running"):
            assert not running.done(), "it was done before a worker could be killed"
        first = workers_of(service)
        for worker in first:  # and not those that come after them: an item is tried again, but not for ever
            worker.kill()
        verdicts = running.result().json()["verdicts"]
    assert not {worker.pid for worker in first} & {worker.pid for worker in workers_of(service)}
    assert [verdict["score"] for verdict in verdicts] == [1.0] + [0.0] * 299


def workers_of(service) -> list[psutil.Process]:
    """The processes that check items."""
    return [worker for maker in psutil.Process(service.process.pid).children() for worker in maker.children()]


def test_a_run_of_code_that_takes_longer_than_the_grace_time_broke_on_our_side(serve, gone):
    service = serve(limits=ServiceLimits(grace_s=0.5))
    code = {"code": "import time; time.sleep(60)", "language": "python", "run_timeout": 60}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service.post, "/run_code", code)
        service.wait_metric("items_queued", 1)
        processes = service.tree()
        service.process.send_signal(signal.SIGTERM)
        assert running.result().json()["status"] == "SandboxError"
    assert service.process.wait(20) == 0
    assert gone(processes) == []


def test_the_process_that_makes_workers_may_be_killed_too(serve):
    service = serve(workers=1)
    with_workers(service)
    for process in psutil.Process(service.process.pid).children():
        process.kill()
    items = [{"answer": HARD, "reference": SQUARE}, {"answer": "$x^3$", "reference": SQUARE}]
    verdicts = service.post("/v1/verify", {"verifier": "math", "items": items}).json()["verdicts"]
    assert [verdict["score"] for verdict in verdicts] == [1.0, 0.0]
