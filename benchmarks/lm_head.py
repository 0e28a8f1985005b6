"""The chunked LM head against logits in full: 2,048 positions of width 896 over 151,936 words, float32.

Both sides compute the log-probability of one word at each position and its gradient by hidden states and weight.
Time: the sides take turns in one process, each is judged by its best turn, and their gradients are compared. Memory:
each side in a process of its own, the kernel's count of its peak resident size, less what was resident before, less
the gradients themselves, which either side must return. With a frozen weight, as under LoRA, there is no gradient of
the weight to leave out; that ratio is in the detail, and so is the one that leaves nothing out.

    python benchmarks/lm_head.py [--threads N] [--repeats N] [--positions N] [--words N]

The last line is JSON: ratios `peak_memory` and `time` (chunked / full), and `entropy_memory`, the peak with an entropy
bonus in the loss by the peak without (in chunks, gradients included).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

# Threads that wait by spinning starve each other wherever another process wants the core. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _side import report
from torch import Tensor

from quintain.trainers.model.lm_head import chunked_logprobs

WIDTH = 896


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The log-probabilities [N] by way of all logits [N, V]."""
    return torch.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same in chunks."""
    return chunked_logprobs(hidden, weight, targets)[0]


def entropic(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same, less an entropy bonus, whose gradient is wanted too."""
    scored = chunked_logprobs(hidden, weight, targets, entropy=True)
    assert scored.entropy is not None
    return scored.logp + 0.01 * scored.entropy


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"full": full, "chunked": chunked}


def operands(positions: int, words: int, *, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.empty(positions, WIDTH).normal_(), torch.empty(words, WIDTH).normal_(std=0.02)
    return hidden.requires_grad_(), weight.requires_grad_(not frozen), torch.randint(0, words, (positions,))


def run(side: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Seconds of one forward and backward pass; gradients are left in the operands."""
    hidden.grad = weight.grad = None
    started = time.perf_counter()
    {**SIDES, "entropic": entropic}[side](hidden, weight, targets).sum().backward()
    return time.perf_counter() - started


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_of_this_process(side: str, positions: int, words: int, frozen: bool) -> dict[str, int]:
    """{peak: bytes above the operands, gradients: bytes of what is returned}."""
    run(side, *operands(8, 64))  # what the libraries themselves allocate at first use is nobody's working memory
    hidden, weight, targets = operands(positions, words, frozen=frozen)
    before = peak_bytes()
    run(side, hidden, weight, targets)
    return {
        "peak": peak_bytes() - before,
        "gradients": sum(x.grad.nbytes for x in (hidden, weight) if x.grad is not None),
    }


def memory(side: str, options: argparse.Namespace, *, frozen: bool) -> dict[str, int]:
    """`memory_of_this_process` of a process of its own."""
    sizes = ["--positions", str(options.positions), "--words", str(options.words), "--threads", str(options.threads)]
    command = [sys.executable, __file__, "--memory", side, *sizes, *(["--frozen"] if frozen else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    kind = "frozen" if frozen else "trained"
    print(f"memory: {side}, {kind} weight: {measured['peak'] / 1e9:.3f} GB above the operands", flush=True)
    return measured


def timed(options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """(seconds of each side's turns, relative difference of the gradients)."""
    inputs = operands(options.positions, options.words)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    found: dict[str, list[Tensor]] = {}
    for turn in range(options.repeats):
        for side in SIDES:
            seconds[side].append(run(side, *inputs))
            print(f"turn {turn}: {side} {seconds[side][-1]:.2f} s", flush=True)
            if turn == 0:
                found[side] = [x.grad for x in inputs if x.grad is not None]
    apart = max(
        float((mine - theirs).norm() / theirs.norm())
        for mine, theirs in zip(found["chunked"], found["full"], strict=True)
    )
    if not apart <= 1e-5:
        raise SystemExit(f"the gradients of the two sides differ by {apart:.2g} relative: expected at most 1e-5")
    return seconds, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--words", type=int, default=151_936)
    parser.add_argument("--memory", choices=[*SIDES, "entropic"], help=argparse.SUPPRESS)
    parser.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory is not None:
        print(json.dumps(memory_of_this_process(options.memory, options.positions, options.words, options.frozen)))
        return
    trained = {side: memory(side, options, frozen=False) for side in SIDES}
    frozen = {side: memory(side, options, frozen=True) for side in SIDES}
    entropy = memory("entropic", options, frozen=False)
    seconds, apart = timed(options)

    def ratio(bytes_of: Callable[[str], int]) -> float:
        return bytes_of("chunked") / bytes_of("full")

    report(
        "lm_head",
        {
            "peak_memory": ratio(lambda side: trained[side]["peak"] - trained[side]["gradients"]),
            "entropy_memory": entropy["peak"] / trained["chunked"]["peak"],
            "time": min(seconds["chunked"]) / min(seconds["full"]),
        },
        {
            "peak_memory_frozen_weight": round(ratio(lambda side: frozen[side]["peak"]), 4),
            "peak_memory_with_gradients": round(ratio(lambda side: trained[side]["peak"]), 4),
            "bytes_trained_weight": trained,
            "bytes_frozen_weight": frozen,
            "seconds": seconds,
            "gradient_error": apart,
            "threads": options.threads,
            "positions": options.positions,
            "words": options.words,
        },
    )


if __name__ == "__main__":
    main()
