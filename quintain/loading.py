"""Modules that a user names: `package.module`, or a Python file, as the part of a spec before its colon.

Whatever goes wrong in importing one is a QuintainError of one line.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from quintain.failure import QuintainError, last_line, one_line


def load_module(place: str) -> ModuleType:
    """The module `place`, a dotted name or a path that ends in `.py`, run once in this process."""
    return _load_file(Path(place).absolute()) if place.endswith(".py") else _load_module(place)


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # console scripts do not look where they are started
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise QuintainError(f"there is no module {name!r}: give module:name or path/file.py:name") from None
        raise QuintainError(f"the module {name!r} needs {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # the boundary to somebody's module
        raise QuintainError(f"importing {name!r} failed: {type(error).__name__}: {one_line(str(error))}") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise QuintainError(f"there is no file {path}: give path/file.py:name")
    if str(path.parent) not in sys.path:  # so that the file finds its neighbours, as a script would
        sys.path.append(str(path.parent))
    name = f"quintain_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise QuintainError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the boundary to somebody's file
        del sys.modules[name]
        line = last_line(error, str(path))
        where = path if line is None else f"{path}:{line}"
        raise QuintainError(f"importing {where} failed: {type(error).__name__}: {one_line(str(error))}") from error
    return module
