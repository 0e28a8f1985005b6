"""The servers of a run let nobody else in, and what may be a secret is where other users cannot read it."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from quintain.config import ExperimentConfig, parse_config
from quintain.config.load import dump_config
from quintain.envs import Action, EnvClient, HarborEnv, LocalClient, MathEnv, SingleTurnEnv, Task, TaskSource, user
from quintain.failure import QuintainError
from quintain.launch.checks import check_split, told_of_same_tasks
from quintain.launch.run_folder import new_run, resumed_run
from quintain.launch.servers import Address, start_environments
from quintain.launch.supervisor import Supervisor

from ..envs.harbor_folders import HALF, HELLO, write_task

SECRET = "sk-0123456789"
ENVIRONMENT = """
from quintain.envs import SingleTurnEnv, Task, user

class Keyed(SingleTurnEnv):
    def __init__(self, *, key):
        self.key = key

    @classmethod
    def tasks(cls, split):
        return [Task("t", (user("What is the key?"),), "k")]

    def score(self, answer, reference):
        return float(answer == self.key)
"""


def experiment(folder: Path) -> ExperimentConfig:
    file = folder / "keyed.py"
    file.write_text(ENVIRONMENT)
    environment = {"name": f"{file}:Keyed", "args": {"key": SECRET}}
    return parse_config(yaml.safe_dump({"model": {"path": "m"}, "environment": environment}))


def test_an_environment_s_options_and_its_token_are_on_no_command_line_and_nobody_without_it_is_let_in(
    tmp_path: Path,
) -> None:
    config = experiment(tmp_path)
    supervisor = Supervisor(restarts=0, report=lambda text: None)
    try:
        (there,) = start_environments(supervisor, config, new_run(config, tmp_path / "run"))
        assert there.token
        processes = psutil.Process().children(recursive=True)
        assert len(processes) >= 2  # the server and its worker
        lines = [" ".join(process.cmdline()) for process in processes]
        assert not [line for line in lines if SECRET in line or there.token in line]
        workers = [process for process in processes if "quintain.envs.workers.worker" in process.cmdline()]
        assert workers
        assert not [one for one in workers if there.token in one.environ().values()]

        created = {"split": "train", "index": 0}
        assert httpx.post(f"{there.url}/v1/episodes", json=created).status_code == 401
        with httpx.Client(base_url=there.url, headers={"authorization": f"Bearer {there.token}"}) as http:
            episode = http.post("/v1/episodes", json=created).json()["episode_id"]
            said = {"turn": 0, "action": {"message": {"role": "assistant", "content": SECRET}}}
            assert http.post(f"/v1/episodes/{episode}/step", json=said).json()["reward"] == 1.0
    finally:
        supervisor.stop()


def test_an_environment_may_be_served_several_times_and_episodes_are_spread(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    config = parse_config(dump_config(config), ["environment.replicas=2"])
    supervisor = Supervisor(restarts=0, report=lambda text: None)

    async def played(there: Address) -> list[float]:
        async with EnvClient(there.url, there.token) as client:
            task, envs = client.tasks("train")[0], [client.episode() for _ in range(4)]
            await asyncio.gather(*(env.reset(task, seed=0) for env in envs))
            for url in there.url.split(","):
                async with httpx.AsyncClient(headers={"authorization": f"Bearer {there.token}"}) as http:
                    assert "quintain_env_episodes_live 2\n" in (await http.get(f"{url}/metrics")).text
            return [(await env.step(Action.text(SECRET))).reward for env in envs]

    try:
        (there,) = start_environments(supervisor, config, new_run(config, tmp_path / "run"))
        assert len(set(there.url.split(","))) == 2
        assert asyncio.run(played(there)) == [1.0] * 4
    finally:
        supervisor.stop()


def test_a_split_without_tasks_is_one_line_before_anything_is_sampled() -> None:
    class Nothing(SingleTurnEnv):
        @classmethod
        def tasks(cls, split: str) -> TaskSource:
            return []

    config = parse_config("model: {path: m}\nenvironment: {name: math}")
    with pytest.raises(QuintainError, match=r"^environment.split: 'train' has no tasks: choose another$"):
        check_split(config.plays[0], LocalClient(Nothing))


def test_tasks_that_are_held_out_and_trained_on_are_one_line(tmp_path: Path) -> None:
    class Half(SingleTurnEnv):
        splits = ("train", "heldout")

        @classmethod
        def tasks(cls, split: str) -> TaskSource:
            return [Task(str(n), (user("?"),), n) for n in (range(4) if split == "train" else range(2, 8))]

    config = parse_config("model: {path: m}\nenvironment: {name: math}\nevaluation: {}")
    line = told_of_same_tasks(config, config.plays[0], LocalClient(Half))
    assert line == (
        "math: 2 of the first 6 tasks of the held-out split 'heldout' are in 'train' too: the held-out figure is also"
        " of what was trained on"
    )
    assert told_of_same_tasks(config, config.plays[0], LocalClient(MathEnv)) is None
    folder, other = write_task(tmp_path / "hello", HELLO), write_task(tmp_path / "half", HALF)
    for options, told in (({}, True), ({"heldout": str(other)}, False)):
        client = LocalClient(HarborEnv, {"path": str(folder), **options})
        assert (told_of_same_tasks(config, config.plays[0], client) is not None) == told


def test_only_its_owner_can_read_the_config_of_a_run(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    run = new_run(config, tmp_path / "run")
    assert stat.S_IMODE(run.config.stat().st_mode) == 0o600
    run.config.chmod(0o644)
    resumed_run(config, run.path)
    assert stat.S_IMODE(run.config.stat().st_mode) == 0o600


def test_the_key_of_vllm_servers_comes_from_a_variable_and_is_nowhere_else(tmp_path: Path) -> None:
    config = parse_config(
        "model: {path: m}\nenvironment: {name: math}\n"
        "rollout: {engine: vllm, dtype: float32, vllm: {urls: ['http://h'], api_key_env: A_KEY}}"
    )
    assert config.rollout.vllm is not None
    assert config.rollout.vllm.api_key({"A_KEY": SECRET}) == SECRET
    with pytest.raises(QuintainError, match="the variable A_KEY is not set"):
        config.rollout.vllm.api_key({"A_KEY": ""})
    with pytest.raises(QuintainError, match="did you mean 'api_key_env'"):
        parse_config(
            "model: {path: m}\nenvironment: {name: math}\n"
            "rollout: {engine: vllm, dtype: float32, vllm: {urls: ['http://h'], api_key: k}}"
        )
