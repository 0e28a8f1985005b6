"""Files that are there whole or not at all, however their writing ends."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from quintain.failure import QuintainError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, content: str | Callable[[IO[bytes]], None], *, mode: int = 0o666) -> None:
    """Have `path`, a file with these rights, hold `content`, or what that writes, once all of it is on disk.

    Until then, and for good where it cannot be written, there is what was there before. Raises QuintainError.
    """
    # a name of its own for each writer: two may write the same file side by side
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_drafts(path)
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        advice = "; free space on its disk" if error.errno in _FULL else ""
        raise QuintainError(f"cannot write {path}: {error.strerror or error}{advice}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def is_draft(path: Path) -> bool:
    """Whether `path` is what a writer left that was killed, or has not finished."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def _sweep_drafts(path: Path) -> None:
    """Remove the drafts of writers that were killed."""
    for draft in path.parent.glob(f".{path.name}.*.tmp"):
        pid = draft.name.removeprefix(f".{path.name}.").partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            draft.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether process `pid` runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
