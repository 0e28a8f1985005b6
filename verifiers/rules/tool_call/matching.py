"""Maximum bipartite matching. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def matching(fits: Sequence[Sequence[bool]]) -> int:
    """The size of a maximum matching: `fits[i][j]` says whether i on the left fits j on the right (Kuhn 1955)."""
    taken_by: dict[int, int] = {}

    def place(left: int, tried: set[int]) -> bool:
        for right, fit in enumerate(fits[left]):
            if fit and right not in tried:
                tried.add(right)
                if right not in taken_by or place(taken_by[right], tried):
                    taken_by[right] = left
                    return True
        return False

    return sum(place(left, set()) for left in range(len(fits)))
