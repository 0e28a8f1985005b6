"""Runs an environment server until it is told to stop.

What always holds: nothing but loopback is bound without a token; the ready line is printed once requests are answered,
and is the only thing on standard output; when this returns, or dies however it dies, no process is left.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintain.cores import cores
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.failure import QuintainError
from quintain.serving.listen import listening, longest_message
from quintain.serving.tokens import Tokens

if TYPE_CHECKING:
    import uvicorn

    from quintain.envs.serving.sessions import Sessions
    from quintain.envs.workers.pool import Backend

TOKEN_ENV = "QUINTAIN_ENV_TOKEN"
SWEEP_S = 5.0
GRACE_S = 3
"""How long requests in progress may take to be answered when the server stops."""


def serve_env(
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    token_file: Path | None = None,
    workers: int | None = None,
    limits: EnvironmentLimits | None = None,
    json_ready: bool = False,
) -> None:
    """Serve the environment `spec` (see `quintain.envs.registry`) and return after SIGTERM or SIGINT.

    `port` 0 picks a free one. `token` (or the variable QUINTAIN_ENV_TOKEN) is what clients must send, or several, one a
    line as name:secret, as in `token_file`; without one only loopback is bound. `workers` is the number of processes
    that run environment code (default: up to 4, one a processor; 0: this process, without protection from code that
    blocks). `json_ready` prints `{"event": "ready", "url": ..., "pid": ...}` instead of a sentence. The environment's
    lifeline (`quintain.lifeline`) ends the server with its launcher. Raises QuintainError, one line, where it cannot
    begin.
    """
    from quintain.lifeline import hold_lifeline

    hold_lifeline(grace_s=GRACE_S + 5.0)
    inherited = os.environ.pop(TOKEN_ENV, None)  # so that no environment's code finds it there
    tokens = Tokens.gathered(token or inherited or "", f"the token or the variable {TOKEN_ENV}", token_file)
    with listening(host, port, has_token=bool(tokens), token_from=f"{TOKEN_ENV} or a file of tokens") as (sock, url):
        backend = _backend(spec, options or {}, min(4, cores()) if workers is None else workers)
        ready = json.dumps({"event": "ready", "url": url, "pid": os.getpid()}) if json_ready else f"{spec} is at {url}"
        asyncio.run(_serve(sock, backend, tokens, limits or EnvironmentLimits(), lambda: print(ready, flush=True)))


async def _serve(
    sock: socket.socket, backend: Backend, tokens: Tokens, limits: EnvironmentLimits, ready: Callable[[], None]
) -> None:
    from quintain.envs.serving.sessions import Sessions
    from quintain.serving.metrics import Metrics

    metrics = Metrics("quintain_env_")
    sessions = Sessions(backend, limits, metrics)
    starting = asyncio.create_task(sessions.start())
    await asyncio.sleep(0)  # the workers start while we import the rest

    from quintain.envs.serving.server import EnvApp
    from quintain.serving.run import quiet_server, serve_until_told

    app = EnvApp(sessions, metrics, tokens=tokens)
    gc.freeze()  # what is there now stays, and looking at it again takes longer than an answer
    server = quiet_server(
        app.asgi,
        ready,
        grace_s=GRACE_S + 2,
        under_way=app.under_way,
        message_bytes=longest_message(limits.body_bytes),
        silent_s=limits.lease_s,
    )
    running = _run(starting, sessions, server, sock)
    try:
        await serve_until_told(server, running, grace_s=GRACE_S, abandon=sessions.abandon)
    finally:
        await sessions.stop()
        await app.close()


async def _run(starting: asyncio.Task[None], sessions: Sessions, server: uvicorn.Server, sock: socket.socket) -> None:
    await starting
    sweeping = asyncio.create_task(_sweep(sessions))
    try:
        await server.serve(sockets=[sock])
    finally:
        sweeping.cancel()


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_S, sessions.limits.lease_s / 4))
        sessions.sweep()


def _backend(spec: str, options: Mapping[str, Any], workers: int) -> Backend:
    if workers < 0:
        raise QuintainError(f"the number of workers must be at least 0, not {workers}")
    if workers:
        from quintain.envs.workers.pool import EnvironmentWorkers

        return EnvironmentWorkers(spec, options, workers)

    from quintain.envs.options import bind
    from quintain.envs.registry import resolve
    from quintain.envs.workers.host import Host
    from quintain.envs.workers.pool import Inline

    return Inline(Host(bind(resolve(spec), options), spec))
