"""Word problems for `math`: a story in which somebody's things become more and fewer, and a question at its end.

What always holds: the story of a number is the same everywhere; every count in it is a whole number that is not
negative, and the answer follows from what is told. Whose things they are, what they are, how each step is told, and
whether the question is about how many there are or how many more there are than at first, are all drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from quintain.envs.builtin.numbered import hashed, numbered
from quintain.failure import QuintainError
from quintain.messages import user
from quintain.task import Task, TaskSource

MOST_STEPS: Final = 8
PEOPLE: Final = (
    *(("Anna", "she", "her"), ("Boris", "he", "him"), ("Clara", "she", "her"), ("Daniel", "he", "him")),
    *(("Esra", "she", "her"), ("Felix", "he", "him"), ("Grace", "she", "her"), ("Hassan", "he", "him")),
)
THINGS: Final = ("apples", "marbles", "stickers", "books", "shells", "coins", "cards", "pencils", "buttons", "stamps")
OPENINGS: Final = (
    "{name} has {n} {things}.",
    "There are {n} {things} on {name}'s table.",
    "In the morning {name} counts {n} {things}.",
    "{name} starts with {n} {things}.",
)
TELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "+": (
        "Then {they} finds {n} more.",
        "A friend gives {them} {n} {things}.",
        "{name} buys {n} {things}.",
        "After lunch {they} gets another {n}.",
        "{n} more {things} come by post.",
    ),
    "-": (
        "Then {they} loses {n} of them.",
        "{name} gives {n} {things} to a friend.",
        "{n} of the {things} are lost on the way.",
        "{they} sells {n} {things} at the market.",
        "{name} throws {n} of them away.",
    ),
    "*": (
        "Overnight a fairy makes {n} times as many of them.",
        "Then {they} trades every one of them for {n} {things}.",
        "A magic box turns each of the {things} into {n}.",
        "By the end of the month {they} has {n} times as many.",
    ),
}
ASKED: Final = (
    "How many {things} does {name} have now?",
    "How many {things} are there in the end?",
    "What is the number of {things} that {name} has now?",
)
MORE: Final = (
    "How many more {things} does {name} have now than at first?",
    "By how many has the number of {things} grown?",
)


def word_problems(
    split: str, operations: str, low: int, high: int, steps: int, *, heldout: int, seed: int
) -> TaskSource:
    """The stories of `split`, with `steps` that are any of `operations`, and numbers from `low` to `high`."""
    if not 1 <= steps <= MOST_STEPS:
        raise QuintainError(f"steps must be 1 to {MOST_STEPS}, not {steps}")
    if low < 0:
        raise QuintainError(f"nobody has {low} things: low must be at least 0 in word problems")

    def task(number: int) -> Task:
        asked, answer = story(operations, low, high, steps, lambda what, below: hashed(f"{number}:{what}", below))
        return Task(f"story-{number}", (user(asked),), str(answer))

    return numbered(split, 1 << 64, task, heldout=heldout, seed=seed)


def story(operations: str, low: int, high: int, steps: int, drawn: Callable[[str, int], int]) -> tuple[str, int]:
    """A story and its answer, by what is `drawn` (for what, below which number)."""
    name, they, them = PEOPLE[drawn("person", len(PEOPLE))]
    words = {"name": name, "they": they, "them": them, "things": THINGS[drawn("things", len(THINGS))]}

    def told(templates: tuple[str, ...], what: str, n: int = 0) -> str:
        said = templates[drawn(what, len(templates))].format(n=n, **words)
        return said[0].upper() + said[1:]

    first = count = low + drawn("first", high - low + 1)
    lines = [told(OPENINGS, "opening", first)]
    for step in range(steps):
        operation = operations[drawn(f"operation {step}", len(operations))]
        n = low + drawn(f"number {step}", high - low + 1)
        if operation == "-":
            n = min(n, count)
            count -= n
        else:
            count = count + n if operation == "+" else count * n
        lines.append(told(TELLINGS[operation], f"telling {step}", n))
    grown = count > first and drawn("question", 3) == 0
    lines.append(told(MORE if grown else ASKED, "asking"))
    return " ".join(lines), count - first if grown else count
