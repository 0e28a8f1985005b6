"""Runs the reference's tests: in a sandbox of its own, which never imports the solution.

The tests call a stand-in for each function of the solution; a call crosses to the worker as a value, and so does what
comes back. Frames: the job has come (JSON); each call goes out as `C` and the JSON that the worker is given,
and the worker's answer comes in; at the end `V` goes out and the finding. What always holds:
- what comes from the worker is a value of a type that `values` names, or an exception of a builtin type, or the end of
  the test as failed; nothing else;
- `passed` is found only where all tests have run to their end, and have called the solution at least once;
- the finding blames the reference only for what does not depend on the solution.

The finding is `{"nonce", "status", "message", "passed", "failed", "cases"}`. One body of tests (a text, which may
define `check`) is counted in assertions, a list of tests in tests.
"""

from __future__ import annotations

import ast
import builtins
import functools
import gc
import json
import os
import random
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from . import values
from .asserts import ERROR, FAIL, PASS, counting, defined, is_stub, mentioned, names
from .wire import StdioChannel, TooLong
from .worker import BUILT_IN, MAX_MESSAGE_CHARS, crosses, describe, text_of

CHECK = "check"
MAX_CASES = 1000
GARBAGE = 20_000
"""So many new objects between two collections: the syntax trees of an item's tests are not worth one."""
WARM_ITEMS = 8
SAMPLE_PROMPT = 'from typing import List\n\ndef f(values: List[int], flag=False) -> List[int]:\n    """ """\n'
SAMPLE_TESTS = """
METADATA = {"author": "", "dataset": "test"}

def check(candidate):
    assert candidate([1, 2.5, "a"]) == [1, 2.5, "a"], "message"
    for first, second in {"b": (1, 2)}.items():
        assert candidate(second) == tuple(each + 0 for each in second) and first
    assert abs(candidate(1.5) - 1.5) < 1e-6 and not candidate(None)
    assert candidate([], flag=True) == [] and True
"""
FINAL = frozenset({"tampering", "runtime_error"})
"""After these nothing more can be asked of the solution."""

Found = tuple[str, str]
"""A status, and a message."""
PASSED: Found = ("passed", "")


class Ended(BaseException):
    """The test cannot go on."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.found: Found = (status, message)


def run(channel: StdioChannel, job: dict[str, Any]) -> None:
    """Run one item's tests, say what was found, and end this process."""
    random.seed(0)
    gc.set_threshold(GARBAGE)
    try:
        finding = Grader(channel, job).run()
    except Ended as ended:
        finding = {"status": ended.found[0], "message": ended.found[1]}
    except BaseException as error:
        finding = {"status": "bad_reference", "message": f"the tests cannot be set up: {describe(error)}"}
    channel.send(b"V" + json.dumps(finding | {"nonce": job["nonce"]}).encode())
    os._exit(0)


class Echo:
    """Stands in for a channel to a worker whose function gives its first argument."""

    def __init__(self) -> None:
        self._answer = b""

    def send(self, body: bytes) -> None:
        number, _, args, _ = values.parse(body[1:])
        self._answer = json.dumps([number, "ok", args[1], []]).encode()

    def receive(self) -> bytes:
        return self._answer


def warm() -> None:
    """Have what every item needs run here already."""
    job = {"entry": "f", "prompt": SAMPLE_PROMPT, "setup": "", "tests": [SAMPLE_TESTS], "cases": [], "listed": False}
    job["in_place"] = "always"
    for partial in (False, True) * WARM_ITEMS:
        found = Grader(Echo(), job | {"partial": partial}).run()
        json.dumps(found | {"nonce": ""})
        assert found["status"] == "passed", found
    del sys.modules["tests"]


class Grader:
    """The tests of one item: `job` has `entry`, `prompt`, `setup`, `tests` (texts), `cases` (arguments, and the
    results that are accepted), `listed`, `partial` and `in_place`."""

    def __init__(self, channel: StdioChannel | Echo, job: dict[str, Any]) -> None:
        self._channel, self._job = channel, job
        self._entry = job["entry"]
        self._collect = job["partial"] and not job["listed"]
        self._calls = 0
        self._ended: Ended | None = None
        self._raised: list[BaseException] = []
        self._passed = self._failed = 0
        self._first = PASSED

    def run(self) -> dict[str, Any]:
        """The finding. What this raises beside Ended is the reference's fault."""
        space = self._space()
        bodies = [self._compiled(number, text, space) for number, text in enumerate(self._job["tests"])]
        cases: list[dict[str, Any]] = []
        if self._job["listed"]:
            tests: list[Callable[[], None]] = [functools.partial(exec, body, space) for body in bodies]
            tests += [functools.partial(self._compare, **case) for case in self._job["cases"]]
            cases = self._run_list(tests)
        else:
            self._run_body(bodies[0], space)
        if self._first == PASSED and not self._calls:
            self._first = ("bad_reference", f"the tests never call {self._entry}")
        status, message = self._first
        return {"status": status, "message": message, "passed": self._passed, "failed": self._failed, "cases": cases}

    # What the reference brings

    def _space(self) -> dict[str, Any]:
        """The names that the tests see."""
        module = types.ModuleType("tests")
        sys.modules["tests"] = module
        space = module.__dict__
        for name in [*self._declare(self._job["prompt"], space), self._entry]:
            space[name] = self._stand_in(name)
        space |= {PASS: self._on_pass, FAIL: self._on_fail, ERROR: self._on_error}
        if self._job["setup"]:
            exec(compile(self._parsed(self._job["setup"], "the setup"), "<setup>", "exec", dont_inherit=True), space)
        return space

    def _declare(self, prompt: str, space: dict[str, Any]) -> list[str]:
        """Have in `space` what the prompt defines; the functions that it only names are the solution's."""
        tree = None
        for ending in ("", "\n    pass\n"):
            try:
                tree = ast.parse(prompt + ending)
                break
            except (SyntaxError, ValueError):
                continue
        if tree is None:
            return []  # a prompt in words
        stubs = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and is_stub(node)]
        theirs = {self._entry, *stubs}
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
        tree.body = [
            node for node in tree.body if isinstance(node, kinds) and getattr(node, "name", None) not in theirs
        ]
        exec(compile(tree, "<prompt>", "exec", dont_inherit=True), space)
        return stubs

    def _compiled(self, number: int, text: str, space: dict[str, Any]) -> types.CodeType:
        tree = self._parsed(text, f"test {number}" if self._job["listed"] else "the tests")
        code = compile(counting(tree, self._collect), "<tests>", "exec", dont_inherit=True)
        known = space.keys() | vars(builtins).keys()
        if not mentioned(code) <= known | defined(tree):
            used, bound = names(tree)
            unknown = sorted(used - bound - known)
            if unknown and "*" not in bound:
                message = f"the tests use {unknown[0]!r}, which neither they nor the prompt define"
                raise Ended("bad_reference", message)
        return code

    def _parsed(self, text: str, what: str) -> ast.Module:
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise Ended("bad_reference", f"{what} cannot be compiled: {describe(error)}") from None

    # Tests

    def _run_body(self, body: types.CodeType, space: dict[str, Any]) -> None:
        def test() -> None:
            exec(body, space)
            if self._entry != CHECK and callable(space.get(CHECK)):
                space[CHECK](space[self._entry])

        found = self._outcome(test)
        if found != PASSED:
            self._fail(found)

    def _compare(self, args: list[Any], accepts: list[Any]) -> None:
        """Call the solution with `args`, and demand one of the results `accepts`; all of them are JSON."""
        result = as_json(self._call(self._entry, tuple(args), {}))
        if not any(result == accepted for accepted in accepts):
            raise AssertionError(f"gave {text_of(repr(result))[:200]}")

    def _run_list(self, tests: Sequence[Callable[[], None]]) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = []
        passed = 0
        for number, test in enumerate(tests):
            found = self._outcome(test)
            case = {"index": number, "status": found[0]}
            cases.append(case | {"message": found[1]} if found[1] else case)
            if found == PASSED:
                passed += 1
                continue
            if self._first == PASSED or found[0] == "bad_reference":
                self._first = found
            if not self._job["partial"] or found[0] == "bad_reference" or self._ended is not None:
                break
        self._passed, self._failed = passed, len(tests) - passed
        return cases[:MAX_CASES]

    def _outcome(self, test: Callable[[], None]) -> Found:
        """How `test` ends."""
        found = PASSED
        try:
            test()
        except BaseException as error:
            found = self._blame(error)
        if self._ended is not None:  # even where the test has caught it
            found = self._ended.found
            if found[0] not in FINAL:
                self._ended = None
        return found

    def _blame(self, error: BaseException) -> Found:
        """What `error`, which ended a test, says about the solution, or the reference."""
        if not self._calls:
            return "bad_reference", f"the tests fail before they call {self._entry}: {describe(error)}"
        where = self._where(error)
        chain: BaseException | None = error
        while chain is not None:
            if any(chain is raised for raised in self._raised):
                status = "memory_limit" if isinstance(chain, MemoryError) else "runtime_error"
                return status, f"{where}: {describe(chain)}"
            chain = chain.__cause__ or chain.__context__
        if isinstance(error, AssertionError):
            said = text_of(error)
            return "wrong_answer", f"{where}: {said}" if said else where
        return "wrong_answer", f"{where}: {describe(error)}"

    def _where(self, error: BaseException) -> str:
        trace, line = error.__traceback__, 0
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<tests>":
                line = trace.tb_lineno
            trace = trace.tb_next
        return self._shown(line)

    def _shown(self, line: int) -> str:
        """The line of the tests, as text."""
        lines = self._job["tests"][0].splitlines() if not self._job["listed"] else []
        return f"line {line}: {lines[line - 1].strip()[:200]}" if 0 < line <= len(lines) else "the test"

    def _on_pass(self) -> None:
        self._passed += 1

    def _on_fail(self, line: int, message: object) -> None:
        if not self._collect:
            raise AssertionError(*() if message is None else (message,))
        said = "" if message is None else f": {text_of(message)}"
        self._fail(("wrong_answer", self._shown(line) + said))

    def _on_error(self, line: int, error: Exception) -> None:
        self._fail(self._blame(error))

    def _fail(self, found: Found) -> None:
        self._failed += 1
        if self._first == PASSED or found[0] == "bad_reference":
            self._first = found

    # The solution

    def _stand_in(self, name: str) -> Callable[..., Any]:
        """What the tests call instead of the solution's function `name`."""

        def candidate(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        candidate.__name__ = candidate.__qualname__ = name
        return candidate

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._ended is not None:
            raise self._ended
        self._calls += 1
        try:
            call = [self._calls, name, values.encode(list(args)), values.encode(kwargs)]
            self._channel.send(b"C" + json.dumps(call, separators=(",", ":")).encode())
        except (values.NotTransferable, TooLong) as error:
            # Later arguments may be made from what the solution gave: not the reference's fault.
            self._end("bad_reference" if self._calls == 1 else "wrong_answer", f"an argument does not cross: {error}")
        answer = self._channel.receive()
        try:
            return self._result(values.parse(answer), args)
        except values.NotTransferable as error:
            return self._end("tampering", f"the solution's process sent what it never sends: {error}")

    def _result(self, reply: Any, args: tuple[Any, ...]) -> Any:
        """What the call gives. Raises Refused for what no worker sends."""
        if type(reply) is not list or len(reply) < 3 or type(reply[0]) is not int or reply[0] != self._calls:
            raise values.NotTransferable("no answer to this call")
        kind, rest = reply[1], reply[2:]
        if kind == "ok" and len(rest) == 2 and type(rest[1]) is list:
            result = values.decode(rest[0])
            if rest[1] and not crosses(self._job["in_place"], result):
                raise values.NotTransferable("changes of arguments that nobody asked for")
            for change in rest[1]:
                self._change(change, args)
            return result
        if kind == "raise" and len(rest) == 2 and type(rest[0]) is str and type(rest[1]) is list:
            raise self._error(rest[0], [values.decode(each) for each in rest[1]])
        if kind == "refused" and len(rest) == 1 and type(rest[0]) is str:
            return self._end("wrong_answer", f"the solution gave {rest[0][:MAX_MESSAGE_CHARS]}, which cannot cross")
        if kind == "exit" and len(rest) == 1 and type(rest[0]) is str:
            return self._end("runtime_error", f"the solution raised {rest[0][:100]}")
        raise values.NotTransferable("an answer of no known kind")

    def _change(self, change: Any, args: tuple[Any, ...]) -> None:
        """Have the solution's changes in an argument."""
        if type(change) is not list or len(change) != 2 or type(change[0]) is not int:
            raise values.NotTransferable("a malformed change of an argument")
        if not (0 <= change[0] < len(args) and values.update(args[change[0]], values.decode(change[1]))):
            raise values.NotTransferable("a change of an argument that cannot change so")

    def _error(self, name: str, args: list[Any]) -> Exception:
        """The exception that the solution raised."""
        kind = BUILT_IN.get(name)
        if kind is None:
            raise values.NotTransferable("an exception of no builtin type")
        try:
            error = kind(*args)
        except Exception:  # it takes other arguments
            error = Exception(*args)
        self._raised.append(error)
        return error

    def _end(self, status: str, message: str) -> Any:
        self._ended = Ended(status, message)
        raise self._ended


def as_json(value: Any) -> Any:
    """`value` with the tuples in it as lists, which is what JSON has."""
    if type(value) in (list, tuple):
        return [as_json(each) for each in value]
    if type(value) is dict:
        return {key: as_json(each) for key, each in value.items()}
    return value
