"""``miles-async clean``: removes what killed or stopped launches have left of their weights in memory.

Promises: a run that lives keeps everything; what is removed is said, with its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.runs.launches import CONFIG_FILE
from miles_async.runs.lock import RunInUseError, RunLock
from miles_async.weights.leftovers import Removed, sweep, tidy
from miles_async.weights.place import shared_root


class CleanError(ConfigError):
    """There is nothing to be cleaned there."""


def clean(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """Remove what is left of these runs, or of all of this user's; also what waits for an evaluation.

    Raises CleanError: one of them lives, or is none.
    """
    found = [removed for run_dir in run_dirs for removed in _clean(run_dir)] if run_dirs else sweep(keep_pins=False)
    return {"bytes": sum(removed.bytes for removed in found), "removed": [msgspec.to_builtins(r) for r in found]}


def show(found: dict[str, Any]) -> str:
    """``found``, as :func:`clean` returned it, for a reader."""
    lines = [f"{size(r['bytes'])} of {r['run_dir']} ({', '.join(r['removed'])})" for r in found["removed"]]
    return "\n".join([*lines, f"removed {size(found['bytes'])}" if lines else "nothing to remove"])


def size(n_bytes: int) -> str:
    """``12.3 MB``."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _shared(run_dir: Path) -> Path | None:
    """What the machines of the run shared, as far as its directory says so."""
    try:
        return shared_root(toml.read(run_dir / CONFIG_FILE), run_dir)
    except (ConfigError, OSError):
        return None


def _clean(run_dir: Path) -> list[Removed]:
    if not run_dir.is_dir():
        raise CleanError(f"{run_dir}: no such directory; what is left of runs that are gone goes with all the others")
    lock = RunLock(run_dir)
    try:
        lock.take()
    except RunInUseError as error:
        raise CleanError(f"{error}: nothing was removed") from None
    try:
        found = tidy(run_dir, on_disk=True, keep_pins=False, shared=_shared(run_dir))
        return [removed for removed in found if removed.removed]
    finally:
        lock.release()
