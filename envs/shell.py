"""A shell and a working folder in a sandbox: the policy runs commands and edits files, and what it leaves is judged.

    class Greeting(ShellEnv):
        \"""Write a file.\"""

        @classmethod
        def tasks(cls, split: str) -> TaskSource:
            return [Task("hello", (user("Write Hello into greeting.txt."),), {"files": {"greeting.txt": "Hello"}})]

What always holds:
- every episode has a folder of its own; the shell's directory, variables and functions last from call to call, its
  processes do not; a command that hangs or writes too much is killed, and the episode goes on;
- the verdict is made after the last command, by programs that run on a copy of the folder in other sandboxes: nothing
  that judges, and nothing that is only in the reference, is ever where the episode can reach it;
- a sandbox that breaks is a failure, never a reward. A session that a command has taken down with it (by its memory,
  or by not ending) is no failure: its files are lost, and it is judged without them.
"""

from __future__ import annotations

import io
import math
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from quintain.envs.base import Action, Observation, Step, invalid
from quintain.envs.harness import AgentProgram, Harness
from quintain.envs.single_turn import Score
from quintain.envs.tools import ToolEnv, ToolError, tool
from quintain.envs.wrappers import without_middle
from quintain.failure import FailureError, QuintainError, Stage
from quintain.messages import Message
from quintain.task import Task
from quintain.verifiers.sandbox.interface import MEBI, Execution, Limits, Program, Sandbox, Session, Status

if TYPE_CHECKING:
    from quintain.verifiers.code.verifier import CodeVerifier

FOLDER_BYTES: Final = 16 * MEBI
MEMORY_BYTES: Final = 256 * MEBI
OUTPUT_BYTES: Final = MEBI
COLLECT_S: Final = 5.0
TAR_BYTES: Final = 2048
"""What a file may take in an archive beside its content."""
COPY_BYTES: Final = 4 * FOLDER_BYTES
"""Of a copy: a file with holes, or with two names, takes more than in the folder it is from."""
SHELLS: Final = 32
STATE: Final = ".shell"
_SHELL: Final = f"""
exec 2>&1
shopt -s expand_aliases
declare -r _state="${{TMPDIR:-/tmp}}/{STATE}"
[ -r "$_state" ] && . "$_state" >/dev/null 2>&1
trap '{{ declare -p; declare -f; alias -p; printf "cd -- %q\\n" "$PWD"; }} >"$_state" 2>/dev/null' EXIT
eval "$1"
"""
_PACK: Final = f'chmod -R u+rwX -- "$@" 2>/dev/null; exec tar -cf - --exclude=./{STATE} -- "$@"'
"""No file hides behind its mode."""
_HURTS: Final = (Status.MEMORY_LIMIT, Status.TIMEOUT)


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """What an episode left: its `files`, and copies of them to run programs on."""

    files: Mapping[str, bytes]
    _sandbox: Sandbox
    _limits: Limits

    def text(self, path: str) -> str | None:
        """The file `path` as text without ends of line at its end; None where there is no such file."""
        content = self.files.get(path)
        return None if content is None else content.decode("utf-8", "replace").rstrip("\n")

    async def run(self, *argv: str, stdin: str = "", files: Mapping[str, str] | None = None) -> Execution:
        """Run a command line in a fresh copy. Raises FailureError where that breaks.

        With `files`, which only judge, it runs where those are, and the copy is the folder `work` beside them: nothing
        of the episode's can pass for a module of theirs. A judge that runs the episode's programs itself can still be
        misled by them: what they print is better compared by who calls this.
        """
        laid = dict(self.files)
        if files is not None:
            laid = {f"work/{path}": content for path, content in laid.items()}
            laid |= {path: content.encode() for path, content in files.items()}
        program = Program.command(*argv)
        return settled(await self._sandbox.run(program, stdin=stdin.encode(), files=laid, limits=self._limits))


class ShellEnv(ToolEnv):
    """A shell in a working folder: subclasses give `tasks`, whose references are as `check` reads them, or `check`.

    `files` are those of a folder at its beginning. Options: `command_s` is how long a command may take, `shown_chars`
    how much of its output is shown, `sandbox` are options of the verifier `code` (backend, image, python ...), and
    `shells` is how many episodes a process may play at a time. With a `harness` an agent program plays in place of the
    policy's own calls of tools.
    """

    max_calls = 24
    max_calls_per_turn = 3  # and all of them may take their time, and the verdict, within a server's time for a step
    _work: Session | None = None
    _program: AgentProgram | None = None
    _hurt: bool = False

    def __init__(
        self,
        *,
        system: str | None = None,
        max_calls: int | None = None,
        max_calls_per_turn: int | None = None,
        command_s: float = 10.0,
        shown_chars: int = 4000,
        sandbox: Mapping[str, Any] | None = None,
        shells: int = SHELLS,
        harness: Harness | None = None,
    ) -> None:
        super().__init__(system=system, max_calls=max_calls, max_calls_per_turn=max_calls_per_turn)
        if shown_chars < 1:
            raise QuintainError(f"{type(self).__name__}'s shown_chars are at least 1, not {shown_chars}")
        self._limits = Limits(
            wall_s=command_s,
            cpu_s=command_s,
            memory_bytes=MEMORY_BYTES,
            output_bytes=OUTPUT_BYTES,
            file_bytes=FOLDER_BYTES,
            workdir_bytes=FOLDER_BYTES,
        )
        self._harness = harness
        self._shown_chars, self._options = shown_chars, dict(sandbox or {})
        slots = -(-self.places(shells=shells) // 2)  # a slot of the verifier is two programs
        self._shells = self._options | {"slots": slots}

    @classmethod
    def places(cls, *, shells: int = SHELLS) -> int:
        """As many as there are shells."""
        if shells < 1:
            raise QuintainError(f"{cls.__name__}'s shells are at least 1, not {shells}")
        return shells

    def files(self, task: Task) -> Mapping[str, str]:
        """What is in the folder at the beginning: paths and texts."""
        return task.info.get("files", {})  # type: ignore[no-any-return]

    async def check(self, work: WorkFolder, reference: Any) -> Score:
        """What the folder is worth: 1 where all of `reference` holds, and else 0. It has at least one of

        - `files`: paths with their texts, or with None where there must be no file;
        - `runs`: command lines for `WorkFolder.run`, as `{"command": [...], "stdin": "...", "files": {...}, "stdout":
          "..."}`: with exit code 0 and, where it is given, that output (white space at the ends aside);
        - `pytest`: files and tests of a project as the verifier `code` takes them.
        """
        if not reference or set(reference) - {"files", "runs", "pytest"}:
            raise invalid(f"a reference has files, runs or pytest, not {', '.join(reference) or 'nothing'}")
        for path, text in reference.get("files", {}).items():
            if work.text(path) != (None if text is None else text.rstrip("\n")):
                return 0.0
        for run in reference.get("runs", ()):
            done = await work.run(*run["command"], stdin=run.get("stdin", ""), files=run.get("files"))
            said = done.stdout.decode("utf-8", "replace").strip()
            if done.status is not Status.OK or said != run.get("stdout", said).strip():
                return 0.0
        if "pytest" in reference:
            project = {"kind": "pytest", **reference["pytest"]}
            return await self.judge("code", _fenced(work.files), project, self._options | {"after_thinking": False})
        return 1.0

    @tool
    async def shell(self, command: str) -> str:
        """Run a command in bash, in the working folder or where the last one has gone.

        Args:
            command: What to run, such as "ls -l".
        """
        done = await self._run(Program.command("bash", "-c", _SHELL, "bash", command))
        text = without_middle((done.stdout + done.stderr).decode("utf-8", "replace").rstrip("\n"), self._shown_chars)
        if done.status is Status.OK:
            return text or "(no output)"
        said = done.reason if done.status is Status.RUNTIME_ERROR else f"killed: {done.reason}"
        return f"{text}\n({said})".lstrip("\n")

    @tool
    async def read_file(self, path: str) -> str:
        """Show a file.

        Args:
            path: The file, from the working folder on.
        """
        return without_middle(await self._read(path), self._shown_chars)

    @tool
    async def write_file(self, path: str, content: str) -> str:
        """Write a file, in place of what is there.

        Args:
            path: The file, from the working folder on.
            content: All of its text.
        """
        await self._write(path, content)
        return f"{path} has {len(content)} characters"

    @tool
    async def replace_text(self, path: str, old: str, new: str) -> str:
        """Replace a text that is in a file exactly once.

        Args:
            path: The file, from the working folder on.
            old: The text that is there.
            new: The text to put in its place.
        """
        text = await self._read(path)
        if not old or (times := text.count(old)) != 1:
            raise ToolError("raised", f"{path} has the old text {times if old else 'no'} times: it must be there once")
        await self._write(path, text.replace(old, new))
        return f"{path} is changed"

    async def reset(self, task: Task, *, seed: int) -> Observation:
        """Show the task's prompt and the tools, or an agent program's first call. Raises FailureError."""
        observation = await self.prepare(task, seed=seed)
        if self._harness is None:
            return observation
        assert self._work is not None  # it has been made
        asked, limits = (
            "\n\n".join(said.text for said in task.prompt),
            self._harness.limits(self._limits, self._left_s()),
        )
        self._program = await AgentProgram.start(self._work, self._harness, asked, limits=limits, state=STATE)
        call = await self._program.call()
        if call is None:
            raise invalid("the agent program has ended before it asked the policy anything", Stage.RESET)
        return call

    async def step(self, action: Action) -> Step:
        """As of every environment with tools; with an agent program, give it its answer, and score what it leaves."""
        if self._program is None:
            return await super().step(action)
        await self._program.answer(action)
        call = await self._program.call()
        return await self.finish((), {}) if call is None else Step(call, 0.0, False)

    async def prepare(self, task: Task, *, seed: int) -> Observation:
        """Make the working folder; a subclass that has more to lay does it here. Raises FailureError."""
        await self._leave()
        files = {path: text.encode() for path, text in self.files(task).items()}
        self._work, self._hurt = await self._sandbox(self._shells).open(files, self._limits), False
        return await super().reset(task, seed=seed)

    async def verdict(self, history: Sequence[Message]) -> Score:
        """What the folder is worth that the episode has left: nothing where it cannot be had."""
        files = await self._collected()
        await self._leave()
        if files is None:
            return 0.0
        limits = replace(self._limits, workdir_bytes=COPY_BYTES, inodes=2 * self._limits.inodes)
        work = WorkFolder(files, self._sandbox(self._options), limits)
        return await self.check(work, self._playing().reference)

    async def close(self) -> None:
        """End the shell, and close the sandbox unless it is shared."""
        await self._leave()
        await super().close()

    async def _leave(self) -> None:
        work, self._work, self._program = self._work, None, None
        if work is not None:
            await work.close()

    def _sandbox(self, options: Mapping[str, Any]) -> Sandbox:
        """The sandbox of the verifier `code` with these options."""
        verifier: CodeVerifier = self.verifier_called("code", options)  # type: ignore[assignment]
        return verifier.sandbox

    async def _run(self, program: Program, files: Mapping[str, bytes] | None = None, **limits: Any) -> Execution:
        """What became of `program`. Raises ToolError for files that cannot be."""
        if self._work is None:
            raise ToolError("raised", "the shell and its files are gone: an earlier command has taken them with it")
        bounds = Limits(**limits) if limits else self._bounds()
        try:
            done = await self._work.run(program, files=files, limits=bounds)
        except QuintainError as error:
            raise ToolError("invalid_arguments", str(error)) from None
        if done.failure is not None and self._hurt:
            await self._leave()
            return await self._run(program)
        self._hurt = done.status in _HURTS
        return settled(done)

    def _bounds(self) -> Limits:
        """What a command of the policy's may use now. A subclass may raise ToolError, where there is nothing left."""
        return self._limits

    def _left_s(self) -> float:
        """How long the episode may still take, in seconds."""
        return math.inf

    def _place(self, path: str) -> str:
        """Where the file is, from the sandbox's work folder on, that the policy calls `path`."""
        return path

    async def _read(self, path: str) -> str:
        done = await self._run(Program.command("cat", "--", self._place(path)))
        if done.status is not Status.OK:
            said = done.stderr.decode("utf-8", "replace").removeprefix("cat: ").strip() or done.reason
            raise ToolError("raised", said)
        try:
            return done.stdout.decode()
        except UnicodeDecodeError:
            raise ToolError("raised", f"{path} is no text in UTF-8") from None

    async def _write(self, path: str, content: str) -> None:
        done = await self._run(Program.command("true"), {self._place(path): content.encode("utf-8", "replace")})
        if done.status is not Status.OK:
            raise ToolError("raised", done.stderr.decode("utf-8", "replace").strip() or done.reason)

    async def _collected(self) -> dict[str, bytes] | None:
        """The regular files of the folder; None where they are more than it may hold, or gone."""
        packed = await self._packed(".")
        files = None if packed is None else _untarred(packed)
        return None if files is None or sum(map(len, files.values())) > FOLDER_BYTES else files

    async def _packed(self, *paths: str) -> bytes | None:
        """An archive of all that is at `paths` of the folder; None where it is more than that may hold, or gone."""
        most = FOLDER_BYTES + TAR_BYTES * self._limits.inodes
        program = Program.command("sh", "-c", _PACK, "sh", *paths)
        try:
            done = await self._run(program, wall_s=COLLECT_S, cpu_s=COLLECT_S, output_bytes=most)
        except ToolError:
            return None
        return done.stdout if done.status is Status.OK else None


def _untarred(archive: bytes) -> dict[str, bytes] | None:
    """The regular files in `archive` whose names are text; None where it cannot be read."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() or member.islnk() else None
                if file is not None and member.name.isprintable():
                    found[member.name.removeprefix("./")] = file.read()
    except (tarfile.TarError, KeyError, ValueError, RecursionError):
        return None
    return found


def settled(done: Execution) -> Execution:
    """`done`. Raises FailureError where the sandbox broke."""
    if done.failure is not None:
        raise FailureError(done.failure)
    return done


def _fenced(files: Mapping[str, bytes]) -> str:
    """`files` as an answer that the verifier `code` reads as these files, whatever is in them."""
    blocks = []
    for path, content in files.items():
        text = content.decode("utf-8", "replace")
        fence = "`" * (1 + max(map(len, re.findall("`{3,}", text)), default=2))
        blocks.append(f"{fence} {path}\n{text}\n{fence}")
    return "\n".join(blocks)
