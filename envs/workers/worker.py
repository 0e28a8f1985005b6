"""A worker: the process in which environment code runs, so that the server can kill what it cannot cancel.

Started by the pool as `python -P -m quintain.envs.workers.worker FD PATH SPEC`, with its socket on descriptor FD, the
module path as JSON, and its lifeline and the options as JSON in the environment. It ends when the socket or the
lifeline does. What it and the environment print goes to the server's standard error.
Nothing but the guard is imported before the guard has forked.
"""

from __future__ import annotations

import os
import sys

from quintain.lifeline import guard


def main(arguments: list[str]) -> None:
    """Run a worker until its socket closes; a mistake in the environment or its options is its only answer."""
    guard()

    import asyncio
    import json
    import socket

    from quintain.envs.options import OPTIONS_ENV, bind
    from quintain.envs.registry import resolve
    from quintain.envs.workers.host import Host, refuse, serve
    from quintain.failure import QuintainError
    from quintain.serving.logs import begin_logging

    fd, path, spec = arguments
    options = json.loads(os.environ.pop(OPTIONS_ENV))
    os.dup2(2, 1)  # standard output belongs to the server's ready line
    sys.path[:] = json.loads(path)
    begin_logging()
    sock = socket.socket(fileno=int(fd))
    try:
        host = Host(bind(resolve(spec), options), spec)
    except QuintainError as error:
        asyncio.run(refuse(sock, str(error)))
        return
    asyncio.run(serve(sock, host))


if __name__ == "__main__":
    main(sys.argv[1:])
