"""Work in a folder, with a shell."""

from __future__ import annotations

from collections.abc import Sequence

from quintain.envs import Action, ShellEnv, Task, user

WORDS = {"train": ("river", "candle", "meadow"), "heldout": ("copper", "saffron")}


class NewShell(ShellEnv):
    """Write a file; reward 1 where its text is as it was asked for."""

    splits = ("train", "heldout")
    system = "You work in a folder, with tools. Do what is asked, and then say that it is done."

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        asked = "Write the word {word} in capital letters, and nothing else, into answer.txt."
        return [
            Task(word, (user(asked.format(word=word)),), {"files": {"answer.txt": word.upper()}})
            for word in WORDS[split]
        ]

    @classmethod
    def solution(cls, task: Task) -> Sequence[Action]:
        arguments = {"path": "answer.txt", "content": task.reference["files"]["answer.txt"]}
        return Action.call("write_file", arguments), Action.text("Done.")
