"""What a client may ask a verifier service for: verifiers by name, and their options.

What always holds: a verifier that asks somebody else's endpoint or runs a model (`Cost.MODEL` and dearer), and an
option that would point the server at an address, a file, a command or more of the machine, is the operator's to
allow or to set, wherever in a rubric it stands. What the operator sets is under what clients give, and clients
cannot change it where the option is the operator's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

from quintain.failure import QuintainError
from quintain.nearest import one_of
from quintain.verifiers.base import Cost
from quintain.verifiers.registry import available_verifiers, verifier_class
from quintain.verifiers.service.limits import ServiceLimits

OPERATOR_OPTIONS: Final = frozenset(
    {
        # where a request, a secret or a file comes from
        *("url", "base_url", "engine_url", "token_env", "model", "databases"),
        # what is run, and behind which walls
        *("backend", "unsafe", "runtime", "image", "languages", "python", "pytest_python", "preload"),
        *("folders", "readable"),
        # how much of the machine it takes
        *("workers", "slots", "device", "dtype", "batch_size", "max_tokens", "concurrency"),
    }
)
"""Names of options that only the operator sets, of whichever verifier."""
MEBI: Final = 1 << 20
LIMIT_OPTIONS: Final = ("limits", "compile_limits")
"""Options that say what a program may use; each of their entries is bounded."""
MOST_OUTPUT_BYTES: Final = 16 * MEBI
MOST_FILES_BYTES: Final = 256 * MEBI
MOST_PROCESSES: Final = 256
MAX_PARTS: Final = 64
"""Parts of a rubric, all that is nested counted: each is a verifier with processes of its own."""


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """`allow` names verifiers (`judge`) and options (`judge.url`) that clients may use although they are the
    operator's; `presets` has the operator's own options, by verifier. Raises QuintainError for a name there is not.
    """

    allow: frozenset[str] = frozenset()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    workers: int | None = None

    def __post_init__(self) -> None:
        known = available_verifiers()
        for entry in (*self.allow, *self.presets):
            if entry.partition(".")[0] not in known:
                raise QuintainError(f"there is no verifier {entry!r} to allow or set{one_of(entry, known)}")
        for entry in self.allow:
            name, _, option = entry.partition(".")
            if option and option not in (options := option_names(name)):
                raise QuintainError(f"the verifier {name} has no option {option!r} to allow{one_of(option, options)}")

    def options(self, verifier: str, given: Mapping[str, Any], limits: ServiceLimits) -> dict[str, Any]:
        """The options to make `verifier` with for a client that has `given` some. Raises QuintainError."""
        try:
            size = len(json.dumps(given))
        except RecursionError:
            raise QuintainError("the options are nested too deeply") from None
        if size > limits.options_bytes:
            raise QuintainError(f"options have at most {limits.options_bytes} bytes as JSON, not {size}")
        return self._options(verifier, given, limits, [MAX_PARTS])

    def allows(self, verifier: str, cost: Cost) -> bool:
        """Whether clients may use `verifier` at all."""
        return cost < Cost.MODEL or any(entry.partition(".")[0] == verifier for entry in self.allow)

    def operator_options(self, verifier: str, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the options `names` that clients may not give."""
        return tuple(sorted(n for n in names if n in OPERATOR_OPTIONS and f"{verifier}.{n}" not in self.allow))

    def _options(
        self, verifier: str, given: Mapping[str, Any], limits: ServiceLimits, parts_left: list[int]
    ) -> dict[str, Any]:
        found = verifier_class(verifier)
        if found is not None and not self.allows(verifier, found.cost):
            raise QuintainError(
                f"this server does not offer the verifier {verifier!r}: its operator may start it with"
                f" --allow {verifier}"
            )
        if refused := self.operator_options(verifier, given):
            raise QuintainError(
                f"the option {refused[0]!r} of the verifier {verifier!r} is for this server's operator to set"
                f" (--set {verifier}.{refused[0]}=…) or to allow (--allow {verifier}.{refused[0]})"
            )
        _check_bounds(given, limits)
        options = {**self._workers(verifier), **self.presets.get(verifier, {}), **given}
        if verifier == "rubric":
            options["parts"] = self._parts(options.get("parts"), limits, parts_left)
        return options

    def _parts(self, parts: Any, limits: ServiceLimits, parts_left: list[int]) -> Any:
        if not isinstance(parts, list | tuple):
            return parts  # the rubric says what is wrong with them
        made = []
        for part in parts:
            parts_left[0] -= 1
            if parts_left[0] < 0:
                raise QuintainError(f"a rubric has at most {MAX_PARTS} parts here, those of rubrics within it counted")
            if isinstance(part, Mapping) and isinstance(part.get("verifier"), str):
                given = part.get("options", {})
                if isinstance(given, Mapping):
                    part = {**part, "options": self._options(part["verifier"], given, limits, parts_left)}
            made.append(part)
        return made

    def _workers(self, verifier: str) -> dict[str, Any]:
        return {"workers": self.workers} if self.workers and "workers" in option_names(verifier) else {}


def _check_bounds(given: Mapping[str, Any], limits: ServiceLimits) -> None:
    """Refuse times and sizes that the server does not allow; what is no number is the verifier's to refuse."""
    most = {
        "deadline_s": limits.deadline_s,
        "wall_s": limits.deadline_s,
        "cpu_s": limits.deadline_s,
        "memory_bytes": limits.memory_bytes,
        "output_bytes": MOST_OUTPUT_BYTES,
        "files_bytes": MOST_FILES_BYTES,
        "processes": MOST_PROCESSES,
    }
    named = {"deadline_s": given.get("deadline_s")}
    for option in LIMIT_OPTIONS:
        inner = given.get(option)
        named |= (
            {f"{option}.{name}": inner[name] for name in most if name in inner} if isinstance(inner, Mapping) else {}
        )
    for name, value in named.items():
        bound = most[name.rpartition(".")[2]]
        if isinstance(value, int | float) and not 0 < value <= bound:
            raise QuintainError(f"the option {name} must be more than 0 and at most {bound:g} here, not {value}")


def option_names(verifier: str) -> tuple[str, ...]:
    """The names of the options of `verifier`, where its class tells them. Raises QuintainError for no verifier."""
    found = verifier_class(verifier)
    options = None if found is None else found.options_type
    if options is not None and is_dataclass(options):
        return tuple(each.name for each in fields(options))
    return tuple(getattr(options, "model_fields", ()))
