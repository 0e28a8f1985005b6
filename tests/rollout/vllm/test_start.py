"""Starting servers: what is asked of vLLM, what is refused in one line, and that nothing is left behind.

A stand-in for vLLM, which is a module of that name, shows how its process lives and dies; real vLLM is tested beside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quintain.config import ExperimentConfig, VLLMConfig
from quintain.failure import QuintainError
from quintain.lifeline import Lifeline
from quintain.rollout.engines.vllm.process import Process, ServerLaunch
from quintain.rollout.engines.vllm.start import environ, flags, open_vllm

from .real import living

STAND_IN = """
import subprocess, sys, time
print("the server's arguments:", *sys.argv[1:], flush=True)
if "--fail" in sys.argv:
    raise SystemExit("RuntimeError: no memory for that")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def config(**rollout: object) -> ExperimentConfig:
    fields = {"engine": "vllm", **rollout}
    return ExperimentConfig.model_validate({"model": {"path": "m"}, "environment": {"name": "math"}, "rollout": fields})


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    package = tmp_path / "path" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(STAND_IN)
    return tmp_path / "path"


def launch(folder: Path, path: Path, *args: str) -> ServerLaunch:
    return ServerLaunch("vllm-0", sys.executable, list(args), folder / "logs" / "vllm-0.log", {"PYTHONPATH": str(path)})


def test_a_killed_server_takes_its_children_along_and_keeps_its_log(tmp_path: Path, stand_in: Path) -> None:
    process = Process(launch(tmp_path, stand_in, "--model=m"), Lifeline())
    process.start()
    log = process.launch.log
    wait_for(lambda: "child" in log.read_text())
    group = process.pid
    assert len(living(group)) == 3  # guard, server, child
    process.kill()
    assert living(group) == []
    assert f"--model=m --host=127.0.0.1 --port={process.port}" in log.read_text()


def test_a_server_that_dies_takes_its_children_along_and_starts_again_at_its_port(
    tmp_path: Path, stand_in: Path
) -> None:
    process = Process(launch(tmp_path, stand_in), Lifeline())
    process.start()
    wait_for(lambda: "child" in process.launch.log.read_text())
    group, port = process.pid, process.port
    server = next(one for one in living(group) if one.ppid() == group)
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: process.how_it_ended)
    wait_for(lambda: not living(group))
    process.start()
    assert (process.port, process.how_it_ended) == (port, None)
    process.kill()


def test_when_the_launcher_is_killed_nothing_of_the_server_is_left(tmp_path: Path, stand_in: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from quintain.lifeline import Lifeline
from quintain.rollout.engines.vllm.process import ServerLaunch, Process
log = Path({str(tmp_path)!r}) / "log"
launch = ServerLaunch("vllm-0", sys.executable, [], log, {{"PYTHONPATH": {str(stand_in)!r}}})
process = Process(launch, Lifeline())
process.start()
print(process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        group = int(launcher.stdout.readline())
        wait_for(lambda: (tmp_path / "log").exists() and "child" in (tmp_path / "log").read_text())
        launcher.kill()
    wait_for(lambda: not living(group))


def test_a_server_that_fails_says_why(tmp_path: Path, stand_in: Path) -> None:
    process = Process(launch(tmp_path, stand_in, "--fail"), Lifeline())
    process.start()
    wait_for(lambda: process.how_it_ended)
    assert process.how_it_ended != "exit code 0"
    assert process.last_words() == "RuntimeError: no memory for that"


@pytest.mark.parametrize(
    ("vllm", "said"),
    [
        ({"python": "/nowhere/python"}, "is no working Python"),
        ({"python": "/bin/true"}, "is no working Python"),
        ({}, "has no vLLM: run scripts/setup_vllm.py"),
    ],
)
def test_a_python_that_will_not_do_is_refused_in_one_line(tmp_path: Path, vllm: dict[str, str], said: str) -> None:
    from .real import ROOT

    experiment = config(vllm=vllm).model_copy(
        update={"model": config().model.model_copy(update={"path": str(ROOT / "models" / "SmolLM2-135M-Instruct")})}
    )
    with pytest.raises(QuintainError, match=said) as caught:
        open_vllm(experiment, logs=tmp_path, report=print)
    assert "\n" not in str(caught.value)


def test_the_flags_are_those_that_exactness_needs_and_the_users_come_last() -> None:
    options = VLLMConfig(args=["--max-num-seqs", "7"], max_lora_rank=9)
    line = flags(config(max_length=64, max_completion_length=8), options, cpu=True)
    for name, value in [
        ("--logprobs-mode", "processed_logprobs"),
        ("--generation-config", "vllm"),
        ("--max-model-len", "64"),
        ("--block-size", "32"),
        ("--max-lora-rank", "16"),
        ("--weight-transfer-config", '{"backend": "quintain"}'),
        ("--middleware", "quintain.rollout.vllm_plugin.access.KeyRequired"),
    ]:
        assert line[line.index(name) + 1] == value
    assert "--enable-scale-out" in line
    assert line[-2:] == ["--max-num-seqs", "7"]
    gpu = flags(config(), VLLMConfig(), cpu=False)
    assert not {"--block-size", "--enforce-eager", "--enable-lora"} & set(gpu)


def test_each_replica_has_its_devices_and_nothing_of_a_cpu_on_a_gpu() -> None:
    options = VLLMConfig(devices=["0,1", "2,3"], env={"A": "b"})
    seen = environ(config(), options, 1, cpu=False)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["A"], seen["VLLM_SERVER_DEV_MODE"]) == ("2,3", "b", "1")
    assert not any(name.startswith("VLLM_CPU") for name in seen)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in seen
    assert environ(config(), options, 0, cpu=True)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"engine": "transformers", "vllm": {}}, "set engine: vllm"),
        ({"vllm": {"urls": ["http://a"], "replicas": 2}}, "'replicas' is for servers that the run starts"),
        ({"vllm": {"urls": ["a:8000"]}}, "urls"),
        ({"vllm": {"devices": ["0"], "replicas": 2}}, "give one each"),
        ({"vllm": {"replica": 2}}, "replica"),
        ({"vllm": {"kv": "drop"}}, "kv"),
        ({"vllm": {"kv": "keep", "max_lora_rank": 8}}, "drop one"),
        ({"vllm": {"transfer": "nccl"}}, "servers at 'urls'"),
        ({"vllm": {"api_key_env": "K"}}, "those that the run starts have their own"),
    ],
)
def test_mistakes_in_the_section_are_found_before_anything_starts(rollout: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**rollout)
