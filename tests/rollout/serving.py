"""A rollout server on a real socket: in a thread of the test, or in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from quintain.rollout.scheduler import Scheduler
from quintain.rollout.server.app import rollout_app

from . import stage


@contextmanager
def served(
    folder: Path,
    *,
    port: int = 0,
    scheduler: Callable[[], Scheduler] | None = None,
    app: dict[str, Any] | None = None,
    **staged: Any,
) -> Iterator[str]:
    """The address of a rollout server in a thread of its own; `app` goes to `rollout_app`, `staged` to the stage."""
    listener = socket.create_server(("127.0.0.1", port))
    ready = threading.Event()
    servers: list[uvicorn.Server] = []

    def run() -> None:
        async def main() -> None:
            made = scheduler() if scheduler is not None else stage.scheduler(folder, **staged)
            serving = rollout_app(made, trajectories=folder / "trajectories", **(app or {}))
            servers.append(uvicorn.Server(uvicorn.Config(serving, log_level="warning", timeout_graceful_shutdown=1)))
            ready.set()
            await servers[0].serve(sockets=[listener])

        asyncio.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(30)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()
