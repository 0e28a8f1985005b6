"""Runs an ASGI application until it is told to stop, by SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import uvicorn

KEEP_ALIVE_S: Final = 75
PING_S: Final = 20.0
"""How often a WebSocket's client is asked whether it is still there, at least."""


def quiet_server(
    app: Any,
    ready: Callable[[], None],
    *,
    grace_s: int,
    under_way: Collection[asyncio.Future[Any]] = (),
    message_bytes: int = 16 << 20,
    silent_s: float = 2 * PING_S,
) -> uvicorn.Server:
    """uvicorn around `app`: signals and logging are left to the caller, `ready` is called once it answers.

    Setting `should_exit` stops it: it accepts nothing more, and what runs has `grace_s` seconds to be answered, what is
    `under_way` on WebSockets included, which uvicorn would close at once. A WebSocket is closed on a message of more
    than `message_bytes`, and where its client answers no ping within `silent_s`: it may be gone without a word.
    """
    import uvicorn

    ping_s = min(PING_S, silent_s / 2)

    class Quiet(uvicorn.Server):
        """uvicorn's, with the signals left to us: it would die of them again after a graceful stop."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for listening in self.servers:
                listening.close()
            if under_way:
                await asyncio.wait(under_way, timeout=grace_s)
            await super().shutdown(sockets)

    return Quiet(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
            server_header=False,
            ws_max_size=message_bytes,
            ws_ping_interval=ping_s,
            ws_ping_timeout=silent_s - ping_s,
        )
    )


async def serve_until_told(
    server: uvicorn.Server,
    work: Coroutine[Any, Any, None],
    *,
    grace_s: float,
    abandon: Callable[[], None],
    drain: Callable[[], None] = lambda: None,
) -> None:
    """Do `work`, which serves with `server`, until told to stop: then `drain` is called, nothing more is accepted,
    and what still runs after `grace_s` is given up by `abandon`. Told before it answers, it is cancelled."""
    loop, serving = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def stop() -> None:
        if server.started:
            drain()
            server.should_exit = True
            loop.call_later(grace_s, abandon)
        else:
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):  # told to stop before it was ready
        await serving
