"""`quintain rollout serve`: a rollout server on its own, with the environment server of its experiment.

The rollout server is this process; the environment server is its child, started again when it dies, and gone with it.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

from quintain.config import ExperimentConfig
from quintain.console import console_for
from quintain.envs.client import EnvClient
from quintain.launch.checks import check_model, check_split
from quintain.launch.run_folder import new_run, resumed_run, settle_dtypes
from quintain.launch.servers import start_environments
from quintain.launch.supervisor import Supervisor, share_cores
from quintain.lifeline import hold_lifeline
from quintain.rollout.server.process import serve
from quintain.rollout.server.task_runs import RunLimits
from quintain.rollout.wire import ROLLOUT_TOKEN_ENV
from quintain.serving.listen import check_bind
from quintain.serving.tokens import Tokens


def serve_rollout(
    config: ExperimentConfig,
    *,
    host: str,
    port: int,
    tokens: Tokens,
    limits: RunLimits,
    resume: bool,
    run_dir: Path | None,
    as_json: bool,
) -> None:
    """Serve the rollout of `config` until SIGTERM or Ctrl-C.

    Raises QuintainError, one line, where it cannot begin, or where the environment server is beyond help.
    """
    hold_lifeline()
    share_cores()
    check_bind(host, bool(tokens), f"{ROLLOUT_TOKEN_ENV} or a file of tokens")
    check_model(config)
    report = partial(console_for(stderr=True).print, highlight=False, soft_wrap=True)
    run, config = resumed_run(config, run_dir) if resume else (new_run(config, run_dir), config)
    report(f"run directory: {run.path}")

    def ready(url: str) -> None:
        line = {"event": "ready", "url": url, "pid": os.getpid(), "run": str(run.path)}
        print(json.dumps(line) if as_json else f"rollouts: {url}", flush=True)

    supervisor = Supervisor(restarts=config.rollout.restarts, report=report)
    try:
        report("starting the environment server")
        environments = start_environments(supervisor, config, run)
        for played, there in zip(config.plays, environments, strict=True):
            check_split(played, EnvClient(there.url, there.token))
        config = settle_dtypes(config, say=report, phase=report)
        run.keep(config)
        report("starting the engine")
        serve(
            run.path,
            environments=[(there.url, there.token) for there in environments],
            host=host,
            port=port,
            tokens=tokens,
            limits=limits,
            for_agents=True,
            ready=ready,
            report=report,
            check=supervisor.check,
        )
    finally:
        supervisor.stop()
