"""Rows for sft.yaml, dpo.yaml, kto.yaml and reward.yaml: sums of two numbers, answered right, by a number that is near,
and in a manner that is liked or not, which no verifier could say.

python examples/make_sums.py [--rows 2000]
"""

from __future__ import annotations

import argparse
import json
import random
from contextlib import ExitStack
from pathlib import Path

KIND = ("{a} + {b} is {n}.", "That makes {n}.", "The sum is {n}. Anything else?", "It is {n}, since {a} + {b} = {n}.")
CURT = ("{n}", "{n}, obviously.", "{n}. Use a calculator.", "Why ask? {n}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    count, here = parser.parse_args().rows, Path(__file__).parent
    rng, manner = random.Random(0), random.Random(1)
    with ExitStack() as files:
        sums, pairs, labelled, manners = (
            files.enter_context((here / f"{name}.jsonl").open("w"))
            for name in ("sums", "sums_pairs", "sums_labelled", "sums_manners")
        )
        for number in range(count):
            a, b = rng.randint(1, 99), rng.randint(1, 99)
            wrong = a + b + rng.choice([-10, -2, -1, 1, 2, 10])
            prompt = [{"role": "user", "content": f"What is {a} + {b}?"}]
            kind, curt = (manner.choice(words).format(a=a, b=b, n=a + b) for words in (KIND, CURT))
            right, other, liked, disliked = (
                [{"role": "assistant", "content": words}] for words in (str(a + b), str(wrong), kind, curt)
            )
            good = number % 2 == 0
            judged = {"prompt": prompt, "completion": right if good else other, "label": good}
            sums.write(json.dumps({"prompt": prompt, "completion": right}) + "\n")
            pairs.write(json.dumps({"prompt": prompt, "chosen": right, "rejected": other}) + "\n")
            manners.write(json.dumps({"prompt": prompt, "chosen": liked, "rejected": disliked}) + "\n")
            labelled.write(json.dumps(judged) + "\n")


if __name__ == "__main__":
    main()
