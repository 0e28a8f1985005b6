"""The images of tasks in Harbor's format, for the sandbox of docker.

What always holds: an image is built from a task's environment/ once for each content of it. In the one that is played,
the work folder's folder at the top, and those of the task's own, lead into the session's file system, since nothing
else of a container can be written; what the image has there is kept at KEPT, for the session to copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from quintain.envs.builtin.harbor_tasks import OWN, HarborTask, archive, checked_workdir
from quintain.failure import QuintainError, one_line
from quintain.verifiers.sandbox.container import WORK
from quintain.verifiers.sandbox.docker import client_class

if TYPE_CHECKING:
    from docker import APIClient

KEPT: Final = "/.task"
BUILD_S: Final = 600


def built(harbor: HarborTask, url: str | None) -> tuple[HarborTask, str]:
    """The task with its image's work folder and variables, and the image to play it in, built by the engine at `url`.

    It blocks. Raises QuintainError, one line, where that cannot be built or played.
    """
    client = client_class()
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    folder = harbor.folder / "environment"
    name = f"quintain-harbor:{hashlib.sha256(archive([(folder, '.')])).hexdigest()[:32]}"
    try:
        engine = client(base_url=url or os.environ.get("DOCKER_HOST"), version="auto", timeout=BUILD_S)
        with contextlib.closing(engine):
            if not engine.images(name):
                _build(engine, name, f"{folder / 'Dockerfile'}", path=f"{folder}")
            config = engine.inspect_image(name)["Config"]
            env = dict(variable.split("=", 1) for variable in config["Env"] or ())
            workdir = checked_workdir(
                folder / "Dockerfile", harbor.settings.environment.workdir or config["WorkingDir"]
            )
            harbor = replace(harbor, workdir=workdir, env=env | harbor.settings.environment.env)
            _build(engine, f"{name}-played", f"{folder}", fileobj=io.BytesIO(_played(name, harbor).encode()))
    except (DockerException, RequestException, OSError) as error:
        raise QuintainError(one_line(f"the image of {folder} cannot be built: {error}")) from None
    return harbor, f"{name}-played"


def _played(name: str, harbor: HarborTask) -> str:
    (top,) = harbor.folders
    steps = [f"mkdir -p {shlex.quote(harbor.workdir)} {KEPT}", f"mv {top} {KEPT}", f"chmod -R a+rX {KEPT}"]
    steps += [f"rm -rf {own} && ln -s {WORK}{own} {own}" for own in OWN]
    return f"FROM {name}\nUSER 0\nENTRYPOINT []\nRUN {' && '.join(steps)} && ln -s {WORK}{top} {top}\n"


def _build(engine: APIClient, name: str, what: str, **source: Any) -> None:
    for said in engine.build(tag=name, rm=True, forcerm=True, decode=True, **source):
        if "error" in said:
            raise QuintainError(one_line(f"{what} cannot be built: {said['error']}"))
