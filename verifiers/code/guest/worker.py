"""Holds a solution and calls it: in a sandbox of its own, which never sees a test.

Frames, all JSON: first the job comes, `{"sources": [...], "prelude": ..., "entry": [name, ...], "in_place": ...}`; the
first of the sources that compiles is the solution. The answer is `[status, message]`, which is `["ready", ""]` or why
there is nothing to call. Then each call `[number, name, args, kwargs]` is answered by `[number, "ok", value,
changed arguments]`, `[number, "raise", type, args]`, `[number, "refused", why]` or `[number, "exit", type]`.

What always holds before the solution's first instruction: descriptors 0 and 1 are not the channel. Nothing is
promised after it, and nobody relies on this process then: whatever comes from it is decoded as a value.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import sys
import types
from typing import Any

from . import values
from .wire import StdioChannel, TooLong

NAME = "solution"
PASSED_ON = (type(None), bool, int, float, str)
"""Arguments of an exception that cross; another is replaced by its text."""
BUILT_IN = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__name__ == name
}
MAX_MESSAGE_CHARS = 1000
SAMPLE = """
def sample(first, second, third=False):
    first.append(sorted(second))
    return [(each, third) for each in first] + [None]
"""
WARM_CALLS = 20
"""CPython makes faster code of what has run some eight times."""


def main() -> None:
    """Serve one solution until the other end closes the channel."""
    channel = StdioChannel()
    job = values.parse(channel.receive())
    code, status, message = compiled(job["sources"])
    if code is not None:
        space = fresh_module(job["prelude"])
        random.seed(0)
        try:
            exec(code, space)
            status, message = missing(space, job["entry"])
        except BaseException as error:
            status, message = "raised", describe(error)
    channel.send(json.dumps([status, message]).encode())
    if status == "ready":
        serve(channel, space, job["in_place"])
    flush()
    os._exit(0)


def warm() -> None:
    """Have what every run needs run here already."""
    code, _, _ = compiled([SAMPLE])
    space = fresh_module("")
    assert code is not None
    exec(code, space)
    for _ in range(WARM_CALLS):
        call = [values.encode([[3, 1.5, "a"], {"b": (1, 2)}]), values.encode({"third": True})]
        args, kwargs = values.parse(json.dumps(call))
        json.dumps(answer(space, "sample", args, kwargs, "always"), separators=(",", ":"))
    del sys.modules[NAME]


def compiled(sources: list[str]) -> tuple[types.CodeType | None, str, str]:
    """The first of `sources` that compiles, or what is wrong with the last."""
    message = "there is no code"
    for source in sources:
        try:
            return compile(source, f"<{NAME}>", "exec", dont_inherit=True), "", ""
        except SyntaxError as error:
            message = f"{type(error).__name__}: {error.msg} (line {error.lineno})"
        except (ValueError, OverflowError, RecursionError, MemoryError) as error:
            message = describe(error)
    return None, "compile_error", message


def fresh_module(prelude: str) -> dict[str, Any]:
    """The names of a new module, in which `prelude` has run."""
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    if prelude:
        exec(compile(prelude, "<prelude>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def missing(space: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """Whether everything that will be called is there: a status and a message."""
    for name in names:
        if find(space, name) is None:
            return "missing", f"the solution does not define {name}"
    return "ready", ""


def find(space: dict[str, Any], name: str) -> Any:
    """The function called `name`, or the method of that name of a new `Solution`; None where there is neither."""
    found = space.get(name)
    if found is None and "Solution" in space:
        found = getattr(space["Solution"], name, None)
        if found is not None:
            found = getattr(space["Solution"](), name, None)
    return found if callable(found) else None


def serve(channel: StdioChannel, space: dict[str, Any], in_place: str) -> None:
    """Answer calls."""
    while True:
        number, name, args, kwargs = values.parse(channel.receive())
        reply = [number, *answer(space, name, args, kwargs, in_place)]
        try:
            channel.send(json.dumps(reply, separators=(",", ":")).encode())
        except TooLong as error:
            channel.send(json.dumps([number, "refused", f"a value of {error}"]).encode())


def answer(space: dict[str, Any], name: str, plain_args: Any, plain_kwargs: Any, in_place: str) -> list[Any]:
    """What a call of the solution's `name` gives."""
    args = values.decode(plain_args)
    kwargs = values.decode(plain_kwargs)
    try:
        result = find(space, name)(*args, **kwargs)
    except Exception as error:
        return ["raise", *crossing(error)]
    except BaseException as error:
        return ["exit", type(error).__name__]
    try:
        plain = values.encode(result)
        return ["ok", plain, changed(args, plain_args) if crosses(in_place, result) else []]
    except values.NotTransferable as error:
        return ["refused", str(error)]
    except BaseException as error:  # an iterator that was run through
        return ["raise", *crossing(error)] if isinstance(error, Exception) else ["exit", type(error).__name__]


def crosses(in_place: str, result: Any) -> bool:
    """Whether what a call has changed in its arguments is the tests' business, given its result."""
    return in_place == "always" or (in_place == "procedures" and result is None)


def changed(args: list[Any], plain_args: list[Any]) -> list[list[Any]]:
    """The positional arguments that a call has changed: their numbers, and what they are now."""
    found = []
    for number, value in enumerate(args):
        if type(value) in values.MUTABLE:
            now = values.encode(value)
            if json.dumps(now) != json.dumps(plain_args[number + 1]):
                found.append([number, now])
    return found


def crossing(error: BaseException) -> tuple[str, list[Any]]:
    """The name of the nearest builtin exception, and its arguments."""
    name = next((kind.__name__ for kind in type(error).__mro__ if BUILT_IN.get(kind.__name__) is kind), "Exception")
    args = [arg if type(arg) in PASSED_ON else text_of(arg) for arg in error.args]
    if name != type(error).__name__:
        args = [text_of(error)]
    return name, [values.encode(arg[:MAX_MESSAGE_CHARS] if type(arg) is str else arg) for arg in args[:5]]


def describe(error: BaseException) -> str:
    """One line about `error`."""
    return f"{type(error).__name__}: {text_of(error)}"[:MAX_MESSAGE_CHARS]


def text_of(value: object) -> str:
    """`value` as text, whatever it does."""
    try:
        return str(value)[:MAX_MESSAGE_CHARS]
    except BaseException:
        return ""


def flush() -> None:
    """Let what was printed out."""
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except BaseException:
            continue
