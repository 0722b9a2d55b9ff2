"""Whether a snapshot is what its learner wrote: where it lies, whose it is, and every byte of its weights.

Promises: a file that was cut short, changed in any byte (``sealed.py``), or exchanged for another one is found, and said in one
line; so is one that lies elsewhere than the run's snapshots do, or says that it is of another version or incarnation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bus.messages import Snapshot
from miles_async.config.schema import RunConfig
from miles_async.engines.weight_paths import inside
from miles_async.weights.place import ON_DISK, in_memory, shared_root
from miles_async.weights.sealed import CHECKSUM, SnapshotError, checksum_of, said_by
from miles_async.weights.snapshot import WEIGHTS_FILE, snapshot_name


def roots_of(config: RunConfig, run_dir: Path) -> tuple[Path, ...]:
    """Where the learner of the run may have put its snapshots (``snapshot.choose_root``)."""
    chosen = config.weights.snapshot_dir
    ours = (in_memory(run_dir), run_dir / ON_DISK, shared_root(config, run_dir))
    return ours if chosen is None else (Path(chosen),)


def check(snapshot: Snapshot, roots: Sequence[Path]) -> None:
    """Raises SnapshotError: it is not in its place in one of ``roots``, not the one that was announced, or damaged."""
    path = Path(snapshot.path)
    if path.name != snapshot_name(snapshot.incarnation, snapshot.version) or inside(path, roots) is None:
        raise SnapshotError(f"{path} is no place of this run's snapshot of version {snapshot.version}")
    check_weights(path, snapshot.version, snapshot.incarnation, snapshot.checksum)


def check_weights(path: Path, version: int, incarnation: int, checksum: str) -> None:
    """Raises SnapshotError: the weights in ``path`` are others, or damaged."""
    file = path / WEIGHTS_FILE
    said = said_by(file)
    named = (said.get("weight_version"), said.get("incarnation"), said.get(CHECKSUM))
    if named != (str(version), str(incarnation), checksum) or not checksum:
        raise SnapshotError(f"{file} is of version {named[0]}, incarnation {named[1]}, and not what was announced")
    if (found := checksum_of(file)) != checksum:
        raise SnapshotError(f"{file} is damaged: its checksum is {found[:16]}..., not {checksum[:16]}...")


def announced_checksum(path: Path) -> str:
    """What the snapshot in ``path`` says itself; empty: nothing."""
    try:
        return said_by(path / WEIGHTS_FILE).get(CHECKSUM, "")
    except SnapshotError:
        return ""
