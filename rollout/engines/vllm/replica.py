"""One vLLM server over HTTP: tokens, scores, weights. It knows the wire and nothing of the other replicas.

Two kinds of trouble, told apart here and nowhere else: `ReplicaDown` is the server's (it died, hangs or cannot go on),
and somebody else may be asked the same; a `FailureError` is the request's, and asking elsewhere would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from quintain.arrays import Floats, Ints
from quintain.calling.connections import async_http_client
from quintain.failure import FailureError, FailureKind, Stage, one_line
from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.vllm.dialect import (
    BrokenOff,
    Chunk,
    CompletionApi,
    Load,
    Malformed,
    generate_body,
    read_chunk,
    read_load,
    read_score,
    score_body,
)

CONNECT_S = 10.0
LOOK_S = 5.0
"""How long a look at a server's health or metrics may take."""
KEEPALIVE_S = 2.0
"""How long an idle connection is used again. vLLM closes one after 5 s, and a request that meets that is lost."""


class ReplicaDown(Exception):
    """The server did not do what a living one does; one line."""


class Replica:
    """The server at `url`, which calls its model `model`. Waits at most `patience_s` for any answer but a stream's."""

    def __init__(
        self, url: str, *, model: str, dialect: CompletionApi, api_key: str | None, interval: int, patience_s: float
    ) -> None:
        self.url, self.model, self.dialect = url, model, dialect
        self._interval, self._patience_s = interval, patience_s
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S)
        timeout = httpx.Timeout(patience_s, connect=CONNECT_S, pool=None)
        self._http = async_http_client(url, api_key, limits=limits, timeout=timeout)

    async def stream(
        self, ids: list[int], sampling: Sampling, limit: int, *, adapter: str | None, salt: str
    ) -> AsyncGenerator[Chunk, None]:
        """Sample at most `limit` tokens after `ids`. The last chunk says how it ended.

        Silence is no error here: a request may wait for its turn; who reads must know when the server hangs.
        """
        body = generate_body(
            self.dialect, adapter or self.model, ids, sampling, limit, salt=salt, interval=self._interval
        )  # fmt: skip
        endless = httpx.Timeout(None, connect=CONNECT_S)
        ended = False
        try:
            async with self._http.stream("POST", self.dialect.value, json=body, timeout=endless) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    _refuse(answer, Stage.GENERATE)
                async for line in answer.aiter_lines():
                    chunk = read_chunk(self.dialect, line)
                    if chunk is not None:
                        ended = ended or chunk.finish is not None
                        yield chunk
        except httpx.HTTPError as error:
            raise ReplicaDown(f"{self.url} broke off: {type(error).__name__}") from None
        except BrokenOff as error:
            raise ReplicaDown(f"{self.url} gave up: {one_line(str(error))}") from None
        except Malformed as error:
            raise _invalid(f"vLLM at {self.url}: {error}") from None
        if not ended:
            raise ReplicaDown(f"{self.url} ended a stream before its end")

    async def score(self, ids: Ints, *, adapter: str | None, salt: str) -> Floats:
        """Log-probabilities [L - 1] at temperature 1 of `ids` [L], at least two of them."""
        row = [int(token) for token in ids]
        body = score_body(self.dialect, adapter or self.model, row, salt=salt)
        answer = await self._post(self.dialect.value, Stage.GENERATE, body)
        try:
            return read_score(self.dialect, answer, row)
        except Malformed as error:
            raise _invalid(f"vLLM at {self.url}: {error}") from None

    async def pause(self, *, keep: bool) -> None:
        """Stop sampling. Requests in flight are kept with their keys and values, or end as they are and the caches are
        cleared."""
        mode = "keep" if keep else "abort"
        await self._post(f"/pause?mode={mode}&clear_cache={str(not keep).lower()}", Stage.PUBLISH)

    async def resume(self) -> None:
        """Go on sampling."""
        await self._post("/resume", Stage.PUBLISH)

    async def check(self, path: str) -> None:
        """FailureError where the weights at `path` are not this model's. Changes nothing."""
        await self._update(path, check=True)
        await self._post("/finish_weight_update", Stage.PUBLISH, {})

    async def load(self, path: str, label: str) -> None:
        """Swap in the weights at `path` and call them `label`."""
        await self._update(path, check=False)
        await self._post("/finish_weight_update", Stage.PUBLISH, {"weight_version": label})

    async def label(self) -> str:
        """What the server calls the weights it has."""
        return str((await self._get("/weight_info"))["weight_version"])

    async def set_label(self, label: str) -> None:
        """Have the server call the weights it has `label`."""
        await self._post("/update_weight_version", Stage.PUBLISH, {"new_version": label})

    async def load_adapter(self, name: str, path: str) -> None:
        """Make the adapter at `path` known as `name`, for requests that ask for it."""
        await self._post("/v1/load_lora_adapter", Stage.PUBLISH, {"lora_name": name, "lora_path": path})

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there."""
        with contextlib.suppress(FailureError):
            await self._post("/v1/unload_lora_adapter", Stage.PUBLISH, {"lora_name": name})

    async def adapters(self) -> list[str]:
        """The names of the adapters that are known."""
        return [entry["id"] for entry in (await self._get("/v1/models"))["data"] if entry.get("parent")]

    async def look(self) -> Load:
        """The server's load, asked for as a sign of life."""
        try:
            answer = await self._http.get("/metrics", timeout=LOOK_S)
            answer.raise_for_status()
            return read_load(answer.text)
        except (httpx.HTTPError, ValueError) as error:
            raise ReplicaDown(f"{self.url} shows no metrics: {type(error).__name__}") from None

    async def is_healthy(self) -> bool:
        """Whether the server answers and says that its engine lives."""
        try:
            return (await self._http.get("/health", timeout=LOOK_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _update(self, path: str, *, check: bool) -> None:
        try:
            await self._post("/start_weight_update", Stage.PUBLISH)
        except FailureError:  # somebody who died in the middle has left one open
            await self._post("/finish_weight_update", Stage.PUBLISH, {})
            await self._post("/start_weight_update", Stage.PUBLISH)
        try:
            await self._post("/update_weights", Stage.PUBLISH, {"update_info": {"path": path, "check": check}})
        except FailureError as error:
            # vLLM leaves paths out of what it says, and wraps what its worker said
            why = error.failure.message.partition("Worker failed with error ")[2] or error.failure.message
            told = why.partition(", please check the stack trace")[0].strip("'\"").replace("<path>", path)
            raise FailureError.of(FailureKind.REJECTED, Stage.PUBLISH, told, retryable=False) from None

    async def _get(self, path: str) -> Mapping[str, Any]:
        try:
            answer = await self._http.get(path)
        except httpx.HTTPError as error:
            raise ReplicaDown(f"{self.url}{path} does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise ReplicaDown(f"{self.url}{path} answered {answer.status_code}")
        return _object(answer)

    async def _post(self, path: str, stage: Stage, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(self._patience_s):
                # After a command that failed vLLM drops the connection, which the next request must not be sent on.
                own = {"connection": "close"} if stage is Stage.PUBLISH else {}
                answer = await self._http.post(path, json=body, headers=own)
        except (httpx.HTTPError, TimeoutError) as error:
            raise ReplicaDown(f"{self.url}{path} does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            _refuse(answer, stage)
        return _object(answer)


def _object(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = {}  # some of vLLM's commands answer with a plain line
    return value if isinstance(value, dict) else {}


def _refuse(answer: httpx.Response, stage: Stage) -> None:
    """Raise what an answer that is no success means."""
    try:
        error = answer.json().get("error") or answer.json().get("detail")
        said = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        said = None
    said = one_line(str(said or answer.text or f"status {answer.status_code}"))
    if (stage is not Stage.PUBLISH and answer.status_code >= 500) or _is_dead(answer, said):
        raise ReplicaDown(f"{answer.url.path} answered {answer.status_code}: {said}")
    message = f"vLLM refuses {answer.url.path} ({answer.status_code}): {said}"
    raise FailureError.of(FailureKind.REJECTED, stage, message, retryable=False)


def _is_dead(answer: httpx.Response, said: str) -> bool:
    """Whether the answer comes from a server whose engine has died under it, or from a proxy before one."""
    return answer.status_code in (502, 503, 504) or "EngineCore encountered an issue" in said or "EngineDead" in said


def _invalid(message: str) -> FailureError:
    return FailureError.of(FailureKind.INVALID, Stage.GENERATE, message, retryable=True)
