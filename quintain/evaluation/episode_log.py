"""The finished episodes of an evaluation on disk, so that an evaluation that was killed goes on where it stopped.

    evaluation.json     what is evaluated: an evaluation of something else is refused
    episodes.jsonl      one trajectory a line, appended as episodes finish

Invariants:
- a line is written with one call and counts once it ends in a newline: `kill -9` costs at most the episode that was
  being written, which is then done again;
- an episode is known by its environment, its task's index and its member; a later line of the same one replaces the
  earlier;
- one process at a time has the folder open.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from quintain.closing import Closing
from quintain.codec import from_builtins, to_builtins
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.files import is_draft, write_whole
from quintain.trajectory import Trajectory

EVALUATION: Final = "evaluation.json"
EPISODES: Final = "episodes.jsonl"

Place = tuple[int, int]
"""A task's index in its split, and the member: which of the task's samples."""


class EpisodeLog(Closing):
    """The log in the folder `path`, begun for the evaluation that `identity` describes or gone on with.

    Raises QuintainError where the folder holds something else, is in use, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))  # as it is read back: tuples are lists
        self._file = -1
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / EVALUATION).exists() and _holds_something(path):
                raise QuintainError(f"{path} is no evaluation's folder: give --output a new one")
            self._file = os.open(path / EPISODES, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._lock()
            self._check_identity()
            self._finished = self._read()
        except OSError as error:
            self.close()
            raise QuintainError(f"cannot use the folder {path}: {error.strerror}") from None
        except QuintainError:
            self.close()
            raise

    @property
    def finished(self) -> Mapping[tuple[str, Place], Trajectory]:
        """The episodes that are done, failed ones included, by environment and place."""
        return self._finished

    def settle(self, name: str, value: Any) -> None:
        """Add to the identity what is only known later. QuintainError where it was something else before."""
        self._identity[name] = value
        self._check_identity()

    def add(self, trajectory: Trajectory) -> None:
        """Keep a finished episode. Raises FailureError (resource) where the disk does not take it."""
        line = json.dumps(to_builtins(trajectory), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(0, "no room for a whole episode")
        except OSError as error:
            os.ftruncate(self._file, before)  # half a line would spoil the next one
            message = (
                f"cannot write {self.path / EPISODES}: {error.strerror}; free space on its disk, then run it again"
            )
            raise FailureError.of(FailureKind.RESOURCE, Stage.JOURNAL, message, retryable=False) from error
        self._finished[known_by(trajectory)] = trajectory

    def close(self) -> None:
        """Let go of the folder; what was added is on disk."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.fsync(file)
            os.close(file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QuintainError(f"{self.path} is in use by another evaluation: wait for it, or end it") from None

    def _check_identity(self) -> None:
        """Refuse another evaluation's folder; write down what is new."""
        file = self.path / EVALUATION
        try:
            before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except ValueError:
            raise QuintainError(f"{file} is damaged: give --output a new folder") from None
        for name, now in self._identity.items():
            if name in before and before[name] != now:
                was = json.dumps(before[name], ensure_ascii=False)
                raise QuintainError(
                    f"{self.path} holds another evaluation: its {name.replace('_', ' ')} is {was}, not"
                    f" {json.dumps(now, ensure_ascii=False)}; give --output another folder"
                )
        if not file.exists() or not self._identity.keys() <= before.keys():
            write_whole(file, json.dumps(before | self._identity, indent=1, ensure_ascii=False) + "\n")

    def _read(self) -> dict[tuple[str, Place], Trajectory]:
        episodes, whole = read_episodes(self.path)
        os.ftruncate(self._file, whole)
        return {known_by(episode): episode for episode in episodes}


def read_episodes(folder: Path) -> tuple[list[Trajectory], int]:
    """The episodes in `folder`, in the order of finishing, and how many bytes of the file are whole lines.

    Raises QuintainError where a line before the last is damaged.
    """
    file = folder / EPISODES
    episodes: list[Trajectory] = []
    whole = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # its writer was killed
            try:
                episodes.append(from_builtins(json.loads(line), Trajectory))
            except (ValueError, QuintainError):
                raise QuintainError(
                    f"{file} line {number} is damaged: remove that line, its episode is done again"
                ) from None
            whole += len(line)
    return episodes, whole


def _holds_something(folder: Path) -> bool:
    """Whether `folder` has anything but what an evaluation leaves that was killed while it began."""
    return any(path.stat().st_size if path.name == EPISODES else not is_draft(path) for path in folder.iterdir())


def known_by(trajectory: Trajectory) -> tuple[str, Place]:
    """What tells an episode from the others of an evaluation."""
    return trajectory.environment, (trajectory.index, trajectory.member)
