"""Which checkpoints are whole, which is the latest, and what stays."""

from pathlib import Path

import pytest

from miles_async.train import checkpoint
from miles_async.train.checkpoint import CheckpointError, LearnerState


def save(root: Path, version: int, keep: int = 2, **extra: object) -> Path:
    writing = checkpoint.begin(root, version)
    (writing / "shard").write_text(str(version))
    return checkpoint.commit(root, writing, LearnerState(version=version, extra=extra), keep)


def test_the_latest_checkpoint_is_the_one_committed_last(tmp_path: Path):
    save(tmp_path, 10, position=3)
    path = save(tmp_path, 20, position=7)
    assert checkpoint.latest(tmp_path) == path
    assert checkpoint.read_state(path) == LearnerState(version=20, extra={"position": 7})


def test_a_save_that_was_killed_is_not_seen_and_later_removed(tmp_path: Path):
    path = save(tmp_path, 10)
    (checkpoint.begin(tmp_path, 20) / "shard").write_text("half")
    assert checkpoint.latest(tmp_path) == path
    save(tmp_path, 30)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["iter_0000010", "iter_0000030", "latest"]


def test_a_kill_between_rename_and_pointer_leaves_the_old_one_the_latest(tmp_path: Path, monkeypatch):
    old = save(tmp_path, 10)

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        save(tmp_path, 20)
    assert checkpoint.latest(tmp_path) == old
    new = save(tmp_path, 20)
    assert checkpoint.latest(tmp_path) == new


def test_only_the_newest_stay(tmp_path: Path):
    for version in (1, 2, 3, 4):
        save(tmp_path, version, keep=2)
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000003", "iter_0000004"]


def test_the_latest_stays_even_if_a_replay_saved_an_older_version(tmp_path: Path):
    save(tmp_path, 8, keep=1)
    path = save(tmp_path, 5, keep=1)
    assert checkpoint.latest(tmp_path) == path
    assert [found.name for found in tmp_path.glob("iter_*")] == ["iter_0000005"]


def test_saving_a_version_again_does_not_touch_the_first_until_the_second_is_whole(tmp_path: Path):
    save(tmp_path, 5, attempt=1)
    path = save(tmp_path, 5, attempt=2)
    assert path.name == "iter_0000005_1"
    assert checkpoint.read_state(checkpoint.resolve(tmp_path)).extra == {"attempt": 2}


def test_no_checkpoint_is_said_in_one_line(tmp_path: Path):
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.resolve(tmp_path)
    (tmp_path / "latest").write_text("iter_0000007\n")
    with pytest.raises(CheckpointError, match="iter_0000007"):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_is_found_by_its_own_path_too(tmp_path: Path):
    first = save(tmp_path, 1)
    save(tmp_path, 2)
    assert checkpoint.resolve(first) == first


def test_every_file_is_on_disk_before_the_directory_gets_its_name_and_the_pointer_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[str] = []
    rename, replace, fsync = Path.rename, Path.replace, checkpoint._fsync

    def noted(name: str, result: object) -> object:
        done.append(name)
        return result

    def move(path: Path, target: Path) -> str:
        return f"{path.name} -> {target.name}"

    monkeypatch.setattr(Path, "rename", lambda path, target: noted(move(path, target), rename(path, target)))
    monkeypatch.setattr(Path, "replace", lambda path, target: noted(move(path, target), replace(path, target)))
    monkeypatch.setattr(checkpoint, "_fsync", lambda path: noted(path.name, fsync(path)))
    save(tmp_path, 7)
    place, pointer = done.index(".writing-0000007 -> iter_0000007"), done.index(".writing-latest -> latest")
    assert {"shard", "learner.msgpack", ".writing-0000007"} <= set(done[:place])
    assert done[place + 1 : pointer] == [tmp_path.name, ".writing-latest"]  # the new name is on disk before the pointer
    assert done[pointer + 1] == tmp_path.name
