"""Publishing: the policy's weights go to the engine's process, with the proof that they arrived.

Invariant: the canary's log-probabilities come from the very model that was trained, through the forward pass it is
trained with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from quintain.arrays import Floats, as_floats
from quintain.config import RolloutConfig
from quintain.failure import QuintainError
from quintain.rollout.client import RolloutClient
from quintain.rollout.engines.base import Weights
from quintain.rollout.engines.dtypes import torch_dtype
from quintain.rollout.engines.vllm.gpu import DirectTransfer
from quintain.rollout.weights.canary import TOLERANCE, Canary, canary_rows
from quintain.rollout.wire import PublishAnswer
from quintain.trainers.batches.batch import micro_batches
from quintain.trainers.learner import Learner
from quintain.trainers.publishing.weights import WeightStore
from quintain.trainers.rows import unsampled
from quintain.trainers.update import by_row


class PolicyPublisher:
    """Publishes `learner`'s policy to `rollout`. `scratch` holds the weights where shared memory cannot."""

    def __init__(self, learner: Learner[Any], rollout: RolloutClient, config: RolloutConfig, *, scratch: Path) -> None:
        self._learner, self._rollout = learner, rollout
        self._dtype = torch_dtype(config.dtype, "rollout.dtype")
        tolerance = config.canary_tolerance
        self._tolerance = TOLERANCE[config.dtype] if tolerance is None else tolerance
        self._rows = canary_rows(learner.tokenizer)
        need = sum(p.numel() for p in learner.model.parameters()) * self._dtype.itemsize
        self._store = WeightStore(scratch, self._dtype, need_bytes=need)
        self._direct = _direct(learner, config)

    def publish(self, version: int, *, admit: bool) -> PublishAnswer:
        """Write the weights, or send them to the servers, and have the engine prove them. FailureError where it does
        not, QuintainError where the weights are not fit to be published."""
        canary = Canary(self._rows, self._logprobs(), self._tolerance)
        if self._direct is None:
            weights = self._store.write(self._learner.weights(), version)
            return self._rollout.publish(weights, canary, admit=admit)
        sent = self._direct.begin(version)
        answer = self._rollout.publish(Weights(self._store.folder, version), canary, admit=admit)
        sent.result()
        return answer

    def admit(self, version: int) -> None:
        """Let training episodes start at `version`. FailureError where the server has lost its weights."""
        self._rollout.admit(version)

    def close(self) -> None:
        """Remove the published weights."""
        self._store.close()
        if self._direct is not None:
            self._direct.close()

    def _logprobs(self) -> tuple[Floats, ...]:
        """What the trained model says of the canary's rows: [L] tokens, [L - 1] log-probabilities each."""
        segments = [unsampled(ids, np.arange(len(ids)) > 0) for ids in self._rows]
        pieces = micro_batches(segments, range(len(segments)), layout="padded", max_tokens=1 << 20)
        scored = {at: self._learner.score(piece, temperature=1.0).logp for at, piece in enumerate(pieces)}
        said = by_row(pieces, scored)
        if not all(np.isfinite(logp).all() for logp in said.values()):
            raise QuintainError(
                "the trained weights give log-probabilities that are not finite: training has diverged; lower"
                " trainer.learning_rate, then go on with --resume"
            )
        return tuple(as_floats(said[index]) for index in range(len(segments)))


def _direct(learner: Learner[Any], config: RolloutConfig) -> DirectTransfer | None:
    """What sends weights from GPU to GPU, where the experiment asks for it (rollout.vllm.transfer)."""
    options = config.vllm
    if options is None or options.transfer == "folder":
        return None
    return DirectTransfer(learner.weights, options.urls, backend=options.transfer, api_key=options.api_key(os.environ))
