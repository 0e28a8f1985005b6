"""Questions with one answer each."""

from __future__ import annotations

from quintain.envs import SingleTurnEnv, Task, user

WORDS = {"train": ("river", "candle", "meadow", "harbour", "violin"), "heldout": ("copper", "saffron", "tiger")}


class NewSingleTurn(SingleTurnEnv):
    """Spell a word backwards; reward 1 for the right letters."""

    splits = ("train", "heldout")
    system = "Answer with the letters only."

    @classmethod
    def tasks(cls, split: str) -> list[Task]:
        return [Task(word, (user(f"Spell {word} backwards."),), word[::-1]) for word in WORDS[split]]

    def score(self, answer: str, reference: str) -> float:
        return float(answer.strip(" .").lower() == reference)
