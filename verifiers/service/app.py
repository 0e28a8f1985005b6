"""The HTTP face of the verifier service, as an ASGI application."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from quintain.failure import FailureKind, Stage
from quintain.serving.app import Page, application, json_answer, metrics_page
from quintain.serving.metrics import Metrics
from quintain.serving.refusals import refused
from quintain.serving.tokens import Tokens
from quintain.verifiers.service.fusion import FusionPages
from quintain.verifiers.service.jobs import Jobs
from quintain.verifiers.service.limits import ServiceLimits
from quintain.verifiers.service.pages import VerifyPages
from quintain.verifiers.service.policy import AccessPolicy


class ServiceApp:
    """The application; `tokens`, where there are some, are asked for everywhere but at `/health` and `/v1/ping`."""

    def __init__(self, policy: AccessPolicy, limits: ServiceLimits, tokens: Tokens) -> None:
        metrics = Metrics("quintain_verify_")
        share = limits.queue_items // 2 if len(tokens.secrets) > 1 else limits.queue_items
        self._jobs = Jobs(policy, limits, metrics, share=max(1, share))
        verify = VerifyPages(self._jobs, policy)
        self._fusion = FusionPages(self._jobs, verify)
        self._draining = False
        self._ending: asyncio.Future[None] | None = None
        pages = (
            *verify.pages(),
            *self._fusion.pages(),
            metrics_page(metrics),
            Page("GET", "/health", Stage.REQUEST, self._health, open=True),
        )
        self.asgi: ASGIApp = application(pages, metrics, tokens)

    def drain(self) -> None:
        """Say that this server is stopping, to whoever asks for its health."""
        self._draining = True

    def abandon(self) -> None:
        """End what is in progress: what is finished keeps its verdict."""
        self._jobs.abandon()
        self._ending = asyncio.ensure_future(self._fusion.close())

    async def close(self) -> None:
        """Close the verifiers and the sandbox."""
        if self._ending is not None:
            await self._ending
        await self._fusion.close()
        await self._jobs.close()

    async def _health(self, request: Request) -> Response:
        if self._draining:
            raise refused("the server is stopping", Stage.REQUEST, FailureKind.UNREACHABLE)
        return json_answer('{"status": "healthy"}')
