"""The verifier that somebody names on the command line: by its name, in a Python file, or as a rubric in YAML."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quintain.failure import QuintainError
from quintain.loading import load_module
from quintain.verdict import Verdict
from quintain.verifiers.base import Item, Verifier


def make_verifier(spec: str, options: Mapping[str, Any]) -> tuple[Verifier, str]:
    """The verifier that `spec` names, and a name fit for a folder.

    `spec` is a verifier's name; `FILE.py:object`, a Verifier, a class or factory of one, or a function of answer and
    reference that gives a score in [0, 1]; or a YAML file with a rubric (`mode` and `parts`), or with `verifier` and
    `options`. Raises QuintainError where there is none.
    """
    from quintain.verifiers.registry import get_verifier

    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_object(_object_in(Path(path), name), spec, options), name
    if spec.endswith((".yaml", ".yml")):
        verifier, given = _from_yaml(Path(spec))
        return get_verifier(verifier, **{**given, **options}), Path(spec).stem
    return get_verifier(spec, **options), spec


def _object_in(path: Path, name: str) -> Any:
    module = load_module(str(path))
    if not hasattr(module, name):
        raise QuintainError(f"--verifier: {path} has no {name!r}")
    return getattr(module, name)


def _from_object(found: Any, spec: str, options: Mapping[str, Any]) -> Verifier:
    if not isinstance(found, Verifier) and callable(found):
        names = list(inspect.signature(found).parameters)
        if names[:2] == ["answer", "reference"]:
            return _Function(found, spec, options)
        found = found(**options)
    if not isinstance(found, Verifier):
        raise QuintainError(
            f"--verifier {spec} is a {type(found).__name__}: expected a Verifier, a class or factory of one, or a"
            " function (answer, reference)"
        )
    return found


def _from_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuintainError(f"--verifier: cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError:
        raise QuintainError(f"--verifier: {path} is not YAML") from None
    if isinstance(data, dict) and "parts" in data:
        return "rubric", data
    if isinstance(data, dict) and isinstance(data.get("verifier"), str) and data.keys() <= {"verifier", "options"}:
        return data["verifier"], dict(data.get("options") or {})
    raise QuintainError(f"--verifier: {path} is no rubric: expected 'mode' and 'parts', or 'verifier' and 'options'")


class _Function(Verifier):
    """A function of answer and reference as a verifier. It runs in this process, without a deadline."""

    name = "function"

    def __init__(self, function: Callable[..., Any], spec: str, options: Mapping[str, Any]) -> None:
        self._function, self._spec, self._options = function, spec, dict(options)

    @property
    def version(self) -> str:
        return self._spec

    async def verify(self, items: Sequence[Item], *, deadline_s: float | None = None) -> list[Verdict]:
        return [await self._verdict(item) for item in items]

    async def _verdict(self, item: Item) -> Verdict:
        from quintain.verifiers.pure import crashed

        try:
            said = self._function(item.answer, item.reference, **self._options)
            said = await said if inspect.isawaitable(said) else said
            return said if isinstance(said, Verdict) else Verdict.scored(float(said))
        except Exception as error:  # the boundary: what breaks on one item is that item's failure
            return crashed(error)
