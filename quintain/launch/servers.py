"""The two servers of a run: the environment's and the rollout's, as supervised processes."""

from __future__ import annotations

import json
from dataclasses import replace

from quintain.config import ExperimentConfig, VLLMConfig
from quintain.failure import QuintainError
from quintain.launch.run_folder import RunFolder
from quintain.launch.supervisor import Server, ServerSpec, Supervisor, python_module


def start_environment(supervisor: Supervisor, config: ExperimentConfig, run: RunFolder) -> str:
    """The address of the environment server: the one that runs already, or one started now."""
    environment = config.environment
    if environment.url is not None:
        _check_reachable(environment.url, environment.token)
        return environment.url
    assert environment.name is not None
    args = [f"--arg={name}={json.dumps(value)}" for name, value in environment.args.items()]

    def command(port: int) -> list[str]:
        return python_module(
            "quintain",
            "env",
            "serve",
            str(environment.name),
            f"--port={port}",
            "--json",
            *args,
            f"--workers={environment.workers}",
            f"--step-timeout-s={environment.step_timeout_s}",
            f"--lease-s={environment.lease_s}",
            f"--max-episodes={environment.max_episodes or config.rollout.max_concurrency}",
        )

    spec = ServerSpec("environment server", command, run.logs / "environment.log")
    return supervisor.start(spec).url


def start_rollout(supervisor: Supervisor, config: ExperimentConfig, run: RunFolder, environment: str) -> Server:
    """The rollout server of the run."""

    def command(port: int) -> list[str]:
        return python_module(
            "quintain.rollout.server.process", f"--run={run.path}", f"--environment={environment}", f"--port={port}"
        )

    token = config.environment.token
    environ = {"QUINTAIN_ENV_TOKEN": token} if token else {}
    spec = ServerSpec("rollout server", command, run.logs / "rollout.log", environ)
    if config.rollout.engine == "vllm":  # its servers come up first, which takes their own time
        spec = replace(spec, ready_s=spec.ready_s + (config.rollout.vllm or VLLMConfig()).start_s)
    return supervisor.start(spec)


def _check_reachable(url: str, token: str | None) -> None:
    import httpx

    from quintain.calling.connections import http_client

    try:
        with http_client(url, token, timeout=10.0) as http:
            answer = http.get("/health")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise QuintainError(
            f"environment.url: nobody answers at {url} ({type(error).__name__}): start the server with"
            " 'quintain env serve', or give environment.name"
        ) from None
    if answer.status_code != 200:
        raise QuintainError(
            f"environment.url: {url}/health answered {answer.status_code}: is it an environment server?"
        )
