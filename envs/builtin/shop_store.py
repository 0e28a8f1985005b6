"""The store of `shop`: a database in memory, and tools that keep its books right.

What always holds: what a tool cannot do changes nothing; the stock is what the orders have left, never below zero.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from quintain.envs.tools import tool

Tables = Mapping[str, Sequence[Sequence[Any]]]
"""The rows of `products`, `customers` and `orders`."""
_SCHEMA: Final = """
CREATE TABLE products (name TEXT PRIMARY KEY, price INTEGER NOT NULL, stock INTEGER NOT NULL CHECK (stock >= 0));
CREATE TABLE customers (email TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, email TEXT NOT NULL, product TEXT NOT NULL, quantity INTEGER NOT NULL CHECK (quantity > 0),
    status TEXT NOT NULL, days INTEGER NOT NULL
);
"""


class Store:
    """The shop's database in memory, and what can be done with it."""

    def __init__(self, tables: Tables) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(_SCHEMA)
        for name, rows in tables.items():
            self._db.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows[0]))})", rows)

    def tables(self) -> dict[str, list[list[Any]]]:
        """Every row there is."""
        names = ("products", "customers", "orders")
        return {name: [list(row) for row in self._db.execute(f"SELECT * FROM {name} ORDER BY 1")] for name in names}

    def close(self) -> None:
        """Forget it all."""
        self._db.close()

    @tool
    def find_orders(self, email: str) -> list[dict[str, Any]]:
        """List the orders of a customer: `days` is how many days ago the status changed.

        Args:
            email: The customer's e-mail address.
        """
        if not self._db.execute("SELECT 1 FROM customers WHERE email = ?", [email]).fetchone():
            raise LookupError(f"there is no customer {email!r}")
        query = "SELECT id, product, quantity, status, days FROM orders WHERE email = ? ORDER BY id"
        return [dict(row) for row in self._db.execute(query, [email])]

    @tool
    def find_product(self, name: str) -> dict[str, Any]:
        """Say what a product costs, and how many there are in stock.

        Args:
            name: The product's name, such as "lamp".
        """
        found = self._db.execute("SELECT * FROM products WHERE name = ?", [name]).fetchone()
        if found is None:
            raise LookupError(f"there is no product {name!r}")
        return dict(found)

    @tool
    def cancel_order(self, order: int) -> str:
        """Cancel an order.

        Args:
            order: The order's id.
        """
        return self._end(order, "cancelled")

    @tool
    def return_order(self, order: int) -> str:
        """Take an order back.

        Args:
            order: The order's id.
        """
        return self._end(order, "returned")

    @tool
    def change_quantity(self, order: int, quantity: int) -> str:
        """Change how many pieces of the product an order has.

        Args:
            order: The order's id.
            quantity: How many it shall have.
        """
        row = self._order(order)
        with self._db:
            self._db.execute("BEGIN")
            self._take(row["product"], quantity - row["quantity"])
            self._db.execute("UPDATE orders SET quantity = ? WHERE id = ?", [quantity, order])
        return f"order {order} has {quantity} of the product"

    @tool
    def place_order(self, email: str, product: str, quantity: int) -> str:
        """Order a product for a customer.

        Args:
            email: The customer's e-mail address.
            product: The product's name.
            quantity: How many.
        """
        self.find_orders(email)
        self.find_product(product)
        with self._db:
            self._db.execute("BEGIN")
            self._take(product, quantity)
            row = (email, product, quantity, "pending", 0)
            made = self._db.execute("INSERT INTO orders VALUES (NULL, ?, ?, ?, ?, ?)", row)
        return f"order {made.lastrowid} is placed"

    def _end(self, order: int, status: Literal["cancelled", "returned"]) -> str:
        row = self._order(order)
        with self._db:
            self._db.execute("BEGIN")
            self._take(row["product"], -row["quantity"])
            self._db.execute("UPDATE orders SET status = ?, days = 0 WHERE id = ?", [status, order])
        return f"order {order} is {status}"

    def _order(self, order: int) -> sqlite3.Row:
        found: sqlite3.Row | None = self._db.execute("SELECT * FROM orders WHERE id = ?", [order]).fetchone()
        if found is None:
            raise LookupError(f"there is no order {order}")
        if found["status"] in ("cancelled", "returned"):
            raise ValueError(f"order {order} is {found['status']} already")
        return found

    def _take(self, product: str, quantity: int) -> None:
        self._db.execute("UPDATE products SET stock = stock - ? WHERE name = ?", [quantity, product])
