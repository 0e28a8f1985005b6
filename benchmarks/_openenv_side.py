"""OpenEnv's side of env_server.py, in an environment of its own: `serve PORT`, or `play URL SESSIONS SECONDS`."""

from __future__ import annotations

import asyncio
import sys

from _steps import played
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from openenv.core.generic_client import GenericEnvClient


class Said(Action):
    content: str


class Told(Observation):
    content: str = ""


class Still(Environment):
    """The same environment as `_still_env.py`'s."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State()

    def reset(self, seed=None, episode_id=None, **options):
        self._state = State(episode_id=episode_id, step_count=0)
        return Told(content="Begin.")

    def step(self, action, timeout_s=None, **options):
        self._state.step_count += 1
        return Told(content="Go on.", reward=0.0)

    @property
    def state(self):
        return self._state


async def play(url: str, sessions: int, seconds: float) -> None:
    envs = [GenericEnvClient(base_url=url, connect_timeout_s=60.0) for _ in range(sessions)]
    for env in envs:
        await env.connect()
        await env.reset()
    await played([lambda env=env: env.step({"content": "On."}) for env in envs], seconds)
    await asyncio.gather(*(env.close() for env in envs))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        import uvicorn

        uvicorn.run(create_app(Still, Said, Told, max_concurrent_envs=4096), port=int(sys.argv[2]), log_level="warning")
    else:
        asyncio.run(play(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
