"""Tasks in the format of Harbor and Terminal-Bench 2: a folder with task.toml, instruction.md, environment/Dockerfile,
solution/solve.sh and tests/test.sh.

What always holds: a folder is read as a whole, or refused in one line that names the file, of a Dockerfile the line
too. Where no image is built, a Dockerfile has a common base, in whose place this machine's programs are, a work folder,
variables, and files that are copied.
"""

from __future__ import annotations

import io
import posixpath
import re
import shlex
import tarfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from string import Template
from typing import Annotated, Final

from pydantic import BaseModel, Field, ValidationError

from quintain.codec import describe
from quintain.failure import QuintainError, one_line
from quintain.verifiers.sandbox.handle import ENVIRONMENT

OWN: Final = ("/tests", "/solution", "/logs")
"""A task's folders beside those that its Dockerfile fills: nothing that an episode leaves there is judged."""
BASES: Final = ("debian", "python", "ubuntu")
IDLE: Final = ("CMD", "EXPOSE", "LABEL", "MAINTAINER")
"""Instructions that change nothing for whoever works in the container."""
FREE: Final = re.compile(
    r"/(?!(?:bin|box|boot|dev|etc|lib\w*|logs|proc|run|sbin|solution|sys|tests|tmp|usr|var)(?:/|$))[\w-][\w.-]*(?:/|$)"
)
"""A place in a folder at the top that an episode may have for its own."""
NEEDED: Final = ("instruction.md", "environment/Dockerfile", "tests/test.sh")
REFUSED_FILES: Final = ("environment/docker-compose.yaml", "environment/.dockerignore", "trajectory.json", "steps")
REFUSED: Final = {
    "environment": ("gpus", "healthcheck", "mcp_servers", "skills_dir", "tpu"),
    "verifier": ("collect", "environment"),
}
"""What of task.toml asks for more than there is here."""


class Phase(BaseModel):
    """The settings of [agent], [verifier] or [solution]."""

    timeout_sec: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    env: dict[str, str] = {}


class Surroundings(BaseModel):
    """Those of [environment]."""

    workdir: str | None = None
    memory_mb: Annotated[int, Field(gt=0)] | None = None
    os: str = "linux"
    env: dict[str, str] = {}


class Settings(BaseModel):
    """What is heeded of task.toml; the rest describes the task, or is refused."""

    agent: Phase = Phase()
    verifier: Phase = Phase()
    solution: Phase = Phase()
    environment: Surroundings = Surroundings()


@dataclass(frozen=True, slots=True)
class HarborTask:
    """A task: `copies` are its files and folders with their places in the container, `env` the variables there."""

    folder: Path
    instruction: str
    settings: Settings
    workdir: str
    env: Mapping[str, str]
    copies: tuple[tuple[Path, str], ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders at the top that an episode fills, as "/app"."""
        return tuple(sorted({"/" + place.split("/")[1] for place in (self.workdir, *(to for _, to in self.copies))}))

    def script(self, run: str, env: Mapping[str, str]) -> str:
        """Bash that runs `run` in the work folder, with the container's variables and `env`."""
        return "\n".join([*exports({**self.env, **env}), f"cd {shlex.quote(self.workdir)}", run])


def exports(env: Mapping[str, str]) -> list[str]:
    """Lines of bash that set the variables `env`."""
    return [f"export {shlex.quote(f'{name}={value}')}" for name, value in env.items()]


def task_folders(path: Path) -> list[Path]:
    """The folder `path` where it is a task, or the tasks in it. Raises QuintainError where there is none."""
    if (path / "task.toml").is_file():
        return [path]
    found = sorted(file.parent for file in path.glob("*/task.toml"))
    if not found:
        why = "has no task, a folder with task.toml" if path.is_dir() else "is no folder"
        raise QuintainError(f"{path} {why}: give a task of Harbor's format, or a folder of such tasks")
    return found


def read_task(folder: Path, *, has_image: bool = False) -> HarborTask:
    """The task in `folder`; where it `has_image`, its Dockerfile is not read. Raises QuintainError, one line, where it
    is none, or cannot be played."""
    settings = _settings(folder / "task.toml")
    for name in NEEDED:
        if not (folder / name).is_file():
            raise QuintainError(f"{folder} has no {name}, which a task of Harbor's format has")
    for name in REFUSED_FILES:
        if (folder / name).exists():
            raise QuintainError(f"{folder / name}: tasks with that are not played here")
    instruction = _text(folder / "instruction.md").strip()
    if not instruction:
        raise QuintainError(f"{folder / 'instruction.md'} is empty: it says what is to be done")
    if has_image:
        return HarborTask(folder, instruction, settings, "/", {}, ())
    image = _Image(folder / "environment" / "Dockerfile")
    image.read()
    workdir = checked_workdir(image.file, settings.environment.workdir or image.workdir)
    env = image.env | settings.environment.env
    return HarborTask(folder, instruction, settings, workdir, env, tuple(image.copies))


def checked_workdir(dockerfile: Path, workdir: str) -> str:
    """`workdir`, whose folder at the top an episode may have. Raises QuintainError where that may not be."""
    workdir = posixpath.normpath(workdir or "/")
    if not FREE.match(workdir):
        raise QuintainError(f"{dockerfile}: its WORKDIR is a folder such as /app, not {workdir}")
    return workdir


def archive(copies: Iterable[tuple[Path, str]]) -> bytes:
    """A tar archive of files and folders at their places; links stay links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for source, place in copies:
            tar.add(source, place.strip("/"))
    return made.getvalue()


def _settings(file: Path) -> Settings:
    try:
        said = tomllib.loads(_text(file))
        settings = Settings.model_validate(said)
    except tomllib.TOMLDecodeError as error:
        raise QuintainError(f"{file}: {error}") from None
    except ValidationError as error:
        raise QuintainError(one_line(f"{file}: {describe(error)}")) from None
    asked = [f"{part}.{name}" for part, names in REFUSED.items() for name in names if said.get(part, {}).get(name)]
    asked += ["steps"] if said.get("steps") else []
    asked += ["environment.os other than linux"] if settings.environment.os.lower() != "linux" else []
    asked += ["a separate verifier"] if said.get("verifier", {}).get("environment_mode") == "separate" else []
    for phase in (settings.agent, settings.verifier, settings.solution, settings.environment):
        asked += [f"the variable {name} of the host" for name, value in phase.env.items() if "${" in value]
    if asked:
        raise QuintainError(f"{file}: tasks with {', '.join(asked)} are not played here")
    return settings


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuintainError(one_line(f"{file} cannot be read: {error}")) from None


class _Image:
    """What a Dockerfile comes to, where no image has to be made for it."""

    def __init__(self, file: Path) -> None:
        self.file, self._line, self._bases = file, 0, 0
        self.workdir = "/"
        self.env: dict[str, str] = {}
        self.copies: list[tuple[Path, str]] = []

    def read(self) -> None:
        """Follow the file. Raises QuintainError, with its line, for what needs an image."""
        follow = {"FROM": self._from, "WORKDIR": self._workdir, "ENV": self._env, "COPY": self._copy}
        for line, name, rest in _instructions(_text(self.file)):
            self._line = line
            if name in follow and rest:
                follow[name](rest)
            elif name not in IDLE:
                raise self._refusal(f"{name} {rest}")
        if not self._bases:
            raise QuintainError(f"{self.file} has no FROM, which says what the container is made of")

    def _from(self, rest: str) -> None:
        self._bases += 1
        name = rest.removeprefix("docker.io/").removeprefix("library/").partition("@")[0].partition(":")[0]
        if self._bases > 1 or name not in BASES:
            raise self._refusal(f"FROM {rest}", f"of {', '.join(BASES)}")

    def _workdir(self, rest: str) -> None:
        self.workdir = posixpath.normpath(posixpath.join(self.workdir, self._filled(rest)))

    def _env(self, rest: str) -> None:
        words, (name, _, value) = self._words(rest), rest.partition(" ")
        pairs = [word.partition("=")[::2] for word in words] if "=" in words[0] else [(name, value.strip())]
        self.env |= {name: self._filled(value) for name, value in pairs}

    def _copy(self, rest: str) -> None:
        *sources, to = self._words(rest)
        place = posixpath.normpath(posixpath.join(self.workdir, self._filled(to)))
        found = [self._found(source) for source in sources]
        if not found or not all(found) or not FREE.match(place):
            raise self._refusal(f"COPY {rest}", "with files of its folder and places such as /app")
        into = to.endswith(("/", ".")) or place == self.workdir or sum(map(len, found)) > 1
        for file in chain.from_iterable(found):
            self.copies.append((file, posixpath.join(place, file.name) if into and file.is_file() else place))

    def _found(self, source: str) -> list[Path]:
        """What a COPY names beside the Dockerfile, if there is such a thing."""
        folder = self.file.parent.resolve()
        found = [folder] if posixpath.normpath(source) in (".", "/") else sorted(folder.glob(source.strip("/")))
        return [file for file in found if file.resolve().is_relative_to(folder)]

    def _words(self, rest: str) -> list[str]:
        try:
            return shlex.split(rest)
        except ValueError as error:
            raise self._refusal(f"{rest}: {error}") from None

    def _filled(self, text: str) -> str:
        """`text` with its variables."""
        try:
            return Template(text).substitute(ENVIRONMENT | self.env)
        except (KeyError, ValueError) as error:
            raise self._refusal(f"{text}: {error}", "with variables that are known") from None

    def _refusal(self, said: str, which: str = "of FROM, WORKDIR, ENV and COPY") -> QuintainError:
        needs = f"{self.file}:{self._line}: {said[:80]} needs an image: give sandbox: {{backend: docker}}"
        return QuintainError(one_line(f"{needs}; without, tasks have Dockerfiles {which}"))


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """The instructions of a Dockerfile: the number of the first line, the name, and what is said."""
    begun, said = 0, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("#") or not (line.strip() or said):
            continue
        begun, said = begun or number, said + line.strip()
        if said.endswith("\\") and line.strip():
            said = said[:-1].rstrip() + " "
            continue
        name, _, rest = said.partition(" ")
        yield begun, name.upper(), rest.strip()
        begun, said = 0, ""
