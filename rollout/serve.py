"""The rollout server as a process: `python -m quintain.rollout.serve --run DIR --environment URL`.

It reads the run's resolved `config.yaml`, keeps the run's journal, prints one ready line, and ends with its launcher.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from quintain.config import ExperimentConfig, load_config
from quintain.envs.serve import TOKEN_ENV
from quintain.failure import FailureError, QuintainError
from quintain.lifeline import hold_lifeline
from quintain.rollout.conductor import Conductor, EpisodeCount, Plan
from quintain.rollout.engines.base import Engine, Sampling
from quintain.rollout.journal import Journal
from quintain.rollout.quiet import quiet_transformers
from quintain.rollout.renderer import load_renderer
from quintain.task import size_of


def make_plan(config: ExperimentConfig, *, size: int | None, model_length: int) -> Plan:
    """What `config` says about sampling; `size` is of the training split, `model_length` the model's own limit."""
    rollout, trainer = config.rollout, config.trainer
    return Plan(
        split=config.environment.split,
        size=size,
        shuffle=config.environment.shuffle,
        seed=config.seed,
        groups=trainer.prompts_per_step,
        members=trainer.num_generations,
        max_staleness=rollout.max_staleness,
        max_turns=rollout.max_turns,
        max_length=min(rollout.max_length or model_length, model_length),
        attempts=rollout.attempts,
        max_concurrency=rollout.max_concurrency,
        sampling=Sampling(rollout.max_completion_length, rollout.temperature, rollout.top_p, rollout.top_k),
    )


def open_journal(config: ExperimentConfig, path: Path) -> Journal:
    """The journal of a run of `config`, which refuses to serve another experiment's."""
    identity: dict[str, object] = {"seed": config.seed, "split": config.environment.split}
    return Journal(path, members=config.trainer.num_generations, identity=identity)


def make_engine(config: ExperimentConfig, running: EpisodeCount) -> Engine:
    """The embedded engine. At staleness 0 it samples in lockstep, so that runs are reproducible."""
    from quintain.rollout.engines.embedded import EmbeddedEngine

    return EmbeddedEngine(
        config.model.path,
        dtype=config.rollout.dtype,
        max_batch=config.rollout.max_batch,
        max_length=config.rollout.max_length,
        threads=config.rollout.threads,
        expected=running if config.rollout.max_staleness == 0 else None,
    )


def serve(run: Path, *, environment: str, host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve the rollout of the run in folder `run` until SIGTERM. QuintainError where it cannot start."""
    import uvicorn

    from quintain.envs.client import EnvClient
    from quintain.rollout.server import rollout_app
    from quintain.serving.listen import bound_socket

    config = load_config(run / "config.yaml")
    quiet_transformers()
    with bound_socket(host, port) as listener:
        running = EpisodeCount()
        engine = make_engine(config, running)
        patience_s = 2 * config.environment.step_timeout_s
        client = EnvClient(environment, token=os.environ.get(TOKEN_ENV), timeout_s=patience_s, patience_s=patience_s)
        size = size_of(client.tasks(config.environment.split))
        conductor = Conductor(
            make_plan(config, size=size, model_length=engine.max_length),
            engine=engine,
            renderer=load_renderer(config.model.path),
            make_env=client.episode,
            journal=open_journal(config, run / "journal.db"),
            running=running,
        )
        app = rollout_app(conductor, trajectories=run / "trajectories")
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(json.dumps({"event": "ready", "url": address}), flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        server.run(sockets=[listener])


def main() -> int:
    """The command line of the process."""
    parser = argparse.ArgumentParser(description="Serve the rollout of a run.")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, with its config.yaml")
    parser.add_argument("--environment", required=True, help="address of the environment server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    try:
        hold_lifeline()
        serve(args.run, environment=args.environment, host=args.host, port=args.port)
    except QuintainError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except FailureError as error:
        print(f"Error: {error.failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
