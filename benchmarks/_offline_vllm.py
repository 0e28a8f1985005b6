"""Runs in vLLM's environment: vLLM's offline `LLM.generate`, one batch for each line of standard input.

    python _offline_vllm.py MODEL MAX_TOKENS STOP_ID CONCURRENCY DTYPE

Then lines of JSON: lists of lists of token ids.

Answers each line with JSON: {"tokens": ..., "seconds": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    from vllm import LLM, SamplingParams

    model = sys.argv[1]
    max_tokens, stop, concurrency = map(int, sys.argv[2:5])
    engine = LLM(
        model=model,
        dtype=sys.argv[6],
        max_model_len=1024,
        max_num_seqs=concurrency,
        block_size=32,
        enforce_eager=True,
        logprobs_mode="processed_logprobs",
    )
    params = SamplingParams(
        max_tokens=max_tokens, temperature=1.0, logprobs=0, stop_token_ids=[stop], ignore_eos=True, detokenize=False
    )
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
        began = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens": tokens, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
