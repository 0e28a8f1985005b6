"""A training step with the prompt run once for its whole group, against the same step over padded rows.

The case of the design: a prompt of 256 tokens, eight completions of 32 to 128 (seeded), SmolLM2-135M's shape with
random weights in float32, so nothing is fetched. Both sides run the same model, the same chunked LM head at policy
tokens only, and a forward and backward pass; they differ in layout alone. The padded side is as good as padding gets:
prompts begin together, padding comes last, so attention is plain causal and needs no mask. The sides take turns, each
is judged by its best turn, and their gradients are compared.

    python benchmarks/tree_packing.py [--threads N] [--repeats N] [--small]

The last line is JSON: ratio `speedup` (padded seconds / tree seconds).
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

# Threads that wait by spinning starve each other wherever another process wants the core. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _side import report
from transformers import LlamaConfig, LlamaForCausalLM

from quintain.trainers.batches.batch import Layout, micro_batches
from quintain.trainers.model.forward import PolicyForward
from quintain.trajectory import Segment

GROUP, SHORTEST, LONGEST = 8, 32, 128
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
}  # fmt: skip
SMALL = SMOLLM2 | {"vocab_size": 512, "num_hidden_layers": 2}
LAYOUTS: tuple[Layout, ...] = ("padded", "tree")


def group(prompt_tokens: int, words: int, seed: int) -> list[Segment]:
    """The rows of one group: a common prompt, completions that differ from their first token on."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SHORTEST, LONGEST + 1, GROUP)
    prompt = rng.integers(3, words, prompt_tokens, dtype=np.int32)
    rows = []
    for length in lengths:
        ids = np.concatenate([prompt, rng.integers(3, words, length, dtype=np.int32)])
        mask = np.arange(len(ids)) >= prompt_tokens
        rows.append(
            Segment(
                ids,
                mask,
                np.zeros(len(ids), np.float32),
                np.where(mask, 0, -1).astype(np.int32),
                np.zeros(len(ids), np.float32),
            )
        )
    return rows


def step(policy: PolicyForward, rows: list[Segment], layout: Layout, upstream: torch.Tensor) -> tuple[float, int]:
    """(seconds of forward and backward, tokens run with padding); gradients are left in the parameters."""
    policy.zero_grad(set_to_none=True)
    started = time.perf_counter()
    (batch,) = micro_batches(
        rows, [0] * len(rows), layout=layout, max_tokens=1 << 20, parity_tokens=policy.parity_tokens
    )
    (policy(batch).logp * upstream).sum().backward()
    return time.perf_counter() - started, batch.input_ids.numel()


def gradients(policy: PolicyForward) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--small", action="store_true", help="two layers and a small vocabulary, to try the script")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    config: dict[str, Any] = SMALL if options.small else SMOLLM2
    policy = PolicyForward(LlamaForCausalLM(LlamaConfig(**config)).train(), entropy=False)
    rows = group(options.prompt, config["vocab_size"], options.seed)
    count = sum(int(row.mask.sum()) for row in rows)
    upstream = torch.randn(count) / count
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    tokens: dict[str, int] = {}
    found: dict[str, torch.Tensor] = {}
    for turn in range(options.repeats):
        for layout in LAYOUTS:
            spent, tokens[layout] = step(policy, rows, layout, upstream)
            seconds[layout].append(spent)
            print(f"turn {turn}: {layout} {spent:.2f} s, {tokens[layout]} tokens", flush=True)
            if turn == 0:
                found[layout] = gradients(policy)
    apart = float((found["tree"] - found["padded"]).norm() / found["padded"].norm())
    if not apart <= 1e-5:
        raise SystemExit(f"the gradients of the two layouts differ by {apart:.2g} relative: expected at most 1e-5")
    best = {layout: min(times) for layout, times in seconds.items()}
    report(
        "tree_packing",
        {"speedup": best["padded"] / best["tree"]},
        {"seconds": seconds, "tokens": tokens, "policy_tokens": count, "gradient_error": apart, **vars(options)},
    )


if __name__ == "__main__":
    main()
