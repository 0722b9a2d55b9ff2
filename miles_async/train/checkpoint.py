"""Checkpoints on disk: which are whole, which is the latest, and how one becomes so.

    root/latest               the name of the newest whole checkpoint, replaced atomically
    root/iter_0000050/        shards, .metadata, learner.msgpack, checksums.json; of Megatron common.pt and metadata.json, too
    root/damaged-iter_*       one that is not as it was written; removed when enough newer ones are kept
    root/.writing-*           a save under way, or one that was killed, which the next one or the next learner removes

Promises: a directory named ``iter_*`` is whole: it was written under another name, fsynced, then renamed; ``latest`` changes
after that, and what it points to is never removed. So a kill at any moment leaves the previous checkpoint loadable. A learner
that has been replaced makes no checkpoint and moves no ``latest``, whenever it gets to it (``disk/fence.py``).
``learner.msgpack`` (version and the caller's own state) is readable without torch. What became of a checkpoint on its disk
:func:`verify` says, before anything of it is read; which one a learner goes on from, ``checkpoint_choice.py``.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from miles_async.config.lora import Lora
from miles_async.disk.fence import before_it_counts, is_earlier, mark
from miles_async.train import checksums

LATEST = "latest"
LEARNER_STATE = "learner.msgpack"
_WRITING = ".writing-"
_State = TypeVar("_State", bound="LearnerState")
_DAMAGED = "damaged-"
_NAME = re.compile(r"iter_(\d{7,})(?:_(\d+))?")


class CheckpointError(ValueError):
    """No whole checkpoint where one was expected, one that is damaged, or one that does not fit."""


class LearnerState(msgspec.Struct, frozen=True):
    """What a checkpoint says besides tensors."""

    version: int
    extra: dict[str, Any]
    critic: bool = False  # whether its weights are there
    skipped_in_a_row: int = 0  # the last optimizer steps, without a gradient that is finite
    kept: tuple[str, ...] = ()  # further weights that are there, see kept_weights.py
    backend: str = "megatron"  # learner.train_backend; earlier versions did not say it
    lora: Lora | None = None  # of the policy only these adapters are there


class _Written(LearnerState, frozen=True):
    checked: bool = False  # whether checksums.json belongs to it; earlier versions wrote none


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint under ``root``; None if there is none. Raises CheckpointError for a broken pointer."""
    name = pointed(root)
    if name is None:
        return None
    if not _NAME.fullmatch(name) or not (root / name / LEARNER_STATE).is_file():
        raise CheckpointError(f"{root / LATEST} names {name!r}, which is no checkpoint in {root}")
    return root / name


def pointed(root: Path) -> str | None:
    """The name in ``latest``; None if there is no such file."""
    try:
        return (root / LATEST).read_bytes()[:100].decode(errors="replace").strip()
    except FileNotFoundError:
        return None


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
    return _read(checkpoint, LearnerState)


def _read(checkpoint: Path, kind: type[_State]) -> _State:
    try:
        return msgspec.msgpack.decode((checkpoint / LEARNER_STATE).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{checkpoint / LEARNER_STATE}: {error}") from None


def verify(checkpoint: Path) -> bool:
    """Whether every file of it is as it was written; False: it has no checksums, an earlier version wrote it.

    Raises CheckpointError naming the files that are not.
    """
    found = checksums.faults(checkpoint)
    if found is None:
        if not _read(checkpoint, _Written).checked:
            return False
        found = [f"{checksums.CHECKSUMS} is missing"]
    if found:
        raise CheckpointError(f"{checkpoint} is damaged: {'; '.join(found)}")
    return True


def kept(root: Path) -> list[Path]:
    """The whole checkpoints under ``root``: the one that ``latest`` names, then the others, newest first."""
    matches = [match for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    names = [match[0] for match in sorted(matches, key=lambda m: (int(m[1]), int(m[2] or 0)), reverse=True)]
    newest = pointed(root)
    return [root / name for name in sorted(names, key=lambda name: name != newest)]


def checkpoint_of_step(root: Path, step: int) -> Path:
    """The whole checkpoint of ``step`` under ``root``. Raises CheckpointError: there is none, and of which there are."""
    there = {read_state(path).version: path for path in reversed(kept(root))} if root.is_dir() else {}
    if step not in there:
        steps = ", ".join(map(str, sorted(there))) or "none"
        raise CheckpointError(f"{root}: no checkpoint of step {step}; those of its steps: {steps}")
    return there[step]


def set_aside(checkpoint: Path) -> Path:
    """Take a damaged one out of the way of those that are whole, for whoever wants to look at it. Returns its new path."""
    place, again = checkpoint.with_name(_DAMAGED + checkpoint.name), 0
    while place.exists():
        again += 1
        place = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}.{again}")
    return checkpoint.rename(place)


def point(root: Path, name: str | None) -> None:
    """Make ``name`` the latest; None: there is none."""
    if name is None:
        (root / LATEST).unlink(missing_ok=True)
    else:
        pointer = root / f"{_WRITING}{mark()}{LATEST}"
        pointer.write_text(name + "\n")
        _fsync(pointer)
        before_it_counts()
        pointer.replace(root / LATEST)
    _fsync(root)


def begin(root: Path, version: int) -> Path:
    """An empty directory to write version ``version`` into; what earlier, killed saves left is removed."""
    before_it_counts()
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    writing = root / f"{_WRITING}{mark()}{version:07d}"
    writing.mkdir()
    return writing


def sweep(root: Path) -> None:
    """Remove the drafts of earlier lives, and our own: none of them becomes a checkpoint, or the latest, after this."""
    for draft in root.glob(f"{_WRITING}*"):
        if is_earlier(draft.name.removeprefix(_WRITING)):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)


def commit(root: Path, writing: Path, state: LearnerState, keep: int) -> Path:
    """Make what lies in ``writing`` the latest checkpoint, then remove all but the newest ``keep``. Returns its path."""
    written = _Written(**msgspec.structs.asdict(state), checked=True)
    (writing / LEARNER_STATE).write_bytes(msgspec.msgpack.encode(written))
    checksums.write(writing)
    for path in sorted(writing.rglob("*")):
        _fsync(path)
    _fsync(writing)
    name = f"iter_{state.version:07d}"
    again = 0
    while (root / name).exists():  # a replayed run may save a version twice; the old one stays valid until the end
        again += 1
        name = f"iter_{state.version:07d}_{again}"
    before_it_counts()
    writing.rename(root / name)
    _fsync(root)
    point(root, name)
    _prune(root, keep)
    return root / name


def _prune(root: Path, keep: int) -> None:
    """Keep the latest and the ``keep - 1`` highest others. Removal goes through a rename: no half-removed iter_*."""
    before_it_counts()
    whole = kept(root)
    damaged = list(root.glob(f"{_DAMAGED}*")) if len(whole) >= keep else []
    for path in [*whole[keep:], *damaged]:
        doomed = root / f"{_WRITING}{mark()}removed-{path.name}"
        path.rename(doomed)
        shutil.rmtree(doomed)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
