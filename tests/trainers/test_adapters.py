"""Going on from an adapter: what is trained, what the reference is, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from quintain.failure import QuintainError
from quintain.trainers.checkpoint import Progress
from quintain.trainers.learner import Learner
from quintain.trainers.model.policy import ADAPTER

from .algorithm_cases import CASES, Case, algorithm_for, config_of
from .test_learner import model as model
from .test_update import tiny

torch.set_num_threads(1)
Made = Callable[..., Learner[Any]]
PPO = {"kl_coef": 0.1, "num_iterations": 1}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of an adapter that changes what the model says."""
    adapted: Any = peft.get_peft_model(tiny(), peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Iterator[Made]:
    """Makes a learner of an algorithm's case with an adapter."""
    learners: list[Learner[Any]] = []

    def make(name: str, lora: dict[str, Any], **options: Any) -> Learner[Any]:
        case = Case(CASES[name].algorithm, CASES[name].options, CASES[name].data, lora)
        config = config_of(case, model, streams=1, **options)
        learners.append(Learner(config, algorithm_for(config), checkpoints=tmp_path / "c", logs=tmp_path / "logs"))
        return learners[-1]

    yield make
    for learner in learners:
        learner.close()


@pytest.mark.parametrize(
    ("name", "options", "zero"),
    [
        ("grpo", {"beta": 0.1}, "kl"),
        ("rloo", {"beta": 0.1}, "kl"),
        ("ppo", PPO, "kl"),
        ("nash-md", {}, "kl"),
        ("dpo", {}, "rewards/margins"),
        ("online dpo", {}, "rewards/margins"),
    ],
)
def test_a_run_that_goes_on_from_an_adapter_is_held_to_that_adapter(
    made: Made, adapter: Path, name: str, options: dict[str, Any], zero: str
) -> None:
    """Before the first step it is its own reference, exactly; a reference without the adapter is another model."""
    case, learner = CASES[name], made(name, {"path": str(adapter)}, **options)
    assert learner.update(case.data(1), step=0)[zero] == 0.0
    assert learner.update(case.data(1), step=1)[zero] != 0.0
    other = made(name, {"path": str(adapter)}, **options)
    reference = other.passes._reference
    assert reference is not None
    object.__setattr__(reference[0], "frozen", None)  # as of a run that has made its adapter
    other.passes._reference = (reference[0], other._referring(None))
    assert other.update(case.data(1), step=0)[zero] != 0.0


def test_a_run_that_makes_its_adapter_has_the_model_without_it_as_its_reference(made: Made) -> None:
    learner = made("grpo", {"r": 2}, beta=0.1)
    assert learner.reference is not None
    assert learner.reference.frozen is None
    assert learner.update(CASES["grpo"].data(1), step=0)["kl"] == 0.0
    assert learner.update(CASES["grpo"].data(1), step=1)["kl"] > 0.0


def test_the_copy_shares_what_is_not_trained_and_stays_as_it_was(made: Made, adapter: Path) -> None:
    learner = made("grpo", {"path": str(adapter)}, beta=0.1)
    assert learner.reference is not None
    frozen = learner.reference.frozen
    assert frozen is not None
    pairs = list(zip(learner.model.named_parameters(), frozen.parameters(), strict=True))
    assert {name for (name, mine), theirs in pairs if mine is not theirs} == {
        name for name, parameter in learner.model.named_parameters() if parameter.requires_grad
    }
    before = copy.deepcopy([theirs for _, theirs in pairs])
    learner.update(CASES["grpo"].data(1), step=0)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, pairs, strict=True))


def test_a_runs_own_adapter_can_be_gone_on_from(made: Made) -> None:
    learner = made("grpo", {"r": 2})
    learner.update(CASES["grpo"].data(1), step=0)
    learner.save(Progress(1, 1, 3, 2.0))
    (saved,) = learner.checkpoints.glob(f"*/**/{ADAPTER}")
    again = made("grpo", {"path": str(saved)})
    for (name, mine), theirs in zip(learner.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "more than a plain LoRA"),
        ({"bias": "all"}, "more than a plain LoRA"),
        (None, "model.lora.path: cannot go on from"),
    ],
)
def test_an_adapter_that_could_not_be_published_is_one_line(
    made: Made, adapter: Path, change: dict[str, Any] | None, message: str
) -> None:
    file = adapter / "adapter_config.json"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(QuintainError, match=message) as caught:
        made("grpo", {"path": str(adapter)})
    assert "\n" not in str(caught.value)


def test_an_adapters_own_options_are_not_given_again(made: Made, adapter: Path) -> None:
    with pytest.raises(QuintainError, match="the adapter there has its own r: leave out that, or path"):
        made("grpo", {"path": str(adapter), "r": 4})
