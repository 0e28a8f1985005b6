"""A program for vLLM's environment: loads each folder that it is given as a model, and prints what the models say of
the tokens of the last argument (JSON), each given those before it: log-probabilities, as JSON in the last line."""

import gc
import json
import sys

from vllm import LLM, SamplingParams

*folders, text = sys.argv[1:]
ids = json.loads(text)
found = []
for folder in folders:
    llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64, num_gpu_blocks_override=16, block_size=32)
    (said,) = llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    found.append([at[token].logprob for at, token in zip(said.prompt_logprobs[1:], ids[1:], strict=True)])
    del llm
    gc.collect()
print(json.dumps(found))
