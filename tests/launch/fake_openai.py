"""A fake OpenAI-compatible server for tests: a program, no model, over a real socket.

`reply` says what the fake model says to a request; it may return a status and headers in place of a message.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = dict[str, Any] | tuple[int, dict[str, str]]


@dataclass
class FakeOpenAI:
    """The fake. It answers `limit` completions and then holds every further one until `release`."""

    reply: Callable[[dict[str, Any]], Said]
    limit: int | None = None
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def release(self) -> None:
        self.released.set()

    def answer(self, request: dict[str, Any], key: str) -> Said:
        with self.lock:
            self.asked.append(request)
            self.keys.add(key)
            held = self.limit is not None and len(self.asked) > self.limit
        if held:
            self.released.wait(120)
        return self.reply(request)


@contextmanager
def fake_openai(
    reply: Callable[[dict[str, Any]], Said], *, limit: int | None = None, key: str | None = None
) -> Iterator[FakeOpenAI]:
    """A fake at `url`, up to /v1; with `key` it refuses every other."""
    fake = FakeOpenAI(reply, limit)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200 if self._welcome() else 401, {"data": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if not self._welcome():
                return self._send(401, {"error": "no"})
            request = json.loads(body)
            said = fake.answer(request, self.headers.get("authorization", ""))
            if isinstance(said, tuple):
                return self._send(said[0], {"error": {"message": "the fake says no"}}, said[1])
            words = sum(len((message["content"] or "").split()) for message in request["messages"])
            choice = {"message": {"role": "assistant", **said}, "finish_reason": said.pop("finish_reason", "stop")}
            return self._send(200, {"choices": [choice], "usage": {"prompt_tokens": words, "completion_tokens": 2}})

        def _welcome(self) -> bool:
            return key is None or self.headers.get("authorization") == f"Bearer {key}"

        def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                self.close_connection = True  # the client was killed

        def log_message(self, form: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        fake.release()
        server.shutdown()
        server.server_close()
        thread.join()
