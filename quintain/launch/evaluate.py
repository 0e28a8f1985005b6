"""`quintain eval`: a model in an environment, without training."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quintain.config import EvaluationConfig, ExperimentConfig
from quintain.failure import QuintainError, one_line
from quintain.launch.checks import check_model, heldout_size
from quintain.launch.run_folder import RunFolder, new_run
from quintain.launch.servers import start_environment, start_rollout
from quintain.launch.supervisor import Supervisor, share_cores


def evaluate(config: ExperimentConfig, *, as_json: bool) -> int:
    """Run the evaluation that `config` describes and print what came out; the exit code."""
    share_cores()
    check_model(config)
    evaluation = config.evaluation or EvaluationConfig()
    config = config.model_copy(update={"evaluation": evaluation})
    console = Console(stderr=as_json)
    supervisor = Supervisor(restarts=0, report=lambda text: console.print(text, highlight=False))
    with tempfile.TemporaryDirectory(prefix="quintain-eval-") as folder:
        try:
            return _evaluate(config, evaluation, new_run(config, Path(folder) / "run"), supervisor, console, as_json)
        except KeyboardInterrupt:
            return 130
        finally:
            supervisor.stop()


def _evaluate(
    config: ExperimentConfig,
    evaluation: EvaluationConfig,
    run: RunFolder,
    supervisor: Supervisor,
    console: Console,
    as_json: bool,
) -> int:
    from quintain.envs.client import EnvClient
    from quintain.rollout.client import RolloutClient
    from quintain.trainers.display import pick
    from quintain.trainers.evaluate import evaluation_of

    environment = start_environment(supervisor, config, run)
    size = heldout_size(config, EnvClient(environment, token=config.environment.token))
    server = start_rollout(supervisor, config, run, environment)
    began = time.monotonic()
    with console.status(f"0/{size} episodes") as status:

        def poll(progress: object) -> None:
            supervisor.check()
            done = getattr(progress, "done", None)
            if done is not None:
                status.update(f"{done}/{size} episodes")

        client = RolloutClient(server.url, poll=poll)
        groups = client.run_tasks(evaluation.split, range(size), temperature=evaluation.temperature, seed=config.seed)
        client.close()
    result = evaluation_of(groups, step=0, elapsed_s=time.monotonic() - began)
    if result.heldout is None:
        failures = {str(row.failure) for group in groups for row in group.trajectories}
        raise QuintainError(f"all {size} episodes failed: {sorted(failures)[0]}")
    if as_json:
        figures = {"mean_reward": result.heldout, "verified": result.verified, "failed": result.failed}
        print(json.dumps({**figures, "split": evaluation.split, "elapsed_s": round(result.elapsed_s, 2)}))
        return 0
    table = Table("question", "answer", "reward")
    for sample in pick(result.samples, evaluation.samples_shown):
        table.add_row(Text(sample.prompt), Text(one_line(sample.answer) or "(nothing)"), f"{sample.reward:g}")
    console.print(table)
    console.print(
        f"mean reward {result.title} over {result.verified} verified, {result.failed} failed,"
        f" in {result.elapsed_s:.1f} s",
        highlight=False,
    )
    return 0
