"""Runs a project's tests with pytest and reports each of them, by id.

Frames: the job comes, `{"ids", "tests", "own", "configuration", "nonce"}`; then `{}` goes out, or what is wrong with
the reference (`bad_reference`) or with this interpreter (`missing`), which is found before a line of the solution is
run; then the report, `{"nonce", "outcomes", "changed"}`. The outcome of a test is `passed` only where its setup, its
call and its teardown passed. The solution shares this process: nothing here can be relied on once tests run.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
from typing import Any

from . import values
from .integrity import changed, fingerprint
from .wire import StdioChannel


def main() -> None:
    """Run one project."""
    channel = StdioChannel()
    dumps, leave = json.dumps, os._exit
    job = values.parse(channel.receive())
    try:
        import pytest
    except ImportError as error:
        channel.send(dumps({"missing": f"projects need a Python with pytest (option pytest_python): {error}"}).encode())
        leave(0)
    trouble = unusable(job["own"], job["tests"])
    channel.send(dumps({"bad_reference": trouble} if trouble else {}).encode())
    if trouble:
        leave(0)
    reports = Reports()
    before = fingerprint()
    try:
        pytest.main(arguments(job), plugins=[reports])
    except BaseException:
        reports.outcomes.clear()  # pytest does not raise: something is wrong with it
    report = {"nonce": job["nonce"], "outcomes": reports.outcomes, "changed": changed(before, fingerprint())}
    channel.send(dumps(report).encode())
    leave(0)


def arguments(job: dict[str, Any]) -> list[str]:
    """pytest's command line. Project and tests are importable, after the standard library and pytest."""
    work = os.getcwd()
    sys.path[:] = [path for path in sys.path if path not in ("", work)]
    folders = sorted({os.path.dirname(test.partition("::")[0]) for test in job["tests"]})
    sys.path += [work, os.path.join(work, "src"), *(os.path.join(work, folder) for folder in folders if folder)]
    configuration = job["configuration"]
    if configuration is None:
        configuration = os.path.join(tempfile.gettempdir(), "quintain-pytest.ini")
        with open(configuration, "w") as file:
            file.write("[pytest]\n")
    plain = ["-q", "-s", "--tb=line", "-p", "no:cacheprovider", "--import-mode=importlib", "--color=no"]
    return [*plain, f"--rootdir={work}", f"--confcutdir={work}", "-c", configuration, *job["ids"]]


def unusable(paths: list[str], tests: list[str]) -> str:
    """What is wrong with the reference's own files and ids, or ""."""
    trees = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                trees[path] = ast.parse(file.read(), path)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"{path} cannot be compiled: {type(error).__name__}: {str(error)[:200]}"
    for test in tests:
        path, *names = test.partition("[")[0].split("::")
        if path in trees and not defined(trees[path], names):
            return f"there is no test {test[:200]}"
    return ""


def defined(tree: Any, names: list[str]) -> bool:
    """Whether `tree` may define what is called by `names`, one inside the other."""
    for name in names:
        found = None
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                found = node
        if found is None:
            inherited = isinstance(tree, ast.ClassDef) and tree.bases
            imported = any(isinstance(node, (ast.ImportFrom, ast.Assign)) for node in getattr(tree, "body", []))
            return bool(
                inherited or (isinstance(tree, ast.Module) and imported and name == names[0] and name[:1].isupper())
            )
        tree = found
    return True


class Reports:
    """A pytest plugin: the outcome of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        known = self.outcomes.setdefault(report.nodeid, {"outcome": "no call"})
        if report.outcome != "passed":
            known["outcome"] = "skipped" if report.outcome == "skipped" else "failed"
            crash = getattr(report.longrepr, "reprcrash", None)
            known["message"] = str(getattr(crash, "message", report.longrepr))[:300]
            known["error"] = known["message"].partition(":")[0].strip()
            if known["message"].startswith("assert "):
                known["error"] = "AssertionError"
        elif report.when == "call" and known["outcome"] == "no call":
            known["outcome"] = "called"
        elif report.when == "teardown" and known["outcome"] == "called":
            known["outcome"] = "passed"

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be loaded: its tests are not run."""
        if report.failed:
            print(report.longrepr, file=sys.stderr)
