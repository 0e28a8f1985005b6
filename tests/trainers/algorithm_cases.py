"""Every algorithm with options that make it do all it can, and a batch for it; what holds for all is tested over these.

A new algorithm is tested by being listed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .test_update import groups


def sampled(seed: int) -> Any:
    """Groups with a failure in each."""
    return groups(seed, failing=True)


@dataclass(frozen=True)
class Case:
    """An algorithm, its options and what makes a batch from a seed."""

    algorithm: str
    options: dict[str, Any] = field(default_factory=dict)
    data: Callable[[int], Any] = sampled


CASES: dict[str, Case] = {
    "grpo": Case("grpo"),
    "grpo with everything": Case(
        "grpo",
        {
            "beta": 0.1,
            "top_entropy_quantile": 0.6,
            "off_policy_correction": "tis",
            "num_iterations": 2,
            "mask_truncated_completions": True,
        },
    ),
}
