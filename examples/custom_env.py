"""An environment of your own: questions, and what an answer is worth.

Play it here, or serve it over HTTP:

    python examples/custom_env.py
    quintain env serve examples/custom_env.py:Capitals
"""

from __future__ import annotations

import asyncio

from quintain.envs import Action, LocalClient, SingleTurnEnv, Task, check_environment, user

CITIES = {"France": "Paris", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo", "Norway": "Oslo"}


class Capitals(SingleTurnEnv):
    """Name the capital of a country, and nothing more."""

    system = "Answer with the city's name only."

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task(land, (user(f"What is the capital of {land}?"),), city) for land, city in CITIES.items()]

    def score(self, answer: str, reference: str) -> dict[str, float]:
        return {"correct": float(reference in answer), "brief": 0.2 * (answer.strip(" .") == reference)}


async def main() -> None:
    """Check the environment, then answer its first question in three ways."""
    print("problems:", await check_environment(Capitals) or "none")
    async with LocalClient(Capitals) as client:
        task = client.tasks("train")[0]
        for answer in ("Paris.", "I think it is Paris.", "London"):
            env = client.episode()
            await env.reset(task, seed=0)
            step = await env.step(Action.text(answer))
            print(f"{answer!r}: reward {step.reward:g} of {step.info['rewards']}")


if __name__ == "__main__":
    asyncio.run(main())
