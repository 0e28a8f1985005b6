"""A conversation with somebody who wants to know something."""

from __future__ import annotations

from collections.abc import Sequence

from quintain.envs import Action, ChatEnv, Message, Task, User, UserReply

HOURS = {"train": {"breakfast": "7:30", "lunch": "12:15"}, "heldout": {"dinner": "18:45"}}


class Traveller(User):
    """Asks when a meal is, again and again, and is content with the hour."""

    def __init__(self, meal: str, hour: str) -> None:
        self._meal, self._hour = meal, hour

    async def reply(self, history: Sequence[Message]) -> UserReply:
        if history and self._hour in history[-1].text:
            return UserReply("Thank you!", "goal")
        return UserReply(f"When is {self._meal}?")


class NewChat(ChatEnv):
    """Tell a guest when the meal is; reward 1 for the right hour."""

    splits = ("train", "heldout")
    system = "You are at the desk of a hotel. Breakfast is at 7:30, lunch at 12:15, dinner at 18:45."
    max_turns = 4

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task(meal, reference={"meal": meal, "hour": hour}) for meal, hour in HOURS[split].items()]

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action]:
        return (Action.text(f"It is at {task.reference['hour']}."),)

    def user(self, task: Task, *, seed: int) -> User:
        return Traveller(task.reference["meal"], task.reference["hour"])
