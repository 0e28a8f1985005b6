"""`quintain eval`: a model in an environment, without training.

The model is the experiment's, sampled by the run's rollout server, or one behind an OpenAI-compatible endpoint. With an
`output` folder finished episodes are kept as they finish, and the same evaluation started again goes on from them:

    evaluation.json  episodes.jsonl     what is evaluated, and the episodes so far (`quintain.evaluation.episode_log`)
    config.yaml  figures.json           the resolved experiment, and what came out
    server/                             the servers' folder and logs of the last session
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quintain.config import EnvironmentConfig, EvaluationConfig, ExperimentConfig, VLLMConfig, load_config, write_config
from quintain.console import console_for
from quintain.evaluation.episode_log import EVALUATION, EpisodeLog, Place
from quintain.evaluation.figures import Figures, figures_json, figures_of, figures_table
from quintain.evaluation.players import Endpoint, Episodes, check_endpoint, play_at_endpoint, play_on_server
from quintain.failure import QuintainError, one_line
from quintain.files import write_whole
from quintain.launch.checks import check_model, heldout_size
from quintain.launch.display import Display, pick
from quintain.launch.run_folder import RunFolder, new_run, settle_dtypes, with_choices_of
from quintain.launch.servers import Address, start_environments, start_rollout
from quintain.launch.supervisor import Supervisor, share_cores
from quintain.trajectory import Group, Trajectory

CHAT: Final = ("renderer", "tool_calls", "thinking", "date", "chat_template_kwargs", "stop", "stop_ids")
"""The options of `rollout` that say how messages are shown and read."""

HASHED_BYTES: Final = 1 << 16
"""So much of each end of a weights file tells models in one folder apart."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of an evaluation beside the experiment.

    `samples` episodes of each task; pass@k for each of `ks`, where a reward of at least `pass_at` passes.
    `retry_failed` plays the failed episodes of an earlier session again. `endpoint` is who is evaluated in place of
    the experiment's model, `key_env` the variable its key came from.
    """

    samples: int = 1
    ks: tuple[int, ...] = (1,)
    pass_at: float = 1.0
    output: Path | None = None
    retry_failed: bool = False
    endpoint: Endpoint | None = None
    key_env: str | None = None


def evaluate(config: ExperimentConfig, *, as_json: bool, asked: Asked) -> int:
    """Run the evaluation that `config` describes and print what came out; the exit code.

    Raises QuintainError and FailureError, with what has finished kept in `asked.output`.
    """
    config = _with_evaluation(config, asked.samples)
    share_cores()
    if asked.endpoint is None:
        check_model(config)
    else:
        check_endpoint(asked.endpoint, asked.key_env)
    console = console_for(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="quintain-eval-") as scratch:
        folder = asked.output or Path(scratch) / "evaluation"
        if asked.endpoint is None:
            config = _with_dtypes(config, folder, console)
        with EpisodeLog(folder, identity_of(config, asked.endpoint)) as log:
            report = partial(console.print, highlight=False)
            supervisor = Supervisor(restarts=config.rollout.restarts, report=report)
            try:
                return _Session(config, asked, log, supervisor, console).run(as_json=as_json)
            except KeyboardInterrupt:
                if asked.output is not None:
                    console.print(f"{len(log.finished)} episodes are kept in {folder}: the same command goes on")
                return 130
            finally:
                supervisor.stop()


def identity_of(config: ExperimentConfig, endpoint: Endpoint | None) -> dict[str, Any]:
    """What makes an evaluation the one it is: everything that a finished episode depends on.

    How many tasks and samples, and which figures, may change from one session to the next.
    """
    evaluation, rollout = config.evaluation, config.rollout
    assert evaluation is not None
    model: dict[str, Any]
    sampling: dict[str, Any]
    if endpoint is None:
        model = {"path": config.model.path, "files": fingerprint(Path(config.model.path))}
        sampling = {"top_p": rollout.top_p, "top_k": rollout.top_k, "max_tokens": rollout.max_completion_length}
        sampling |= {"max_length": rollout.max_length, "engine": rollout.engine, "dtype": rollout.dtype}
        sampling |= {"vllm": _identity_of_vllm(rollout.vllm), **{name: getattr(rollout, name) for name in CHAT}}
    else:
        model = {"endpoint": endpoint.url, "name": endpoint.model}
        sampling = {**endpoint.request, "seeds": endpoint.send_seed}
    played = {one.label: _identity_of_environment(one, evaluation) for one in config.plays}
    return {
        **(next(iter(played.values())) if len(played) == 1 else {"environments": played}),
        "model": model,
        "temperature": evaluation.temperature,
        "sampling": sampling,
        "seed": config.seed,
        "max_turns": rollout.max_turns,
        "attempts": rollout.attempts,
    }


def _identity_of_environment(environment: EnvironmentConfig, evaluation: EvaluationConfig) -> dict[str, Any]:
    return {
        "environment": environment.name or "url",  # a server's address may change, what is there is asked
        "environment_options": environment.args,
        "split": environment.heldout_split or evaluation.split,
    }


def _identity_of_vllm(options: VLLMConfig | None) -> dict[str, Any] | None:
    """What sampling depends on; of variables, which may hold keys, a hash."""
    if options is None:
        return None
    environ = hashlib.sha256(json.dumps(sorted(options.env.items())).encode()).hexdigest()
    return {"args": options.args, "env": environ, "python": options.python, "max_lora_rank": options.max_lora_rank}


def fingerprint(folder: Path) -> str | None:
    """A hash that tells the weights in `folder` from others, without reading all of them; None where it is none."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin", "config.json") for path in folder.glob(pattern))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode() + file.read(HASHED_BYTES))
            file.seek(max(0, size - HASHED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _with_evaluation(config: ExperimentConfig, samples: int) -> ExperimentConfig:
    """`config` with its evaluation's temperature settled: several greedy samples of a task would all be the same."""
    evaluation = config.evaluation or EvaluationConfig()
    if samples > 1 and evaluation.temperature == 0:
        if "temperature" in evaluation.model_fields_set:
            raise QuintainError(f"{samples} samples at temperature 0 are all the same: give a --temperature above 0")
        evaluation = evaluation.model_copy(update={"temperature": config.rollout.temperature})
    return config.model_copy(update={"evaluation": evaluation})


def _with_dtypes(config: ExperimentConfig, folder: Path, console: Console) -> ExperimentConfig:
    """`config` with the number types of the evaluation in `folder`, or those chosen now; an episode depends on them."""
    if config.rollout.dtype != "auto":  # nothing is trained: the other one does not matter
        return config
    if (folder / EVALUATION).is_file() and (folder / "config.yaml").is_file():
        config = with_choices_of(config, load_config(folder / "config.yaml"))

    say = partial(console.print, highlight=False, soft_wrap=True)
    return settle_dtypes(config, say=say, phase=say)


class _Session:
    """One session of an evaluation: from the servers' start to the figures."""

    def __init__(
        self, config: ExperimentConfig, asked: Asked, log: EpisodeLog, supervisor: Supervisor, console: Console
    ) -> None:
        assert config.evaluation is not None
        self.config, self.evaluation, self.asked = config, config.evaluation, asked
        self.log, self.supervisor, self.console = log, supervisor, console
        self.began = time.monotonic()

    def run(self, *, as_json: bool) -> int:
        folder = self._server_folder()
        self.console.print("starting the environment server")
        addresses = start_environments(self.supervisor, self.config, folder)
        parts = [self._part(*each) for each in zip(self.config.plays, addresses, strict=True)]
        wanted = [(part.label, place) for part in parts for place in part.wanted]
        finished = {
            key: row for key, row in self.log.finished.items() if row.failure is None or not self.asked.retry_failed
        }
        left = sum(key not in finished for key in wanted)
        if left < len(wanted):
            self.console.print(f"going on: {len(wanted) - left} of {len(wanted)} episodes are there already")
        tally = _Tally(self.asked.pass_at)
        for key in wanted:
            if key in finished:
                tally.add(finished[key])
        with Display(self.console, steps=len(wanted), unit="episode") as display:
            display.begin(tally.episodes)
            display.phase("playing episodes")

            def keep(trajectory: Trajectory) -> None:
                self.log.add(trajectory)
                tally.add(trajectory)
                display.count(tally.episodes, str(tally))

            if left:
                missing = [[place for place in part.wanted if (part.label, place) not in finished] for part in parts]
                self._play(parts, missing, folder, keep)
        self._report(parts, as_json=as_json)
        return 0

    def _part(self, environment: EnvironmentConfig, address: Address) -> _Part:
        """What is to be played in `environment`, which is served at `address`."""
        from quintain.envs.client import EnvClient

        client = EnvClient(address.url, address.token)
        about = asyncio.run(client.metadata())
        of = f" of {environment.label}" if len(self.config.plays) > 1 else ""
        self.log.settle(f"environment_version{of}", f"{about.name} {about.version}")
        size, samples = heldout_size(self.config, environment, client), self.asked.samples
        return _Part(environment, address, [(index, member) for index in range(size) for member in range(samples)])

    def _play(
        self,
        parts: Sequence[_Part],
        missing: Sequence[Sequence[Place]],
        folder: RunFolder,
        keep: Callable[[Trajectory], None],
    ) -> None:
        config, rollout, endpoint = self.config, self.config.rollout, self.asked.endpoint
        server = None
        if endpoint is None:
            server = start_rollout(self.supervisor, config, folder, [part.address for part in parts])
        for part, left in zip(parts, missing, strict=True):
            environment, check = part.environment, self.supervisor.check
            split = environment.heldout_split or self.evaluation.split
            episodes = Episodes(split, left, config.seed, rollout.max_turns, rollout.attempts, part.label)
            if server is not None:
                temperature, restarts = self.evaluation.temperature, config.rollout.restarts
                play_on_server(episodes, server, temperature=temperature, restarts=restarts, keep=keep, check=check)
            elif left:
                assert endpoint is not None  # there is no server
                asked = {"temperature": self.evaluation.temperature, **endpoint.request}
                told = replace(endpoint, request={k: v for k, v in asked.items() if v is not None})
                asyncio.run(play_at_endpoint(episodes, told, part.address, environment.step_timeout_s, keep, check))

    def _server_folder(self) -> RunFolder:
        """A new folder for this session's servers."""
        write_config(self.config, self.log.path / "config.yaml")
        shutil.rmtree(self.log.path / "server", ignore_errors=True)
        return new_run(self.config, self.log.path / "server")

    def _report(self, parts: Sequence[_Part], *, as_json: bool) -> None:
        elapsed_s = time.monotonic() - self.began
        asked, about = self.asked, _about(self.config, self.asked)
        rows = {part.label: [self.log.finished[part.label, place] for place in part.wanted] for part in parts}
        figures = {label: figures_of(found, ks=asked.ks, pass_at=asked.pass_at) for label, found in rows.items()}
        each = {label: figures_json(found) for label, found in figures.items()}
        told = {**(each[parts[0].label] if len(parts) == 1 else {"environments": each}), **about}
        told["elapsed_s"] = round(elapsed_s, 2)
        write_whole(self.log.path / "figures.json", json.dumps(told, indent=1) + "\n")
        for label, found in rows.items():
            if not figures[label].verified:
                of, why = f" of {label}" if len(parts) > 1 else "", min(str(row.failure) for row in found)
                raise QuintainError(f"all {len(found)} episodes{of} failed: {why}")
        if as_json:
            print(json.dumps(told))
            return
        for label, found in rows.items():
            self._show(label if len(parts) > 1 else "", found, figures[label], elapsed_s)

    def _show(self, label: str, rows: list[Trajectory], figures: Figures, elapsed_s: float) -> None:
        from quintain.trainers.heldout import evaluation_of

        result = evaluation_of([Group("", 0, tuple(rows))], step=0, elapsed_s=elapsed_s)
        table = Table("question", "answer", "reward", title=label or None, title_justify="left")
        for sample in pick(result.samples, self.evaluation.samples_shown):
            table.add_row(Text(sample.prompt), Text(one_line(sample.answer) or "(nothing)"), f"{sample.reward:g}")
        self.console.print(table, figures_table(figures))
        self.console.print(
            f"mean reward {result.title} over {result.verified} verified, {result.failed} failed,"
            f" in {result.elapsed_s:.1f} s",
            highlight=False,
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """One environment of an evaluation: where it is served, and the places of its episodes."""

    environment: EnvironmentConfig
    address: Address
    wanted: Sequence[Place]

    @property
    def label(self) -> str:
        return self.environment.label


class _Tally:
    """The running figures that the bar shows."""

    def __init__(self, pass_at: float) -> None:
        self._pass_at = pass_at
        self._verified = self._passed = self._failed = 0
        self._sum = 0.0

    def add(self, row: Trajectory) -> None:
        if row.reward is None:
            self._failed += 1
            return
        self._verified += 1
        self._sum += row.reward
        self._passed += row.reward >= self._pass_at

    @property
    def episodes(self) -> int:
        """How many have finished."""
        return self._verified + self._failed

    def __str__(self) -> str:
        if not self._verified:
            return f"{self._failed} failed"
        share, mean = self._passed / self._verified, self._sum / self._verified
        return f"{share:.1%} pass, mean reward {mean:.3f}, {self._failed} failed"


def _about(config: ExperimentConfig, asked: Asked) -> Mapping[str, Any]:
    evaluation = config.evaluation
    assert evaluation is not None
    model = config.model.path if asked.endpoint is None else asked.endpoint.model
    return {
        "model": model,
        "split": evaluation.split,
        "samples": asked.samples,
        "temperature": evaluation.temperature,
        "seed": config.seed,
    }
