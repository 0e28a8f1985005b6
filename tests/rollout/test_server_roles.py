"""Who may do what: an agent's key opens its own session and nothing else, a trainer's token all but the operator's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette

from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.rollout.server.app import rollout_app
from quintain.serving.tokens import Role, Tokens

from ..fake_engine import FakeEngine
from . import stage

TOKENS = Tokens({"o": "o-secret", "t": "t-secret"}, {"t": Role.TRAINER})
OPERATING = {"/v1/pause", "/v1/resume", "/v1/drain"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Starlette]:
    sessions = FinishedSessions(tmp_path / "sessions.bin")
    gateway = Gateway(
        FakeEngine(words=128), stage.CHAT, sampling=Sampling(8), on_finished=sessions.append, tokens=TOKENS
    )
    app = rollout_app(stage.scheduler(tmp_path), tokens=TOKENS, gateway=gateway, sessions=sessions)
    async with app.router.lifespan_context(app):
        yield app


def pages(app: Starlette) -> list[tuple[str, str]]:
    """Every method and path, about the session "mine"."""
    routes: list[Any] = app.routes
    return [
        (method, re.sub(r"\{\w+(:\w+)?\}", lambda found: "0" if found[1] == ":int" else "mine", route.path))
        for route in routes
        for method in sorted(route.methods - {"HEAD"})
    ]


async def asked(app: Starlette, method: str, path: str, key: str) -> int:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        answer = await client.request(method, path, headers={"authorization": f"Bearer {key}".encode()}, content=b"{}")
        return answer.status_code


async def test_an_agent_s_key_opens_its_own_session_and_nothing_else(app: Starlette) -> None:
    key = TOKENS.agent_key("mine")
    for method, path in pages(app):
        let_in = path.startswith("/sessions/mine/v1/") or path == "/health"
        assert (await asked(app, method, path, key) not in (401, 403)) == let_in, (method, path)
        if let_in and path != "/health":
            assert await asked(app, method, path, TOKENS.agent_key("another")) == 403


async def test_a_trainer_s_token_opens_all_but_what_is_the_operator_s(app: Starlette) -> None:
    for method, path in pages(app):
        assert (await asked(app, method, path, "t-secret") == 403) == (path in OPERATING), (method, path)
        assert await asked(app, method, path, "o-secret") not in (401, 403), (method, path)


KEYS = ["", "x", "mine.", ".", "mine.0", Tokens().agent_key("mine"), "o-secret.", "ü"]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
async def test_a_key_that_is_nobody_s_opens_nothing(app: Starlette, key: str) -> None:
    for method, path in pages(app):
        assert (await asked(app, method, path, key) == 401) == (path != "/health")


async def test_a_session_is_opened_with_its_agent_s_key(app: Starlette) -> None:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        client.headers["authorization"] = "Bearer t-secret"
        opened = (await client.post("/sessions", json={"id": "mine"})).json()
        assert opened["api_key"] == TOKENS.agent_key("mine")
        client.headers["authorization"] = f"Bearer {opened['api_key']}"
        assert (await client.get("/sessions/mine/v1/models")).status_code == 200
        assert (await client.post("/sessions/mine/reward", json={"reward": 1.0})).status_code == 403
