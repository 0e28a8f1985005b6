"""Rows for sft.yaml, dpo.yaml, kto.yaml and reward.yaml: sums of two numbers, answered right, and by a number that is
near.

python examples/make_sums.py [--rows 2000]
"""

from __future__ import annotations

import argparse
import json
import random
from contextlib import ExitStack
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    count, rng, here = parser.parse_args().rows, random.Random(0), Path(__file__).parent
    with ExitStack() as files:
        sums, pairs, labelled = (
            files.enter_context((here / f"{name}.jsonl").open("w")) for name in ("sums", "sums_pairs", "sums_labelled")
        )
        for number in range(count):
            a, b = rng.randint(1, 99), rng.randint(1, 99)
            wrong = a + b + rng.choice([-10, -2, -1, 1, 2, 10])
            prompt = [{"role": "user", "content": f"What is {a} + {b}?"}]
            right, other = ([{"role": "assistant", "content": str(n)}] for n in (a + b, wrong))
            good = number % 2 == 0
            judged = {"prompt": prompt, "completion": right if good else other, "label": good}
            sums.write(json.dumps({"prompt": prompt, "completion": right}) + "\n")
            pairs.write(json.dumps({"prompt": prompt, "chosen": right, "rejected": other}) + "\n")
            labelled.write(json.dumps(judged) + "\n")


if __name__ == "__main__":
    main()
