"""A shop: its rules, a store with tools, and a customer who wants one thing, which the rules allow or do not.

What always holds: the reward is 1 where the store is, row for row, as it is after what the customer wanted, or as it
was where the rules forbid that, and else 0; what was said pays nothing. The tools keep the books right and nothing
else: the rules are for the policy to keep. Customers answer by rule: asked for the e-mail address they give it, asked
what it is about they say what they want, to any other question they say yes, and a message without a question ends it.
The split "train" never has a task of "heldout".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quintain.envs.base import Action, Observation
from quintain.envs.builtin.numbered import numbered
from quintain.envs.builtin.shop_store import Store
from quintain.envs.builtin.shop_tasks import LAST_DAY, SHOPS, shop_task
from quintain.envs.chat import ChatEnv, User, UserReply
from quintain.envs.tools import MethodTools, Toolbox
from quintain.messages import Message
from quintain.task import Task, TaskSource

POLICY: Final = f"""\
You serve the customers of a shop. The rules:
1. First ask for the customer's e-mail address. Touch no orders but those of this customer.
2. An order that is pending may be cancelled, and its quantity changed. A shipped or delivered one may not.
3. A delivered order may be returned up to {LAST_DAY} days after its delivery, and no other.
4. Nobody gets more than there is in stock.
5. What the rules forbid you refuse, and you change nothing.
Use the tools. Once you have done or refused what the customer wants, say so without a question: that ends it."""


class ShopEnv(ChatEnv):
    """A shop with rules, tools, and a customer with a wish; reward 1 where the store is as it should be in the end."""

    splits = ("train", "heldout")
    system = POLICY
    max_turns = 8
    _store: Store | None = None

    @classmethod
    def tasks(cls, split: str, *, heldout: int = 100, seed: int = 0) -> TaskSource:
        """The tasks of `split`: each a store of its own, a customer and a wish."""
        return numbered(split, SHOPS, shop_task, heldout=heldout, seed=seed)

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action]:
        """What the customer wants, where the rules allow it; then a word without a question."""
        if (deed := task.reference["deed"]) is None:
            return (Action.text("I am sorry, no."),)
        name, arguments = deed
        return Action.call(name, arguments), Action.text("It is done.")

    def user(self, task: Task, *, seed: int) -> User:
        """The task's customer."""
        return _Customer(task.reference["email"], task.reference["wish"])

    def persona(self, task: Task) -> str:
        """The task's customer, for a language model."""
        email, wish = task.reference["email"], task.reference["wish"]
        return (
            f"You are the customer of a shop. Your e-mail address is {email}; give it when asked. {wish} You do not "
            "know the order's number. Once it is done or refused, accept that and leave."
        )

    def toolbox(self) -> Toolbox:
        """The store."""
        assert self._store is not None  # `reset` has just made it
        return MethodTools(self._store)

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show the rules, the tools, and what the customer says first."""
        self._forget_store()
        self._store = Store(task.reference["store"])
        return await super().reset(task, seed=seed)

    def verdict(self, history: Sequence[Message]) -> float:
        """Whether the store is as it should be."""
        reference = self._playing().reference
        assert self._store is not None  # there was a reset
        wanted = Store(reference["store"])
        try:
            if reference["deed"] is not None:
                name, arguments = reference["deed"]
                getattr(wanted, name)(**arguments)
            return float(self._store.tables() == wanted.tables())
        finally:
            wanted.close()

    async def close(self) -> None:
        """Forget the store."""
        self._forget_store()
        await super().close()

    def _forget_store(self) -> None:
        if self._store is not None:
            self._store.close()


class _Customer(User):
    """Has an address and a wish."""

    def __init__(self, email: str, wish: str) -> None:
        self._email, self._wish = email, wish

    async def reply(self, history: Sequence[Message]) -> UserReply:
        if not history:
            return UserReply(f"Hello! {self._wish}")
        said = history[-1].text.lower()
        if "?" not in said:
            return UserReply("Thank you, goodbye.", "left")
        if "mail" in said or "address" in said:
            return UserReply(f"My e-mail address is {self._email}.")
        if any(word in said.split() for word in ("what", "which", "how", "number", "id")):
            return UserReply(f"{self._wish} I do not know the order's number.")
        return UserReply("Yes, please.")
