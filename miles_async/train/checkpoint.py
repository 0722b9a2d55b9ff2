"""Checkpoints on disk: which are whole, which is the latest, and how one becomes so.

    root/latest               the name of the newest whole checkpoint, replaced atomically
    root/iter_0000050/        torch_dist shards, common.pt, .metadata, metadata.json, learner.msgpack
    root/.writing-*           a save that was killed; removed by the next one

Promises: a directory named ``iter_*`` is whole: it was written under another name, fsynced, then renamed; ``latest`` changes
after that, and what it points to is never removed. So a kill at any moment leaves the previous checkpoint loadable.
``learner.msgpack`` (version and the caller's own state) is readable without torch.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec

LATEST = "latest"
LEARNER_STATE = "learner.msgpack"
_WRITING = ".writing-"
_NAME = re.compile(r"iter_(\d{7,})(?:_(\d+))?")


class CheckpointError(RuntimeError):
    """No whole checkpoint where one was expected, or one that does not fit."""


class LearnerState(msgspec.Struct, frozen=True):
    """What a checkpoint says besides tensors."""

    version: int
    extra: dict[str, Any]
    critic: bool = False  # whether its weights are there


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint under ``root``; None if there is none. Raises CheckpointError for a broken pointer."""
    try:
        name = (root / LATEST).read_text().strip()
    except FileNotFoundError:
        return None
    if not _NAME.fullmatch(name) or not (root / name / LEARNER_STATE).is_file():
        raise CheckpointError(f"{root / LATEST} names {name!r}, which is no checkpoint in {root}")
    return root / name


def resolve(directory: Path) -> Path:
    """The checkpoint meant by ``directory``: itself, or the latest one in it. Raises CheckpointError."""
    if (directory / LEARNER_STATE).is_file():
        return directory
    found = latest(directory)
    if found is None:
        raise CheckpointError(f"no checkpoint in {directory}: there is no {LATEST} file")
    return found


def read_state(checkpoint: Path) -> LearnerState:
    """Version and extra state of a whole checkpoint. Raises CheckpointError."""
    try:
        return msgspec.msgpack.decode((checkpoint / LEARNER_STATE).read_bytes(), type=LearnerState)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{checkpoint / LEARNER_STATE}: {error}") from None


def begin(root: Path, version: int) -> Path:
    """An empty directory to write version ``version`` into; what earlier, killed saves left is removed."""
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(f"{_WRITING}*"):
        shutil.rmtree(stale)
    writing = root / f"{_WRITING}{version:07d}"
    writing.mkdir()
    return writing


def commit(root: Path, writing: Path, state: LearnerState, keep: int) -> Path:
    """Make what lies in ``writing`` the latest checkpoint, then remove all but the newest ``keep``. Returns its path."""
    (writing / LEARNER_STATE).write_bytes(msgspec.msgpack.encode(state))
    for path in sorted(writing.rglob("*")):
        _fsync(path)
    _fsync(writing)
    name = f"iter_{state.version:07d}"
    again = 0
    while (root / name).exists():  # a replayed run may save a version twice; the old one stays valid until the end
        again += 1
        name = f"iter_{state.version:07d}_{again}"
    writing.rename(root / name)
    _fsync(root)
    pointer = root / f".{LATEST}"
    pointer.write_text(name + "\n")
    _fsync(pointer)
    pointer.replace(root / LATEST)
    _fsync(root)
    _prune(root, name, keep)
    return root / name


def _prune(root: Path, newest: str, keep: int) -> None:
    """Keep ``newest`` and the ``keep - 1`` highest others. Removal goes through a rename: no half-removed iter_*."""
    matches = [match for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    ordered = sorted(matches, key=lambda m: (int(m[1]), int(m[2] or 0)), reverse=True)
    others = [match[0] for match in ordered if match[0] != newest]
    for name in others[keep - 1 :]:
        doomed = root / f"{_WRITING}removed-{name}"
        (root / name).rename(doomed)
        shutil.rmtree(doomed)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
