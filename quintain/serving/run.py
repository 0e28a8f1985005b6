"""Runs an ASGI application until it is told to stop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import uvicorn

KEEP_ALIVE_S: Final = 75


def quiet_server(app: Any, ready: Callable[[], None], *, grace_s: int) -> uvicorn.Server:
    """uvicorn around `app`: signals and logging are left to the caller, `ready` is called once it answers.

    Setting `should_exit` stops it: it accepts nothing more, and what runs has `grace_s` seconds to be answered.
    """
    import uvicorn

    class Quiet(uvicorn.Server):
        """uvicorn's, with the signals left to us: it would die of them again after a graceful stop."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    return Quiet(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
            server_header=False,
        )
    )
