"""Runs an environment server until it is told to stop.

What always holds: nothing but loopback is bound without a token; the ready line is printed once requests are
answered, and is the only thing on standard output; when this returns, or dies however it dies, no process is
left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quintain.envs.limits import Limits
from quintain.failure import QuintainError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from quintain.envs.pool import Backend
    from quintain.envs.sessions import Sessions

TOKEN_ENV = "QUINTAIN_ENV_TOKEN"
SWEEP_S = 5.0
GRACE_S = 3
"""How long requests in progress may take to be answered when the server stops."""
KEEP_ALIVE_S = 75
BACKLOG = 2048
SOCKETS = 65536


def serve_env(
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    json_ready: bool = False,
    lifeline_fd: int | None = None,
) -> None:
    """Serve the environment `spec` (see `quintain.envs.registry`) and return after SIGTERM or SIGINT.

    `port` 0 picks a free one. `token` (or the variable QUINTAIN_ENV_TOKEN) is what clients must send; without
    one only loopback is bound. `workers` is the number of processes that run environment code (default: up to
    4, one a processor; 0: this process, without protection from code that blocks). `json_ready` prints
    `{"event": "ready", "url": ..., "pid": ...}` instead of a sentence. `lifeline_fd`, or the environment's
    lifeline (`quintain.lifeline`), ends the server with its launcher. Raises QuintainError, one line, where
    it cannot begin.
    """
    from quintain.lifeline import hold_lifeline

    hold_lifeline(lifeline_fd, grace_s=GRACE_S + 5.0)
    token = token or os.environ.get(TOKEN_ENV) or None
    check_bind(host, token)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    _allow_many_sockets()
    backend = _backend(spec, options or {}, min(4, os.cpu_count() or 1) if workers is None else workers)
    with bound_socket(host, port) as sock:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{sock.getsockname()[1]}"
        ready = json.dumps({"event": "ready", "url": url, "pid": os.getpid()}) if json_ready else f"{spec} is at {url}"
        asyncio.run(_serve(sock, backend, token, limits or Limits(), lambda: print(ready, flush=True)))


def check_bind(host: str, token: str | None) -> None:
    """Raise QuintainError unless `host` is loopback or there is a `token`."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False  # a name may point anywhere
    if not loopback and token is None:
        raise QuintainError(
            f"refusing to listen on {host} without a token, since anybody could use it: set {TOKEN_ENV}, or listen on"
            " 127.0.0.1"
        )


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises QuintainError where the port is taken or the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is spelled out: without it each answer takes 40 ms more
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        return sock
    except OverflowError:
        sock.close()
        raise QuintainError(f"a port is a number from 0 to 65535, not {port}") from None
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise QuintainError(f"port {port} on {host} is taken: choose another, or 0 for any free one") from None
        raise QuintainError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


async def _serve(
    sock: socket.socket,
    backend: Backend,
    token: str | None,
    limits: Limits,
    ready: Callable[[], None],
) -> None:
    from quintain.envs.metrics import Metrics
    from quintain.envs.sessions import Sessions

    metrics = Metrics()
    sessions = Sessions(backend, limits, metrics)
    starting = asyncio.create_task(sessions.start())
    await asyncio.sleep(0)  # the workers start while we import the rest

    from quintain.envs.server import EnvApp

    app = EnvApp(sessions, metrics, token=token)
    server = _server(app.asgi, ready)
    serving = asyncio.ensure_future(_run(starting, sessions, server, sock))

    def stop() -> None:
        if server.started:
            server.should_exit = True
            loop.call_later(GRACE_S, sessions.abandon)
        else:
            serving.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        with contextlib.suppress(asyncio.CancelledError):  # told to stop before it was ready
            await serving
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


def _server(app: Starlette, ready: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's, with the signals left to us: it would die of them again after a graceful stop."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    return Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S + 2,
            server_header=False,
        )
    )


def _backend(spec: str, options: Mapping[str, Any], workers: int) -> Backend:
    if workers < 0:
        raise QuintainError(f"the number of workers must be at least 0, not {workers}")
    if workers:
        from quintain.envs.pool import WorkerPool

        return WorkerPool(spec, options, workers)

    from quintain.envs.desk import Desk
    from quintain.envs.host import Host
    from quintain.envs.inline import Inline
    from quintain.envs.options import bind
    from quintain.envs.registry import resolve

    return Inline(Desk(spec, Host(bind(resolve(spec), options))))


def _allow_many_sockets() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOCKETS if hard == resource.RLIM_INFINITY else min(SOCKETS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
