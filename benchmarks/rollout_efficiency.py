"""What the rollout server costs beside vLLM itself: tokens per second, three ways, from one model.

- ours: `quintain rollout serve` in a process of its own, with an environment behind HTTP in another, sampling
  single-turn episodes from a vLLM server: streamed tokens, trajectories, verdicts and all;
- bare: an asyncio client that sends the same kind of prompts, all at once, to the same vLLM server and reads token ids
  and log-probabilities, nothing more;
- offline: vLLM's `LLM.generate` in one process, without a server.

    python benchmarks/rollout_efficiency.py [--episodes N] [--tokens N] [--concurrency N] [--rounds N]

SmolLM2-135M-Instruct, in the faster type on this machine, on vLLM's CPU build (scripts/setup_vllm.py). All three sample
in the same way, to the end of the turn or --tokens; every round has fresh prompts of its own, and the three take turns.
The last line is JSON: ratios `vs_bare_http` (aim: 0.95) and `vs_offline` (aim: 0.88) of tokens per second, medians over
the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from _side import ROOT, report, vllm_python

from quintain.config import ExperimentConfig, VLLMConfig, dump_config, parse_config
from quintain.envs.builtin.math import MathEnv
from quintain.rollout.chat.load import load_tokenizer
from quintain.rollout.chat.template import TemplateChat
from quintain.rollout.client import RolloutClient
from quintain.rollout.engines.dtypes import faster
from quintain.rollout.engines.vllm.start import environ, flags

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
START_S = 300.0


def experiment(url: str, tokens: int, concurrency: int) -> ExperimentConfig:
    """Single-turn sums, sampled from the vLLM server at `url`."""
    given: dict[str, Any] = {
        "model.path": str(MODEL),
        "environment.name": "math",
        "environment.args": {"operations": "+", "low": 1, "high": 999},
        "rollout.engine": "vllm",
        "rollout.dtype": faster()[0],
        "rollout.max_length": 1024,
        "rollout.max_completion_length": tokens,
        "rollout.max_concurrency": concurrency,
        "rollout.vllm.urls": [url],
    }
    return parse_config("{}", [f"{path}={json.dumps(value)}" for path, value in given.items()], origin="the benchmark")


@contextmanager
def vllm_server(python: str, config: ExperimentConfig, folder: Path) -> Iterator[str]:
    """The address of an unmodified vLLM server with the flags that quintain gives."""
    port = int(str(config.rollout.vllm.urls[0]).rsplit(":", 1)[1]) if config.rollout.vllm else 0
    server = VLLMConfig(python=python)
    command = [python, "-m", "vllm.entrypoints.openai.api_server", f"--port={port}", "--host=127.0.0.1"]
    command += flags(config, server, cpu=True)
    with (folder / "vllm.log").open("wb") as log:
        variables = os.environ | environ(config, server, 0, cpu=True)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _await(f"{url}/health", process, folder / "vllm.log")
        yield url
    finally:
        process.terminate()
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it has left behind


@contextmanager
def rollout_server(config: ExperimentConfig, folder: Path) -> Iterator[RolloutClient]:
    """A client of `quintain rollout serve`."""
    file = folder / "experiment.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "quintain", "rollout", "serve", str(file), "--port=0", "--json"]
    with (folder / "rollout.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--run-dir={folder / 'run'}"], stdout=subprocess.PIPE, stderr=log, cwd=folder
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the rollout server did not come up:\n{(folder / 'rollout.log').read_text()}")
        with RolloutClient(json.loads(line)["url"]) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


class Offline:
    """vLLM's offline engine in its own environment."""

    def __init__(self, python: str, tokens: int, stop: int, concurrency: int, dtype: str, folder: Path) -> None:
        script = Path(__file__).with_name("_offline_vllm.py")
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
        threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
        with (folder / "offline.log").open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(script), str(MODEL), str(tokens), str(stop), str(concurrency), dtype],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | settings | threads,
                start_new_session=True,
            )
        if self._answer() != "ready":
            raise SystemExit(f"vLLM's offline engine did not come up:\n{(folder / 'offline.log').read_text()}")

    def rate(self, prompts: Sequence[list[int]]) -> float:
        """Tokens per second over one batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(prompts)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._answer())
        return float(answer["tokens"] / answer["seconds"])

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # and the processes that vLLM has started
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


async def bare(url: str, prompts: Sequence[list[int]], tokens: int, stop: int) -> float:
    """Tokens per second of a client that does nothing but ask."""
    settings = {"max_tokens": tokens, "temperature": 1.0, "logprobs": 0, "detokenize": False}
    settings |= {"stop_token_ids": [stop], "ignore_eos": True}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    got = 0

    async def ask(client: httpx.AsyncClient, ids: list[int]) -> None:
        nonlocal got
        body = {"token_ids": ids, "sampling_params": settings}
        answer = await client.post("/inference/v1/generate", json=body)
        answer.raise_for_status()
        got += len(answer.json()["choices"][0]["token_ids"])

    async with httpx.AsyncClient(base_url=url, timeout=600.0, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(ask(client, ids) for ids in prompts))
        return got / (time.perf_counter() - began)


def ours(client: RolloutClient, indices: range) -> float:
    """Tokens per second of finished trajectories."""
    began = time.perf_counter()
    groups = client.run_tasks("train", indices, temperature=1.0)
    seconds = time.perf_counter() - began
    rows = [row for group in groups for row in group.trajectories]
    if failed := [row.failure for row in rows if row.failure is not None]:
        raise SystemExit(f"{len(failed)} of {len(rows)} episodes failed: {failed[0]}")
    return sum(row.output_tokens for row in rows) / seconds


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"vLLM did not come up:\n{log.read_text()[-3000:]}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=256, help="of a round")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    python = vllm_python()

    chat = TemplateChat(load_tokenizer(str(MODEL)))
    tasks = MathEnv.tasks("train", operations="+", low=1, high=999)
    (stop,) = chat.stop_ids
    rates: dict[str, list[float]] = {"ours": [], "bare": [], "offline": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = experiment(f"http://127.0.0.1:{_free_port()}", args.tokens, args.concurrency)
        url = stack.enter_context(vllm_server(python, config, folder))
        client = stack.enter_context(rollout_server(config, folder))
        offline = Offline(python, args.tokens, stop, args.concurrency, config.rollout.dtype, folder)
        stack.callback(offline.close)
        for turn in range(args.rounds + 1):  # the first one warms up
            first = 3 * turn * args.episodes
            spans = [range(first + part * args.episodes, first + (part + 1) * args.episodes) for part in range(3)]
            prompts = [[chat.first(tasks[index].prompt).tolist() for index in span] for span in spans[:2]]
            got = {
                "bare": asyncio.run(bare(url, prompts[0], args.tokens, stop)),
                "offline": offline.rate(prompts[1]),
                "ours": ours(client, spans[2]),
            }
            print(
                f"round {turn}: " + ", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in got.items()), flush=True
            )
            for name, rate in got.items():
                rates[name] += [rate] if turn else []
    mid = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {"vs_bare_http": mid["ours"] / mid["bare"], "vs_offline": mid["ours"] / mid["offline"]}
    rounded = {name: round(value, 1) for name, value in mid.items()}
    aims = {"vs_bare_http": 0.95, "vs_offline": 0.88}
    report("rollout_efficiency", ratios, {"tokens_per_s": rounded, "aims": aims, "episodes": args.episodes})


if __name__ == "__main__":
    main()
