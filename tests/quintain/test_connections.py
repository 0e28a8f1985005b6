"""Who is asked: never a proxy for this machine or for a server of ours, and the right one for the world outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from quintain.calling.caller import Caller
from quintain.calling.connections import async_http_client, http_client
from quintain.calling.retry import RetryPolicy
from quintain.failure import Stage
from quintain.rollout.client import RolloutClient

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class _Listener:
    """A server that answers everything, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[_Listener]:
    listener = _Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Listener]:
    """The proxy that the environment names for everything."""
    listener = _Listener()
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in PROXIES[:3]:
        monkeypatch.setenv(name, listener.url)
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


def test_the_rollout_client_asks_its_server_and_no_proxy(server: _Listener, proxy: _Listener) -> None:
    with RolloutClient(server.url) as client:
        assert client.metrics() == "ok"
    assert (server.asked, proxy.asked) == (["/metrics"], [])


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_this_machine_is_asked_itself(server: _Listener, proxy: _Listener, host: str, proxied: bool) -> None:
    url = server.url.replace("127.0.0.1", host)
    with http_client(url, proxied=proxied) as client:
        client.get("/a")
    async with async_http_client(url, proxied=proxied) as other:
        await other.get("/b")
    caller = Caller(url, None, server="server", policy=RetryPolicy(5.0, 0.0))
    await caller.call("GET", "/c", Stage.REQUEST)
    caller.call_sync("GET", "/d", Stage.REQUEST)
    await caller.aclose()
    assert (server.asked, proxy.asked) == (["/a", "/b", "/c", "/d"], [])


async def test_an_endpoint_outside_is_asked_through_the_proxy(proxy: _Listener) -> None:
    with http_client("http://models.example", proxied=True) as client:
        client.get("/a")
    async with async_http_client("http://models.example", proxied=True) as other:
        await other.get("/b")
    assert proxy.asked == ["http://models.example/a", "http://models.example/b"]
