"""What docs/rollout_server.md shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from quintain.cli.rollout import command
from quintain.rollout.client import RolloutClient
from quintain.rollout.engines.base import Sampling
from quintain.rollout.gateway.gateway import Gateway
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.rollout.server.app import rollout_app
from quintain.serving.tokens import Tokens

from ..fake_engine import FakeEngine
from . import stage
from .serving import served

TEXT = (Path(__file__).parents[2] / "docs" / "rollout_server.md").read_text(encoding="utf-8")
MADE_BY_A_SERIES = ("_p99", "_max")


def test_every_option_of_the_page_exists_and_every_option_is_on_it() -> None:
    shown = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    runner = CliRunner()
    helped = "".join(runner.invoke(command, [name, "--help"]).output for name in ("serve", "audit"))
    assert shown == set(re.findall(r"--[a-z][a-z-]+", helped)) - {"--help"}


async def test_every_page_and_every_metric_exists_and_is_on_it(tmp_path: Path) -> None:
    scheduler = stage.scheduler(tmp_path)
    sessions = FinishedSessions(tmp_path / "sessions.bin")
    gateway = Gateway(
        FakeEngine(words=128), stage.CHAT, sampling=Sampling(8), on_finished=sessions.append, max_length=64
    )
    app = rollout_app(scheduler, gateway=gateway, sessions=sessions)
    routes: list[Any] = app.routes
    ours = {re.sub(r":\w+", "", route.path) for route in routes}
    shown = set(re.findall(r"(?:GET|POST|DELETE) (/[\w/{}.]*)|`(/v1/[\w/{}]+)`", TEXT))
    pages = {first or second for first, second in shown}
    assert pages == {path for path in ours if not path.startswith("/sessions")}

    (page,) = [route for route in routes if route.path == "/metrics"]
    async with app.router.lifespan_context(app):
        from httpx import ASGITransport, AsyncClient

        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            text = (await client.get(page.path)).text
    declared = {name.removeprefix("quintain_rollout_") for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}
    table = TEXT.partition("## Metrics")[2]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)} - set(MADE_BY_A_SERIES)
    lag = {f"event_loop_lag_seconds{q}" for q in ("_p50", *MADE_BY_A_SERIES)}
    assert named | lag == declared


def test_the_client_s_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with served(tmp_path, app={"tokens": Tokens({"default": "t"})}) as url:
        names: dict[str, Any] = {"token": "t"}
        exec(code.replace("http://127.0.0.1:8200", url), names)
        assert len(names["groups"]) == 64
        assert (names["cursor"], len(names["group"].trajectories)) == (1, 8)
        with RolloutClient(url, "t") as client:
            assert client.stats().result_bytes == 0
