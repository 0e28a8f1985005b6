"""Questions that need a tool."""

from __future__ import annotations

from quintain.envs import Task, ToolEnv, tool, user

STOCK = {"train": {"tea": 31, "salt": 17, "rice": 240}, "heldout": {"flour": 58, "oil": 12}}


class NewTool(ToolEnv):
    """Say how many packs of a thing there are; reward 1 for the right number."""

    splits = ("train", "heldout")
    verifier = "math"
    system = "Look it up, and answer with the number."

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [
            Task(thing, (user(f"How many packs of {thing} are there?"),), str(n)) for thing, n in STOCK[split].items()
        ]

    @tool
    def look_up(self, thing: str) -> int:
        """Count the packs of a thing.

        Args:
            thing: What to count, such as "tea".
        """
        return (STOCK["train"] | STOCK["heldout"])[thing]
