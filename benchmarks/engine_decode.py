"""How fast the embedded engine samples, against `model.generate` of transformers, and against what the machine can do.

The quickstart's case: SmolLM2-135M-Instruct in the faster type on this machine, eight distinct prompts of about 40
tokens with eight completions each, 24 tokens per completion, temperature 1. Both sides get the same model, prompts and
threads, in turns, and each is judged by its best round: other work on the machine can only make a round slower.

The bound is what the products of one decode step cost alone, with weights that are packed and not in the cache: no
engine that reads every weight once a step can be faster on this machine.

    python benchmarks/engine_decode.py [--model FOLDER] [--threads N] [--rounds N]

The last line is JSON: ratios `vs_hf_generate` (ours / theirs, tokens per second) and `of_bound` (ours / the bound).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

# Threads that wait by spinning starve each other wherever another process wants the core. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.dtypes import DTYPES, faster
from quintain.rollout.engines.embedded.engine import EmbeddedEngine
from quintain.rollout.engines.embedded.packing import pack

PROMPTS, GROUP, TOKENS = 8, 8, 24
ROWS = PROMPTS * GROUP
HERE = Path(__file__).resolve().parent.parent


def prompts(folder: Path) -> list[list[int]]:
    """The quickstart's kind of question, as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = [f"What is {3 * i + 1} + {29 - 2 * i}?" for i in range(PROMPTS)]
    chats = [[{"role": "user", "content": question}] for question in questions]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def theirs(folder: Path, ids: list[list[int]], dtype: torch.dtype) -> Callable[[], float]:
    """A round of `model.generate`, which pads on the left and reads every prompt of a group."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    longest = max(map(len, ids))
    rows = [[2] * (longest - len(prompt)) + prompt for prompt in ids for _ in range(GROUP)]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in ids for _ in range(GROUP)]

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                min_new_tokens=TOKENS,
                max_new_tokens=TOKENS,
                pad_token_id=2,
            )
        return time.perf_counter() - start

    return run


def ours(engine: EmbeddedEngine, ids: list[list[int]]) -> Callable[[int], float]:
    """A round of the embedded engine: 64 concurrent requests."""

    async def together(seed: int) -> None:
        await asyncio.gather(
            *(
                engine.generate(np.array(prompt), Sampling(TOKENS, seed=seed * ROWS + row), session=f"{row}")
                for row, prompt in enumerate(prompt for prompt in ids for _ in range(GROUP))
            )
        )

    def run(seed: int) -> float:
        start = time.perf_counter()
        asyncio.run(together(seed))
        return time.perf_counter() - start

    return run


def bound(folder: Path, dtype: torch.dtype) -> Callable[[], float]:
    """One step's products for all rows, weights packed: seconds."""
    config = json.loads((folder / "config.json").read_text())
    size, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    attention = config["num_attention_heads"] * head
    both = 2 * config["num_key_value_heads"] * head
    shapes = [(attention + both, size), (size, attention), (2 * inner, size), (size, inner)]
    shapes = shapes * config["num_hidden_layers"] + [(config["vocab_size"], size)]
    layers = [(pack(torch.randn(out, into, dtype=dtype)), into) for out, into in shapes]
    rows = {into: torch.randn(ROWS, into, dtype=dtype) for _, into in layers}

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for layer, into in layers:
                layer(rows[into])
        return time.perf_counter() - start

    return run


def bandwidth_gb_s() -> float:
    """How fast this process reads memory."""
    block = torch.ones(64 << 20)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        functional.relu_(block)
        times.append(time.perf_counter() - start)
    return 2 * block.nbytes / min(times) / 1e9


def main() -> None:
    """Run both sides in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ids = prompts(given.model)
    name = faster()[0]
    engine = EmbeddedEngine(str(given.model), dtype=name, threads=given.threads)
    run_ours, dtype = ours(engine, ids), DTYPES[name]
    run_theirs, run_bound = theirs(given.model, ids, dtype), bound(given.model, dtype)
    times: dict[str, list[float]] = {"theirs": [], "ours": [], "bound_step": []}
    for turn in range(given.rounds + 1):
        times["theirs"].append(run_theirs())
        times["ours"] += [run_ours(2 * turn), run_ours(2 * turn + 1)]
        times["bound_step"] += [run_bound() for _ in range(5)]
        print(f"round {turn}: generate {times['theirs'][-1]:.2f} s, engine {times['ours'][-1]:.2f} s")
    asyncio.run(engine.close())
    best = {name: min(taken) for name, taken in times.items()}
    tokens = ROWS * TOKENS
    rates = {
        "hf_generate": tokens / best["theirs"],
        "engine": tokens / best["ours"],
        "bound": ROWS / best["bound_step"],
    }
    report = {
        "benchmark": "engine_decode",
        "ratios": {
            "vs_hf_generate": round(rates["engine"] / rates["hf_generate"], 2),
            "of_bound": round(rates["engine"] / rates["bound"], 2),
        },
        "detail": {
            "tokens_per_s": {name: round(rate) for name, rate in rates.items()},
            "seconds": {name: [round(x, 3) for x in taken] for name, taken in times.items()},
            "memory_gb_per_s": round(bandwidth_gb_s(), 1),
            "dtype": name,
            "threads": given.threads,
            "load_average": os.getloadavg()[0],
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
