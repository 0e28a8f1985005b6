"""An OpenEnv server for the tests, which runs in an environment of its own: guess a number below ten."""

from __future__ import annotations

import sys

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_app


class Guess(Action):
    number: str


class Told(Observation):
    hint: str = ""


class Guessing(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State()

    def reset(self, seed=None, episode_id=None, **options):
        self._secret, self._state = (seed or 0) % 10, State(episode_id=episode_id, step_count=0)
        return Told(hint="Guess a number below ten.")

    def step(self, action, timeout_s=None, **options):
        self._state.step_count += 1
        if action.number == "boom":
            raise RuntimeError("boom")
        if action.number == str(self._secret):
            return Told(hint="Yes.", reward=1.0, done=True)
        return Told(hint="No.", reward=0.0, done=self._state.step_count == 3)

    @property
    def state(self):
        return self._state


if __name__ == "__main__":
    uvicorn.run(create_app(Guessing, Guess, Told, max_concurrent_envs=8), port=int(sys.argv[1]), log_level="warning")
