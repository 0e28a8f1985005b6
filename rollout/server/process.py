"""The rollout server as a process: `python -m quintain.rollout.server.process --run DIR --environment URL`.

It reads the run's resolved `config.yaml`, keeps the run's journal, prints one ready line, and ends with its launcher.
`quintain rollout serve FILE.yaml` is the same on its own feet: it makes the run and starts the environment as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quintain.config import (
    CurriculumConfig,
    EnvironmentConfig,
    ExperimentConfig,
    RolloutConfig,
    load_config,
    write_config,
)
from quintain.envs.serving.serve import TOKEN_ENV
from quintain.failure import FailureError, QuintainError
from quintain.lifeline import hold_lifeline
from quintain.rollout.chat.load import load_chat, quiet_transformers
from quintain.rollout.engines.base import Sampling
from quintain.rollout.engines.choose import check_engine, make_engine, say_progress
from quintain.rollout.journal.journal import Journal
from quintain.rollout.journal.sessions import FinishedSessions
from quintain.rollout.rules.curriculum import CurriculumRules
from quintain.rollout.rules.groups import Patience, Rewards
from quintain.rollout.rules.order import TaskSplit
from quintain.rollout.rules.plan import Played
from quintain.rollout.scheduler import EpisodeCount, Plan, Scheduler
from quintain.rollout.server.task_runs import RunLimits
from quintain.rollout.wire import ROLLOUT_TOKEN_ENV
from quintain.serving.tokens import Tokens
from quintain.task import size_of

if TYPE_CHECKING:
    from starlette.applications import Starlette

GRACE_S: Final = 2
"""How long requests in progress may take to be answered when the server stops."""
CHECK_S: Final = 0.5

REFILLS = 4
"""`rollout.max_refills` by default: so many times trainer.prompts_per_step."""


def make_plan(config: ExperimentConfig, *, sizes: Sequence[int | None], model_length: int) -> Plan:
    """What `config` says about sampling; `sizes` are of the training splits, `model_length` the model's own limit."""
    rollout, trainer = config.rollout, config.online
    refills = REFILLS * trainer.prompts_per_step if rollout.max_refills is None else rollout.max_refills
    patience = Patience(rollout.straggler_factor, rollout.straggler_floor_s)
    return Plan(
        plays=tuple(_played(one, rollout, size) for one, size in zip(config.plays, sizes, strict=True)),
        seed=config.seed,
        groups=trainer.prompts_per_step,
        members=trainer.num_generations,
        max_staleness=rollout.max_staleness,
        max_length=min(rollout.max_length or model_length, model_length),
        attempts=rollout.attempts,
        max_concurrency=rollout.max_concurrency,
        oversample=rollout.oversample,
        refills=refills if rollout.dynamic_sampling else None,
        rewards=Rewards(tuple((trainer.reward_weights or {}).items()), apart=trainer.rewards_apart),
        patience=patience if rollout.straggler == "fail" else None,
        follow_engine=rollout.concurrency == "auto",
        sample_timeout_s=rollout.sample_timeout_s,
    )


def _played(environment: EnvironmentConfig, rollout: RolloutConfig, size: int | None) -> Played:
    own = environment.sampling
    sampling = Sampling(
        own.max_completion_length or rollout.max_completion_length,
        rollout.temperature if own.temperature is None else own.temperature,
        rollout.top_p if own.top_p is None else own.top_p,
        rollout.top_k if own.top_k is None else own.top_k,
    )
    split = TaskSplit(environment.label, environment.split, size, environment.shuffle, environment.weight)
    if (asked := environment.curriculum) is not None:
        split = replace(split, size=asked.size(split.name, size), curriculum=_curriculum(asked))
    return Played(split, sampling, own.max_turns or rollout.max_turns, environment.reward_weights)


def _curriculum(asked: CurriculumConfig) -> CurriculumRules:
    shares = (asked.unseen, asked.hard, asked.medium, asked.easy)
    return CurriculumRules(shares, asked.hard_below, asked.easy_above, asked.visits, asked.pass_at)


def open_journal(config: ExperimentConfig, path: Path) -> Journal:
    """The journal of a run of `config`, which refuses to serve another experiment's."""
    identity: dict[str, object] = {"seed": config.seed, "split": [one.split for one in config.plays]}
    members, oversample = config.online.num_generations, config.rollout.oversample
    return Journal(path, members=members, identity=identity, oversample=oversample)


def serve(
    run: Path,
    *,
    environments: Sequence[tuple[str, str | None]],
    host: str = "127.0.0.1",
    port: int = 0,
    tokens: Tokens | None = None,
    limits: RunLimits | None = None,
    for_agents: bool = False,
    ready: Callable[[str], None] | None = None,
    report: Callable[[str], None] = say_progress,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Serve the rollout of the run in folder `run` until SIGTERM or SIGINT.

    `environments` are the address of each environment server, in the experiment's order, and the token that it wants;
    `tokens` are what clients of this one send; without any only loopback is bound. `for_agents` opens the gateway.
    `ready` is told the address once requests are answered; by default it is printed as JSON. `report` hears how
    messages are rendered and how an engine comes up. `check` is called every moment, and what it raises ends the
    server. Raises QuintainError, one line, where it cannot begin.
    """
    from quintain.envs.client import EnvClient
    from quintain.rollout.gateway.gateway import Gateway
    from quintain.rollout.server.app import rollout_app
    from quintain.serving.listen import listening

    tokens = tokens or Tokens()
    config = load_config(run / "config.yaml")
    quiet_transformers()
    token_from = f"{ROLLOUT_TOKEN_ENV} or a file of tokens"
    with listening(host, port, has_token=bool(tokens), token_from=token_from) as (listener, url):
        running = EpisodeCount()
        chat = load_chat(config)  # first, since a template that cannot be used need not wait for an engine
        report(chat.about)
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update=dict(chat.choices))})
        write_config(config, run / "config.yaml")  # what was chosen holds for the whole run
        engine = make_engine(config, running, logs=run / "logs", report=report)
        clients = {
            played.label: EnvClient(
                url,
                token=token,
                timeout_s=2 * played.step_timeout_s,
                patience_s=2 * played.step_timeout_s,
                max_connections=config.rollout.max_concurrency,
            )
            for played, (url, token) in zip(config.plays, environments, strict=True)
        }
        sizes = [size_of(clients[played.label].tasks(played.split)) for played in config.plays]
        plan = make_plan(config, sizes=sizes, model_length=engine.max_length)
        plays = (replace(played, places=clients[played.split.environment].places()) for played in plan.plays)
        scheduler = Scheduler(
            replace(plan, plays=tuple(plays)),
            engine=engine,
            chat=chat,
            make_env=lambda environment: clients[environment].episode(),
            journal=open_journal(config, run / "journal.db"),
            running=running,
        )
        told = ready or _print_ready
        with FinishedSessions(run / "sessions.bin") if for_agents else contextlib.nullcontext() as sessions:
            gateway = (
                None
                if sessions is None
                else Gateway(
                    engine,
                    chat,
                    sampling=plan.plays[0].sampling,
                    on_finished=sessions.append,
                    seed=config.seed,
                    max_length=plan.max_length,
                    tokens=tokens,
                )
            )
            trajectories = run / "trajectories"
            app = rollout_app(
                scheduler, trajectories=trajectories, tokens=tokens, limits=limits, gateway=gateway, sessions=sessions
            )

            def sound() -> None:
                check()
                check_engine(engine)

            gc.collect()
            gc.freeze()  # what lives as long as the server is not looked through at each collection
            asyncio.run(_serve(app, listener, lambda: told(url), sound))


async def _serve(app: Starlette, listener: socket.socket, ready: Callable[[], None], check: Callable[[], None]) -> None:
    from quintain.serving.run import quiet_server

    server = quiet_server(app, ready, grace_s=GRACE_S)

    def stop() -> None:
        server.should_exit = True

    async def watch() -> None:
        try:
            while True:
                check()
                await asyncio.sleep(CHECK_S)
        finally:
            stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with app.router.lifespan_context(app):
        watching = asyncio.create_task(watch())
        await server.serve(sockets=[listener])
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def _print_ready(url: str) -> None:
    print(json.dumps({"event": "ready", "url": url, "pid": os.getpid()}), flush=True)


def main() -> int:
    """The command line of the process."""
    parser = argparse.ArgumentParser(description="Serve the rollout of a run.")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, with its config.yaml")
    parser.add_argument(
        "--environment", required=True, action="append", help="address of an environment server, in order"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    try:
        hold_lifeline()
        tokens = Tokens.gathered(os.environ.pop(ROLLOUT_TOKEN_ENV, ""), f"the variable {ROLLOUT_TOKEN_ENV}", None)
        theirs = [token or None for token in os.environ.pop(TOKEN_ENV, "").split("\n")]
        environments = list(zip_longest(args.environment, theirs[: len(args.environment)]))
        serve(args.run, environments=environments, host=args.host, port=args.port, tokens=tokens)
    except (QuintainError, FailureError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
