"""What is said to vLLM and what its words mean, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.vllm.dialect import (
    BrokenOff,
    CompletionApi,
    Malformed,
    generate_body,
    read_chunk,
    read_load,
    read_score,
    score_body,
)

BOTH = pytest.mark.parametrize("dialect", list(CompletionApi))


def line(**choice: Any) -> str:
    return "data: " + json.dumps({"choices": [choice]})


def content(*values: float) -> dict[str, Any]:
    return {"content": [{"token_id": 1, "logprob": value, "rank": 1, "top_logprobs": []} for value in values]}


@BOTH
def test_no_seed_is_ever_sent_and_every_bias_is_spelled_out(dialect: CompletionApi) -> None:
    body = generate_body(dialect, "m", [1, 2], Sampling(5, seed=7, top_k=3), 5, salt="s", interval=8)
    settings = body.get("sampling_params", body)
    assert "seed" not in settings
    assert "seed" not in body
    assert (settings["repetition_penalty"], settings["min_p"], settings["top_k"]) == (1.0, 0.0, 3)
    assert (body["stream"], body["cache_salt"], settings["ignore_eos"]) == (True, "s", True)
    assert [1, 2] in body.values()
    assert "seed" not in json.dumps(score_body(dialect, "m", [1, 2], salt="s"))


def test_both_dialects_chunks_are_read() -> None:
    one = read_chunk(CompletionApi.GENERATE, line(token_ids=[4, 5], logprobs=content(-1.0, -2.0), finish_reason=None))
    assert one is not None
    assert (one.ids, one.logprobs, one.finish) == ([4, 5], [-1.0, -2.0], None)
    two = read_chunk(
        CompletionApi.COMPLETIONS, line(token_ids=[4], logprobs={"token_logprobs": [-1.0]}, finish_reason="stop")
    )
    assert two is not None
    assert (two.ids, two.logprobs, two.finish) == ([4], [-1.0], "stop")
    versions = [{"version": "a-1", "start": 0, "end": 3}, {"version": "a-2", "start": 3, "end": 4}]
    last = read_chunk(CompletionApi.GENERATE, line(token_ids=[], finish_reason="abort", weight_versions=versions))
    assert last is not None
    assert (last.ids, last.finish, last.versions) == ((), "abort", [("a-1", 0), ("a-2", 3)])


@pytest.mark.parametrize("text", ["", ": ping", "data: [DONE]", 'data: {"choices": [], "usage": {}}'])
def test_lines_without_tokens_say_nothing(text: str) -> None:
    assert read_chunk(CompletionApi.GENERATE, text) is None


@pytest.mark.parametrize(
    "text",
    [
        "data: nonsense",
        line(token_ids=[4]),
        line(token_ids=[4, 5], logprobs=content(-1.0)),
        line(token_ids=[4], logprobs=content(-9999.0)),
    ],
    ids=["no JSON", "no log-probabilities", "too few", "a NaN as vLLM writes it"],
)
def test_a_chunk_that_is_wrong_is_malformed_never_made_up(text: str) -> None:
    with pytest.raises(Malformed):
        read_chunk(CompletionApi.GENERATE, text)


def test_an_error_within_a_stream_is_the_servers_trouble() -> None:
    with pytest.raises(BrokenOff, match="engine died"):
        read_chunk(CompletionApi.GENERATE, 'data: {"error": {"message": "the engine died", "code": 500}}')


def test_scores_are_those_of_the_prompts_own_tokens() -> None:
    told = [None, {"6": {"logprob": -3.0}, "9": {"logprob": -0.5}}, {"7": {"logprob": -4.0}}]
    assert read_score(CompletionApi.GENERATE, {"prompt_logprobs": told}, [5, 6, 7]).tolist() == [-3.0, -4.0]
    answer = {"choices": [{"prompt_logprobs": told}]}
    assert read_score(CompletionApi.COMPLETIONS, answer, [5, 6, 7]).tolist() == [-3.0, -4.0]
    for ids in ([5, 6], [5, 6, 8]):
        with pytest.raises(Malformed):
            read_score(CompletionApi.GENERATE, {"prompt_logprobs": told}, ids)


def test_loads_of_several_engines_are_added_and_the_fullest_cache_counts() -> None:
    text = """# HELP vllm:num_requests_waiting Number of requests waiting.
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1.2e+03
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 5000.0
"""
    load = read_load(text)
    assert (load.waiting, load.kv_usage, load.preemptions) == (5, 0.75, 4)
    assert (load.prefix_hits, load.prefix_queries) == (1200, 5000)
