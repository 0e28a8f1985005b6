"""A fake of the Hugging Face hub for tests, over a real socket: it makes repositories and takes commits."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """What was made and committed; `refuses` answers every commit with 403."""

    url: str = ""
    refuses: bool = False
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.files
            self.made.append(asked)
            self.files.setdefault(name, {})
            return (409 if known else 200), {"url": f"{self.url}/{name}", "error": "You already created it"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repository, _, action = path.removeprefix("/api/models/").rpartition("/")
        repository, _, action = repository.rpartition("/")
        if action == "preupload":
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if action == "commit" and not self.refuses:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/{repository}/commit/1", "commitOid": "1"}
        return 403, {"error": "no space left for you"}


@contextmanager
def fake_hub(*, token: str) -> Iterator[FakeHub]:
    """A fake at `url`, which refuses every other token."""
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            known = self.headers["Authorization"] == f"Bearer {token}"
            status, told = fake.answer(self.path, body) if known else (401, {"error": "Invalid user token"})
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
