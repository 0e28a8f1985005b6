"""A Docker engine of the tests' own, and a small image made of this machine's Python: no registry is asked."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PYTHON = "/usr/bin/python3"
PROGRAMS = (
    *("sh", "bash", "env", "cat", "id", "sleep", "head", "yes", "tar", "chmod"),
    *("base64", "cmp", "cp", "find", "ln", "mkdir", "mv", "rm", "tail"),
)
IMAGE = "quintain-tests:1"
LISTENING = "API listen on"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
ASK = "import sysconfig; print(sysconfig.get_path('stdlib'))"


class NoEngine(Exception):
    """Why no engine can be had here."""


@contextmanager
def engine() -> Iterator[str]:
    """The address of an engine that holds IMAGE, for as long as the context lasts. Raises NoEngine."""
    if shutil.which("dockerd") is None:
        raise NoEngine("dockerd is not installed (Debian: apt-get install docker.io)")
    if os.geteuid() != 0:
        raise NoEngine("only root can start dockerd")
    if not Path(PYTHON).exists():
        raise NoEngine(f"the image is made of {PYTHON}, which is not there")
    folder = Path(tempfile.mkdtemp(prefix="quintain-engine-"))  # a short path: it holds a unix socket
    url = f"unix://{folder}/engine.sock"
    command = ["dockerd", "--storage-driver", "overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"]
    command += ["--default-ulimit", "nofile=1024:1024", "--host", url, "--data-root", f"{folder}/data"]
    command += ["--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        words = _Words(process.stderr)
        if not words.said(LISTENING, START_TIMEOUT_S):
            raise NoEngine(f"dockerd does not start: {words.last()}")
        subprocess.run(
            ["docker", "--host", url, "import", "-", IMAGE], input=image(), check=True, stdout=subprocess.DEVNULL
        )
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


class _Words:
    """Reads what a process writes, so that its pipe is never full, and waits for a word."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def said(self, words: str, timeout_s: float) -> bool:
        """Whether a line with `words` comes before the end, in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or any(words in line for line in self._lines), timeout_s)
            return any(words in line for line in self._lines)

    def last(self) -> str:
        """The last line so far."""
        return self._lines[-1] if self._lines else "it says nothing"

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line.decode(errors="replace").strip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def image() -> bytes:
    """A root file system with the system's Python and a handful of programs, as a tar archive."""
    stdlib = Path(subprocess.run([PYTHON, "-c", ASK], check=True, capture_output=True, text=True).stdout.strip())
    programs = [Path(PYTHON).resolve(), *(Path(shutil.which(name) or "") for name in PROGRAMS)]
    modules = [path for path in stdlib.rglob("*") if path.is_file() and "test" not in path.parts]
    libraries = needed([*programs, *(path for path in modules if path.suffix == ".so")])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "lib", "lib64", "sbin"):
            link(archive, folder, f"usr/{folder}")
        link(archive, "usr/bin/python3", Path(PYTHON).resolve().name)
        for path in {*programs, *modules, *libraries}:
            archive.add(path.resolve(), arcname=merged(path))
        text(archive, "etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
        text(archive, "etc/secret-of-the-image", "root only\n", mode=0o600)
    return buffer.getvalue()


def needed(files: Iterable[Path]) -> set[Path]:
    """The shared libraries that `files` load."""
    done = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False)
    words = (word for line in done.stdout.splitlines() if line.startswith("\t") for word in line.split())
    return {Path(word) for word in words if word.startswith("/")}


def merged(path: Path) -> str:
    """Where a file lies in a system whose /bin and /lib are links into /usr."""
    name = str(path).lstrip("/")
    return name if name.startswith("usr/") else f"usr/{name}"


def link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def text(archive: tarfile.TarFile, name: str, content: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content.encode()))
