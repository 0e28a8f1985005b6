"""Two processes that train one model make of it what one makes, however they share it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quintain.trainers.checkpoint import Progress, save_checkpoint
from quintain.trainers.ranks import Ranks, is_loss

from .ranks_at_work import PAIRS, trained
from .test_learner import model  # noqa: F401

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the fixture runs all cases on two ranks


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:  # noqa: F811
    folder = tmp_path_factory.mktemp("ranks")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.trainers.ranks_at_work"]
    logs = [(folder / f"rank-{rank}.log").open("w+") for rank in range(2)]
    ranks = [
        subprocess.Popen([*command, str(rank), folder, model], env=environ, cwd=ROOT, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(1100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "".join(Path(log.name).read_text() for log in logs)
    found: dict[tuple[str, str], Any] = torch.load(folder / "results.pt")
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process makes of each case, once it has."""
    return {}


@pytest.mark.parametrize(("way", "name"), PAIRS)
def test_two_ranks_make_of_a_model_what_one_makes(
    results: dict[tuple[str, str], Any],
    model: Path,  # noqa: F811
    alone: dict[str, Any],
    tmp_path: Path,
    way: str,
    name: str,
) -> None:
    mine = alone[name] = alone.get(name) or trained(name, model, {}, tmp_path)
    theirs = results[way, name]
    for one, two in zip(mine["figures"], theirs["figures"], strict=True):
        assert one.keys() == two.keys()
        one = {key: value for key, value in one.items() if key != "microbatches"}
        assert {key: two[key] for key in one} == pytest.approx(one, rel=1e-5, abs=1e-6)
    for key, weight in mine["weights"].items():
        atol = 5e-4 if "muon" in name else 1e-5  # Muon rounds to bfloat16
        assert torch.allclose(theirs["weights"][key].float(), weight.float(), atol=atol), key


_JOINS = """
import sys; from pathlib import Path; from quintain.trainers.ranks import Ranks
Ranks.joined(1, 2, Path(sys.argv[1]))
"""


def test_a_rank_that_is_gone_while_a_checkpoint_is_written_is_no_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    root, layer = tmp_path / "checkpoints", torch.nn.Linear(2, 2)
    models = {"policy": (layer, torch.optim.SGD(layer.parameters(), lr=0.1))}
    other = subprocess.Popen([sys.executable, "-c", _JOINS, tmp_path / "store"])
    ranks = Ranks.joined(0, 2, tmp_path / "store")
    assert other.wait(120) == 0
    try:
        with pytest.raises(RuntimeError) as error:
            save_checkpoint(root, Progress(1, 1, 1, 1.0), models, None, keep=1, ranks=ranks)
    finally:
        ranks.leave()
    assert is_loss(error.value), error.value
    assert list(root.iterdir()) == []
