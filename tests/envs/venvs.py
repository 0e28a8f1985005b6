"""Environments apart, for peers whose packages cannot live with ours; each is made once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python_with(name: str, *pins: str) -> str:
    """The Python of the environment `name`, which has `pins`."""
    found = importlib.util.spec_from_file_location("setup_venv", ROOT / "scripts" / "setup_venv.py")
    assert found is not None
    assert found.loader is not None
    setup = importlib.util.module_from_spec(found)
    found.loader.exec_module(setup)
    state = {"pins": " ".join(pins), "python": "{}.{}".format(*sys.version_info), "root": str(ROOT)}
    venv = setup.Venv(ROOT / ".venvs" / name, "the tests")
    with venv.alone():
        if not venv.is_finished(state):
            run = partial(subprocess.run, check=True, cwd=ROOT)
            run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv.path)])
            if not venv.uv_install(*pins):
                pip = [sys.executable, "-m", "pip", "--python", str(venv.python), "install", "-qq", "--no-compile"]
                run([*pip, *pins])
            venv.finish(state)
    return str(venv.python)
