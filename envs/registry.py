"""Environments by name: the built-in ones, those other packages offer, and anybody's own.

A spec is a name ("math"), a class in a module ("package.module:Class") or a class in a file
("path/file.py:Class"). Other packages offer theirs with an entry point in the group `quintain.envs`; a
built-in name cannot be taken over. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final

from quintain.envs.base import Environment
from quintain.failure import QuintainError, one_line
from quintain.nearest import did_you_mean

ENTRY_POINTS: Final = "quintain.envs"

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "code": "quintain.envs.builtin.code:CodeEnv",
        "math": "quintain.envs.builtin.math:MathEnv",
    }
)


@dataclass(frozen=True, slots=True)
class EnvInfo:
    """One environment that can be had by name."""

    name: str
    spec: str
    description: str


def list_envs() -> list[EnvInfo]:
    """The environments that `resolve` knows by name, sorted. One that cannot be imported says so instead."""
    return [EnvInfo(name, spec, _description(spec)) for name, spec in sorted(_named().items())]


def resolve(spec: str) -> type[Environment]:
    """The environment class that `spec` names. Raises QuintainError, one line, where there is none."""
    if ":" not in spec:
        named = _named()
        if spec not in named:
            raise QuintainError(
                f"there is no environment {spec!r}{did_you_mean(spec, named)}"
                f" (known: {', '.join(sorted(named))}; or give module:Class or path/file.py:Class)"
            )
        spec = named[spec]
    place, _, name = spec.rpartition(":")
    module = load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    return _class_in(module, name, spec)


def spec_of(cls: type[Environment]) -> str:
    """A spec that finds `cls` again, in another process with the same module path."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _named() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | dict(BUILT_IN)


def _description(spec: str) -> str:
    try:
        return one_line((resolve(spec).__doc__ or "").strip().partition("\n\n")[0])
    except QuintainError as error:
        return f"not usable: {error}"


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # console scripts do not look where they are started
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise QuintainError(f"there is no module {name!r}: give module:Class or path/file.py:Class") from None
        raise QuintainError(f"the module {name!r} needs {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # the boundary to somebody's module
        raise QuintainError(f"importing {name!r} failed: {type(error).__name__}: {one_line(str(error))}") from error


def load_file(path: Path) -> ModuleType:
    """The module in the Python file `path`, run once in this process. Raises QuintainError, one line."""
    path = path.absolute()
    if not path.is_file():
        raise QuintainError(f"there is no file {path}: give path/file.py:Class")
    if str(path.parent) not in sys.path:  # so that the file finds its neighbours, as a script would
        sys.path.append(str(path.parent))
    name = f"quintain_env_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
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
        raise QuintainError(f"importing {path} failed: {type(error).__name__}: {one_line(str(error))}") from error
    return module


def _class_in(module: ModuleType, name: str, spec: str) -> type[Environment]:
    classes = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Environment)]
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        here = [n for n in classes if getattr(module, n).__module__ == module.__name__]
        known = f" (its environments: {', '.join(here)})" if here else " (it has no environment)"
        raise QuintainError(f"{spec!r}: no {name!r} there{did_you_mean(name, classes)}{known}")
    if not (isinstance(found, type) and issubclass(found, Environment)):
        raise QuintainError(f"{spec!r} is no environment: it must be a subclass of quintain.envs.Environment")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise QuintainError(f"{spec!r} is not finished: it lacks {', '.join(missing)}")
    if inspect.iscoroutinefunction(found.tasks):
        raise QuintainError(f"{spec!r}: `tasks` must be a plain classmethod, not `async`")
    return found
