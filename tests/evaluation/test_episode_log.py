"""The log of an evaluation's episodes: whatever a kill leaves behind, what was finished is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quintain.arrays import as_floats, as_ints
from quintain.codec import pack
from quintain.evaluation.episode_log import EPISODES, EpisodeLog, read_episodes
from quintain.evaluation.evaluate import fingerprint
from quintain.failure import Failure, FailureError, FailureKind, QuintainError, Stage
from quintain.messages import assistant
from quintain.trajectory import Ending, Finish, Trajectory, Turn, VersionSpan

from ..full_disk import full_disk


def episode(index: int, member: int = 0, *, failed: bool = False) -> Trajectory:
    logprobs = as_floats(np.array([-0.1, -np.inf], np.float32))
    spans = (VersionSpan(0, 0, 2),)
    turn = Turn(as_ints([1]), as_ints([2, 3]), logprobs, Finish.STOP, spans, assistant("ü\n"), reward=0.1)
    failure = Failure.of(FailureKind.TIMEOUT, Stage.STEP, "slow") if failed else None
    ending = Ending.FAILED if failed else Ending.TERMINATED
    return Trajectory("i", "g", f"t/{index}", index, member, 5, (turn,), ending, None if failed else 0.1, failure)


def test_every_prefix_of_the_file_reads_as_the_episodes_that_were_whole(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path / "whole", {}) as log:
        for index in range(3):
            log.add(episode(index))
    data = (tmp_path / "whole" / EPISODES).read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    folder = tmp_path / "cut"
    folder.mkdir()
    for cut in range(0, len(data) + 1, 7):
        (folder / EPISODES).write_bytes(data[:cut])
        rows, whole = read_episodes(folder)
        assert len(rows) == sum(end <= cut for end in ends)
        assert whole == max([0, *(end for end in ends if end <= cut)])
    with EpisodeLog(tmp_path / "whole", {}) as log:
        assert [pack(row) for row in log.finished.values()] == [pack(episode(index)) for index in range(3)]


def test_a_torn_line_is_cut_off_before_the_next_is_written(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, {"seed": 1}) as log:
        log.add(episode(0))
    with (tmp_path / EPISODES).open("ab") as file:
        file.write(b'{"id": "half')
    with EpisodeLog(tmp_path, {"seed": 1}) as log:
        log.add(episode(1, 2))
    with EpisodeLog(tmp_path, {"seed": 1}) as log:
        assert [place for _, place in log.finished] == [(0, 0), (1, 2)]


def test_an_episode_that_was_played_again_counts_as_it_came_out_last(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, {}) as log:
        log.add(episode(0, failed=True))
        log.add(episode(0))
    with EpisodeLog(tmp_path, {}) as log:
        assert [row.reward for row in log.finished.values()] == [0.1]


def test_damage_before_the_end_is_one_clear_line(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, {}) as log:
        log.add(episode(0))
    (tmp_path / EPISODES).write_bytes(b"{}\n" + (tmp_path / EPISODES).read_bytes())
    with pytest.raises(QuintainError, match=r"episodes.jsonl line 1 is damaged"):
        EpisodeLog(tmp_path, {})


def test_an_identity_may_grow_and_never_change(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, {"seed": 1, "sizes": (1, 2)}) as log:
        log.settle("version", "A 1")
        with pytest.raises(QuintainError, match='its version is "A 1", not "A 2"'):
            log.settle("version", "A 2")
    with EpisodeLog(tmp_path, {"seed": 1, "sizes": (1, 2)}):
        pass
    with pytest.raises(QuintainError, match="holds another evaluation: its seed is 1, not 2"):
        EpisodeLog(tmp_path, {"seed": 2})


def test_what_a_kill_at_the_very_beginning_leaves_is_gone_on_with_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / EPISODES).touch()
    (tmp_path / ".evaluation.json.0-ab.tmp").write_text('{"se')
    with EpisodeLog(tmp_path, {"seed": 1}) as log:
        log.add(episode(0))
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(QuintainError, match="is no evaluation's folder"):
        EpisodeLog(tmp_path, {"seed": 1})


def test_a_full_disk_is_a_failure_that_spoils_no_line(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, {}) as log:
        log.add(episode(0))
        size = (tmp_path / EPISODES).stat().st_size
        with (
            full_disk(size + size // 2),  # room for half an episode
            pytest.raises(FailureError, match="free space on its disk") as caught,
        ):
            log.add(episode(1))
        assert caught.value.failure.kind is FailureKind.RESOURCE
        log.add(episode(2))
    with EpisodeLog(tmp_path, {}) as log:
        assert [place for _, place in log.finished] == [(0, 0), (2, 0)]


def test_other_weights_in_the_same_folder_are_another_model(tmp_path: Path) -> None:
    assert fingerprint(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(300_000))
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    weights.write_bytes(bytes(299_999) + b"\x01")
    assert fingerprint(tmp_path) not in (first, None)
