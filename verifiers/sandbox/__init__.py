"""Sandboxes: where code runs that nobody trusts. `quintain.verifiers.sandbox.interface` is the contract."""

from __future__ import annotations

from quintain.verifiers.sandbox.interface import (
    Execution,
    Limits,
    Program,
    Protection,
    Running,
    Sandbox,
    Session,
    Status,
)

__all__ = ["Execution", "Limits", "Program", "Protection", "Running", "Sandbox", "Session", "Status"]
