"""A file is there whole or not at all, whatever its writer comes to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import IO

import pytest

from quintain.config import parse_config
from quintain.failure import QuintainError
from quintain.files import is_draft, write_whole
from quintain.launch.run_folder import new_run

from ..full_disk import full_disk


def test_a_file_is_replaced_with_its_rights_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "one")
    write_whole(path, lambda file: file.writelines([b"t", b"wo"]) or None, mode=0o600)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def _dies(path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b"ha")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    write_whole(path, write)


def test_a_writer_that_raises_or_is_killed_leaves_what_was_there_and_the_next_one_clears_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "one")

    def raises(file: IO[bytes]) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(path, raises)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    killed = multiprocessing.get_context("fork").Process(target=_dies, args=(path,))
    killed.start()
    killed.join()
    assert path.read_text() == "one"
    (draft,) = set(tmp_path.iterdir()) - {path}
    assert is_draft(draft)
    assert not is_draft(path)
    write_whole(path, "two")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_of_writers_side_by_side_each_writes_the_whole(tmp_path: Path) -> None:
    path, both = tmp_path / "file", threading.Barrier(2)

    def writer(letter: bytes) -> None:
        def write(file: IO[bytes]) -> None:
            file.write(letter * 1000)
            both.wait(60)
            file.write(letter * 1000)

        write_whole(path, write)

    threads = [threading.Thread(target=writer, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert path.read_bytes() in (b"a" * 2000, b"b" * 2000)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_costs_a_run_nothing_of_its_config(tmp_path: Path) -> None:
    config = parse_config("model: {path: m}\nenvironment: {name: math}\n")
    run = new_run(config, tmp_path / "run")
    before = run.config.read_text()
    said = r"cannot write .*config\.yaml: File too large; free space on its disk"
    with full_disk(len(before) // 2), pytest.raises(QuintainError, match=said):
        run.keep(config)
    assert run.config.read_text() == before
    assert not run.begun
