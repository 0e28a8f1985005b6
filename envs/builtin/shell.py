"""Small tasks with files and programs, in a shell: each is generated, and judged by what is in the folder at the end.

What always holds: a task depends on its number alone, and the split "train" never has one of "heldout"; the reward is 1
where the files are what they should be and the program that was asked for answers hidden cases, and else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from quintain.envs.builtin.numbered import chosen, hashed, numbered
from quintain.envs.shell import ShellEnv
from quintain.failure import QuintainError
from quintain.messages import user
from quintain.nearest import one_of
from quintain.task import Task, TaskSource

WORDS: Final = (
    "apple",
    "river",
    "stone",
    "cloud",
    "tiger",
    "violin",
    "copper",
    "meadow",
    "candle",
    "harbour",
    "saffron",
)
FILES: Final = ("notes.txt", "list.txt", "data.txt", "log.txt", "names.txt", "report.txt")
Drawn = Callable[[str, int], int]
"""(what for, below which number) -> a number."""
Made = tuple[str, Mapping[str, str], Mapping[str, Any]]
"""What is asked, the files there are, and the reference."""


class ShellTasksEnv(ShellEnv):
    """Small file and code tasks in a shell; reward 1 where the folder is in the end as it was asked for."""

    splits = ("train", "heldout")
    system = "You work in a folder, with tools. Do what is asked, and then say that it is done."
    max_calls = 8

    @classmethod
    def tasks(
        cls, split: str, *, kinds: tuple[str, ...] | None = None, heldout: int = 100, seed: int = 0
    ) -> TaskSource:
        """The tasks of `split`, of these `kinds`, the easiest first: write, copy, rename, replace, sort, count, sum,
        program."""
        for kind in kinds or ():
            if kind not in KINDS:
                raise QuintainError(f"there is no kind of task {kind!r}{one_of(kind, list(KINDS))}")
        makers = [KINDS[kind] for kind in kinds or KINDS]

        def task(number: int) -> Task:
            asked, files, reference = makers[number % len(makers)](
                lambda what, below: hashed(f"{number}:{what}", below)
            )
            return Task(f"shell-{number}", (user(asked),), reference, info={"files": files})

        return numbered(split, len(makers) << 32, task, heldout=heldout, seed=seed)


def _write(drawn: Drawn) -> Made:
    file, text = FILES[drawn("file", len(FILES))], _words(drawn, "text", 3)
    return f"Write this line, and nothing else, into the file {file}: {text}", {}, {"files": {file: text}}


def _copy(drawn: Drawn) -> Made:
    files, old, new = _old_and_new(drawn)
    return f"Copy the file {old} to {new}.", files, {"files": {old: files[old], new: files[old]}}


def _rename(drawn: Drawn) -> Made:
    files, old, new = _old_and_new(drawn)
    return f"Rename the file {old} to {new}.", files, {"files": {old: None, new: files[old]}}


def _replace(drawn: Drawn) -> Made:
    files, file, _ = _old_and_new(drawn)
    old = files[file].split()[drawn("old", 4)]
    new = f"{WORDS[drawn('new', len(WORDS))]}{drawn('number', 90) + 10}"
    lines = [" ".join(new if word == old else word for word in line.split()) for line in files[file].splitlines()]
    asked = f"In the file {file}, replace every word {old} with {new}, and change nothing else."
    return asked, files, {"files": {file: "\n".join(lines)}}


def _sort(drawn: Drawn) -> Made:
    files, file, new = _old_and_new(drawn)
    asked = f"Write the lines of {file} in the order of the alphabet into {new}."
    return asked, files, {"files": {new: "\n".join(sorted(files[file].splitlines()))}}


def _count(drawn: Drawn) -> Made:
    files, file, new = _old_and_new(drawn)
    word = WORDS[drawn("word", len(WORDS))]
    count = sum(word in line.split() for line in files[file].splitlines())
    asked = f"How many lines of {file} have the word {word}? Write the number, and nothing else, into {new}."
    return asked, files, {"files": {new: str(count)}}


def _sum(drawn: Drawn) -> Made:
    rows = [(WORDS[drawn(f"name{n}", len(WORDS))], drawn(f"value{n}", 1000)) for n in range(5 + drawn("rows", 10))]
    table = "name,value\n" + "".join(f"{name},{value}\n" for name, value in rows)
    asked = "Add up the column value of table.csv, and write the sum, and nothing else, into sum.txt."
    return asked, {"table.csv": table}, {"files": {"sum.txt": str(sum(value for _, value in rows))}}


PROGRAMS: Final[Mapping[str, Callable[[list[int]], object]]] = {
    "their sum": sum,
    "the largest of them": max,
    "the smallest of them": min,
    "how many there are": len,
    "the sum of those that are even": lambda numbers: sum(n for n in numbers if n % 2 == 0),
    "the difference of the largest and the smallest": lambda numbers: max(numbers) - min(numbers),
    "how many different ones there are": lambda numbers: len(set(numbers)),
    "them in the other order, with blanks in between": lambda numbers: " ".join(map(str, reversed(numbers))),
}


def _program(drawn: Drawn) -> Made:
    what = list(PROGRAMS)[drawn("program", len(PROGRAMS))]
    file = f"{WORDS[drawn('file', len(WORDS))]}.py"
    runs = []
    for case in range(3):
        numbers = [drawn(f"{case}:{n}", 199) - 99 for n in range(3 + drawn(f"{case}", 6))]
        said, told = str(PROGRAMS[what](numbers)), " ".join(map(str, numbers))
        runs.append({"command": ["python3", file], "stdin": told + "\n", "stdout": said})
    asked = f"Write a Python program {file}: it reads one line of whole numbers from its input, and prints {what}."
    return asked, {}, {"runs": runs}


KINDS: Final[Mapping[str, Callable[[Drawn], Made]]] = {
    "write": _write,
    "copy": _copy,
    "rename": _rename,
    "replace": _replace,
    "sort": _sort,
    "count": _count,
    "sum": _sum,
    "program": _program,
}


def _words(drawn: Drawn, what: str, count: int) -> str:
    return " ".join(WORDS[drawn(f"{what}:{n}", len(WORDS))] for n in range(count))


def _old_and_new(drawn: Drawn) -> tuple[dict[str, str], str, str]:
    """Files with some lines of words, the name of one, and a name that none has."""
    old = FILES[drawn("old", len(FILES))]
    lines = [_words(drawn, f"line{n}", 2 + drawn(f"length{n}", 3)) for n in range(4 + drawn("lines", 6))]
    other = chosen([name for name in FILES if name != old], f"{drawn('other', 1 << 32)}")
    files = {old: "\n".join(lines) + "\n", other: _words(drawn, "else", 3) + "\n"}
    return files, old, chosen([name for name in FILES if name not in files], f"{drawn('new name', 1 << 32)}")
