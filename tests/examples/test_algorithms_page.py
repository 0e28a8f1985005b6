"""The algorithm that the page on algorithms shows is one, and learns."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch

from quintain.config import parse_config
from quintain.config.algorithms import AlgorithmConfig
from quintain.config.loss import LossType
from quintain.trainers.batches.batch import micro_batches
from quintain.trainers.learner import Learner

from ..trainers.test_learner import model as model
from ..trainers.test_update import groups

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def page() -> ModuleType:
    """The page's code, as a module."""
    module = ModuleType("algorithms_page")
    exec(compile(CODE, "algorithms.md", "exec", dont_inherit=True), vars(module))
    return module


def test_the_page_names_every_algorithm_and_every_loss() -> None:
    named = [
        name for options in get_args(AlgorithmConfig) for name in get_args(options.model_fields["algorithm"].annotation)
    ]
    assert [name for name in (*named, *get_args(LossType)) if f"`{name}`" not in PAGE] == []


def test_the_algorithm_of_the_page_makes_the_best_answers_likelier_and_needs_forty_lines(
    page: ModuleType, model: Path, tmp_path: Path
) -> None:
    text = f"model: {{path: {model}, compute_dtype: float32}}\nenvironment: {{name: math}}"
    options = page.BestOfConfig(learning_rate=0.003, lr_scheduler_type="constant", threads=1)
    config = parse_config(text).model_copy(update={"trainer": options})
    learner: Learner[Any] = Learner(
        config, page.BestOf(options, longest=8), checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs"
    )
    rows = learner.algorithm.credit(learner.algorithm.rows(groups(1, failing=True), version=0)).rows
    best = [row.segment for row in rows if row.columns["advantage"].any()]
    assert 0 < len(best) < len(rows)
    (piece,) = micro_batches(best, range(len(best)), layout="padded", max_tokens=10_000)

    def likelihood() -> float:
        return float(learner.score(piece, temperature=1.0).logp.mean())

    before = likelihood()
    figures = [learner.update(groups(1, failing=True), step=step) for step in range(20)]
    learner.close()
    assert likelihood() > before + 1.0
    assert figures[0]["rows_trained"] == len(best)
    assert np.isfinite([value for step in figures for value in step.values()]).all()
    body = CODE[CODE.index("class BestOfConfig") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 40


torch.set_num_threads(1)
