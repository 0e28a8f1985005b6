"""One verifier for all attacks of a file, and something on this machine that listens."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import pytest_asyncio

from quintain.verifiers import get_verifier
from quintain.verifiers.base import Verifier

LIMITS = {"wall_s": 4.0, "cpu_s": 1.0, "memory_bytes": 256 << 20, "files_bytes": 32 << 20}
GROWTH_BYTES = 150 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def verifier() -> AsyncIterator[Verifier]:
    """The service under attack. It has not grown at the end, and leaves no process."""
    us = psutil.Process()
    before, others = us.memory_info().rss, set(us.children(recursive=True))
    async with get_verifier("code", slots=3, limits=LIMITS) as verifier:
        yield verifier
    assert us.memory_info().rss - before < GROWTH_BYTES
    assert set(us.children(recursive=True)) <= others


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A TCP port, and an abstract unix socket of that number, on which something on this machine listens."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        number: int = server.getsockname()[1]
        local.bind(f"\0quintain-attack-{number}")
        local.listen()
        yield number
