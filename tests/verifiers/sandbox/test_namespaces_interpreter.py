"""The interpreter and the programs that a namespaces sandbox is made with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quintain.failure import QuintainError
from quintain.verifiers.sandbox.interface import Program, Status
from quintain.verifiers.sandbox.namespaces import NamespaceSandbox
from quintain.verifiers.sandbox.process import ProcessSandbox

Make = Callable[..., NamespaceSandbox]
GREETER = """
import sys

runs = 0

def warm():
    global runs
    runs += 1

def main():
    global runs
    runs += 10
    print(sys.argv, runs, input(), [name for name in sys.modules if name.partition(".")[0] == "greeting"])
    if "fail" in sys.argv:
        raise ValueError("as it was asked")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder directly under /tmp that everybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="quintain-held-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def python(folder: Path) -> str:
    """An interpreter that lives there, behind a link."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", folder / "real"], check=True)
    (folder / "real" / "lib" / "marker.txt").write_text("kept")
    os.symlink("real", folder / "link")
    return f"{folder}/link/bin/python"


def names_in(folder: str) -> list[str]:
    return os.listdir(folder)


async def test_an_interpreter_under_tmp_works_and_programs_write_there_all_the_same(
    make: Make, folder: Path, python: str
) -> None:
    source = (
        "import colorsys, sys, tempfile\n"
        "print(open('/tmp/own', 'w').write('x'), tempfile.gettempdir(), sys.prefix)\n"
        f"print(open({str(folder / 'real' / 'lib' / 'marker.txt')!r}).read())\n"
        f"try: open({str(folder / 'real' / 'new')!r}, 'w')\n"
        "except OSError as error: print(type(error).__name__, error.errno)\n"
    )
    async with make(python=python, readable=[str(folder / "real")]) as sandbox:
        for _ in range(3):  # more than there are slots
            done = await sandbox.run(Program.python(source))
            read_only = f"1 /tmp {folder}/real\nkept\nOSError 30\n"
            assert done.stdout.decode().replace("/link", "/real") == read_only, done
            started = await sandbox.run(Program.command(python, "main.py"), files={"main.py": source.encode()})
            assert started.status is Status.OK, started
    assert not (folder / "real" / "new").exists()
    assert "own" not in names_in("/tmp")


async def test_a_prepared_program_is_warm_and_each_run_has_it_afresh(make: Make, folder: Path) -> None:
    package = folder / "greeting"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "greeter.py").write_text(GREETER)
    async with make(prepared={"greeter": f"{package}/greeter.py"}) as sandbox:
        for _ in range(3):
            done = await sandbox.run(Program.prepared("greeter", "a"), stdin=b"hello\n")
            assert (done.stdout, done.status) == (b"['greeter', 'a'] 11 hello []\n", Status.OK), done
        failed = await sandbox.run(Program.prepared("greeter", "fail"), stdin=b"hello\n")
        assert failed.exit == 1
        assert failed.stderr.endswith(b"ValueError: as it was asked\n")
        hidden = await sandbox.run(Program.python("import greeting"))
        assert hidden.stderr.endswith(b"No module named 'greeting'\n")
        with pytest.raises(QuintainError, match="no program 'other'; it was made with: greeter"):
            await sandbox.run(Program.prepared("other"))
        async with await sandbox.open() as session:
            with pytest.raises(QuintainError, match="no program 'other'"):
                await session.run(Program.prepared("other"))
            assert (await session.run(Program.prepared("greeter"), stdin=b"x\n")).status is Status.OK


async def test_a_sandbox_without_prepared_programs_says_so() -> None:
    async with ProcessSandbox(unsafe=True) as sandbox:
        with pytest.raises(QuintainError, match="it was made with: none"):
            await sandbox.run(Program.prepared("greeter"))
