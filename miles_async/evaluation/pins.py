"""Snapshots kept for an evaluation: hard links beside the learner's own, which it removes after two more versions.

Promises: a pin that can be seen is complete (it is renamed into place) and costs no copy where the file system has hard
links; there are never more than the bound that the one who pins gives, whatever became of the evaluator; the oldest go first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from miles_async.weights.place import PIN_NAME
from miles_async.weights.snapshot import WEIGHTS_FILE, SnapshotError


def pin_path(snapshot: Path | str) -> Path:
    """Where the pin of ``snapshot`` lies, or would."""
    path = Path(snapshot)
    return path.with_name(f"eval-{path.name}")


def pin(snapshot: Path | str, keep: int) -> Path:
    """Keep ``snapshot``; all pins but the newest ``keep`` are removed. Raises SnapshotError: it is not there, or not whole."""
    source, final = Path(snapshot), pin_path(snapshot)
    if final.is_dir():
        return final
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        for file in sorted(source.iterdir()):
            _link(file, draft / file.name)
        if not (draft / WEIGHTS_FILE).is_file():
            raise SnapshotError(f"{source} has no {WEIGHTS_FILE}")
        draft.rename(final)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise SnapshotError(f"cannot keep {source}: {error.strerror or error}") from None
    except SnapshotError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    pins = sorted(pins_in(final.parent), key=_age)
    for old in pins[: max(0, len(pins) - keep)]:
        unpin(old)
    return final


def unpin(path: Path) -> None:
    """Remove a pin, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def pins_in(root: Path) -> list[Path]:
    """The pins in a directory of snapshots."""
    try:
        return [path for path in root.iterdir() if PIN_NAME.fullmatch(path.name)]
    except OSError:
        return []


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # the evaluator has removed it meanwhile
        return 0


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copy(source, target)
