"""The two ways to ask a vLLM server for tokens, as data: what to send and what comes back.

`/inference/v1/generate` takes and gives token ids and says which weights sampled which token; it needs
`--enable-scale-out`. `/v1/completions` takes and gives token ids as well, on more servers, and knows no weights.
Invariant: nothing is left to a server's defaults, and no seed is ever sent: vLLM's CPU engine dies of one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quintain.arrays import Floats, as_floats
from quintain.rollout.engines.base import Sampling

NOT_FINITE = -9000.0
"""vLLM writes -9999 for a log-probability that is NaN or minus infinity."""


class CompletionApi(StrEnum):
    """Which endpoint: the value is its path."""

    GENERATE = "/inference/v1/generate"
    COMPLETIONS = "/v1/completions"


class Malformed(Exception):
    """The server answered something else than the dialect says; one line."""


class BrokenOff(Exception):
    """The server says that it cannot go on with a stream; one line."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of a streamed answer. `finish` is vLLM's word with the last of them; `versions` is (label, first
    token) of its whole answer, where it says so."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    finish: str | None = None
    versions: Sequence[tuple[str, int]] = ()


def generate_body(
    dialect: CompletionApi, model: str, ids: Sequence[int], sampling: Sampling, limit: int, *, salt: str, interval: int
) -> dict[str, Any]:
    """A streaming request for at most `limit` tokens after `ids`; prefixes are shared among equal `salt` only."""
    settings = {
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "skip_special_tokens": False,
    }
    common = {"model": model, "stream": True, "cache_salt": salt}
    if dialect is CompletionApi.GENERATE:
        inside = settings | {"detokenize": False, "stream_interval": interval}
        return common | {"token_ids": list(ids), "sampling_params": inside}
    return common | settings | {"prompt": list(ids), "return_token_ids": True, "add_special_tokens": False}


def score_body(dialect: CompletionApi, model: str, ids: Sequence[int], *, salt: str) -> dict[str, Any]:
    """A request for the log-probabilities of `ids` themselves; one token is sampled, since none cannot be asked for."""
    settings: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    common = {"model": model, "stream": False, "cache_salt": salt}
    if dialect is CompletionApi.GENERATE:
        return common | {"token_ids": list(ids), "sampling_params": settings | {"detokenize": False}}
    return common | settings | {"prompt": list(ids), "add_special_tokens": False}


def read_chunk(dialect: CompletionApi, line: str) -> Chunk | None:
    """What one `data:` line of a stream says; None where it says nothing about tokens.

    Malformed where it is wrong, BrokenOff where the server gives up.
    """
    if not line.startswith("data:") or line == "data: [DONE]":
        return None
    try:
        event = json.loads(line[5:])
        if "error" in event:
            raise BrokenOff(str(event["error"].get("message", event["error"])))
        if not event.get("choices"):
            return None
        choice = event["choices"][0]
        ids = choice.get("token_ids") or []
        if not ids:
            return Chunk((), (), choice.get("finish_reason"), _versions(choice))
        if dialect is CompletionApi.GENERATE:
            logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        else:
            logprobs = choice["logprobs"]["token_logprobs"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"expected a chunk with token ids and log-probabilities: {type(error).__name__}") from None
    if len(ids) != len(logprobs):
        raise Malformed(f"{len(ids)} token ids came with {len(logprobs)} log-probabilities")
    if not all(math.isfinite(value) and value > NOT_FINITE for value in logprobs):
        raise Malformed("a log-probability is not finite: the model's weights are broken")
    return Chunk(ids, logprobs, choice.get("finish_reason"), _versions(choice))


def read_score(dialect: CompletionApi, answer: Mapping[str, Any], ids: Sequence[int]) -> Floats:
    """The log-probabilities [L - 1] of `ids` in the answer to a `score_body`. Malformed where they are not there."""
    try:
        holder = answer if dialect is CompletionApi.GENERATE else answer["choices"][0]
        told = holder["prompt_logprobs"]
        pairs = zip(told[1:], ids[1:], strict=True)
        values = [float(entry[str(int(token))]["logprob"]) for entry, token in pairs]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Malformed(f"expected a log-probability for each token of the prompt: {type(error).__name__}") from None
    return as_floats([value if value > NOT_FINITE else math.nan for value in values])


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica says of itself in /metrics; counters since its own start."""

    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    prefix_hits: int = 0
    prefix_queries: int = 0


_METRICS = {
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:prefix_cache_queries_total": "prefix_queries",
}


def read_load(text: str) -> Load:
    """The replica's load from Prometheus' text format; data-parallel engines are added up, of their use the highest."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name in _METRICS:
            found.setdefault(_METRICS[name], []).append(float(rest.rpartition("}")[2]))
    totals: dict[str, Any] = {name: int(sum(values)) for name, values in found.items() if name != "kv_usage"}
    return Load(**totals, kv_usage=max(found.get("kv_usage", [0.0])))


def _versions(choice: Mapping[str, Any]) -> Sequence[tuple[str, int]]:
    return [(str(span["version"]), int(span["start"])) for span in choice.get("weight_versions") or []]
