"""Weights change while the embedded engine samples: tokens carry their versions, and each is explained by its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from quintain.arrays import as_floats
from quintain.rollout.engines.base import Sampling, Weights
from quintain.rollout.engines.embedded.engine import EmbeddedEngine
from quintain.rollout.journal.audit import audit
from quintain.rollout.weights.canary import Canary
from quintain.trajectory import Turn, versions_of

from ..tiny_llama import tiny_llama
from .stage import CHAT, batch_of, scheduler

WORDS = 128


def model_of(version: int) -> LlamaForCausalLM:
    made = tiny_llama(version, words=WORDS, length=512, initializer_range=0.2)
    with torch.no_grad():
        made.model.embed_tokens.weight[0] = 0.0  # the stop id, no likelier than others
    return made


def scores(version: int, ids: Any) -> np.ndarray[Any, Any]:
    """Log-probabilities of ids[1:] under the weights of `version`, by transformers."""
    with torch.no_grad():
        logits = model_of(version)(torch.tensor(np.asarray(ids)[None], dtype=torch.long)).logits[0, :-1]
        found = logits.log_softmax(-1).gather(1, torch.tensor(np.asarray(ids)[1:, None], dtype=torch.long))
    return np.asarray(found[:, 0])


def published(folder: Path, version: int) -> tuple[Weights, Canary]:
    path = folder / f"v{version}"
    path.mkdir()
    state = {name: tensor for name, tensor in model_of(version).state_dict().items() if name != "lm_head.weight"}
    save_file(state, path / "model.safetensors")
    rows = (np.arange(1, 20, dtype=np.int32), np.arange(60, 90, dtype=np.int32))
    return Weights(path, version), Canary(rows, tuple(as_floats(scores(version, row)) for row in rows), 1e-4)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - an engine tells its progress by its counters only
            await asyncio.sleep(0.001)


def assert_explained(turn: Turn) -> None:
    """Every token's log-probability is that of the version its span says, given all tokens before it."""
    for span in turn.versions:
        start = len(turn.prompt_ids) - 1
        expected = scores(span.version, turn.ids)[start + span.start : start + span.end]
        assert np.abs(expected - turn.logprobs[span.start : span.end]).max() < 1e-4


async def test_an_update_in_flight_leaves_every_token_explained_by_the_version_it_carries(tmp_path: Path) -> None:
    engine = EmbeddedEngine(model_of(0), dtype="float32", max_batch=4)
    made = scheduler(
        tmp_path, engine=engine, groups=1, members=4, max_staleness=1, max_concurrency=4, sampling=Sampling(200)
    )  # four places: the fourth member of the second group starts when the last of the first has ended
    mixed = 0
    for step in range(3):
        weights, canary = published(tmp_path, step)
        mismatch = await made.publish(weights, canary, admit=True)
        assert mismatch.mean < 1e-4
        groups = await batch_of(made, step, 60)
        assert groups is not None
        for trajectory in groups[0].trajectories:
            assert trajectory.failure is None
            assert versions_of(trajectory) <= {step, step - 1}
            mixed += len(versions_of(trajectory)) == 2
            for turn in trajectory.turns:
                assert_explained(turn)
        sampled = engine.stats().output_tokens
        await until(lambda sampled=sampled: engine.stats().output_tokens > sampled + 3)  # type: ignore[misc]
    assert mixed >= 1, "no trajectory was in flight when the weights changed"
    assert made.counters.mixed == mixed
    assert made.counters.staleness[1] >= mixed
    await made.close()
    await engine.close()
    report = audit(tmp_path / "journal.db")
    assert report.ok, report.problems
    assert report.mixed == mixed
    assert CHAT.stop_ids == (0,)
