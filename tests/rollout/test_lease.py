"""An episode is its environment's for as long as it is played, however long a turn is sampled."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quintain.calling.connections import http_client
from quintain.envs import EnvClient
from quintain.lifeline import Lifeline
from quintain.rollout.engines.base import Sampling
from quintain.rollout.episodes.episode import EpisodeSpec, run_episode

from ..fake_engine import FakeEngine
from .stage import CHAT

LEASE_S = 3.0


@pytest.fixture
def server() -> Iterator[str]:
    """The address of an environment server with a short lease."""
    line = Lifeline()
    command = [sys.executable, "-m", "quintain", "env", "serve", "math", "--json", "--port=0"]
    command += ["--workers=0", f"--lease-s={LEASE_S}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, pass_fds=(line.fd,), env=os.environ | line.environ()
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()
    line.close()


async def test_the_lease_of_an_episode_does_not_run_out_while_its_turn_is_sampled(server: str) -> None:
    def seen() -> tuple[int, int]:
        """How often the episode was renewed, and how many expired."""
        with http_client(server) as http:
            counts = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines())
        asked = counts.get('quintain_env_requests_total{route="GET /v1/episodes/{id}",status="200"}', "0")
        return int(asked), int(counts.get('quintain_env_episodes_total{how="expired"}', "0"))

    async def outlast(calls: int) -> None:
        renewals, expired = 0, 0
        while renewals < 5 and not expired:  # more than one lease of them, or its end
            renewals, expired = await asyncio.to_thread(seen)
            await asyncio.sleep(0.05)

    class Slow(FakeEngine):
        async def generate(self, *asked, **more):
            await outlast(0)
            return await super().generate(*asked, **more)

    async with EnvClient(server) as client:
        task = (await asyncio.to_thread(client.tasks, "train"))[0]
        spec = EpisodeSpec("e", "g", task, 0, 0, 1, Sampling(8), max_turns=4, max_length=512)
        played = await run_episode(spec, make_env=client.episode, engine=Slow(words=128), chat=CHAT)
    assert played.failure is None
    assert played.reward is not None
