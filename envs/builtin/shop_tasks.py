"""The tasks of `shop` by number: a store, a customer, a wish, and what is to be done about it, if anything.

What always holds: a shop depends on its number alone; a quarter of the wishes is what the rules forbid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from quintain.envs.builtin.numbered import chosen, hashed
from quintain.task import Task

LAST_DAY: Final = 30
"""Until when something may be returned."""
NAMES: Final = ("Anna", "Boris", "Carla", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Liam")
THINGS: Final = ("lamp", "kettle", "chair", "clock", "mirror", "basket", "blanket", "teapot", "candle", "vase", "rug")
WISHES: Final = ("cancel", "return", "change", "buy")
FORBIDDEN_ONE_IN: Final = 4
QUANTITIES: Final = 5
SHOPS: Final = len(WISHES) * FORBIDDEN_ONE_IN * len(THINGS) * len(NAMES) * QUANTITIES << 16


def shop_task(number: int) -> Task:
    """The shop of that number. Everything that the number itself does not say is drawn from it."""
    rest, wish = divmod(number, len(WISHES))
    rest, allowed = divmod(rest, FORBIDDEN_ONE_IN)
    rest, thing = divmod(rest, len(THINGS))
    rest, customer = divmod(rest, len(NAMES))
    quantity = rest % QUANTITIES + 1
    return _shop(number, WISHES[wish], bool(allowed), THINGS[thing], NAMES[customer], quantity)


def _shop(number: int, wish: str, allowed: bool, thing: str, name: str, quantity: int) -> Task:
    def drawn(what: str, below: int) -> int:
        return hashed(f"{number}:{what}", below)

    def sorted_by(what: str, names: Sequence[str]) -> list[str]:
        return sorted(names, key=lambda other: drawn(f"{what}:{other}", 1 << 64))

    others = sorted_by("things", [other for other in THINGS if other != thing])[:5]
    people = [name, *sorted_by("people", [other for other in NAMES if other != name])[:3]]
    stock = {other: drawn(f"stock:{other}", 20) for other in others} | {thing: 10 + drawn("stock", 10)}
    orders: list[list[Any]] = []
    for person in people:
        for other in sorted_by(f"orders:{person}", others)[: 1 + drawn(f"count:{person}", 2)]:
            status = chosen(("pending", "shipped", "delivered"), f"{number}:status:{person}:{other}")
            many, days = 1 + drawn(f"many:{person}:{other}", 5), 1 + drawn(f"days:{person}:{other}", 60)
            orders.append([_email(person), other, many, status, days])
    days = 1 + drawn("days", LAST_DAY)
    had = 1 + (quantity + drawn("had", QUANTITIES - 1)) % QUANTITIES  # another number than `quantity`
    if wish == "buy":
        said = f"I want to buy {quantity} {thing}{'s' * (quantity > 1)}."
        stock[thing] = stock[thing] if allowed else drawn("few", quantity)
    else:
        status = "delivered" if wish == "return" else "pending"
        if not allowed and wish == "return":
            status, days = chosen(
                (("shipped", days), ("pending", days), ("delivered", days + LAST_DAY)), f"{number}:not"
            )
        elif not allowed:
            status = chosen(("shipped", "delivered"), f"{number}:not")
        orders.append([_email(name), thing, had, status, days])
        said = {
            "cancel": f"I want to cancel my order of the {thing}.",
            "return": f"I want to return the {thing} that I bought.",
            "change": f"I ordered {had} of the {thing}, but I want {quantity}.",
        }[wish]
    orders.sort(key=lambda order: drawn(f"place:{order[0]}:{order[1]}", 1 << 64))
    first = 1000 + drawn("id", 8000)
    numbered_orders = [[first + place, *order] for place, order in enumerate(orders)]
    own = next((order[0] for order in numbered_orders if order[1] == _email(name) and order[2] == thing), 0)
    deeds: dict[str, list[Any]] = {
        "cancel": ["cancel_order", {"order": own}],
        "return": ["return_order", {"order": own}],
        "change": ["change_quantity", {"order": own, "quantity": quantity}],
        "buy": ["place_order", {"email": _email(name), "product": thing, "quantity": quantity}],
    }
    store = {
        "products": [[other, 5 + drawn(f"price:{other}", 95), many] for other, many in sorted(stock.items())],
        "customers": [[_email(person), person] for person in sorted(people)],
        "orders": numbered_orders,
    }
    reference = {"store": store, "email": _email(name), "wish": said, "deed": deeds[wish] if allowed else None}
    return Task(f"shop-{number}", reference=reference)


def _email(name: str) -> str:
    return f"{name.lower()}@example.com"
