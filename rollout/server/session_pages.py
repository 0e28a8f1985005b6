"""The pages for agents that are not ours: the gateway's own, and the stream of the sessions that have finished."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from quintain.failure import Stage
from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.gateway.routes import gateway_routes
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.rollout.server.control import Control
from quintain.rollout.server.requests import cursor_of
from quintain.rollout.server.streams import Feed, Stream
from quintain.serving.app import Page
from quintain.serving.refusals import refused
from quintain.serving.tokens import Role


def gateway_pages(gateway: Gateway, control: Control) -> list[Page]:
    """The gateway's routes as pages, so that they ask for tokens; a draining server opens no session.

    A session's OpenAI pages are its agent's; to open and to end one, and so to reward it, is somebody else's.
    """

    async def opened(request: Request) -> Response:
        control.check_admitting()
        answer: Response = await open_session(request)
        return answer

    pages = []
    for route in gateway_routes(gateway):
        handler = route.endpoint
        if route.path == "/sessions":
            open_session, handler = handler, opened
        methods = sorted((route.methods or set()) - {"HEAD"})
        role = Role.AGENT if route.path.startswith("/sessions/{id}/v1/") else Role.TRAINER
        pages += [Page(method, route.path, Stage.REQUEST, handler, role=role) for method in methods]
    return pages


def finished_page(sessions: FinishedSessions) -> Page:
    """`GET /v1/sessions/finished?cursor=&wait_s=`: every session that has finished, each as a group of one."""

    async def finished(request: Request) -> Response:
        cursor = cursor_of(request)
        if cursor > sessions.count:
            message = f"cursor: {sessions.count} sessions have finished, {cursor} is no place in them"
            raise refused(message, Stage.REQUEST, status=400)
        return Stream(_Finished(sessions), cursor, request)

    return Page("GET", "/v1/sessions/finished", Stage.REQUEST, finished)


class _Finished(Feed):
    """Finished sessions as a feed, which has no end."""

    def __init__(self, sessions: FinishedSessions) -> None:
        self._sessions = sessions

    async def get(self, cursor: int) -> bytes | None:
        return self._sessions.get(cursor)

    async def wait(self, cursor: int, until: float) -> None:
        await self._sessions.wait(cursor, until)
