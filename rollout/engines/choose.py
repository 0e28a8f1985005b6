"""The engine that an experiment names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from quintain.config import ExperimentConfig
from quintain.failure import QuintainError
from quintain.loading import load_module
from quintain.rollout.engines.base import Engine


def say_progress(text: str) -> None:
    """Print a line that the launcher of this process shows."""
    print(json.dumps({"event": "progress", "text": text}), flush=True)


def make_engine(
    config: ExperimentConfig,
    running: Callable[[], int],
    *,
    logs: Path | None = None,
    report: Callable[[str], None] = say_progress,
) -> Engine:
    """The engine of `config`, ready. `logs` keeps what servers print that it starts; `report` hears how that goes.

    The embedded engine samples in lockstep with the episodes that are `running` at staleness 0, so that runs are
    reproducible, unless some hold up the others for half of what an environment gives a step. QuintainError where it
    cannot be made.
    """
    if config.rollout.dtype == "auto":
        raise QuintainError("rollout.dtype is still 'auto': `quintain.rollout.engines.dtypes.settled` chooses one")
    if config.rollout.engine == "vllm":
        from quintain.rollout.engines.vllm.start import open_vllm

        return open_vllm(config, logs=logs or Path("logs"), report=report)
    if ":" in config.rollout.engine:
        return _own_engine(config.rollout.engine, config)
    from quintain.rollout.engines.embedded.engine import EmbeddedEngine

    return EmbeddedEngine(
        config.model.path,
        dtype=config.rollout.dtype,
        device=config.rollout.device,
        max_batch=config.rollout.max_batch,
        max_length=config.rollout.max_length,
        threads=config.rollout.threads,
        expected=running if config.rollout.max_staleness == 0 else None,
        patience_s=min(played.step_timeout_s for played in config.plays) / 2,
        report=report,
    )


def _own_engine(spec: str, config: ExperimentConfig) -> Engine:
    """What the factory that `spec` names makes of `config`."""
    place, _, name = spec.rpartition(":")
    factory = getattr(load_module(place), name, None)
    if not callable(factory):
        raise QuintainError(f"rollout.engine: {place} has no {name!r} to call with the experiment's configuration")
    engine = factory(config)
    if not isinstance(engine, Engine):
        raise QuintainError(f"rollout.engine: {spec} gave a {type(engine).__name__}: it must give an Engine")
    return engine


def check_engine(engine: Engine) -> None:
    """QuintainError where `engine` has lost its servers for good: whoever serves it ends, and its prompts stay pending.

    Only an engine with servers of its own can lose them.
    """
    lost = getattr(engine, "lost", None)
    if lost is not None:
        raise QuintainError(f"no vLLM replica is left: {lost}")
