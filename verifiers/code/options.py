"""Options of the code verifier, and the languages it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from quintain.verifiers.code.compare import Policy
from quintain.verifiers.code.extract import Choice
from quintain.verifiers.options import Options, Positive, Seconds, TextOptions
from quintain.verifiers.sandbox.interface import MEBI, Limits


class LimitOptions(Options):
    """What one program may use; more is its end."""

    wall_s: Seconds = 10.0
    """Seconds on the clock."""
    cpu_s: Seconds | None = None
    """Seconds of processor time over all its processes; as many as on the clock unless given."""
    memory_bytes: Positive = 512 * MEBI
    """Memory over all its processes."""
    output_bytes: Positive = MEBI
    """Bytes it may write to stdout and stderr together."""
    processes: Positive = 64
    """Processes and threads at one time."""
    files_bytes: Positive = 64 * MEBI
    """Size of its files, of each and of all together."""

    def limits(self) -> Limits:
        """The sandbox's own form."""
        return Limits(
            wall_s=self.wall_s,
            cpu_s=self.wall_s if self.cpu_s is None else self.cpu_s,
            memory_bytes=self.memory_bytes,
            output_bytes=self.output_bytes,
            processes=self.processes,
            file_bytes=self.files_bytes,
            workdir_bytes=self.files_bytes,
        )


class LanguageOptions(Options):
    """How programs of a language are compiled and run: command lines, without a shell, in the work folder."""

    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    """The file that the program's text goes into."""
    compile: tuple[str, ...] = ()
    """The command that makes `artifact` of it; none for an interpreted language."""
    artifact: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")] | None = None
    """The file that compiling makes; it alone is there when the program runs."""
    run: tuple[str, ...] = ()
    """The command that runs the program; without one the file is Python, run by the sandbox's own interpreter."""
    fences: tuple[str, ...] = ()
    """The names of the language behind a fence of the model's text, beside its own."""


LANGUAGES: Final[Mapping[str, LanguageOptions]] = {
    "python": LanguageOptions(file="main.py", fences=("py", "python3", "py3")),
    "cpp": LanguageOptions(
        file="main.cpp",
        compile=("g++", "-O2", "-std=c++17", "-o", "main", "main.cpp"),
        artifact="main",
        run=("./main",),
        fences=("c++", "cc", "cxx"),
    ),
    "javascript": LanguageOptions(file="main.js", run=("node", "main.js"), fences=("js", "node", "nodejs")),
    "bash": LanguageOptions(file="main.sh", run=("bash", "main.sh"), fences=("sh", "shell")),
}


class CodeOptions(TextOptions):
    """Options of the code verifier."""

    backend: Literal["namespaces", "docker", "process"] = "namespaces"
    """The sandbox: the kernel's namespaces, containers, or none at all (which takes `unsafe`)."""
    unsafe: bool = False
    """Whether programs may run with no walls around them (backend `process`): they can do what this service can."""
    slots: Positive | None = None
    """Programs at a time; one for each processor, and two more so that none idles, unless given."""
    python: str | None = None
    """The interpreter of tested Python programs; the system's unless given."""
    preload: tuple[str, ...] = ()
    """Modules that programs often import: they are there at once (namespaces only)."""
    pytest_python: str | None = None
    """An interpreter that has pytest, for pytest projects; the one that this service runs on unless given."""
    folders: tuple[Annotated[str, Field(pattern=r"^/[\w-][\w.-]*$")], ...] = ()
    """Folders at the top, as `/app`, that lead into the work folder (namespaces only)."""
    readable: tuple[str, ...] = ()
    """Further paths of this machine that programs may read (namespaces only)."""
    image: str | None = None
    """The image of the containers (docker only); it needs Python 3.10 as `python3`, and pytest for projects."""
    engine_url: str | None = None
    """The address of the Docker Engine; DOCKER_HOST or the local socket unless given."""
    runtime: str | None = None
    """A runtime of the engine, as `runsc` for gVisor."""
    limits: LimitOptions = LimitOptions()
    """What one run of a program may use: one case of stdio, all tests of a function or a project."""
    compile_limits: LimitOptions = LimitOptions(wall_s=30.0, memory_bytes=1024 * MEBI)
    """What compiling may use."""
    partial_credit: bool = False
    """Whether the score is the share of cases passed; otherwise it is 1 for all and 0 for less, and the first failed
    case ends the item."""
    compare: Policy = "lines"
    """How output is compared: `exact` bytes, `lines` without trailing white space, `numbers` within the tolerance, or
    `tokens`."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For `numbers`: how far a number may be off, absolutely or relatively; 0 is equality as decimals."""
    extraction: Choice = "last"
    """Which fenced block of the text is the program: `first`, `last`, or `all` of them one after the other."""
    language: str = "python"
    """The language of stdio programs whose reference names none."""
    languages: dict[str, LanguageOptions] = Field(default_factory=dict)
    """Further languages, or others in the place of those built in: python, cpp, javascript, bash."""
    in_place: Literal["procedures", "always", "never"] = "procedures"
    """Whether tests of functions see what a call has changed in its arguments: `procedures`, where it gave None, as a
    function does that works in place; `always`, as they would in one process (a function that empties its argument then
    fools a test like `assert f(x) == sorted(x)`); or `never`."""

    def language_called(self, name: str) -> LanguageOptions | None:
        """How programs of that language are run, if it is known."""
        return self.languages.get(name) or LANGUAGES.get(name)
