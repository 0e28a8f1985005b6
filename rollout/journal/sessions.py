"""The gateway's finished sessions, on disk from the moment their reward is acknowledged until somebody fetches them.

A file of msgpack trajectories, each after its length, in the order of finishing. Invariants:
- what `append` has returned for survives `kill -9` of this process, and has the same cursor ever after;
- a record that was cut short by a crash was acknowledged to nobody: it is cut off when the file is opened again;
- memory holds eight bytes a session, however long ago it was fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from array import array
from pathlib import Path
from typing import Final

from quintain.closing import Closing
from quintain.codec import pack
from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.frames import HEADER, FrameError, framed
from quintain.rollout.wire import packed_group
from quintain.trajectory import Trajectory

MAGIC: Final = b"quintain sessions 1\n"


class FinishedSessions(Closing):
    """The file `path`, made where there is none. Raises QuintainError where it is another file, or not writable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = asyncio.Event()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._offsets = self._scan()
        except OSError as error:
            raise QuintainError(f"cannot keep finished sessions in {path}: {error.strerror or error}") from None

    @property
    def count(self) -> int:
        """How many sessions have finished, before a restart too."""
        return len(self._offsets) - 1

    async def append(self, trajectory: Trajectory) -> None:
        """Keep a finished session. FailureError (resource, at stage journal) where the disk refuses.

        QuintainError where it can never be written.
        """
        body = packed_group(trajectory.group, trajectory.index, [await asyncio.to_thread(pack, trajectory)])
        try:
            record, end = framed(body), self._offsets[-1]
        except FrameError as error:
            raise QuintainError(f"the session cannot be kept: {error}") from None
        try:
            written = os.pwrite(self._file, record, end)
            if written < len(record):
                raise OSError("the disk is full")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)  # or what was written of it would follow a shorter one
            message = f"cannot write {self._path}: {error.strerror or error}; free space on its disk, then try again"
            raise FailureError.of(FailureKind.RESOURCE, Stage.JOURNAL, message, retryable=False) from error
        self._offsets.append(end + len(record))
        self._changed.set()
        self._changed = asyncio.Event()

    def get(self, place: int) -> bytes | None:
        """The packed group of one, in the order of finishing; None where it has not finished."""
        if place >= self.count:
            return None
        start, end = self._offsets[place] + HEADER.size, self._offsets[place + 1]
        return os.pread(self._file, end - start, start)

    async def wait(self, place: int, until: float) -> None:
        """Return when the session at `place` has finished, or at the loop's time `until`."""
        try:
            async with asyncio.timeout_at(until):
                while self.count <= place:
                    await self._changed.wait()
        except TimeoutError:
            return

    def close(self) -> None:
        """Close the file. May be repeated."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _scan(self) -> array[int]:
        """Where the records begin, and where the next one will: after the last whole one."""
        size = os.fstat(self._file).st_size
        if size < len(MAGIC):
            os.pwrite(self._file, MAGIC, 0)
        elif os.pread(self._file, len(MAGIC), 0) != MAGIC:
            raise QuintainError(f"{self._path} holds no finished sessions: move it away, or give another run directory")
        offsets = array("q", [len(MAGIC)])
        while offsets[-1] + HEADER.size <= size:
            (length,) = HEADER.unpack(os.pread(self._file, HEADER.size, offsets[-1]))
            end = offsets[-1] + HEADER.size + length
            if end > size:
                break
            offsets.append(end)
        os.ftruncate(self._file, offsets[-1])
        return offsets
