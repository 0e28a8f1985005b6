"""The environment's set-up: what it refuses, what it skips, and that it never chooses CUDA by accident."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "scripts" / "setup_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*names: str) -> dict[str, object]:
    return {"install": [{"metadata": {"name": name, "version": "1"}} for name in names]}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the set-up reads, so that no test touches the real environment."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "setup.py", "scripts/setup_venv.sh", "scripts/setup_venv.py"):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def run_setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "scripts/setup_venv.sh"],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def finish(checkout: Path) -> None:
    """Leaves `checkout` as a successful set-up by the running Python would, but with a pip that installs nothing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (packages,) = (checkout / ".venv").glob("lib/python*/site-packages")
    (packages / "pip.py").write_text("if __name__ == '__main__':\n    raise SystemExit('no index here')\n")
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import setup_venv; "
        "setup_venv.VENV.finish(setup_venv.wanted_state())"
    )
    subprocess.run([checkout / ".venv" / "bin" / "python", "-B", "-c", code], cwd=checkout, check=True)


def test_cuda_packages_are_found_in_a_pip_report_whatever_their_case() -> None:
    script = load_script()
    wanted = report("torch", "nvidia-cublas", "NVIDIA-nccl-cu13", "triton", "cuda-toolkit")
    assert script.cuda_packages(wanted) == ["cuda-toolkit", "nvidia-cublas", "nvidia-nccl-cu13", "triton"]


def test_a_cpu_build_of_torch_has_no_cuda_packages() -> None:
    script = load_script()
    assert script.cuda_packages(report("torch", "filelock", "sympy", "numpy", "jinja2")) == []


class FreshEnvironment:
    """The script in an environment without torch, with a pip that records calls and would install `names`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str, path: Path = Path(".venv")) -> None:
        self.script = load_script()
        self.calls: list[tuple[str, ...]] = []
        self.report = json.dumps(report(*names))
        monkeypatch.setattr(self.script.Venv, "pip", lambda venv, *arguments, **how: self.pip(*arguments, **how))
        monkeypatch.setattr(self.script.Venv, "ask", lambda venv, code: "")
        monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
        self.venv = self.script.Venv(path, "setup_venv")

    def pip(self, *arguments: str, capture: bool = False) -> str:
        self.calls.append(arguments)
        return self.report if capture else ""

    @property
    def installations_of_torch(self) -> list[tuple[str, ...]]:
        return [call for call in self.calls if self.script.TORCH in call and "--dry-run" not in call]


@pytest.mark.parametrize("uv_succeeds", [True, False])
def test_where_pip_only_knows_cuda_torch_comes_from_uv_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uv_succeeds: bool
) -> None:
    fresh = FreshEnvironment(monkeypatch, "torch", "nvidia-nccl-cu13", path=tmp_path)
    asked = tmp_path / "asked"
    executable(tmp_path / "bin" / "uv", f'#!/bin/sh\necho "$*" > {asked}\nexit {0 if uv_succeeds else 2}\n')
    if uv_succeeds:
        fresh.venv.install_cpu_torch()
    else:
        with pytest.raises(fresh.script.Refused, match="Set TORCH_INDEX_URL"):
            fresh.venv.install_cpu_torch()
    assert f"--torch-backend cpu {fresh.script.TORCH}" in asked.read_text()
    assert fresh.installations_of_torch == []


def test_where_pip_has_the_cpu_build_pip_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = FreshEnvironment(monkeypatch, "torch", "sympy")
    fresh.venv.install_cpu_torch()
    assert fresh.installations_of_torch == [("install", fresh.script.TORCH)]


def test_an_index_given_by_the_user_is_the_one_that_torch_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = FreshEnvironment(monkeypatch, "torch", "sympy")
    monkeypatch.setenv("TORCH_INDEX_URL", "file:///wheels")
    fresh.venv.install_cpu_torch()
    assert fresh.installations_of_torch == [("install", "--index-url", "file:///wheels", fresh.script.TORCH)]


LISTED = """:env:.disable-pip-version-check='1'
:env:.find-links='/wheels /more'
global.cert='/ca.pem'
global.extra-index-url='file:///one\\nfile:///two'
global.find-links='/another'
"""


def test_uv_looks_where_pip_was_told_to_look_by_variables_before_files() -> None:
    assert load_script().uv_settings(LISTED) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INDEX": "file:///one file:///two",
        "UV_FIND_LINKS": "/wheels,/more",
        "SSL_CERT_FILE": "/ca.pem",
    }


def test_what_pip_was_told_is_what_the_real_pip_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    script = load_script()
    settings = script.uv_settings(script.Venv(Path(sys.prefix), "test").pip("config", "list", capture=True))
    assert settings["UV_FIND_LINKS"] == "/wheels"


@pytest.mark.parametrize(
    ("listed", "code", "installs"),
    [(LISTED, 0, []), (LISTED, 2, ["x"]), ("global.no-binary='lxml'\n", 0, ["x"])],
    ids=["it can", "it cannot", "pip was told what uv does not know"],
)
def test_what_uv_cannot_install_pip_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: str, code: int, installs: list[str]
) -> None:
    fresh = FreshEnvironment(monkeypatch, path=tmp_path)
    monkeypatch.setattr(fresh.script, "VENV", fresh.venv)
    fresh.report = listed
    executable(tmp_path / "bin" / "uv", f"#!/bin/sh\nexit {code}\n")
    fresh.venv.install("x")
    assert [call[1] for call in fresh.calls if call[0] == "install"] == installs


def test_a_python_that_does_not_exist_is_refused_in_one_line(checkout: Path) -> None:
    result = run_setup(checkout, PYTHON="no-such-python")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "PYTHON=no-such-python is not a working Python 3.11 or newer" in result.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_too_old_is_refused_and_its_version_named(checkout: Path) -> None:
    old = executable(checkout / "old-python", '#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.18"\nexit 1\n')
    result = run_setup(checkout, PYTHON=str(old))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "3.11 or newer (Python 3.9.18)" in result.stderr


def test_the_search_passes_over_shims_without_a_version_behind_them(checkout: Path) -> None:
    shims = checkout / "shims"
    executable(shims / "python3", "#!/bin/sh\necho 'python3: command not found' >&2\nexit 127\n")
    executable(shims / "python3.13", f'#!/bin/sh\nCHOSEN=3.13 exec {sys.executable} "$@"\n')
    # Which Python is chosen is the question here, not what is done with it.
    (checkout / "scripts" / "setup_venv.py").write_text("import os; print(os.environ['CHOSEN'])\n")
    result = run_setup(checkout, PATH=f"{shims}:{os.environ['PATH']}", PYTHON="")
    assert (result.returncode, result.stdout) == (0, "3.13\n")


def test_a_finished_environment_is_left_alone_without_a_word(checkout: Path) -> None:
    finish(checkout)
    before = sorted(checkout.rglob("*"))
    result = run_setup(checkout, PYTHON="")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(checkout.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "installs_again"),
    [
        (('"rich>=13.7",', '"rich>=13.8",'), True),
        (("line-length = 120", "line-length = 121"), False),
    ],
    ids=["a dependency", "a rule for ruff"],
)
def test_only_what_decides_about_packages_counts_as_a_change(
    checkout: Path, change: tuple[str, str], installs_again: bool
) -> None:
    finish(checkout)
    project = checkout / "pyproject.toml"
    assert change[0] in project.read_text()
    project.write_text(project.read_text().replace(*change))
    # The environment's pip installs nothing, so setting it up again is seen to start and to fail.
    result = run_setup(checkout, PYTHON="", TORCH_INDEX_URL="")
    assert (result.returncode != 0) is installs_again


def test_a_failed_set_up_leaves_no_stamp(checkout: Path) -> None:
    finish(checkout)
    stamp = checkout / ".venv" / "quintain-setup.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "inputs_sha256": "other"}))
    result = run_setup(checkout, PYTHON="")
    assert result.returncode == 1
    assert "setup_venv: error: `pip install" in result.stderr
    assert not stamp.exists()


def test_a_folder_that_is_no_environment_is_not_overwritten(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").write_text("data")
    result = run_setup(checkout, PYTHON=sys.executable)
    assert result.returncode == 1
    assert "is not a virtual environment; move it away" in result.stderr
    assert (checkout / ".venv" / "precious").read_text() == "data"


WANTED = """
import sys
from pathlib import Path
sys.path.insert(0, {scripts!r})
import setup_venv
venv, state = setup_venv.Venv(Path({path!r}), "test"), {{"python": "%d.%d" % sys.version_info[:2], "root": "here"}}
with venv.alone():
    if not venv.is_finished(state):
        venv.make(state)
        venv.finish(state)
assert venv.ask("import pip; print(pip.__version__)"), "no pip"
"""


def test_of_processes_that_want_an_environment_at_once_one_makes_it_even_where_another_was_stopped_before_its_pip(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "peer"], check=True)
    code = WANTED.format(scripts=str(ROOT / "scripts"), path=str(tmp_path / "peer"))
    both = [subprocess.Popen([sys.executable, "-B", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("making" in text for text in said) == 1
    assert sum("replacing" in text for text in said) == 1
