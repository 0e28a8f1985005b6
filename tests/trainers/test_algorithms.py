"""What holds for every algorithm: how a batch is cut or laid out changes no gradient, and a run may be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintain.trainers.algorithms import ALGORITHMS
from quintain.trainers.checkpoint import Progress, latest_checkpoint
from quintain.trainers.learner import Learner

from .algorithm_cases import CASES, Case, algorithm_for, config_of
from .test_learner import model as model
from .test_learner import weights

torch.set_num_threads(1)
Made = Callable[..., Learner[Any]]


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Iterator[Made]:
    """Makes a learner of a case, with more of the trainer's options."""
    learners: list[Learner[Any]] = []

    def make(case: Case, **more: Any) -> Learner[Any]:
        config = config_of(case, model, **more)
        found = Learner(config, algorithm_for(config), checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
        learners.append(found)
        return found

    yield make
    for learner in learners:
        learner.close()


def first_gradients(learner: Learner[Any], batch: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient of the first update of each model, as it is stepped with, and the figures of the step."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parts = [
                p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            found.setdefault(name, torch.cat(parts).clone())

        return hook

    for name, trained in learner.trained.items():
        trained.optimizer.optimizer.register_step_pre_hook(keep(name))  # type: ignore[attr-defined]
    figures = learner.update(batch, step=0)
    return found, figures


def test_every_algorithm_is_listed_here() -> None:
    assert {case.algorithm for case in CASES.values()} == set(ALGORITHMS)


@pytest.mark.parametrize("name", CASES)
def test_a_step_moves_every_trained_model_and_no_gradient_depends_on_how_a_batch_is_cut_or_laid_out(
    made: Made, name: str
) -> None:
    case = CASES[name]
    learner = made(case, layout="tree", max_tokens_per_microbatch=10_000, streams=1)
    before = {at: [p.detach().clone() for p in trained.model.parameters()] for at, trained in learner.trained.items()}
    whole, figures = first_gradients(learner, case.data(1))
    assert torch.tensor(list(figures.values())).isfinite().all()
    for at, trained in learner.trained.items():
        assert any(not torch.equal(p, q) for p, q in zip(trained.model.parameters(), before[at], strict=True)), at
    assert all(gradient.norm() > 0 for gradient in whole.values())
    for layout, most in (("tree", 60), ("packed", 10_000), ("padded", 40), ("padded", 1)):
        cut, again = first_gradients(made(case, layout=layout, max_tokens_per_microbatch=most), case.data(1))
        assert cut.keys() == whole.keys()
        for model_name, gradient in whole.items():
            apart = (cut[model_name] - gradient).norm() / gradient.norm()
            assert apart <= 3e-5, (model_name, layout, most)
        same = figures.keys() - {"microbatches"}
        assert {k: again[k] for k in same} == pytest.approx({k: figures[k] for k in same}, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_going_on_from_a_checkpoint_is_going_on(made: Made, name: str) -> None:
    case = CASES[name]
    learner = made(case)
    learner.update(case.data(1), step=0)
    learner.save(Progress(1, 1, 3, 2.0))
    learner.update(case.data(2), step=1)
    again = made(case)
    newest = latest_checkpoint(learner.checkpoints)
    assert newest is not None
    again.restore(newest)
    again.update(case.data(2), step=1)
    assert torch.equal(weights(again), weights(learner))
    for at, trained in learner.trained.items():
        for one, other in zip(trained.model.parameters(), again.trained[at].model.parameters(), strict=True):
            assert torch.equal(one, other)
