"""Runs a verifier service until it is told to stop.

What always holds: nothing but loopback is bound without a token; the ready line is printed once requests are
answered, and is the only thing on standard output; told to stop, it accepts nothing more and finishes what runs
within the grace time; when this returns, or dies however it dies, no process is left.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from quintain.serving.listen import listening
from quintain.serving.tokens import Tokens
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.policy import AccessPolicy

TOKEN_ENV: Final = "QUINTAIN_VERIFY_TOKEN"
ANSWER_S: Final = 2
"""How long the answers that the end of the grace time made may take to be sent."""


def serve_verifiers(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tokens: Tokens | None = None,
    policy: AccessPolicy | None = None,
    limits: ServiceLimits | None = None,
    json_ready: bool = False,
) -> None:
    """Serve all verifiers that `policy` allows, and return after SIGTERM or SIGINT.

    `port` 0 picks a free one. Clients send one of the `tokens`; without any only loopback is bound. `json_ready`
    prints `{"event": "ready", "url": ..., "pid": ...}` instead of a sentence. The environment's lifeline
    (`quintain.lifeline`) ends the service with its launcher. Raises QuintainError, one line, where it cannot begin.
    """
    from quintain.lifeline import hold_lifeline

    tokens, policy, limits = tokens or Tokens(), policy or AccessPolicy(), limits or ServiceLimits()
    hold_lifeline(grace_s=limits.grace_s + ANSWER_S + 5.0)
    with listening(host, port, has_token=bool(tokens), token_from=f"{TOKEN_ENV} or a file of tokens") as (sock, url):
        ready = json.dumps({"event": "ready", "url": url, "pid": os.getpid()}) if json_ready else f"verifiers: {url}"
        asyncio.run(_serve(sock, policy, limits, tokens, lambda: print(ready, flush=True)))


def read_tokens(token_env: str, token_file: Path | None) -> Tokens:
    """The tokens in the environment variable `token_env` and in `token_file`. Raises QuintainError."""
    return Tokens.gathered(os.environ.get(token_env, ""), f"the variable {token_env}", token_file)


async def _serve(
    sock: socket.socket, policy: AccessPolicy, limits: ServiceLimits, tokens: Tokens, ready: Callable[[], None]
) -> None:
    from quintain.serving.run import quiet_server, serve_until_told
    from quintain.verifiers.service.app import ServiceApp

    app = ServiceApp(policy, limits, tokens)
    server = quiet_server(app.asgi, ready, grace_s=math.ceil(limits.grace_s) + ANSWER_S)
    serving = server.serve(sockets=[sock])
    try:
        await serve_until_told(server, serving, grace_s=limits.grace_s, abandon=app.abandon, drain=app.drain)
    finally:
        await app.close()
