"""Steps per second through an environment server, beside OpenEnv 0.10.0's own server and client over its WebSocket.

Each side is one server process and one client process, with an environment that does nothing; they take turns. Ours
runs its environment in the server (`workers=0`), as OpenEnv does; with a worker of its own it has its own figure.

    python benchmarks/env_server.py [--seconds 3] [--rounds 2]

The last line is JSON: ratios `steps_vs_openenv` (the smaller of those at 64 and at 512 sessions; aim: at least 2),
`p99_vs_openenv` (ours over theirs at 512; aim: at most 1), `isolated_vs_inline` (steps per second, at 64) and
`session_kb` (what 2,000 open sessions add to the server's own memory, each; aim: at most 20).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from _side import peer_python, report
from _steps import played

from quintain.envs import Action, EnvClient
from quintain.envs.serving.limits import EnvironmentLimits
from quintain.envs.serving.serve import serve_env
from quintain.lifeline import Lifeline

HERE = Path(__file__).parent
SESSIONS = (64, 512)
OPEN = 2000
WARM = 256
"""Sessions that are open before memory is measured: connections and caches are there."""
Figures = dict[str, float]


@contextlib.contextmanager
def our_server(workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """Ours, its address and its process."""
    lifeline = Lifeline()
    command = [sys.executable, __file__, "serve", str(workers)]
    environ = os.environ | lifeline.environ()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=(lifeline.fd,), env=environ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], psutil.Process(process.pid)
        finally:
            process.terminate()
    lifeline.close()


@contextlib.contextmanager
def their_server(python: Path) -> Iterator[str]:
    """OpenEnv's, once it answers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with subprocess.Popen([python, HERE / "_openenv_side.py", "serve", str(port)]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{url}/health", trust_env=False)
                    break
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def measured(python: str | Path, script: str, url: str, sessions: int, seconds: float) -> Figures:
    """What a client process of `script` saw."""
    command = [python, HERE / script, "play", url, str(sessions), str(seconds)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(ran.stdout.splitlines()[-1])
    return figures


async def play(url: str, sessions: int, seconds: float) -> None:
    """Our client, at one of our servers."""
    async with EnvClient(url) as client:
        task = (await asyncio.to_thread(client.tasks, "train"))[0]
        envs = [client.episode() for _ in range(sessions)]
        await asyncio.gather(*(env.reset(task, seed=0) for env in envs))
        await played([lambda env=env: env.step(Action.text("On.")) for env in envs], seconds)
        await asyncio.gather(*(env.close() for env in envs))


async def session_kb(url: str, server: psutil.Process) -> float:
    """What each of `OPEN` sessions adds to the server's own memory."""
    async with EnvClient(url) as client:
        task = (await asyncio.to_thread(client.tasks, "train"))[0]

        async def opened(count: int) -> int:
            envs = [client.episode() for _ in range(count)]
            await asyncio.gather(*(env.reset(task, seed=0) for env in envs))
            return int(server.memory_full_info().uss)

        before = await opened(WARM)
        return (await opened(OPEN) - before) / OPEN / 1024


def serve(workers: int) -> None:
    """Be one of our servers."""
    limits = EnvironmentLimits(max_episodes=4096)
    serve_env(f"{HERE / '_still_env.py'}:StillEnv", workers=workers, limits=limits, json_ready=True)


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    python = peer_python("openenv", ["openenv==0.10.0"])
    seen: dict[str, list[Figures]] = {}
    with our_server(0) as (ours, _), our_server(1) as (isolated, _), their_server(python) as theirs:
        sides = {
            "quintain": (sys.executable, Path(__file__).name, ours),
            "isolated": (sys.executable, Path(__file__).name, isolated),
            "openenv": (python, "_openenv_side.py", theirs),
        }
        for _ in range(options.rounds):
            for sessions in SESSIONS:
                for name, (interpreter, script, url) in sides.items():
                    figures = measured(interpreter, script, url, sessions, options.seconds)
                    seen.setdefault(f"{name}_{sessions}", []).append(figures)
                    print(f"{name} at {sessions}: {figures}", flush=True)
    with our_server(0) as (fresh, server):  # what others have freed would be used again, and not be seen
        kb = asyncio.run(session_kb(fresh, server))
    rate = {key: statistics.median(each["steps_per_s"] for each in figures) for key, figures in seen.items()}
    p99 = {key: statistics.median(each["p99_s"] for each in figures) for key, figures in seen.items()}
    ratios = {
        "steps_vs_openenv": min(rate[f"quintain_{n}"] / rate[f"openenv_{n}"] for n in SESSIONS),
        "p99_vs_openenv": p99["quintain_512"] / p99["openenv_512"],
        "isolated_vs_inline": rate["isolated_64"] / rate["quintain_64"],
        "session_kb": kb,
    }
    report("env_server", ratios, {"steps_per_s": rate, "p99_s": p99})


if __name__ == "__main__":
    if sys.argv[1:2] == ["play"]:
        asyncio.run(play(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    elif sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]))
    else:
        main()
