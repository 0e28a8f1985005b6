"""Real vLLM for tests: a tiny tied model from a seed, servers of it on this machine, and an oracle in transformers.

Whoever tests against real vLLM uses `model_folder` and `experiment`, and marks the test `needs_vllm`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from quintain.config import ExperimentConfig
from quintain.rollout.engines.base import Weights
from quintain.rollout.engines.vllm.engine import VLLMEngine
from quintain.rollout.engines.vllm.process import Process
from quintain.rollout.engines.vllm.start import open_vllm
from quintain.rollout.vllm_plugin.access import KEY_VARIABLE

from ...launch.runs import WORDS, make_model
from ...tiny_llama import tiny_llama

ROOT = Path(__file__).resolve().parents[3]
MAX_LENGTH = 512
PROMPT = np.array([5, 17, 3, 96, 1000, 41], dtype=np.int32)
DEADLINE_S = 120.0


@cache
def vllm_python() -> str:
    """The Python of vLLM's environment, which `make test` has made."""
    script = ROOT / "scripts" / "setup_vllm.py"
    result = subprocess.run([sys.executable, script, "--where"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@cache
def llama(seed: int, words: int = WORDS) -> LlamaForCausalLM:
    """A model whose heads are of a size that vLLM knows on CPUs; with more `words` it takes longer to say one."""
    return tiny_llama(
        seed,
        words=words,
        length=MAX_LENGTH,
        hidden_size=256,
        intermediate_size=256,
        initializer_range=0.09,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def model_folder(folder: Path, words: int = WORDS) -> Path:
    """Save the model of seed 0 with the first words of SmolLM2's tokenizer."""
    llama(0, words).save_pretrained(make_model(folder, words=words))
    return folder


def publish(folder: Path, version: int, seed: int | None = None, words: int = WORDS) -> Weights:
    """A published version: by default the model whose seed is the version."""
    folder.mkdir(parents=True, exist_ok=True)
    state = llama(version if seed is None else seed, words).state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items() if name != "lm_head.weight"}
    save_file(kept, folder / "model.safetensors")
    return Weights(folder, version)


@torch.no_grad()
def logprobs(seed_or_model: Any, ids: Any, words: int = WORDS) -> np.ndarray:
    """What transformers says: log-probabilities [L - 1] of `ids` [L] at temperature 1."""
    model = llama(seed_or_model, words) if isinstance(seed_or_model, int) else seed_or_model
    row = torch.as_tensor(np.asarray(ids), dtype=torch.long)[None]
    every = torch.log_softmax(model(row).logits[0, :-1].float(), dim=-1)
    return every.gather(1, row[0, 1:, None])[:, 0].numpy()


def explained(done: Any, seed_or_model: Any, prompt: Any = PROMPT, words: int = WORDS) -> np.ndarray:
    """|engine - transformers| of each sampled token, had the whole turn been sampled by that model."""
    whole = np.concatenate([prompt, done.output_ids])
    return np.abs(done.logprobs - logprobs(seed_or_model, whole, words)[len(prompt) - 1 :])


def experiment(model: Path, vllm: dict[str, Any] | None = None, **rollout: Any) -> ExperimentConfig:
    """An experiment that samples with vLLM, its servers started from vLLM's environment."""
    options: dict[str, Any] = {"hang_s": 60.0, **(vllm or {})}
    if not options.get("urls"):
        options = {"python": vllm_python(), "args": ["--num-gpu-blocks-override", "256"], **options}
    fields: dict[str, Any] = {"engine": "vllm", "dtype": "float32", "threads": 1, "vllm": options, **rollout}
    return ExperimentConfig.model_validate(
        {"model": {"path": str(model)}, "environment": {"name": "math"}, "rollout": fields}
    )


def reached(process: Process) -> dict[str, Any]:
    """The options of an experiment that samples with the server of another one's `process`."""
    os.environ["KEY_OF_ANOTHER_RUN"] = process.launch.environ[KEY_VARIABLE]
    return {"urls": [process.url], "api_key_env": "KEY_OF_ANOTHER_RUN"}


class Said:
    """What an engine reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def has(self, part: str) -> bool:
        return any(part in line for line in self.lines)


@contextmanager
def opened(config: ExperimentConfig, logs: Path, said: Said | None = None) -> Iterator[VLLMEngine]:
    """An engine and its servers, for the with-block; then no process of theirs may be left.

    An engine belongs to the event loop that first uses it: close it there, or use `serving`.
    """
    engine = open_vllm(config, logs=logs, report=said or Said())
    groups = pids(engine)
    try:
        yield engine
    finally:
        groups += pids(engine)
        asyncio.run(engine.close())
    assert [group for group in groups if living(group)] == []


@asynccontextmanager
async def serving(config: ExperimentConfig, logs: Path, said: Said | None = None) -> AsyncIterator[VLLMEngine]:
    """`opened`, used and closed in the running event loop."""
    engine = await asyncio.to_thread(open_vllm, config, logs=logs, report=said or Said())
    groups = pids(engine)
    try:
        yield engine
    finally:
        groups += pids(engine)
        await engine.close()
    assert [group for group in groups if living(group)] == []


def processes(engine: VLLMEngine) -> list[Any]:
    """The server processes of an engine, dead ones included."""
    return [member.process for member in engine._fleet.members if member.process is not None]


def pids(engine: VLLMEngine) -> list[int]:
    """Their guards' ids, which are those of their process groups."""
    return [process.pid for process in processes(engine) if process._popen is not None]


def living(group: int) -> list[psutil.Process]:
    """What lives in a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[2]) == group and stat[0] not in "ZX":
            found.append(process)
    return found


async def until(what: str, holds: Callable[[], bool]) -> None:
    """Let the loop run until `holds()`; fail where it does not within a generous deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        await asyncio.sleep(0.005)
