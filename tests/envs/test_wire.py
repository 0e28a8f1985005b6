"""The wire under /v1, spoken by hand over HTTP and over the socket: statuses, limits, tokens, what is never said."""

from __future__ import annotations

import contextlib
import json
import re
import socket

import httpx
import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from quintain.cores import CORES_ENV
from quintain.envs import Action, EnvironmentLimits, FailureError, Task
from quintain.failure import FailureKind, QuintainError, Stage
from quintain.serving.listen import SOCKET_PATH, SOCKET_PROTOCOL, check_bind

REFERENCE = "the-hidden-reference-7391"


AT_SOCKET = ("/v1/episodes", "/v1/tasks", "/metadata")


def socket_of(server, token: str = "") -> ClientConnection:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    url = server.url.replace("http", "ws", 1) + SOCKET_PATH
    return connect(url, subprotocols=[SOCKET_PROTOCOL], additional_headers=headers, proxy=None, open_timeout=60)


class OverSocket(httpx.HTTPTransport):
    """Requests over the socket, those of pages that are not there over HTTP."""

    def __init__(self, server) -> None:
        super().__init__()
        self._ends = contextlib.ExitStack()
        self._socket = self._ends.enter_context(socket_of(server))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        if not path.startswith(AT_SOCKET):
            return super().handle_request(request)
        self._socket.send(msgpack.packb([[7, request.method, path, request.read()]]))
        ((number, status, retry_after, body),) = msgpack.unpackb(self._socket.recv())
        assert number == 7
        return httpx.Response(status, headers={"retry-after": retry_after} if retry_after else {}, content=body)

    def close(self) -> None:
        self._ends.close()
        super().close()


@pytest.fixture(scope="module", params=[httpx.HTTPTransport, OverSocket])
def wire(request):
    return request.param


@pytest.fixture(scope="module")
def server(serve_all, wire):  # one each: ids of episodes are used once
    return serve_all("Probe", limits=EnvironmentLimits(body_bytes=20_000))


@pytest.fixture
def http(server, wire):
    transport = wire(server) if wire is OverSocket else wire()
    with httpx.Client(base_url=server.url, transport=transport) as client:
        yield client


def say(text: str, turn: int = 0) -> dict:
    return {"turn": turn, "action": {"message": {"role": "assistant", "content": text}}}


def create(http, index: int = 0, **more) -> dict:
    response = http.post("/v1/episodes", json={"split": "train", "index": index, **more})
    assert response.status_code == 201, response.text
    return response.json()


def failure(response: httpx.Response) -> tuple[int, str, str]:
    assert set(response.json()) == {"failure"}
    said = response.json()["failure"]
    assert set(said) == {"kind", "stage", "message", "retryable"}
    FailureKind(said["kind"])
    Stage(said["stage"])
    assert "\n" not in said["message"]
    assert "Traceback" not in response.text
    return response.status_code, said["kind"], said["message"]


def test_an_episode_by_hand(http):
    created = create(http, seed=5)
    assert set(created) == {"episode_id", "task_id", "turn", "state", "lease_s", "observation"}
    assert created["observation"]["info"]["seed"] == 5
    url = f"/v1/episodes/{created['episode_id']}"
    step = http.post(f"{url}/step", json=say("hello")).json()
    assert (
        step["observation"]["messages"][0] | {"role": "user", "content": "hello"} == step["observation"]["messages"][0]
    )
    assert (step["turn"], step["reward"], step["terminated"], step["truncated"]) == (1, 0.0, False, False)
    assert http.get(url).json() == {
        "episode_id": created["episode_id"],
        "turn": 1,
        "state": "running",
        "lease_s": 600.0,
        "failure": None,
    }
    assert http.delete(url).json()["state"] == "closed"
    assert http.delete(url).json()["state"] == "closed"
    assert failure(http.post(f"{url}/step", json=say("hello", 1)))[:2] == (409, "rejected")


def test_a_prompt_of_a_clients_own_that_is_malformed_is_the_clients_mistake(http):
    task = {"id": "mine", "prompt": [{"role": "system", "content": None}]}
    answer = http.post("/v1/episodes", json={"task": task})
    assert (answer.status_code, answer.json()["failure"]["kind"]) == (400, "rejected")
    assert "the content of a system message must be text, not None" in answer.json()["failure"]["message"]


def test_a_message_of_openais_with_more_fields_than_ours_is_accepted(http):
    url = f"/v1/episodes/{create(http)['episode_id']}/step"
    message = {"role": "assistant", "content": "hello", "refusal": None, "annotations": []}
    assert http.post(url, json={"turn": 0, "action": {"message": message}}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "message"),
    [
        ("POST", "/v1/episodes", b"{", 400, "rejected", "the request must be JSON"),
        ("POST", "/v1/episodes", b"[]", 400, "rejected", "must be a JSON object, not list"),
        ("POST", "/v1/episodes", b"\xff", 400, "rejected", "the request must be JSON"),
        ("POST", "/v1/episodes", b'{"seed": NaN}', 400, "rejected", "NaN is no JSON number"),
        ("POST", "/v1/episodes", b"[" * 5000, 400, "rejected", "the request must be JSON"),
        ("POST", "/v1/episodes", b"{}", 400, "rejected", "give a task, or a split and an index"),
        ("POST", "/v1/episodes", b'{"splits": "train"}', 400, "rejected", "no field 'splits': did you mean 'split'?"),
        ("POST", "/v1/episodes", b'{"split": 5}', 400, "rejected", "split: Input should be a valid string"),
        ("POST", "/v1/episodes", b'{"split": "train", "index": 99}', 404, "rejected", "there is none at index 99"),
        ("POST", "/v1/episodes", b'{"split": "test", "index": 0}', 404, "rejected", "has no split 'test'"),
        ("POST", "/v1/episodes/nobody/step", b'{"turn": 0}', 400, "rejected", "action: Field required"),
        (
            "POST",
            "/v1/episodes/nobody/step",
            b'{"turn": 0, "action": {"message": {"role": "user", "content": "x"}}}',
            400,
            "rejected",
            "an action is an assistant message, not one by 'user'",
        ),
        (
            "POST",
            "/v1/episodes/nobody/step",
            b'{"turn": 0, "action": {"message": {"role": "assistant", "content": "\\ud800"}}}',
            400,
            "rejected",
            "surrogates not allowed",
        ),
        (
            "POST",
            "/v1/episodes/nobody/step",
            b'{"turn": true, "action": {"message": {"role": "assistant", "content": "x"}}}',
            400,
            "rejected",
            "turn: Input should be a valid integer (got True)",
        ),
        ("GET", "/v1/episodes/nobody", None, 404, "lost", "there is no episode 'nobody'"),
        ("DELETE", "/v1/episodes/nobody", None, 404, "lost", "there is no episode 'nobody'"),
        ("GET", "/v1/tasks?start=-1", None, 400, "rejected", "start must be at least 0"),
        ("GET", "/v1/tasks?count=9999", None, 400, "rejected", "count 0 to 1000"),
        ("GET", "/v1/tasks?start=x", None, 400, "rejected", "start must be a whole number, not 'x'"),
        ("GET", "/v1/tasks?begin=1", None, 400, "rejected", "no parameter 'begin'"),
        ("GET", "/v1/tasks?split=x", None, 404, "rejected", "has no split 'x'"),
        ("GET", "/v2/episodes", None, 404, "rejected", "GET /v2/episodes: Not Found"),
        ("POST", "/v2/tasks", b'{"split": "train"}', 404, "rejected", "unknown environment 'v2'"),
        ("PUT", "/v1/tasks", None, 405, "rejected", "Method Not Allowed"),
        ("POST", "/v1/verify", b'{"verifier": "mth", "items": []}', 400, "rejected", "did you mean 'math'?"),
        (
            "POST",
            "/v1/verify",
            b'{"verifier": "math", "items": [], "options": {"x": 1}}',
            400,
            "rejected",
            "x: no such field",
        ),
        ("POST", "/v1/verify", b'{"verifier": "math", "items": [], "deadline_s": 0}', 400, "rejected", "deadline_s"),
    ],
)
def test_a_request_that_cannot_be_met_says_why_and_nothing_else(http, method, path, body, status, kind, message):
    got = failure(http.request(method, path, content=body))
    assert got[:2] == (status, kind)
    assert message in got[2]


@pytest.mark.parametrize(
    ("says", "status", "kind", "message"),
    [
        ("raise", 500, "crashed", "ValueError (its message quotes the reference: see the log)"),
        ("complain fly", 500, "crashed", "ValueError: cannot fly"),
        ("quit", 500, "crashed", "the environment raised SystemExit"),
        ("reward nan", 500, "invalid", "the reward must be a finite number, not nan"),
        ("reward -inf", 500, "invalid", "the reward must be a finite number, not -inf"),
        ("nothing", 500, "invalid", "the environment's step must give a Step, not a NoneType"),
        ("unsendable", 500, "invalid", "is of type"),
        ("surrogate", 500, "invalid", "cannot be sent as JSON"),
        ("malformed", 500, "invalid", "the content of a user message must be text, not 5"),
        ("exit", 500, "crashed", "the process that ran the environment died"),
    ],
)
def test_an_environment_that_misbehaves_fails_its_own_episode_only(http, server, says, status, kind, message):
    bystander = create(http)["episode_id"]
    url = f"/v1/episodes/{create(http)['episode_id']}"
    assert failure(http.post(f"{url}/step", json=say(says)))[:2] == (status, kind)
    assert message in failure(http.post(f"{url}/step", json=say(says)))[2]  # stored, and said again
    assert http.get(url).json()["state"] == "failed"
    assert failure(http.post(f"{url}/step", json=say("hello", 1)))[:2] == (409, kind)
    if says != "exit":
        assert http.post(f"/v1/episodes/{bystander}/step", json=say("hello")).status_code == 200


@pytest.mark.parametrize("reference", range(10))
def test_what_an_environment_says_is_hidden_for_its_reference_and_never_for_the_line_it_was_said_in(http, reference):
    task = {"id": "mine", "prompt": [{"role": "user", "content": "?"}], "reference": reference}
    url = f"/v1/episodes/{http.post('/v1/episodes', json={'task': task}).json()['episode_id']}"
    said = failure(http.post(f"{url}/step", json=say(f"complain about {reference + 1}")))[2]
    assert re.fullmatch(rf"ValueError: cannot about {reference + 1} \(samples\.py:\d+\)", said)


def test_an_environment_that_raises_at_reset_fails_its_episode(http):
    response = http.post("/v1/episodes", json={"split": "train", "index": 1, "episode_id": "resets"})
    assert failure(response)[:2] == (500, "crashed")
    assert response.json()["failure"]["stage"] == "reset"
    assert http.get("/v1/episodes/resets").json()["state"] == "failed"


def test_what_an_environment_prints_is_not_on_the_servers_standard_output(http, server):
    url = f"/v1/episodes/{create(http)['episode_id']}/step"
    assert http.post(url, json=say("print hello from below")).status_code == 200
    assert "hello from below" in server.log.read_text()
    assert json.loads(server.lines[0])["event"] == "ready"


def test_a_request_that_is_too_long_is_refused(http):
    url = f"/v1/episodes/{create(http)['episode_id']}/step"
    assert failure(http.post(url, json=say("x" * 30_000)))[:2] == (413, "too_long")
    assert http.post(url, json=say("hello")).status_code == 200


@pytest.mark.parametrize("wire", [httpx.HTTPTransport], indirect=True)
def test_a_request_without_end_is_refused_before_it_is_read_whole(http):
    url = f"/v1/episodes/{create(http)['episode_id']}/step"

    def endless():
        while True:
            yield b"x" * 1000

    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        # the server hangs up while the client is still sending, so its answer may be lost
        assert http.post(url, content=endless()).status_code == 413
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("wire", [OverSocket], indirect=True)
@pytest.mark.parametrize("said", ["hello", b"", b"\xff", msgpack.packb([1]), msgpack.packb([[1, "GET", "/metadata"]])])
def test_what_is_no_request_ends_its_socket_and_no_other(http, server, said):
    with socket_of(server) as socket:
        socket.send(said)
        with pytest.raises(ConnectionClosed, match=r"expected msgpack|got"):
            socket.recv()
    assert http.get("/metadata").json()["name"] == "Probe"


def test_the_answers_of_a_socket_come_each_as_soon_as_it_is_there(serve):
    with socket_of(serve("Probe")) as socket:
        for name in ("a", "b"):
            create = json.dumps({"split": "train", "index": 0, "episode_id": name}).encode()
            socket.send(msgpack.packb([[1, "POST", "/v1/episodes", create]]))
            assert msgpack.unpackb(socket.recv())[0][1] == 201
        slow, quick = (json.dumps(say(text)).encode() for text in ("hang", "hello"))
        socket.send(
            msgpack.packb([[2, "POST", "/v1/episodes/a/step", slow], [3, "POST", "/v1/episodes/b/step", quick]])
        )
        ((number, status, _, _),) = msgpack.unpackb(socket.recv())
        assert (number, status) == (3, 200)
        socket.send(msgpack.packb([[4, "DELETE", "/v1/episodes/a", b""]]))
        answers: dict[int, int] = {}
        while len(answers) < 2:
            answers |= {number: status for number, status, _, _ in msgpack.unpackb(socket.recv())}
        assert answers == {2: 409, 4: 200}


def test_the_reference_is_in_no_byte_of_any_answer(http):
    answers = [http.get(path) for path in ("/v1/tasks", "/metadata", "/schema", "/metrics", "/health")]
    for index in range(2):
        answers.append(http.post("/v1/episodes", json={"split": "train", "index": index, "episode_id": f"r{index}"}))
    for turn, word in enumerate(("hello", "complain x")):
        answers.append(http.post("/v1/episodes/r0/step", json=say(word, turn)))
    own = {"id": "own", "prompt": [], "reference": REFERENCE}
    answers.append(http.post("/v1/episodes", json={"task": own, "episode_id": "own"}))
    answers += [http.post("/v1/episodes/own/step", json=say("raise")) for _ in range(2)]
    answers += [http.get(f"/v1/episodes/{name}") for name in ("r0", "r1", "own")]
    answers += [http.delete(f"/v1/episodes/{name}") for name in ("r0", "r1", "own")]
    assert {answer.status_code for answer in answers} == {200, 201, 500}
    for answer in answers:
        assert REFERENCE not in answer.text
        assert REFERENCE not in str(answer.headers)


def test_broken_task_sources_say_nothing_of_the_references(serve):
    server = serve("Slow", limits=EnvironmentLimits(tasks_s=0.3, reset_s=0.3))
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        got = failure(http.get("/v1/tasks?split=broken"))
        assert got[:2] == (500, "crashed")
        assert REFERENCE not in got[2]
        assert REFERENCE in server.log.read_text()  # where its owner can see it
        assert failure(http.get("/v1/tasks?split=complaint"))[1:] == ("rejected", "the data is missing: fetch it first")
        server.wait_metric("workers", lambda n: n == 2)  # the spare is ready
        assert failure(http.get("/v1/tasks?split=slow"))[:2] == (504, "timeout")
        # the worker whose reader hangs is replaced, and the server goes on
        server.wait_metric("worker_restarts", lambda n: n >= 1)
        server.wait_metric("workers", lambda n: n == 2)
        assert failure(http.post("/v1/episodes", json={"split": "slow", "index": 0}))[:2] == (504, "timeout")
        server.wait_metric("worker_restarts", lambda n: n >= 2)
        assert http.get("/v1/tasks?split=train").json()["size"] == 1


def test_pages_of_tasks_are_cut_where_they_are_asked_for(http):
    page = http.get("/v1/tasks?start=1&count=2").json()
    assert [task["id"] for task in page["tasks"]] == ["raise", "hang"]
    assert (page["size"], page["start"], page["split"]) == (4, 1, "train")
    assert page["tasks"][0]["origin"] == {"split": "train", "index": 1}
    assert "reference" not in page["tasks"][0]
    assert http.get("/v1/tasks?start=9").json()["tasks"] == []


def test_finished_answers_are_verified_in_batches_in_order(http):
    items = [{"answer": "It is 4", "reference": "4"}, {"answer": "5", "reference": "4"}, {"answer": "", "reference": 4}]
    verdicts = http.post("/v1/verify", json={"verifier": "math", "items": items, "deadline_s": 5}).json()["verdicts"]
    assert [verdict["score"] for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert [verdict["outcome"] for verdict in verdicts] == ["correct", "wrong", "unparsable"]
    assert set(verdicts[0]) == {"score", "outcome", "failure", "elapsed_s", "detail"}


def test_too_many_items_at_once_are_refused(serve):
    server = serve("Guess")
    items = [{"answer": "", "reference": ""}] * 4097
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        assert failure(http.post("/v1/verify", json={"verifier": "math", "items": items}))[:2] == (413, "too_long")


def test_a_server_without_workers_plays_the_same_episodes(serve):
    server = serve("Probe", workers=0)
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        created = create(http)
        assert created["observation"]["info"]["pid"] == server.process.pid
        step = http.post(f"/v1/episodes/{created['episode_id']}/step", json=say("end")).json()
        assert (step["reward"], step["state"]) == (1.0, "done")
        assert http.get("/metadata").json()["name"] == "Probe"
    assert [process.pid for process in server.tree()] == [server.process.pid]


async def test_a_server_without_a_living_worker_says_that_it_is_not_well():
    from quintain.envs.serving.server import EnvApp
    from quintain.envs.serving.sessions import Sessions
    from quintain.envs.workers.pool import EnvironmentWorkers
    from quintain.serving.metrics import Metrics

    metrics = Metrics("quintain_env_")
    app = EnvApp(Sessions(EnvironmentWorkers("math", {}, 1), EnvironmentLimits(), metrics), metrics)  # never started
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app.asgi), base_url="http://here") as http:
        assert failure(await http.get("/health"))[:2] == (503, "unreachable")


def test_the_schema_describes_every_message_and_no_task_has_a_reference(http):
    definitions = http.get("/schema").json()["$defs"]
    assert {"CreateEpisode", "StepAnswer", "VerifyRequest", "FailureBody"} <= set(definitions)
    assert set(definitions["FailureKind"]["enum"]) == {str(kind) for kind in FailureKind}
    assert "reference" not in definitions["PublicTask"]["properties"]


def test_metrics_count_what_has_happened(serve):
    server = serve("Probe")
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        url = f"/v1/episodes/{create(http)['episode_id']}/step"
        assert server.metric("episodes_live") == 1
        http.post(url, json=say("end"))
        server.wait_metric("episodes_live", lambda n: n == 0)
        assert server.metric('episodes_total{how="done"}') == 1
        assert server.metric('requests_total{route="POST /v1/episodes",status="201"}') == 1
        assert server.metric('call_seconds_count{op="step"}') == 1
        assert http.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_full_server_says_when_to_come_back(serve):
    server = serve("Probe", limits=EnvironmentLimits(max_episodes=1, queue=1, queue_s=0.2))
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        create(http)
        response = http.post("/v1/episodes", json={"split": "train", "index": 0})
        assert failure(response)[:2] == (429, "overloaded")
        assert float(response.headers["retry-after"]) > 0
        assert response.json()["failure"]["retryable"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_processors_so_that_their_pools_do_not_add_up(serve, monkeypatch, workers):
    monkeypatch.setenv(CORES_ENV, "7")
    with httpx.Client(base_url=serve("Probe", workers=workers).url, trust_env=False) as http:
        episode = create(http)["episode_id"]
        said = http.post(f"/v1/episodes/{episode}/step", json=say("cores")).json()["observation"]["messages"]
        assert [message["content"] for message in said] == [str(7 // workers)]


async def test_a_server_with_a_token_lets_nobody_else_in(serve):
    server = serve("Probe", token="sesame")
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        for headers in ({}, {"authorization": "Bearer simsalabim"}, {"authorization": "Basic sesame"}):
            for method, path in (("POST", "/v1/episodes"), ("GET", "/v1/tasks"), ("GET", "/metrics")):
                response = await http.request(method, path, headers=headers)
                assert failure(response)[:2] == (401, "rejected")
                assert response.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/health")).json() == {"status": "healthy"}
    for token in ("", "simsalabim"):
        with pytest.raises(InvalidStatus, match="403"), socket_of(server, token):
            pass
    async with server.client(token="sesame") as client:
        env = client.episode()
        await env.reset(client.tasks("train")[0], seed=0)
        assert (await env.step(Action.text("end"))).reward == 1.0
    async with server.client(token="wrong") as client:
        with pytest.raises(FailureError, match="wants its token") as error:
            await client.episode().reset(Task("any"), seed=0)
    assert not error.value.failure.retryable


def test_each_token_has_a_share_of_the_episodes_and_the_log_says_who_did_what_and_no_secret(serve, monkeypatch):
    monkeypatch.setenv("QUINTAIN_LOG_JSON", "1")
    server = serve("Probe", token="ann:s3cret-a\nbob:s3cret-b", limits=EnvironmentLimits(token_episodes=2))
    with contextlib.ExitStack() as stack:
        ann, bob = (
            stack.enter_context(httpx.Client(base_url=server.url, headers={"authorization": f"Bearer s3cret-{who}"}))
            for who in "ab"
        )
        ids = [create(ann)["episode_id"] for _ in range(2)]
        asked = {"split": "train", "index": 0}
        full = ann.post("/v1/episodes", json=asked)
        assert failure(full) == (
            429,
            "overloaded",
            "this token has 2 episodes open, and may have no more: end or close one",
        )
        session = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}
        mine = {"authorization": ann.headers["authorization"]}
        assert ["error" in ann.post("/mcp", json=session).json() for _ in range(3)] == [False, False, True]
        with connect(f"{server.url.replace('http', 'ws')}/ws", additional_headers=mine, proxy=None) as ws:
            ws.send('{"type": "reset"}')
            assert json.loads(ws.recv())["data"]["code"] == "CAPACITY_REACHED"
        with socket_of(server, "s3cret-b") as ws:
            ws.send(msgpack.packb([[1, "POST", "/v1/episodes", json.dumps(asked).encode()]]))
            assert msgpack.unpackb(ws.recv())[0][:2] == [1, 201]
        assert "result" in bob.post("/mcp", json=session).json()
        assert ann.post(f"/v1/episodes/{ids[0]}/step", json=say("end")).json()["reward"] == 1.0
        assert ann.post(f"/v1/episodes/{ids[1]}/step", json=say("complain s3cret-x")).status_code == 500
        create(ann)
        assert httpx.get(f"{server.url}/v1/tasks?split=s3cret-y").status_code == 401
        assert httpx.get(f"{server.url}/s3cret-z").status_code == 404
        with pytest.raises(InvalidStatus, match="403"), socket_of(server, "s3cret-c"):
            pass
    server.stop()
    log = server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    events = [line for line in lines if "event" in line]
    refused = [(line["route"], line["status"]) for line in events if "holder" in line and line["holder"] is None]
    assert refused == [("GET /v1/tasks", 401), ("GET ?", 404), (f"WS {SOCKET_PATH}", 403)]
    requests = [(line["route"], line["holder"], line["status"]) for line in events if line["event"] == "request"]
    for request in (
        ("POST /v1/episodes", "ann", 429),
        ("POST /v1/episodes", "bob", 201),
        ("GET /v1/tasks", None, 401),
        ("WS /ws", "ann", "CAPACITY_REACHED"),
    ):
        assert request in requests
    ends = {line["id"]: line for line in events if line["event"] == "episode"}
    assert [ends[episode]["how"] for episode in ids] == ["done", "failed"]
    assert [ends[episode]["failure"] for episode in ids] == [None, "crashed in step"]
    assert [(ends[episode]["holder"], ends[episode]["turns"]) for episode in ids] == [("ann", 1)] * 2
    assert "s3cret" not in str(events)
    assert [line["level"] for line in lines if "message" in line] == ["WARNING"]  # the stack of what was raised


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_only_loopback_is_bound_without_a_token(host):
    with pytest.raises(QuintainError, match=r"refusing to listen on .* without a token"):
        check_bind(host, False, "A_TOKEN")
    check_bind(host, True, "A_TOKEN")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_is_bound_without_a_token(host):
    check_bind(host, False, "A_TOKEN")


def test_a_server_that_would_be_open_to_anybody_does_not_start(serve):
    with pytest.raises(AssertionError, match=r"refusing to listen on 0\.0\.0\.0 without a token"):
        serve("Probe", host="0.0.0.0")


def test_a_taken_port_is_one_clear_line(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=rf"port {port} on 127\.0\.0\.1 is taken: choose another, or 0"):
            serve("Probe", port=port)


@pytest.mark.parametrize(
    ("spec", "arguments", "complaint"),
    [
        ("mth", {}, "there is no environment 'mth': did you mean 'math'?"),
        ("math", {"options": {"hihg": 9}}, "MathEnv has no option 'hihg': did you mean 'high'?"),
        ("math", {"options": {"low": 9, "high": 1}}, "low must not be more than high, but 9 > 1"),
        ("math", {"workers": -1}, "the number of workers must be at least 0"),
        ("math", {"port": 70000}, "a port is a number from 0 to 65535, not 70000"),
    ],
)
def test_a_server_that_cannot_begin_says_so_in_its_last_line(serve, spec, arguments, complaint):
    with pytest.raises(AssertionError) as error:
        serve(spec, **arguments)
    assert f"the server ended: {complaint}" in str(error.value)


def test_the_longest_request_is_the_same_over_http_and_both_sockets(serve):
    most = 17 << 20  # more than a WebSocket's message may have where nothing is said
    server = serve("Probe", limits=EnvironmentLimits(body_bytes=most))
    path, openenv = "/v1/episodes/nobody/step", '{"type": "state", "data": {"x": "%s"}}'
    for length, status, kind in ((most, 404, "state"), (most + 1, 413, "error")):
        body = json.dumps(say("")).encode().ljust(length)
        assert httpx.post(server.url + path, content=body).status_code == status
        with socket_of(server) as ws:
            ws.send(msgpack.packb([[1, "POST", path, body]]))
            assert msgpack.unpackb(ws.recv())[0][:2] == [1, status]
        with connect(f"{server.url.replace('http', 'ws')}/ws", proxy=None) as ws:
            ws.send(openenv % ("x" * (length - len(openenv) + 2)))
            answer = json.loads(ws.recv())
            assert (answer["type"], f"at most {most} bytes" in str(answer)) == (kind, kind == "error")
    for url in (SOCKET_PATH, "/ws"):
        with connect(server.url.replace("http", "ws") + url, subprotocols=[SOCKET_PROTOCOL], proxy=None) as ws:
            with contextlib.suppress(ConnectionClosed):
                ws.send("x" * (18 << 20))
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv()
            assert closed.value.rcvd.code == 1009
