"""Kept snapshots: one that an evaluation keeps outlives the learner's, is no copy, and their number is bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from evaluations import snapshot

from miles_async.evaluation.pins import pin, pin_path, pins_in, unpin
from miles_async.weights.snapshot import WEIGHTS_FILE, SnapshotError, prune


def test_a_kept_snapshot_outlives_the_learners_and_is_no_copy(tmp_path: Path) -> None:
    source = snapshot(tmp_path, 4)
    inode = (source / WEIGHTS_FILE).stat().st_ino
    kept = pin(source, keep=3)
    snapshot(tmp_path, 5), snapshot(tmp_path, 6)
    prune(tmp_path, 2)
    assert not source.exists()
    assert (kept / WEIGHTS_FILE).read_bytes() == bytes([4]) * 10 and (kept / WEIGHTS_FILE).stat().st_ino == inode
    assert pin(source, keep=3) == kept  # found, though the snapshot is gone
    unpin(kept)
    assert pins_in(tmp_path) == []
    with pytest.raises(SnapshotError, match="cannot keep"):
        pin(source, keep=3)


def test_what_nobody_takes_away_is_bounded(tmp_path: Path) -> None:
    for version in range(6):
        os.utime(pin(snapshot(tmp_path, version), keep=2), (version, version))
    assert {path.name for path in pins_in(tmp_path)} == {"eval-i0001-v00000004", "eval-i0001-v00000005"}


def test_half_a_snapshot_is_not_kept(tmp_path: Path) -> None:
    source = snapshot(tmp_path, 1)
    (source / WEIGHTS_FILE).unlink()
    with pytest.raises(SnapshotError, match=f"no {WEIGHTS_FILE}"):
        pin(source, keep=2)
    assert not pin_path(source).exists() and sorted(path.name for path in tmp_path.iterdir()) == [source.name]
