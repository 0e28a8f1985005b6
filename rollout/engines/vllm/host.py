"""Runs in vLLM's Python: an unmodified vLLM API server that ends with whoever launched it, workers and all.

`python -m quintain.rollout.engines.vllm.host --model ...`: the arguments are those of vLLM's own server. Invariant:
the server and every process it starts are one group under a guard (`quintain.lifeline`): when the launcher is gone, or
the server is, so are they all.
"""

from __future__ import annotations

import runpy

from quintain.lifeline import guard


def main() -> None:
    """Become vLLM's server, under a guard."""
    guard()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
