"""The processes of a run that trains in several: starting them, or being one that torchrun has started.

Rank 0 is the process that `quintain train` is; it starts the others, or torchrun (`accelerate launch`) starts all. What
always holds: ranks end with the one who started them; no server of the run takes itself for a rank.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from quintain.config import ExperimentConfig
from quintain.failure import QuintainError
from quintain.launch.run_folder import RunFolder
from quintain.launch.supervisor import ServerSpec, Supervisor, python_module
from quintain.lifeline import die_with_parent, hold_lifeline

STORE_ENV = "QUINTAIN_RANKS"
"""The file at which the ranks of `trainer.processes` meet: nothing listens while they do."""


def check_ranks(config: ExperimentConfig, environ: Mapping[str, str]) -> None:
    """QuintainError where there cannot be as many ranks as `trainer.processes` says, or a launcher started others."""
    wanted, launched = config.trainer.processes, int(environ.get("WORLD_SIZE", "1"))
    if launched > 1 and wanted not in (1, launched):
        raise QuintainError(
            f"trainer.processes: {wanted}, but a launcher has started {launched} (WORLD_SIZE): leave one of them out"
        )
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if launched > 1 and missing:
        raise QuintainError(
            f"WORLD_SIZE is {launched}, but {', '.join(missing)} are not set: start the ranks with torchrun, or leave"
            " them out and set trainer.processes"
        )
    cores = os.cpu_count() or 1
    if wanted > cores:
        raise QuintainError(f"trainer.processes: {wanted} asked for, this machine has {cores} cores: lower it")
    if config.trainer.parallel == "fsdp" and max(wanted, launched) == 1:
        raise QuintainError("trainer.parallel: fsdp shards a model over processes: set trainer.processes, at least 2")


def start_ranks(supervisor: Supervisor, config: ExperimentConfig, run: RunFolder) -> None:
    """Start the ranks beyond this one, which becomes rank 0; nothing where there are none, or a launcher did."""
    world = config.trainer.processes
    if world == 1 or "WORLD_SIZE" in os.environ:
        return
    store = run.logs / "ranks"
    store.parent.mkdir(parents=True, exist_ok=True)
    store.unlink(missing_ok=True)
    for rank in range(world):
        environ = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "GLOO_SOCKET_IFNAME": "lo",
            STORE_ENV: str(store.resolve()),
        }
        if rank == 0:
            os.environ.update(environ)
            continue
        log = run.logs / f"rank-{rank}.log"
        spec = ServerSpec(
            f"trainer's rank {rank}", lambda port: python_module("quintain.launch.ranks"), log, environ, restarts=0
        )
        supervisor.start(spec)


def is_follower(environ: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as another rank than the first."""
    return int(environ.get("RANK", "0")) > 0


def follow_launched(config: ExperimentConfig) -> int:
    """Be one of a launcher's ranks, which see `config`. Their stop is that of rank 0."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from quintain.launch.session import follow

    return follow(config)


def main() -> int:
    """Be one of the ranks that `start_ranks` starts."""
    hold_lifeline()
    print('{"event": "ready", "url": "rank"}', flush=True)
    from quintain.launch.session import follow

    return follow(None)


if __name__ == "__main__":
    raise SystemExit(main())
