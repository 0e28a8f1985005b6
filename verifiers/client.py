"""Talks to a verifier service (`quintain verify serve`), or to the `/v1/verify` of an environment's server.

    async with AsyncVerifierClient("http://127.0.0.1:8100", token) as client:
        verdicts = await client.verify("math", [Item("1/2", "0.5")])
        async for index, verdict in client.stream("code", items):
            ...

    with VerifierClient("http://127.0.0.1:8100", token) as client:
        verdicts = client.verify("math", [("1/2", "0.5")])

What always holds: one verdict for each item, at the item's own place; judging is repeatable, so what got no answer
is asked again, and only that; what cannot be had within the time is a `FailureError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict, TypeVar, Unpack

from quintain.calling.caller import Caller
from quintain.calling.retry import RetryPolicy
from quintain.closing import Closing
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.loop_thread import LoopThread
from quintain.verdict import Verdict
from quintain.verifiers.service.batches import Items, batches, head_of
from quintain.verifiers.service.wire import MAX_ITEMS, NDJSON, StreamedVerdict, VerifierInfo, VerifierList, VerifyAnswer

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
BATCH_ITEMS: Final = 512
REQUESTS: Final = 8
"""Requests of one call under way at once."""


class VerifyBounds(TypedDict, total=False):
    """Seconds: `deadline_s` for each item once it is begun, `timeout_s` for each request."""

    deadline_s: float | None
    timeout_s: float | None


class AsyncVerifierClient:
    """A service's address and a pool of connections.

    `timeout_s` bounds every request, waiting included, `patience_s` how long an unreachable service is asked again,
    `batch_items` how many items are sent together. Raises QuintainError for what is no address.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 600.0,
        patience_s: float = 10.0,
        batch_items: int = BATCH_ITEMS,
        max_connections: int = 64,
        seed: int = 0,
    ) -> None:
        if not 1 <= batch_items <= MAX_ITEMS:
            raise QuintainError(f"batch_items is from 1 to {MAX_ITEMS}, not {batch_items}")
        self._caller = Caller(
            url,
            token,
            server="verifier service",
            policy=RetryPolicy(timeout_s, patience_s),
            max_connections=max_connections,
            seed=seed,
        )
        self._batch_items = batch_items
        self.url = self._caller.url

    async def verify(
        self, verifier: str, items: Items, options: Mapping[str, Any] | None = None, **bounds: Unpack[VerifyBounds]
    ) -> list[Verdict]:
        """A verdict for each of `items`, in order; what is not finished within its `bounds` is a failure.

        Raises FailureError where the service refuses or cannot be reached.
        """
        found: dict[int, Verdict] = {}
        await self._ask(verifier, items, options, bounds, found.__setitem__, stream=False)
        return [found[index] for index in range(len(items))]

    async def stream(
        self, verifier: str, items: Items, options: Mapping[str, Any] | None = None, **bounds: Unpack[VerifyBounds]
    ) -> AsyncGenerator[tuple[int, Verdict], None]:
        """Each item's number and verdict, as they are ready. Otherwise as `verify`."""
        ready: asyncio.Queue[tuple[int, Verdict] | None] = asyncio.Queue()

        def put(index: int, verdict: Verdict) -> None:
            ready.put_nowait((index, verdict))

        asking = asyncio.ensure_future(self._ask(verifier, items, options, bounds, put, stream=True))
        asking.add_done_callback(lambda _: ready.put_nowait(None))
        try:
            while (one := await ready.get()) is not None:
                yield one
            asking.result()
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    async def verifiers(self) -> tuple[VerifierInfo, ...]:
        """The verifiers there are. Raises FailureError."""
        body = await self._caller.call("GET", "/v1/verifiers", Stage.REQUEST)
        return self._caller.parsed(body, VerifierList, Stage.REQUEST).verifiers

    def verifiers_sync(self) -> tuple[VerifierInfo, ...]:
        """The same without an event loop."""
        answer = self._caller.call_sync("GET", "/v1/verifiers", Stage.REQUEST)
        return self._caller.parsed(answer.content, VerifierList, Stage.REQUEST).verifiers

    async def aclose(self) -> None:
        """Close the connections. The next call opens new ones."""
        await self._caller.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _ask(
        self,
        verifier: str,
        items: Items,
        options: Mapping[str, Any] | None,
        bounds: VerifyBounds,
        ready: Callable[[int, Verdict], None],
        *,
        stream: bool,
    ) -> None:
        asked: dict[str, Any] = {"verifier": verifier, "options": dict(options or {}), "stream": stream}
        asked |= {name: bound for name, bound in bounds.items() if bound is not None}
        head = head_of(asked)
        free = asyncio.Semaphore(REQUESTS)

        async def send(batch: dict[int, str]) -> None:
            async with free:
                await self._send(head, batch, ready, stream=stream)

        sending = [asyncio.ensure_future(send(batch)) for batch in batches(items, self._batch_items, ready)]
        try:
            await asyncio.gather(*sending)
        finally:
            for one in sending:
                one.cancel()

    async def _send(
        self, head: str, batch: dict[int, str], ready: Callable[[int, Verdict], None], *, stream: bool
    ) -> None:
        """Send the items of `batch`, which shrinks as their verdicts come."""
        import httpx

        places: list[int] = []

        def body() -> str:
            places[:] = batch
            return f'{head}"items":[{",".join(batch.values())}]}}'

        def settle(place: int, verdict: Verdict) -> None:
            stopped = verdict.failure is not None and verdict.failure.kind is FailureKind.UNREACHABLE
            if not stopped:  # where the service stops in the middle, the rest is asked again, as after a lost answer
                index = places[place]
                del batch[index]
                ready(index, verdict)

        async def read(response: httpx.Response) -> None:
            if stream:
                async for line in response.aiter_lines():
                    if '"done"' not in line[:64]:
                        told = self._caller.parsed(line.encode(), StreamedVerdict, Stage.VERIFY)
                        settle(told.index, told.verdict)
            else:
                answer = self._caller.parsed(await response.aread(), VerifyAnswer, Stage.VERIFY)
                if len(answer.verdicts) != len(places):
                    message = f"{self.url} gave {len(answer.verdicts)} verdicts on {len(places)} items"
                    raise FailureError.of(FailureKind.INVALID, Stage.VERIFY, message)
                for place, verdict in enumerate(answer.verdicts):
                    settle(place, verdict)
            if batch:
                raise httpx.RemoteProtocolError("it stopped in the middle of the answer")

        accept = {"accept": NDJSON} if stream else None
        await self._caller.consume("POST", "/v1/verify", Stage.VERIFY, body, read, headers=accept)


class VerifierClient(Closing):
    """`AsyncVerifierClient` for code without an event loop, or beside one: its own runs in a thread."""

    def __init__(self, url: str, token: str | None = None, **options: Any) -> None:
        self._client = AsyncVerifierClient(url, token, **options)
        self.url = self._client.url
        self._loop: LoopThread | None = None

    def verify(
        self, verifier: str, items: Items, options: Mapping[str, Any] | None = None, **bounds: Unpack[VerifyBounds]
    ) -> list[Verdict]:
        """A verdict for each of `items`, in order. See `AsyncVerifierClient.verify`."""
        return self._run(self._client.verify(verifier, items, options, **bounds))

    def stream(
        self, verifier: str, items: Items, options: Mapping[str, Any] | None = None, **bounds: Unpack[VerifyBounds]
    ) -> Iterator[tuple[int, Verdict]]:
        """Each item's number and verdict, as they are ready."""
        found = self._client.stream(verifier, items, options, **bounds)

        async def one() -> tuple[int, Verdict] | None:
            return await anext(found, None)

        try:
            while (ready := self._run(one())) is not None:
                yield ready
        finally:
            self._run(found.aclose())

    def verifiers(self) -> tuple[VerifierInfo, ...]:
        """The verifiers there are. Raises FailureError."""
        return self._run(self._client.verifiers())

    def close(self) -> None:
        """Close the connections, and end the thread. The next call begins anew."""
        if self._loop is not None:
            self._loop.run(self._client.aclose())
            self._loop.stop()
            self._loop = None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = LoopThread("verifier-client")
        return self._loop.run(work)
