"""Teachers of distillation: a model on this machine, or one behind a vLLM server.

Either has the policy's tokenizer, which is checked before anything is sampled, and says of the tokens of rows how
likely they were. A model on this machine also gives whole distributions, which the policy's are compared with in
chunks (`DistillingForward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quintain.calling.caller import Caller
from quintain.calling.retry import RetryPolicy
from quintain.codec import from_json, to_json
from quintain.config import DistillationConfig, ExperimentConfig
from quintain.failure import FailureError, QuintainError, Stage
from quintain.rollout.engines.vllm.dialect import CompletionApi, Malformed, read_score, score_body
from quintain.trainers.batches.batch import MicroBatch
from quintain.trainers.model.forward import PolicyForward, TokenLogprobs, head_of, plain_model, predicting_states
from quintain.trainers.model.lm_head import chunked_divergence
from quintain.trainers.model.policy import load_policy
from quintain.trainers.model.value import check_tokenizer
from quintain.trainers.rows import Floats, Row

AT_ONCE = 8
"""Rows that a server is asked about side by side."""
PROBE = "What is 17 + 8? It's twenty-five: naïve façade, 漢字, \n\tx = [0];"
"""What two tokenizers of one vocabulary read alike."""


def load_teacher(config: ExperimentConfig, tokenizer: Any) -> nn.Module | RemoteTeacher:
    """The teacher that the trainer's options name. QuintainError where it is none that this policy can learn from."""
    options = config.trainer
    assert isinstance(options, DistillationConfig)
    if options.teacher_url is not None:
        if config.rollout.temperature != 1:
            raise QuintainError(
                f"trainer.teacher_url: a server gives log-probabilities at temperature 1: set rollout.temperature to 1"
                f" (it is {config.rollout.temperature:g}), or give the teacher's folder"
            )
        return RemoteTeacher(options.teacher_url, options.teacher_token, options.teacher_name, tokenizer)
    assert options.teacher is not None
    check_tokenizer("trainer.teacher", options.teacher, config, tokenizer)
    try:
        teacher, _ = load_policy(
            config.model.model_copy(update={"path": options.teacher, "lora": None}), seed=config.seed
        )
    except QuintainError as error:
        raise QuintainError(f"trainer.teacher: {str(error).removeprefix('model.path: ')}") from None
    return teacher.eval().requires_grad_(False)


class RemoteTeacher:
    """A model behind a vLLM server. QuintainError where it gives no log-probabilities, or reads other tokens."""

    def __init__(self, url: str, token: str | None, name: str | None, tokenizer: Any) -> None:
        self._url = url.removesuffix("/v1")
        self._caller = Caller(self._url, token, server="teacher", policy=RetryPolicy(), max_connections=AT_ONCE)
        ids = tokenizer.encode(PROBE, add_special_tokens=False)
        try:
            self._name = name or str(self._asked("GET", "/v1/models")["data"][0]["id"])
            self.logprobs([*ids, len(tokenizer) - 1])
        except (FailureError, Malformed, KeyError, IndexError, TypeError) as error:
            raise QuintainError(
                f"trainer.teacher_url: {url} gives no log-probabilities of the policy's tokens ({error}): start vLLM"
                " with a model of the policy's tokenizer there, or give the teacher's folder"
            ) from None
        try:
            theirs = self._asked(
                "POST", "/tokenize", {"model": self._name, "prompt": PROBE, "add_special_tokens": False}
            )
        except FailureError:
            return  # a server that does not say how it reads
        if theirs.get("tokens") != ids:
            raise QuintainError(
                f"trainer.teacher_url: {self._name} reads other tokens than the policy: take a teacher with its"
                " tokenizer"
            )

    def logprobs(self, ids: Sequence[int]) -> Floats:
        """[L − 1]: of each of `ids` [L] but the first. FailureError where the server does not answer, Malformed where
        it says something else."""
        body = score_body(CompletionApi.COMPLETIONS, self._name, ids, salt="teacher")
        return read_score(CompletionApi.COMPLETIONS, self._asked("POST", CompletionApi.COMPLETIONS.value, body), ids)

    def of(self, rows: Sequence[Row]) -> list[Floats]:
        """[T] of each row's policy tokens. QuintainError where the server says something else."""

        def ask(row: Row) -> Floats:
            return self.logprobs(row.segment.ids.tolist())[row.segment.mask[1:]]

        with ThreadPoolExecutor(AT_ONCE, "teacher") as pool:
            try:
                return list(pool.map(ask, rows))
            except Malformed as error:
                raise QuintainError(f"trainer.teacher_url: {self._url}: {error}") from None

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        sent = None if body is None else to_json(body).encode()
        return from_json(self._caller.call_sync(method, path, Stage.GENERATE, sent).content, dict[str, Any])


class DistillingForward(PolicyForward):
    """The policy's forward pass, which where there is a gradient also says how far its distributions are from the
    teacher's."""

    def __init__(self, model: nn.Module, teacher: nn.Module, *, temperature: float, beta: float) -> None:
        super().__init__(model, temperature=temperature)
        self.beta = beta
        self._teacher = (PolicyForward(teacher),)  # in a tuple: it is not trained, wrapped or saved with the policy

    def forward(
        self,
        batch: MicroBatch,
        temperature: float | None = None,
        states: Tensor | None = None,
    ) -> TokenLogprobs:
        """As `PolicyForward`, with `divergence` [T] where there is a gradient."""
        if not torch.is_grad_enabled():
            return super().forward(batch, temperature)
        policy, teacher = plain_model(self.model), plain_model(self._teacher[0].model)
        batch = batch.to(policy.device)
        states = predicting_states(policy, batch)
        with torch.no_grad():
            theirs = predicting_states(teacher, batch)
        apart = chunked_divergence(
            states, head_of(policy), theirs, head_of(teacher), beta=self.beta, temperature=self.temperature
        )
        with torch.no_grad():
            scored = super().forward(batch, temperature, states)
        return replace(scored, divergence=apart[batch.predictor])
