"""The shop: who keeps its rules is paid for every task, and nobody else; the books stay right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintain.envs import Action, Message, ShopEnv, Task, UserModel, check_environment
from quintain.envs.builtin.shop_store import Store
from quintain.envs.tools import MethodTools
from quintain.messages import FunctionCall, ToolCall

from ..launch.fake_openai import fake_openai

TRAIN = ShopEnv.tasks("train")
TASKS = [TRAIN[n] for n in range(120)]
EXAMPLE = TASKS[0].reference["store"]


class Desk:
    """Plays one episode, and remembers what was paid."""

    def __init__(self, env: ShopEnv) -> None:
        self.env = env
        self.reward: float | None = None

    async def say(self, text: str) -> str:
        step = await self.env.step(Action.text(text))
        self.reward = step.reward if step.ended else None
        return step.observation.messages[0].text

    async def call(self, made: str, /, **arguments: Any) -> Any:
        call = ToolCall("c", FunctionCall(made, json.dumps(arguments)))
        said = (await self.env.step(Action(Message("assistant", None, (call,))))).observation.messages[0].text
        return json.loads(said) if said.startswith(("[", "{")) else said


async def deed_of(desk: Desk, wish: str, *, keeps_the_rules: bool = True) -> tuple[str, dict[str, Any]] | None:
    """What is to be done about `wish`, by what the tools say and the rules allow."""
    email = re.findall(r"\S+@\S+\.com", await desk.say("May I have your e-mail address?"))[0]
    orders = await desk.call("find_orders", email=email)
    assert wish.removeprefix("Hello! ") in await desk.say("What is the number of the order?")
    if bought := re.match(r"Hello! I want to buy (\d+) (\w+?)s?\.", wish):
        quantity, product = int(bought[1]), bought[2]
        enough = (await desk.call("find_product", name=product))["stock"] >= quantity
        return ("place_order", {"email": email, "product": product, "quantity": quantity}) if enough else None
    (order,) = (order for order in orders if f"the {order['product']}" in wish)
    if "return" in wish:
        allowed, deed = order["status"] == "delivered" and order["days"] <= 30, ("return_order", {})
    elif "cancel" in wish:
        allowed, deed = order["status"] == "pending", ("cancel_order", {})
    else:
        (quantity,) = re.findall(r"I want (\d+)", wish)
        allowed, deed = order["status"] == "pending", ("change_quantity", {"quantity": int(quantity)})
    return (deed[0], {"order": order["id"], **deed[1]}) if allowed or not keeps_the_rules else None


async def earned(task: Task, *, keeps_the_rules: bool = True, more: int = 0) -> float:
    """What a clerk earns that does what is wanted, and then touches `more` orders."""
    env = ShopEnv()
    first = await env.reset(task, seed=0)
    desk = Desk(env)
    if deed := await deed_of(desk, first.messages[-1].text, keeps_the_rules=keeps_the_rules):
        assert await desk.say("Shall I do it?") == "Yes, please."
        await desk.call(deed[0], **deed[1])
    for row in [row for row in task.reference["store"]["orders"] if row[1] != task.reference["email"]][:more]:
        await desk.call("change_quantity", order=row[0], quantity=row[3])  # to what it is: nothing changes
        await desk.call("cancel_order", order=row[0])
    await desk.say("I am done.")
    await env.close()
    assert desk.reward is not None
    return desk.reward


async def test_a_clerk_that_keeps_the_rules_is_paid_for_every_task():
    assert [await earned(task) for task in TASKS] == [1.0] * len(TASKS)


async def test_one_that_does_whatever_is_wanted_is_paid_only_where_the_rules_allow_it():
    for task in TASKS:
        wish = task.reference["wish"]
        paid = await earned(task, keeps_the_rules=False)
        assert paid == float(task.reference["deed"] is not None or "buy" in wish), wish
    assert 0.15 < sum(task.reference["deed"] is None for task in TASKS) / len(TASKS) < 0.35


async def test_whoever_touches_another_order_as_well_is_not_paid():
    assert [await earned(task, more=1) for task in TASKS[:20]] == [0.0] * 20


async def test_the_lazy_are_paid_where_nothing_was_to_be_done():
    for task in TASKS[:30]:
        env = ShopEnv()
        await env.reset(task, seed=0)
        step = await env.step(Action.text("I cannot do that."))
        assert (step.reward, step.info["end"]) == (float(task.reference["deed"] is None), "left")


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["cancel_order", "return_order", "change_quantity", "place_order"]),
        st.sampled_from([row[0] for row in EXAMPLE["orders"]] + [1, 10**30]),
        st.sampled_from([row[0] for row in EXAMPLE["products"]] + ["moon"]),
        st.integers(-3, 30) | st.just(10**30),
    ),
    max_size=12,
)


@given(CALLS)
def test_whatever_the_tools_are_asked_every_piece_is_in_stock_or_in_an_order(calls):
    def pieces(tables: Any) -> dict[str, int]:
        counted = {name: stock for name, _, stock in tables["products"]}
        assert min(counted.values()) >= 0
        for _, _, product, quantity, status, _ in tables["orders"]:
            assert quantity > 0
            counted[product] += quantity * (status not in ("cancelled", "returned"))
        return counted

    store = Store(EXAMPLE)
    whole = pieces(store.tables())
    email = EXAMPLE["customers"][0][0]
    for name, order, product, quantity in calls:
        arguments: dict[str, Any] = {
            "change_quantity": {"order": order, "quantity": quantity},
            "place_order": {"email": email, "product": product, "quantity": quantity},
        }.get(name, {"order": order})
        before = store.tables()
        try:
            getattr(store, name)(**arguments)
        except Exception:
            assert store.tables() == before
    assert pieces(store.tables()) == whole
    store.close()


async def test_the_tools_are_those_of_the_store_and_say_what_there_is():
    names = [spec.function.name for spec in await MethodTools(Store(EXAMPLE)).specs()]
    assert names == [
        *("find_orders", "find_product", "cancel_order", "return_order", "change_quantity", "place_order"),
    ]
    env = ShopEnv()
    await env.reset(TASKS[0], seed=0)
    desk = Desk(env)
    assert await desk.call("find_orders", email="x@y") == "error: find_orders: LookupError: there is no customer 'x@y'"
    assert (
        await desk.call("find_product", name="moon") == "error: find_product: LookupError: there is no product 'moon'"
    )
    assert await desk.call("cancel_order", order=1) == "error: cancel_order: LookupError: there is no order 1"


async def test_a_language_model_may_be_the_customer():
    task = next(task for task in TASKS if task.reference["deed"] is None)

    def reply(request: dict[str, Any]) -> dict[str, Any]:
        told = request["messages"][0]["content"]
        assert task.reference["email"] in told
        assert task.reference["wish"] in told
        return {"content": "A pity. [LEAVE]" if len(request["messages"]) > 2 else "Hello, can you help me?"}

    with fake_openai(reply) as fake:
        env = ShopEnv(user_model=UserModel(fake.url, "m"))
        first = await env.reset(task, seed=0)
        assert first.messages[-1].text == "Hello, can you help me?"
        step = await env.step(Action.text("No. Anything else?"))
        await env.close()
    assert (step.reward, step.info["end"], step.observation.messages[0].text) == (1.0, "left", "A pity.")


async def test_shops_are_sound_seeded_and_never_those_held_out():
    assert await check_environment(ShopEnv) == []
    heldout = {task.id for task in ShopEnv.tasks("heldout")}
    assert len(heldout) == 100
    assert not heldout & {task.id for task in TASKS}
    assert TASKS[:5] == [ShopEnv.tasks("train")[n] for n in range(5)]
    kinds = {(task.reference["wish"].split()[3], task.reference["deed"] is None) for task in TASKS}
    assert len(kinds) >= 8


@pytest.mark.parametrize("wish", ["buy", "return", "cancel", "ordered"])
def test_every_wish_is_of_one_product_that_the_customer_has_one_order_of(wish):
    for task in (task for task in TASKS if wish in task.reference["wish"]):
        store, email = task.reference["store"], task.reference["email"]
        mine = [row[2] for row in store["orders"] if row[1] == email and row[2] in task.reference["wish"]]
        assert len(mine) == (wish != "buy")
        assert [row[0] for row in store["customers"]].count(email) == 1
