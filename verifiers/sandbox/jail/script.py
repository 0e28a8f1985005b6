"""Runs Python source in this very process, as `python3 main.py` would: no interpreter has to start.

What always holds: the program finds `__main__`, `sys.argv`, `sys.path`, the standard streams, the environment
and the signals as it would find them after a start of its own; its exit code, its traceback, its exit
functions, its threads and the end of its objects are as they would be then.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import types
from typing import Any

RECURSION_LIMIT = 1000
FLUSH_FAILED = 120
"""CPython's exit code where the last of stdout could not be written."""


def run(program: bytes | types.ModuleType, argv: list[str], env: dict[str, str]) -> None:
    """Run a source, or the `main` of a module, as the main program, and end this process as it ends."""
    space = prepare(argv, env)
    code = 1
    try:
        if isinstance(program, types.ModuleType):
            program.main()
        else:
            exec(compile(program, space["__file__"], "exec", dont_inherit=True), space)
        code = 0
    except SystemExit as error:
        code = exit_code(error)
    except BaseException as error:
        code = report(error)
    del space
    finish(code)


def prepare(argv: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Make this interpreter look as if it had just been started with `argv`; the names of its new `__main__`.

    Its standard streams are those it was started with, on pipes and in UTF-8: they are only descriptors 0, 1, 2.
    """
    for name in [name for name in os.environ if name not in env]:
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    sys.argv = list(argv)
    sys.orig_argv = [sys.executable, *argv]
    path = os.path.join(os.getcwd(), argv[0])
    sys.path.insert(0, os.path.dirname(path))
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=sys.modules["builtins"], __cached__=None)
    sys.modules["__main__"] = main
    depth, frame = 0, sys._getframe().f_back
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(RECURSION_LIMIT + depth)
    return main.__dict__


def hide(package: str = __name__.partition(".")[0]) -> None:
    """Take the modules of `package`, by default of this folder, out of `sys.modules`: a program finds none of them
    by its name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def exit_code(error: SystemExit) -> int:
    """The exit code that `error` asks for; what is no number is printed."""
    asked = error.code
    if asked is None:
        return 0
    if isinstance(asked, int):
        return asked & 0xFF
    print(asked, file=sys.stderr)
    return 1


def report(error: BaseException) -> int:
    """Print the traceback of `error` from the program's first frame on; the exit code."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except SystemExit as asked:
        return exit_code(asked)
    except BaseException:
        sys.__excepthook__(type(error), error, trace)
    if isinstance(error, KeyboardInterrupt):
        flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 1


def finish(code: int) -> None:
    """Wait for the program's threads, run its exit functions, let go of its objects, and end."""
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException as error:
        report(error)
    flushed = flush()
    sys.modules.pop("__main__", None)
    gc.collect()  # what only the program held goes now, as when an interpreter ends
    flush()
    os._exit(code if flushed else FLUSH_FAILED)


def flush() -> bool:
    """Whether all that was written to stdout is out."""
    done = True
    for file in (sys.stdout, sys.stderr):
        try:
            if file is not None and not file.closed:
                file.flush()
        except BaseException:
            done = done and file is not sys.stdout
    return done
