"""Context managers that are nothing but their end: to leave one is to close it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """`with` it, and it is closed afterwards."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds. May be repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncClosing(ABC):
    """`async with` it, and it is closed afterwards."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what it holds. May be repeated."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
