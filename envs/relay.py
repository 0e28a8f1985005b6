"""Runs in the sandbox: gives an agent program the policy on 127.0.0.1, and ends as the program ends.

What always holds: each call of the program's goes out on stdout and waits for its answer on stdin, one at a time, each
as a frame of four bytes of length and then JSON; what the program prints goes nowhere, but for its end, on stderr. The
program is the same user, so it can say here what it likes: whoever reads the frames answers calls, and nothing else.
The standard library only, on Python 3.10.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO, Any

LENGTH = struct.Struct(">I")
TAIL_BYTES = 4096
OUTPUT_ENDS_S = 1.0
"""How long the program's output may be held open by what it has left behind."""
ENTER = 'path=$1; shift; [ -r "$1" ] && . "$1" >/dev/null 2>&1; shift; PATH=$path:$PATH exec env "$@"'
"""In the directory and with the variables that a shell has left in a file."""


class Relay(http.server.ThreadingHTTPServer):
    """The policy, as a server in the sandbox."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CallHandler)
        self._calling = threading.Lock()

    def answered(self, call: dict[str, str]) -> dict[str, Any]:
        """What the policy says to `call`."""
        data = json.dumps(call).encode()
        with self._calling:
            sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)
            sys.stdout.buffer.flush()
            head = sys.stdin.buffer.read(LENGTH.size)
            if len(head) < LENGTH.size:
                os._exit(1)  # nobody listens any more
            answer: dict[str, Any] = json.loads(sys.stdin.buffer.read(*LENGTH.unpack(head)))
        return answer


class CallHandler(http.server.BaseHTTPRequestHandler):
    """Every page: which there are is not decided here."""

    protocol_version = "HTTP/1.1"
    server: Relay

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode("utf-8", "replace")
        answer = self.server.answered({"path": self.path, "body": body})
        data = answer["body"].encode()
        self.send_response(answer["status"])
        self.send_header("content-type", answer["kind"])
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def drain(output: IO[bytes], tail: bytearray) -> None:
    """Read `output` to its end, and keep what it ends with."""
    while data := os.read(output.fileno(), 1 << 16):
        tail += data
        del tail[:-TAIL_BYTES]


def main() -> None:
    """Run the program that the first argument describes."""
    os.unlink(sys.argv[0])
    with contextlib.suppress(OSError):  # the task may have such a folder itself
        os.rmdir(os.path.dirname(sys.argv[0]))
    wanted = json.loads(sys.argv[1])
    server = Relay()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    where = {"OPENAI_BASE_URL": f"{root}/v1", "OPENAI_API_BASE": f"{root}/v1", "ANTHROPIC_BASE_URL": root}
    env = [f"{name}={value}" for name, value in (where | wanted["env"]).items()]
    state = os.path.join(os.environ.get("TMPDIR", "/tmp"), wanted["state"])
    argv = ["bash", "-c", ENTER, "bash", os.path.dirname(sys.executable), state, *env, *wanted["command"]]
    program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert program.stdout is not None
    tail = bytearray()
    reader = threading.Thread(target=drain, args=(program.stdout, tail), daemon=True)
    reader.start()
    code = program.wait()
    reader.join(OUTPUT_ENDS_S)
    os.write(2, bytes(tail))
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
