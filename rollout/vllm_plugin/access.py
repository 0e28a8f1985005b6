"""Who may ask a vLLM server that a run has started: the run. vLLM's own `--api-key` covers its paths under /v1 alone.

What always holds: without the run's key every path but /health answers 401, those that take weights and pause too.
"""

from __future__ import annotations

import json
import os
from hmac import compare_digest
from typing import Any, Final

KEY_VARIABLE: Final = "QUINTAIN_VLLM_KEY"
"""The variable of the server's process that holds the key."""
REFUSAL: Final = json.dumps({"error": "this server answers the run that has started it, and who has its key"}).encode()


class KeyRequired:
    """What vLLM's `--middleware` names: an ASGI application in front of `app`."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401 in place of `app` where the key is not the one."""
        if scope["type"] == "lifespan" or scope["path"] == "/health" or self._is_known(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})

    def _is_known(self, scope: Any) -> bool:
        return compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._wanted)
