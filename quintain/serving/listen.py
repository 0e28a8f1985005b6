"""Listening sockets, and who may reach them.

What always holds: nothing but loopback is bound without a token.
"""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from quintain.failure import QuintainError
from quintain.serving.logs import begin_logging

BACKLOG: Final = 2048
SOCKETS: Final = 65536
SOCKET_PATH: Final = "/v1/socket"
"""Where a server has its pages over one WebSocket, if it does (`quintain.serving.websocket`)."""
SOCKET_PROTOCOL: Final = "quintain-v1"
MESSAGE_REQUESTS: Final = 8
"""Requests or answers in one message there at most, so that both ends have something to do."""
LONGEST_BODY: Final = 1 << 16
"""Of a request there, in characters, from our own clients: what is longer goes over HTTP, and holds nothing up."""


def check_bind(host: str, has_token: bool, token_from: str) -> None:
    """Raise QuintainError unless `host` is loopback or there is a token; `token_from` says where one is given."""
    if not is_loopback(host) and not has_token:
        raise QuintainError(
            f"refusing to listen on {host} without a token, since anybody could use it: set {token_from}, or listen on"
            " 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine for certain."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may point anywhere


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


def url_of(host: str, sock: socket.socket) -> str:
    """The address of the server that listens on `sock`, which was bound to `host`."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{sock.getsockname()[1]}"


@contextmanager
def listening(host: str, port: int, *, has_token: bool, token_from: str) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens for many clients, and its address; what is logged goes to standard error.

    Raises QuintainError where `check_bind` or `bound_socket` does.
    """
    check_bind(host, has_token, token_from)
    begin_logging()
    allow_many_sockets()
    with bound_socket(host, port) as sock:
        yield sock, url_of(host, sock)


def longest_message(body_bytes: int) -> int:
    """In bytes, of a WebSocket: a request of `body_bytes`, or as many as our own clients put into one, is no longer."""
    return max(body_bytes, MESSAGE_REQUESTS * 4 * LONGEST_BODY) + LONGEST_BODY


def allow_many_sockets() -> None:
    """Let this process have as many open sockets as a busy server needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOCKETS if hard == resource.RLIM_INFINITY else min(SOCKETS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
