"""The two servers of a run: the environment's and the rollout's, as supervised processes.

What always holds: a server that a run starts wants a token, new with each start, which travels like all that may be a
secret in the environment of processes, where other users of the machine cannot read it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quintain.config import EnvironmentConfig, ExperimentConfig, VLLMConfig
from quintain.envs.options import OPTIONS_ENV
from quintain.envs.serving.serve import TOKEN_ENV
from quintain.failure import QuintainError, one_line
from quintain.launch.run_folder import RunFolder
from quintain.launch.supervisor import ServerSpec, Supervisor, python_module

PROBE_S = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and the token that it wants."""

    url: str
    token: str | None


def start_environments(supervisor: Supervisor, config: ExperimentConfig, run: RunFolder) -> list[Address]:
    """The environment servers, in the experiment's order: those that run already, and those started now, side by side.

    The address of an environment of several servers has commas in between.
    """
    running = [None if played.url is None else _running(played) for played in config.plays]
    alone = len(config.plays) == 1
    specs = [
        _specs(config, played, run.logs / f"environment{'' if alone else number}.log") if there is None else []
        for number, (played, there) in enumerate(zip(config.plays, running, strict=True))
    ]
    started = iter(supervisor.start_all([spec for some in specs for spec in some]))
    return [
        there or Address(",".join(next(started).url for _ in some), some[0].environ[TOKEN_ENV])
        for there, some in zip(running, specs, strict=True)
    ]


def _running(environment: EnvironmentConfig) -> Address:
    """Where the servers of an environment are that run already, once they have answered."""
    there = Address(str(environment.url), environment.token or os.environ.get(TOKEN_ENV))
    for url in there.url.split(","):
        _check_reachable(Address(url, there.token))
    return there


def _specs(config: ExperimentConfig, environment: EnvironmentConfig, log: Path) -> list[ServerSpec]:
    """The servers of one environment that are to be started."""
    most = environment.max_episodes or config.rollout.max_concurrency

    def command(port: int) -> list[str]:
        return python_module(
            "quintain",
            "env",
            "serve",
            str(environment.name),
            f"--port={port}",
            "--json",
            f"--workers={environment.workers}",
            f"--step-timeout-s={environment.step_timeout_s}",
            f"--lease-s={environment.lease_s}",
            f"--max-episodes={-(-most // environment.replicas)}",
        )

    environ = {TOKEN_ENV: secrets.token_urlsafe(), OPTIONS_ENV: json.dumps(environment.args)}
    called = "environment server" if len(config.plays) == 1 else f"environment server of {environment.label}"
    if (replicas := environment.replicas) == 1:
        return [ServerSpec(called, command, log, environ)]
    logs = (log.with_stem(f"{log.stem}-{number}") for number in range(replicas))
    return [ServerSpec(f"{called} ({log.stem})", command, log, environ) for log in logs]


def start_rollout(
    supervisor: Supervisor, config: ExperimentConfig, run: RunFolder, environments: Sequence[Address]
) -> Address:
    """The rollout server of the run, which plays in `environments`."""
    from quintain.rollout.wire import ROLLOUT_TOKEN_ENV

    def command(port: int) -> list[str]:
        theirs = [f"--environment={environment.url}" for environment in environments]
        return python_module("quintain.rollout.server.process", f"--run={run.path}", *theirs, f"--port={port}")

    token = secrets.token_urlsafe()
    theirs = "\n".join(environment.token or "" for environment in environments)
    environ = {ROLLOUT_TOKEN_ENV: f"run@trainer:{token}", TOKEN_ENV: theirs}
    spec = ServerSpec("rollout server", command, run.logs / "rollout.log", environ)
    if config.rollout.engine == "vllm":  # its servers come up first, which takes their own time
        spec = replace(spec, ready_s=spec.ready_s + (config.rollout.vllm or VLLMConfig()).start_s)
    return Address(supervisor.start(spec).url, token)


def _check_reachable(address: Address) -> None:
    help_ = "start the server with 'quintain env serve', or give environment.name"
    status = probed(address.url, "/health", address.token, f"environment.url: nobody answers at {address.url}: {help_}")
    if status != 200:
        raise QuintainError(f"environment.url: {address.url}/health answered {status}: is it an environment server?")


def probed(url: str, path: str, token: str | None, nobody: str, *, proxied: bool = False) -> int:
    """The status that the server at `url` answers for `path` with. QuintainError, `nobody` and why, where none does."""
    import httpx

    from quintain.calling.connections import http_client

    try:
        with http_client(url, token, proxied=proxied, timeout=PROBE_S) as http:
            return http.get(path).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise QuintainError(f"{nobody} ({one_line(f'{type(error).__name__}: {error}', 160)})") from None
