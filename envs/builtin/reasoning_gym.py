"""The task families of reasoning-gym (on PyPI, more than 100), each with its own curriculum and its own scorer.

What always holds: training never asks a question that is held out. Each task is made by its own seed, so that it does
not depend on those before it; most families give the same task for a seed in every process, and the reference is the
entry as it was made, so that an answer is judged by the question that was asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from quintain.envs.builtin.numbered import hashed
from quintain.envs.single_turn import SingleTurnEnv
from quintain.failure import QuintainError, one_line
from quintain.messages import user
from quintain.nearest import one_of
from quintain.task import EndlessTasks, Task, TaskSource

DRAWS: Final = 100
"""How often another question is drawn in place of one that is held out."""


class ReasoningGymEnv(SingleTurnEnv):
    """Any family of reasoning-gym (`pip install 'quintain[reasoning-gym]'`); the reward is its own score."""

    splits = ("train", "heldout")
    verifier = "reasoning_gym"
    system = "Give your final answer between <answer> and </answer>."

    @classmethod
    def tasks(  # type: ignore[override]  # there is no family that goes without saying
        cls,
        split: str,
        *,
        family: str,
        config: Mapping[str, Any] | None = None,
        level: int | None = None,
        heldout: int = 100,
        seed: int = 0,
    ) -> TaskSource:
        """The tasks of `family`, with `config` as its dataset has it.

        `level` is a difficulty of the family's own curriculum, 0 the easiest; `config` goes before it.
        """
        if heldout < 1:
            raise QuintainError(f"heldout must be at least 1, not {heldout}")
        entry = _generator(family, dict(config or {}), level)

        def drawn(split: str, index: int, taken: Mapping[str, Any]) -> dict[str, Any]:
            for draw in range(DRAWS):
                made = entry(hashed(f"{seed}:{split}:{index}:{draw}", 2**31))
                if made["question"] not in taken:
                    return made
            raise QuintainError(f"{family} has too few different questions for heldout: {heldout}, with these options")

        def task(split: str, index: int, made: Mapping[str, Any]) -> Task:
            return Task(f"{family}-{split}-{index}", (user(made["question"]),), {"dataset": family, "entry": made})

        hidden: dict[str, Any] = {}
        for index in range(heldout):
            made = drawn("heldout", index, hidden)
            hidden[made["question"]] = made
        if split == "heldout":
            return [task(split, index, made) for index, made in enumerate(hidden.values())]
        return EndlessTasks(lambda index: task(split, index, drawn(split, index, hidden)))


def _generator(family: str, config: dict[str, Any], level: int | None) -> Callable[[int], dict[str, Any]]:
    """What makes the entry of a seed. Raises QuintainError, one line, where the family or its options are wrong."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS, create_curriculum, has_curriculum
    except ModuleNotFoundError:
        install = "pip install 'quintain[reasoning-gym]'"
        raise QuintainError(f"the environment reasoning_gym needs reasoning-gym: {install}") from None
    if family not in DATASETS:
        raise QuintainError(f"reasoning-gym has no family {family!r}{one_of(family, sorted(DATASETS))}")
    if fixed := {"seed", "size"} & config.keys():
        raise QuintainError(f"the family {family}: its {min(fixed)} is not yours to give: the environment gives it")
    try:
        if level is not None:
            if not has_curriculum(family):
                raise QuintainError("it has no curriculum: give config in place of level")
            curriculum = create_curriculum(family)
            last = max(len(attribute.levels) for attribute in curriculum.attributes.values()) - 1
            if not 0 <= level <= last:
                raise QuintainError(f"its levels are 0 to {last}, not {level}")
            curriculum.set_global_level(level)  # an attribute with fewer levels stays at its last
            levelled = vars(curriculum.generate_configuration())
            config = {name: value for name, value in levelled.items() if name not in ("seed", "size")} | config
        reasoning_gym.create_dataset(family, **config, seed=0, size=1)[0]
    except Exception as error:  # the boundary: the families check their options with whatever they have
        raise QuintainError(f"the family {family}: {one_line(str(error)) or type(error).__name__}") from None

    def entry(seed: int) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(
            json.dumps(reasoning_gym.create_dataset(family, **config, seed=seed, size=1)[0])
        )
        return made

    return entry
