"""Published weights: what the engine reads is what was written, version after version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quintain.failure import QuintainError
from quintain.rollout.weights.folders import PREFIX, sweep
from quintain.trainers.publishing.weights import WeightStore

SHAPES = {"a.weight": (3, 5), "a.bias": (7,), "scale": (1,)}


def weights(version: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(version)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_reader_finds_each_version_and_the_one_before_it_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    store = WeightStore(tmp_path, dtype, need_bytes=100, shared=tmp_path / "none")
    before = None
    for version in range(4, 9):  # a resumed run begins at any version
        written = store.write(weights(version).items(), version)
        assert written.version == version
        for folder, of in ((written.path, version), *([(before, version - 1)] if before else [])):
            found = load_file(folder / "model.safetensors")
            assert found.keys() == SHAPES.keys()
            for name, tensor in weights(of).items():
                assert torch.equal(found[name], tensor.to(dtype)), (version, name)
        before = written.path
    store.close()
    assert not list(tmp_path.iterdir())


def test_shared_memory_is_used_where_there_is_room_and_the_fallback_where_there_is_not(tmp_path: Path) -> None:
    roomy = WeightStore(tmp_path / "disk", torch.float32, need_bytes=100, shared=tmp_path)
    full = WeightStore(tmp_path / "disk", torch.float32, need_bytes=1 << 60, shared=tmp_path)
    assert roomy.folder.parent == tmp_path
    assert full.folder.parent == tmp_path / "disk"
    assert roomy.folder.name.startswith(PREFIX)


OWNER = """
import sys, time
from pathlib import Path
from quintain.rollout.weights.folders import OwnedFolder
folder = OwnedFolder(Path(sys.argv[1]))
print(folder.path, flush=True)
time.sleep(600)
"""


def test_a_folder_is_removed_once_its_owner_was_killed_and_never_before(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout:
        owned = Path(owner.stdout.readline().strip())
        sweep(tmp_path)
        assert owned.is_dir()
        owner.kill()
        owner.wait()
        sweep(tmp_path)
        assert not owned.exists()


def test_a_folder_is_left_alone_whatever_its_name_says_where_nothing_shows_that_it_is_ours(tmp_path: Path) -> None:
    """The process id of another container is none of ours, and lives although nobody here has it."""
    foreign = tmp_path / f"{PREFIX}4194303-abcdef"
    (foreign / "0").mkdir(parents=True)
    sweep(tmp_path)
    assert (foreign / "0").is_dir()


def test_a_disk_that_refuses_is_one_clear_line_and_leaves_no_half_file(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, torch.float32, need_bytes=100, shared=tmp_path / "none")
    (store.folder / "1").mkdir()
    (store.folder / "1" / "model.safetensors").mkdir()  # no file can be made there
    with pytest.raises(QuintainError, match="cannot write the weights to"):
        store.write(weights(1).items(), 1)
    assert not (store.folder / "1").exists()
