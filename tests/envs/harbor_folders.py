"""Small tasks in the format of Harbor, written as folders."""

from __future__ import annotations

from pathlib import Path

TOML = 'schema_version = "1.4"\n\n[metadata]\ndifficulty = "easy"\n\n[verifier]\ntimeout_sec = 60.0\n'
REWARD = "if {} >/dev/null; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n"
HELLO = {
    "task.toml": TOML,
    "instruction.md": "Write Hello, world! into hello.txt.\n",
    "environment/Dockerfile": "# syntax=docker/dockerfile:1\nFROM ubuntu:24.04\n\nWORKDIR /app\n",
    "solution/solve.sh": "#!/bin/bash\ncat /solution/words > hello.txt\n",
    "solution/words": "Hello, world!\n",
    "tests/test.sh": "#!/bin/bash\n" + REWARD.format("cmp /tests/hello.txt /app/hello.txt"),
    "tests/hello.txt": "Hello, world!\n",
}
ALL_BYTES = bytes(range(256)) * 40
BINARY = HELLO | {
    "instruction.md": "Write what bin/twice makes of data/all.bin into twice.bin, and copy the program.\n",
    "environment/Dockerfile": 'FROM debian:12\nWORKDIR /app\nENV PATH="/app/bin:$PATH" \\\n    SAID="Hello  there"\n'
    "COPY data /app/data/\nCOPY twice \\\n  # the program\n  bin/\n",
    "environment/data/all.bin": ALL_BYTES,
    "environment/twice": "#!/bin/sh\ncat $1 $1\n",
    "solution/solve.sh": "twice data/all.bin > twice.bin\ncp -a bin/twice copy\nln -s copy linked\n",
    "tests/test.sh": "cat /tests/all.bin /tests/all.bin > /tmp/twice\n"
    + REWARD.format("cmp twice.bin /tmp/twice && ./linked data/all.bin | cmp - /tmp/twice"),
    "tests/all.bin": ALL_BYTES,
}
HALF = HELLO | {
    "tests/test.sh": "echo 1 > /logs/verifier/reward.txt\nr=0.0; [ -e hello.txt ] && r=0.5\n"
    "cmp hello.txt /tests/hello.txt && r=1\n"
    'echo "{\\"reward\\": $r, \\"style\\": 0.25}" > /logs/verifier/reward.json\nexit 7\n'
}
TASKS = {"hello": HELLO, "binary": BINARY, "half": HALF}


def write_task(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    """A folder with these files, those that begin with #! or are named twice executable; None is no file."""
    for name, content in files.items():
        if content is not None:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
            file.chmod(0o755 if name.endswith("twice") else 0o644)
    return folder


def write_tasks(folder: Path) -> Path:
    """A folder of all TASKS, with something beside them."""
    for name, files in TASKS.items():
        write_task(folder / name, files)
    (folder / "README.md").write_text("Three tasks.\n")
    return folder
